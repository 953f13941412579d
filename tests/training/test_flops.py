"""Operations by formula: against torch's counter on small models, and against sums over single tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from not_none import not_none
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GptOssConfig, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from treewright.kernels import TreePlan
from treewright.training.flops import DecoderWork, work_of_config, work_of_folder, work_of_model

SIZES = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
    intermediate_size=96, vocab_size=128, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama, tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gpt-oss": lambda: GptOssConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "qwen3 of experts": lambda: Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0],
    ),
    "gpt2": lambda: GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=128, bos_token_id=0, eos_token_id=0),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_backward_agree_with_torchs_counter(name: str) -> None:
    config = CONFIGS[name]()
    config._experts_implementation = "batched_mm"  # the counter does not see grouped products
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids, work = torch.randint(0, 128, (1, 40)), not_none(work_of_model(model))
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(ids)
    with FlopCounterMode(display=False) as both:
        model(ids).logits.sum().backward()
    assert forward.get_total_flops() == pytest.approx(work.dense(40, 40), rel=0.05)
    assert both.get_total_flops() == pytest.approx(3 * work.dense(40, 40), rel=0.05)


def test_a_row_is_the_sum_of_its_tokens_and_a_window_hides_what_is_before_it() -> None:
    work = not_none(work_of_config(CONFIGS["gpt-oss"]()))
    assert dict(work.pairs) == {8: 4.0 * 4 * 24, None: 4.0 * 4 * 24}
    for start, stop in [(0, 5), (0, 8), (3, 30), (9, 21), (8, 8)]:
        each = sum(
            2 * work.linear + 384 * (min(p + 1, 8) + (p + 1)) + 2 * work.head * (p % 2) for p in range(start, stop)
        )
        assert work.forward(start, stop, sum(p % 2 for p in range(start, stop))) == pytest.approx(each)
    assert work.forward(0, 30, 1) == pytest.approx(work.forward(0, 9, 0) + work.forward(9, 30, 1))


def test_a_packed_tree_costs_its_tokens_once_at_their_depths() -> None:
    work = not_none(work_of_config(CONFIGS["gpt-oss"]()))
    parents = [-1, 0, 1, 2, 3, 1, 5, 6, 7, 8, 9, 10, 11]
    depth = TreePlan.from_parents(np.asarray(parents)).depth.numpy()
    alone = sum(work.forward(int(d), int(d) + 1, 0) for d in depth)
    assert work.packed(depth, 3) == pytest.approx(alone + 3 * 2 * work.head)
    assert work.trained(depth, 3) == pytest.approx(3 * work.packed(depth, 3))
    frozen = not_none(work_of_config(CONFIGS["gpt-oss"](), frozen=True))
    linear = 2 * (work.linear * len(depth) + work.head * 3)
    assert frozen.trained(depth, 3) == pytest.approx(work.trained(depth, 3) - linear)


def test_shapes_without_a_formula_are_said_to_be_unknown(tmp_path: Path) -> None:
    assert work_of_config({"hidden_size": 64}) is None
    whole = json.loads(LlamaConfig(**SIZES).to_json_string())
    assert work_of_config({**whole, "kv_lora_rank": 16}) is None
    assert work_of_config({**whole, "layer_types": ["linear_attention", "full_attention"]}) is None
    assert work_of_folder(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert isinstance(work_of_folder(tmp_path), DecoderWork)
    assert work_of_folder(tmp_path) == work_of_config({"text_config": whole}) == work_of_config(LlamaConfig(**SIZES))


def test_what_an_update_costs_counts_its_passes_and_its_rows() -> None:
    from treewright.training.flops import spent_on

    class Pack:
        parent = np.asarray([-1, 0, 1, 1, 0], np.int32)
        target = np.asarray([2, 3, 4])
        plan = TreePlan.from_parents(parent)

    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    packs: list[Any] = [Pack, Pack]
    work, depth = not_none(work_of_model(model)), Pack.plan.depth.numpy()
    once = spent_on(model, packs[:1], 2, reference=False)
    assert once == {"row_tokens": 8.0, "train_flops": work.trained(depth, 3)}, "paths of 3, 3 and 2 tokens"
    both = spent_on(model, packs, 2, reference=True)
    assert both["train_flops"] == pytest.approx(2 * (work.trained(depth, 3) + 2 * work.packed(depth, 3)))
    model.config.layer_types = ["linear_attention"] * 2
    assert math.isnan(spent_on(model, packs[:1], 1, reference=False)["train_flops"])
