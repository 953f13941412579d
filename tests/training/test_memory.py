"""What a step takes in memory: formula and expectation against what is alive at once; what is chosen for a limit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from search_trees import random_tree, tiny_model

transformers = pytest.importorskip("transformers")

from treewright.benchmarks.memory import FAMILY, step_peak  # noqa: E402
from treewright.benchmarks.train_ways import load_of  # noqa: E402
from treewright.envs.errors import TreewrightError  # noqa: E402
from treewright.training.memory import PeakMemory, fitted, formula, measured, said, sharded  # noqa: E402
from treewright.training.model import prepare  # noqa: E402
from treewright.training.parallel import shard  # noqa: E402
from treewright.training.settings import LoraSettings, TrainSettings  # noqa: E402
from treewright.training.step import Trainer  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
SMALL = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
}  # fmt: skip


def test_tensors_are_counted_from_when_they_are_made_until_they_are_freed() -> None:
    weight = torch.nn.Linear(256, 256, bias=False)
    with PeakMemory(weight) as seen:
        for _ in range(3):
            x = torch.ones(1024, 256)
            y = x * 2
            del x
        assert seen.now == 4 * (256 * 256 + 1024 * 256)
        assert y.view(-1)[:7].shape == (7,)
    assert seen.peak == 4 * (256 * 256 + 2 * 1024 * 256 + 1024 * 256)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_formula_and_expectation_hold_for_a_tiny_model(kind: str, precision: str) -> None:
    made = getattr(transformers, f"{kind}ForCausalLM")
    model = made(made.config_class(**SMALL)).eval()
    prepare(model)
    settings, load = TrainSettings(precision=precision), load_of(FAMILY.plan(512), 256)
    costs = {"expected": measured(model, settings), "formula": formula(model.config, settings, "cpu")}
    for more in ({}, {"checkpointing": True}, {"chunk_tokens": 128}):
        one = replace(settings, **more)
        peak = step_peak(model, load, one)
        for name, cost in costs.items():
            path = int(load.plan.depth.max()) + 1
            share = cost.peak(512, one.chunk_tokens, one.checkpointing, path) / peak
            assert 0.85 <= share <= 1.2, (name, more, share, cost)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_of_a_large_vocabulary_take_what_the_formula_says(precision: str) -> None:
    """More rows than exist at once, so that a part of them goes after the other; nearly all of the peak is theirs."""
    config = transformers.Qwen3Config(**{**SMALL, "vocab_size": 60_000, "hidden_size": 32, "num_hidden_layers": 1})
    model = transformers.Qwen3ForCausalLM(config).eval()
    prepare(model)
    settings, load = TrainSettings(precision=precision), load_of(FAMILY.plan(400), 60_000)
    ways: tuple[dict[str, Any], ...] = ({}, {"chunk_tokens": 200})
    for more in ways:
        one = replace(settings, **more)
        peak, path = step_peak(model, load, one), int(load.plan.depth.max()) + 1
        for cost in (measured(model, settings), formula(config, settings, "cpu")):
            assert 0.9 <= cost.peak(400, one.chunk_tokens, path=path) / peak <= 1.12, more
            assert cost.logits_at_once == 279 and cost.logits > 0.6 * (cost.peak(400) - cost.lasting)
    assert formula(config, settings).logits_at_once == 4 * 279 + 2  # a GPU has room for more
    assert formula(config, replace(settings, entropy_coef=0.1)).row == 1.5 * formula(config, settings).row


def test_each_of_many_processes_holds_its_part_and_what_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL)).eval()
    settings = TrainSettings(max_tokens=512)
    alone = measured(model, settings)
    every = sum(p.numel() for p in model.parameters())
    assert sharded(alone, model, settings, 4).copies == 8 * every
    monkeypatch.setattr(shard, "SMALL", 8 * every - 1)
    four = sharded(alone, model, settings, 4)
    assert four.weights == alone.weights / 4 and four.gradients == alone.gradients / 4 and four.token == alone.token
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    ends = sum(p.numel() for n, p in model.named_parameters() if "layers" not in n)
    assert four.copies == 8 * (ends + 2 * layer)
    limit = f"{(four.lasting + 2 * alone.logits) / 2**20:.1f}MiB"
    chosen, told = fitted(model, replace(settings, memory=limit), ranks=4)
    assert "for each of 4 processes" in told and chosen.max_tokens >= 64
    rounded = replace(settings, precision="bfloat16")
    monkeypatch.setattr(shard, "SMALL", 6 * every - 1)
    assert sharded(measured(model, rounded), model, rounded, 4).copies == (2 + 4) * (ends + 2 * layer)


def test_a_limit_chooses_whole_packs_then_checkpointing_then_smaller_ones_and_is_kept() -> None:
    made = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL)).eval()
    settings = TrainSettings(max_tokens=512)
    costs = measured(made, settings)
    whole = costs.peak(512) + 8 * 512 * (costs.kept + costs.owed)
    found = {}
    for share in (1.01, 0.75, 0.45):
        limit = costs.lasting + share * (whole - costs.lasting)
        found[share], told = fitted(made, replace(settings, memory=f"{limit / 2**20:.3f}MiB"))
        assert "expected peak" in told and f"packs of {found[share].max_tokens} tokens" in told
        tree = load_of(FAMILY.plan(2 * found[share].max_tokens), 256)
        assert step_peak(made, tree, found[share]) <= 1.05 * limit
    assert not found[1.01].checkpointing and found[1.01].max_tokens == 512 == found[1.01].chunk_tokens
    assert found[0.75].checkpointing and found[0.45].max_tokens < found[0.75].max_tokens
    assert not any(m.training for m in made.modules()) and all(p.grad is None for p in made.parameters())
    with pytest.raises(TreewrightError, match=r"takes at least .* weights, .* gradients and optimizer.*lora.rank=16"):
        fitted(made, replace(settings, memory="5MiB"))


def test_a_trainer_with_a_limit_trains_within_it() -> None:
    settings, told = fitted(tiny_model(dtype=torch.float32), TrainSettings(memory="4MiB"))
    trainer = Trainer(tiny_model(dtype=torch.float32), settings)
    with PeakMemory(trainer.model) as seen:
        trainer.update([random_tree(s) for s in range(8)])
    assert seen.peak <= 4 << 20 and told


MODELS = {
    "0.6B": transformers.Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "9B": transformers.LlamaConfig(
        vocab_size=151_552, hidden_size=4096, intermediate_size=13_696, num_hidden_layers=40, num_attention_heads=32,
        num_key_value_heads=2, head_dim=128,
    ),
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, adapter of rank 16": {"precision": "bfloat16", "lora": LoraSettings(rank=16)},
}


def lines() -> list[str]:
    """The table of docs/training.md: what is fixed, and packs of 8192 tokens whole, checkpointed, and in chunks."""
    out = []
    for model, config in MODELS.items():
        for way, settings in WAYS.items():
            c = formula(config, TrainSettings(**settings))
            cells = c.fixed, c.peak(8192), c.peak(8192, checkpointing=True), c.peak(65_536, 2048, True, 8192)
            out.append(f"| {model} | {way} | " + " | ".join(said(x) for x in cells) + " |")
    return out


def test_the_table_of_the_docs_is_what_the_formula_gives() -> None:
    pytest.importorskip("peft")
    page = (DOCS / "training.md").read_text()
    assert re.findall(r"^\| (?:0\.6B|9B) \|.*$", page, re.MULTILINE) == lines()
