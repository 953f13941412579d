"""Weights one after the other are those of a checkpoint: its names, types and shapes, ties once, experts apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from treewright.training.streamed import Weights

SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 11, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def model(family: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config: Any = {
        "tied": lambda: transformers.Qwen3Config(**SMALL, tie_word_embeddings=True),
        "untied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
        "experts": lambda: transformers.Qwen3MoeConfig(
            **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        ),
    }[family]()
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", ["tied", "untied", "experts"])
def test_weights_come_as_a_checkpoint_has_them_and_are_described_before(family: str, tmp_path: Path) -> None:
    made = model(family)
    source = Weights(made, lambda: iter(sorted(made.state_dict().items())))
    told, came = source.metadata(), list(source)
    assert told == [(name, t.dtype, tuple(t.shape)) for name, t in came]
    made.save_pretrained(tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    assert {name for name, _ in came} == set(files) and len(came) == len(files)
    for name, tensor in came:
        assert torch.equal(tensor, files[name]), name
    assert ("lm_head.weight" in files) == (family != "tied")
    assert any("experts.3." in name for name in files) == (family == "experts")


def test_a_pass_gives_the_weights_of_its_own_moment(tmp_path: Path) -> None:
    made = model("tied")
    source = Weights(made, lambda: iter(sorted(made.state_dict().items())))
    before = {name: t.clone() for name, t in source}
    with torch.no_grad():
        made.model.norm.weight.add_(1.0)
    for name, tensor in source:
        assert torch.equal(tensor, before[name] + float(name == "model.norm.weight")), name
