#!/bin/bash
# transformers: an attention function registered with AttentionInterface is not told PhiMoE's sliding window, which only
# the mask knows (Mistral's layers pass theirs); one that builds no mask computes full attention beyond the window.
# Second: position ids that step back, without an attention mask, are read as several packed rows, and tokens lose sight
# of those before the step; with a 2-D mask of ones, which says the same about padding, they do not.
# Exits 1 where that has changed.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0
venv/bin/python -m pip install -q --disable-pip-version-check transformers==5.19.0 numpy
venv/bin/python -W ignore - <<'P'
import sys

import torch
import transformers
from transformers import AttentionInterface, MistralConfig, MistralForCausalLM, PhimoeConfig, PhimoeForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

transformers.logging.set_verbosity_error()
told = []


def mine(module, query, key, value, attention_mask, **more):
    told.append(more.get("sliding_window"))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **{**more, "is_causal": True})


AttentionInterface.register("mine", mine)
torch.manual_seed(0)
shape = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=2, sliding_window=4)
ids = torch.randint(5, 50, (1, 20))
found = {}
print("transformers", transformers.__version__, "torch", torch.__version__)
for kind, config in ((MistralForCausalLM, MistralConfig(**shape)),
                     (PhimoeForCausalLM, PhimoeConfig(**shape, num_local_experts=2))):
    model = kind._from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits
        model.set_attn_implementation("mine")
        other = model(ids, use_cache=False).logits
    found[kind.__name__] = told[-1]
    print(f"{kind.__name__}: sliding_window {config.sliding_window}, told {told[-1]}, "
          f"logits beyond it differ by {float((plain - other)[0, 10:].abs().max()):.2g}")
model = MistralForCausalLM(MistralConfig(**{**shape, "sliding_window": None})).eval()
back = torch.tensor([[*range(10), *range(3, 13)]])
with torch.no_grad():
    without = model(ids, position_ids=back, use_cache=False).logits[0, 10:]
    with_ones = model(ids, position_ids=back, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, 10:]
apart = float((without - with_ones).abs().max())
print(f"positions 0..9, 3..12: logits after the step back differ by {apart:.2g} with and without a mask of ones")
same = found["MistralForCausalLM"] == 4 and found["PhimoeForCausalLM"] is None and apart > 1e-3
print("as described" if same else "CHANGED")
sys.exit(not same)
P
