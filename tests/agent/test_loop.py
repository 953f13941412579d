"""Collect → credit → train → serve on the packaged seedling; evaluation that truth cannot leak into."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_near
from not_none import not_none
from walker import Walker

from treewright.agent.config import Config, load_config
from treewright.agent.policies.engine import EnginePolicy
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.policies.weights import folder_version
from treewright.agent.runs import demo
from treewright.agent.runs.collect import collect, open_worlds
from treewright.agent.runs.demo import QUICK, demo_config, run_demo
from treewright.agent.runs.evaluate import Evaluation, evaluate, paired_gain
from treewright.agent.runs.loop import Learner, make_trainer, model_folder, run_loop, tasks_for
from treewright.agent.runs.rounds import Round
from treewright.benchmarks.control import main as control
from treewright.benchmarks.control import permuted
from treewright.envs import Observation, TreewrightError, suite
from treewright.envs.maze import SUITE as MAZE
from treewright.envs.types import Task
from treewright.search.engine import Settings
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget
from treewright.training import checkpoint
from treewright.training.versions import weights_version

from .fake_engine import FakeEngine


def small_config(folder: Path, **settings: Any) -> Config:
    given = {"loop.iterations": 2, "loop.tasks": 6, "search.expansions": 2, "train.minibatches": 2} | settings
    return load_config(None, [f"folder={folder}", "name=t", *(f"{k}={v}" for k, v in given.items())])


async def looped(config: Config, first: int = 0) -> tuple[Learner, list[Round]]:
    learner = Learner(make_trainer(config, SEEDLING), config.home / "checkpoints")
    policy: Any
    policy, versions = open_policy("seedling"), []
    before = checkpoint.latest(learner.folder)
    if before is not None:
        checkpoint.restore(learner.trainer, before)
        policy.load_weights(before.path)
    with TreeStore.open(config.store_at) as store:
        async with open_worlds(["kg"]) as worlds:
            await run_loop(config, worlds, policy, learner, store, first, on_round=lambda r: versions.append(r))
    await policy.close()
    return learner, versions


async def test_a_loop_forgets_the_trees_of_iterations_before(tmp_path: Path) -> None:
    alive: list[weakref.ref[Any]] = []

    def counted(_: Round) -> None:
        gc.collect()
        held.append(sum(one() is not None for one in alive))

    held = list[int]()
    config = small_config(tmp_path, **{"loop.iterations": 4, "loop.tasks": 2})
    learner = Learner(make_trainer(config, SEEDLING), config.home / "checkpoints")
    policy = open_policy("seedling")
    with TreeStore.open(config.store_at) as store:
        async with open_worlds(["kg"]) as worlds:
            await run_loop(
                config, worlds, policy, learner, store,
                on_tree=lambda tree: alive.append(weakref.ref(tree)), on_round=counted,
            )  # fmt: skip
    await policy.close()
    assert len(alive) == 8 and max(held) <= 4, f"{held} trees were held after each iteration"


async def test_the_loop_trains_serves_new_weights_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole, rounds = await looped(small_config(tmp_path / "whole"))
    assert len({r.drawn_by for r in rounds}) == 2 and rounds[0].trained == rounds[1].drawn_by
    assert all(math.isfinite(r.stats["loss"]) and r.stats["sampler_gap"] < 1e-3 for r in rounds)
    half = small_config(tmp_path / "half")
    await looped(half.model_copy(update={"loop": half.loop.model_copy(update={"iterations": 1})}))
    rest, later = await looped(half, first=1)
    assert [r.index for r in later] == [1]
    for a, b in zip(whole.trainer.model.parameters(), rest.trainer.model.parameters(), strict=True):
        assert_near(a, b)


async def test_a_checkpoint_is_a_policy_and_a_folder_without_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    learner, _ = await looped(small_config(tmp_path, **{"loop.iterations": 1}))
    saved = checkpoint.latest(learner.folder)
    policy = open_policy(f"hf:{not_none(saved).path}")
    task = suite("kg").tasks("train", 1)[0]
    assert policy.context(task, (), Observation("ready"), (), ()).ids
    await policy.close()
    for file in not_none(saved).path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TreewrightError, match="tokenizer"):
        open_policy(f"hf:{not_none(saved).path}")


async def test_trees_drawn_by_the_seedling_are_exact_and_credited(tmp_path: Path) -> None:
    policy = open_policy("seedling")
    async with open_worlds(["kg", "stdlib"]) as worlds:
        trees = await collect(
            tasks_for(worlds, "train", 0, 3), worlds, policy, rule=best_first(), budget=Budget(expansions=3),
            settings=Settings(close=True, max_tokens=400),
        )  # fmt: skip
    await policy.close()
    assert len(trees) == 6 and all(t.exact for t in trees)
    assert all(len(t.logprobs[i]) == len(t.ids[i]) > 0 for t in trees for i in range(1, len(t)))


@pytest.mark.parametrize("batched", [True, False])
async def test_one_session_and_eight_give_the_same_tree_for_the_seedling(batched: bool) -> None:
    task = suite("kg").tasks("train", 3)[2]

    async def grow(sessions: int) -> str:
        policy = open_policy("seedling", batch_requests=batched)
        async with open_worlds(["kg"], sessions) as worlds:
            (tree,) = await collect(
                [task], worlds, policy, rule=best_first(root_draws=6), budget=Budget(expansions=8),
                settings=Settings(close=True, in_flight=4, max_tokens=48),
            )  # fmt: skip
        await policy.close()
        return tree.digest()

    assert await grow(1) == await grow(8)


async def test_evaluation_gives_the_same_success_for_the_same_seed_and_reports_costs() -> None:
    async with open_worlds([MAZE]) as worlds:
        tasks = MAZE.tasks("test", 10)
        first, _ = await evaluate(tasks, worlds, Walker())
        again, trees = await evaluate(tasks, worlds, Walker())
    assert first == again
    assert first["maze"].tokens > 0 and first["maze"].env_steps > 0
    assert all(len(t.leaves()) == 1 for t in trees)


def test_a_suite_that_runs_out_of_tasks_begins_again() -> None:
    async def nothing() -> Any:
        raise AssertionError

    def five(split: Any, count: int) -> Sequence[Task]:
        if count > 5:
            raise ValueError("there are five")
        return MAZE.tasks(split, count)

    from dataclasses import replace

    from treewright.agent.runs.collect import World
    from treewright.search.restore import Pool

    worlds = {"maze": World(replace(MAZE, tasks=five), Pool(nothing))}
    ids = [t.id for t in tasks_for(worlds, "train", 1, 4)]
    assert ids == ["train-3-4", "train-3-0", "train-3-1", "train-3-2"]


def test_the_paired_gain_compares_the_same_tasks() -> None:
    before = Evaluation("s", ("a", "b", "c"), (0.0, 0.0, 1.0), 0, 0, 0, 0)
    after = Evaluation("s", ("c", "b", "a"), (1.0, 1.0, 1.0), 0, 0, 0, 0)
    gain, low, high = paired_gain(before, after)
    assert gain == pytest.approx(200 / 3) and low <= gain <= high


async def test_permuting_rewards_keeps_everything_else() -> None:
    async with open_worlds([MAZE]) as worlds:
        (tree,) = await collect(
            MAZE.tasks("train", 1), worlds, Walker([("stop {}", 0.3), ('move {"to": "east"}', 0.7)]),
            rule=best_first(), budget=Budget(expansions=4), settings=Settings(close=True),
        )  # fmt: skip
    (other,) = permuted([tree], 1)
    assert sorted(other.rewards()[other.leaves()]) == sorted(tree.rewards()[tree.leaves()])
    assert other.ids == tree.ids and other.tree_id == tree.tree_id
    assert np.nansum(other.rewards()) == np.nansum(tree.rewards())


def test_only_weights_that_lie_here_can_be_trained() -> None:
    with pytest.raises(TreewrightError, match="hf:"):
        model_folder("openai:gpt@http://localhost")


async def test_the_demo_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(demo, "WEB", frozenset({"stdlib"}))  # a second part, by the packaged model for web pages
    config = demo_config(tmp_path / "demo", [*QUICK.settings, 'worlds.suites=["kg","stdlib"]'])
    figures = await run_demo(config, QUICK.plan, Console(file=(tmp_path / "out").open("w")))
    for name in ("kg.policy_before", "kg.policy_gain_points", "stdlib.search_after", "best_other.policy_gain_points"):
        assert name in figures
    body = json.loads((tmp_path / "demo" / "figures.json").read_text())
    assert set(body["figures"]["kg.policy_after"]) == {"value", "unit"}
    assert body["hardware"]["cores"] and "python" in body["versions"]
    assert body["seedling"] != body["seedling_web"]
    assert [len(body[name]) for name in ("rounds", "web_rounds")] == [2, 2]
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<svg" in page and "kg-" in page


def test_the_control_runs_from_end_to_end() -> None:
    figures = control(quick=True, suites=["kg"])["figures"]
    assert {"kg.true_gain_points", "kg.permuted_gain_points", "kg.permuted_gain_high"} <= set(figures)


def test_weights_are_known_by_the_name_that_a_server_gives_their_files(tmp_path: Path) -> None:
    learner = Learner(make_trainer(load_config(None, [f"folder={tmp_path}"]), SEEDLING), tmp_path / "checkpoints")
    trainer = learner.trainer
    assert trainer.age_of(folder_version(SEEDLING)) == trainer.age_of(trainer.versions[0]) == 0
    assert trainer.age_of("somebody else's") is None
    with torch.no_grad():
        trainer.model.model.norm.weight.add_(0.5)
    trainer.versions.append(weights_version(trainer.model))
    saved = learner.save({})
    assert trainer.age_of(folder_version(saved.path)) == 0 and trainer.age_of(folder_version(SEEDLING)) == 1


class Noting(Learner):
    """Notes its steps among the engine's calls; fails on demand."""

    fails = False
    calls: list[Any]

    def learn(self, trees: Sequence[Tree], extra: dict[str, Any]) -> tuple[dict[str, float], Any]:
        self.calls.append(("learn",))
        if self.fails:
            raise TreewrightError("no step")
        return super().learn(trees, extra)


