"""Training the seedling: order, learning rates, resume; and what the shipped one can do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from treewright.agent.seedling import FOLDER
from treewright.agent.seedling.build import load_seedling
from treewright.agent.seedling.evaluate import evaluate
from treewright.agent.seedling.text import Example
from treewright.agent.seedling.train import Recipe, rate_at, train, turns_of
from treewright.envs.retrieval.kg import SUITE

TINY = Recipe(hidden=32, layers=1, heads=2, kv_heads=1, mlp=32, vocab=64, steps=40, batch_tokens=128)


class Marks:
    end, pad = 3, 4


def rows() -> dict[str, Any]:
    return {"a": [Example([5, 6 + i, 7, 6 + i, 3], [0, 0, 1, 2, 2]) for i in range(20)]}


def test_suites_take_turns_by_their_shares() -> None:
    turns = turns_of(dataclasses.replace(TINY, shares={"a": 3.0}), ["a", "b"])
    assert turns.count("a") == 30 and turns[:4].count("b") == 1


def test_the_rate_warms_up_stays_and_falls() -> None:
    recipe = dataclasses.replace(TINY, steps=1000, cool=0.4)
    rates = [rate_at(recipe, step) for step in range(1000)]
    assert rates[0] < 0.05 and rates[100] == rates[590] == 1.0 and 0.02 <= rates[-1] < 0.03


def test_training_lowers_the_loss_and_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    lines: list[Any] = []
    kept = tmp_path / "checkpoint.pt"
    encoder: Any = Marks()
    first = train(rows(), encoder, TINY, checkpoint=kept, say=lines.append)
    again = train(rows(), encoder, TINY, checkpoint=kept, say=lines.append)
    assert "goes on from step 40" in lines[-1]
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    row = torch.tensor([rows()["a"][3].ids])
    assert first(input_ids=row).logits[0, 2].argmax() in range(6, 26)


def test_the_shipped_files_are_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(sizes)
    assert sizes["model.safetensors"] <= 8 * 2**20


async def test_the_shipped_seedling_knows_kg_but_not_reliably() -> None:
    torch.set_num_threads(1)
    model, encoder = load_seedling()
    tasks = SUITE.tasks("test", 60)
    sampled = await evaluate(model, encoder, SUITE, tasks, seed=1)
    greedy = await evaluate(model, encoder, SUITE, tasks, greedy=True)
    assert 0.1 <= sum(e.reward for e in sampled) / 60 <= 0.6
    assert sum(e.reward for e in greedy) / 60 >= 0.5
