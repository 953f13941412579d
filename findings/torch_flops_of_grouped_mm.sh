#!/usr/bin/env bash
# torch's FlopCounterMode counts nothing for grouped_mm, the product that transformers' mixture-of-experts layers use by
# default: the experts of such a model, most of its work, are missing from the total, without a warning. The same
# product as batched matrices is counted. A figure of operations for a mixture must come from a formula, or from the
# model with experts_implementation="batched_mm" or "eager".
# Seen with torch 2.13.0 on a CPU. Exits 1 where that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PY'
import sys

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

tokens, width, experts = 32, 16, 2
x = torch.randn(tokens, width, dtype=torch.bfloat16)
weights = torch.randn(experts, width, width, dtype=torch.bfloat16)
ends = torch.tensor([16, 32], dtype=torch.int32)
grouped = getattr(F, "grouped_mm", None) or torch._grouped_mm

with FlopCounterMode(display=False) as by_group:
    one = grouped(x, weights, offs=ends)
with FlopCounterMode(display=False) as by_batch:
    other = torch.bmm(x.view(experts, -1, width), weights).view(tokens, width)
same = torch.allclose(one.float(), other.float(), atol=0.1)
print(f"torch {torch.__version__}: grouped_mm counts {by_group.get_total_flops()}, the same as bmm "
      f"{by_batch.get_total_flops()}; equal results: {same}")
sys.exit(0 if (by_group.get_total_flops(), by_batch.get_total_flops(), same) == (0, 2 * tokens * width * width, True) else 1)
PY