async def test_an_engine_on_the_trainer_s_accelerator_sleeps_while_it_works_and_wakes_with_the_new_weights(
    tmp_path: Path,
) -> None:
    local: Any = open_policy("seedling")
    engine = FakeEngine(local)
    policy = EnginePolicy(engine, local.template, name="fake", version=folder_version(SEEDLING))
    config = small_config(tmp_path, **{"loop.iterations": 1})
    learner = Noting(make_trainer(config, SEEDLING), config.home / "checkpoints")
    learner.calls = engine.calls
    async with open_worlds(["kg"]) as worlds:
        await run_loop(config, worlds, policy, learner)
        assert [c[0] for c in engine.calls] == ["sleep", "learn", "wake", "weights"]
        assert policy.version == folder_version(not_none(learner.saved)) != folder_version(SEEDLING)
        engine.calls.clear()
        learner.fails = True
        again = small_config(tmp_path, **{"loop.iterations": 2})
        with pytest.raises(TreewrightError, match="no step"):
            await run_loop(again, worlds, policy, learner, first=1)
        assert [c[0] for c in engine.calls] == ["sleep", "learn", "wake"]
        engine.calls.clear()
        learner.fails = False
        behind = small_config(tmp_path, **{"loop.iterations": 2, "loop.behind": 1})
        await run_loop(behind, worlds, policy, learner, first=1)
        assert [c[0] for c in engine.calls] == ["learn", "weights"]  # a sampler that works cannot sleep
    await local.close()
