"""A prompt that asks for a temperature is drawn from at it, by every policy that can; down to training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from typer.testing import CliRunner, Result

from treewright.agent.cli.main import app
from treewright.agent.config import load_config
from treewright.agent.policies.drafting import DraftingPolicy
from treewright.agent.policies.engine import EnginePolicy
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.sampling import pick
from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.agent.runs.setup import settings_of
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task
from treewright.search.segments import Segments
from treewright.search.store import TreeStore
from treewright.search.types import Context
from treewright.training.credit import InexactTree, estimate

from .fake_engine import FakeEngine
from .small import compact, qwen3

TASK = Task("kg", "1", "Who is ada's mother?")


def at(policy: HFPolicy | EnginePolicy | ScriptedPolicy, temperature: float | None, **more: Any) -> Context:
    context = policy.context(TASK, (), Observation("start"), (), ())
    return replace(context, temperature=temperature, **more)


@pytest.fixture
async def local() -> AsyncIterator[HFPolicy]:
    policy = HFPolicy(qwen3(), compact())
    yield policy
    await policy.close()


async def test_a_model_draws_at_the_temperature_of_the_prompt_and_may_be_trained_on(local: HFPolicy) -> None:
    own = HFPolicy(qwen3(), compact(), temperature=1.7)
    drafting, engine = DraftingPolicy(qwen3(), compact()), EnginePolicy(FakeEngine(local, 300), local.template,
                                                                       name="fake", version="v1")  # fmt: skip
    want = await own.draw(at(own, None), range(4), 8)
    for policy in (local, drafting):
        for a, b in zip(await policy.draw(at(policy, 1.7), range(4), 8), want, strict=True):
            assert a.token_ids == b.token_ids and a.trainable and not b.trainable and a.temperature == 1.7
            assert_near(a.logprobs, b.logprobs)
    (one,) = await engine.draw(at(engine, 1.7), [0], 8)
    assert one.trainable and one.temperature == 1.7
    (plain,) = await local.draw(at(local, None), [0], 8)
    assert plain.temperature == 1.0 and plain.trainable
    await own.close()
    await drafting.close()


def test_rows_of_other_temperatures_in_one_batch_are_drawn_as_alone() -> None:
    torch.manual_seed(0)
    logits, u = torch.randn(3, 20), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    heats = (0.5, 1.0, 2.0)
    tokens, logprobs = pick(logits, u, torch.tensor(heats))
    for i, heat in enumerate(heats):
        token, logprob = pick(logits[i : i + 1], u[i : i + 1], heat)
        assert token == tokens[i] and torch.allclose(logprob, logprobs[i])


async def test_choices_are_drawn_byte_by_byte_at_the_temperature_with_their_log_probs() -> None:
    policy = scripted_choice([("left", 0.5), ("less", 0.3), ("le", 0.2)])
    halves = {"l": 0.5**0.5, "s": 0.3**0.5, "end": 0.2**0.5}  # behind "le" each has one way to go on
    total = sum(halves.values())
    done = await policy.draw(at(policy, 2.0), range(2000), 100)
    share = Counter(c.text for c in done)
    for text, p in (("left", halves["l"]), ("less", halves["s"]), ("le", halves["end"])):
        assert abs(share[text] / 2000 - p / total) < 0.05
        one = next(c for c in done if c.text == text)
        assert math.isclose(one.logprob, math.log(p / total), abs_tol=1e-12) and one.temperature == 2.0
    (part,) = await policy.draw_segment(at(policy, 2.0), [1], 100, (), Segments(length=2))
    assert part.text == "le" and part.temperature == 2.0 and part.logprobs == (0.0, 0.0)


def grown(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Result:
    monkeypatch.chdir(folder)
    line = ["collect", "--name", "first", "--suites", "kg", "--tasks", "3", "--set", "search.expansions=3"]
    return CliRunner().invoke(app, [*line, *more])


def test_search_temperature_by_depth_reaches_collect_and_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = grown(tmp_path, monkeypatch, "--set", "search.temperature_by_depth.start=1.1", "--set",
                 "search.temperature_by_depth.growth=0.2")  # fmt: skip
    assert done.exit_code == 0, done.output
    with TreeStore.open("runs/first/trees.sqlite", read_only=True) as store:
        ids = [row.tree_id for row in store.trees()]
        trees = [store.load(i) for i in ids]
        with pytest.raises(InexactTree, match="drawn at other temperatures, weights not known"):
            estimate("split_loo", store.arrays(ids))
    for tree in trees:
        assert tree.exact and tree.header.settings["temperature_by_depth"]["growth"] == 0.2
        for node in range(1, len(tree)):
            want = 1.0 if tree.closing[node] else 1.1 + 0.2 * (tree.depth[node] - 1)
            assert tree.temperature[node] == pytest.approx(want) and tree.trainable[node]
    assert max(t for tree in trees for t in tree.temperature) > 1.2
    trained = CliRunner().invoke(app, ["train", "--name", "first"])
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "runs/first/checkpoints").is_dir()


def test_wrong_temperatures_are_told_with_what_may_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(settings=["search.temperature_by_depth.grow=1"])
    with pytest.raises(TreewrightError, match="growth"):
        settings_of(config.search, run="r", seed=0)
    assert settings_of(load_config().search, run="r", seed=0).temperature_by_depth is None
    done = grown(tmp_path, monkeypatch, "--set", "search.temperature_by_depth.start=0")
    assert done.exit_code == 1 and "it is above 0" in str(done.exception or done.output)
