"""One step behind: the next round is collected while the trainer works, with the weights at hand."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from closeness import assert_near
from not_none import not_none

from treewright.agent.config import Config, ConfigError, load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING, Policy
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.loop import Learner, grow_for_training, make_trainer, resume_loop, run_loop, tasks_for
from treewright.envs import TreewrightError
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.training import checkpoint
from treewright.training.versions import StaleTrees

SETTINGS = ("name=t", "loop.behind=1", "loop.iterations=3", "loop.tasks=4", "search.expansions=2")


def configured(folder: Path, *more: str) -> Config:
    return load_config(None, [f"folder={folder}", *SETTINGS, *more])


def learner_of(config: Config, kind: type[Waiting] | type[Learner] = Learner) -> Learner:
    return kind(make_trainer(config, SEEDLING), config.home / "checkpoints")


async def looped(
    config: Config,
    learner: Learner | None = None,
    on_tree: Callable[[Any], Any] | None = None,
    policy: Policy | None = None,
) -> tuple[Any, list[list[Tree]]]:
    """The loop as the command runs it: learner, rounds, and the trees of each round."""
    learner = learner or learner_of(config)
    policy = policy or open_policy("seedling", batch_requests=False)
    kept: list[list[Tree]] = []
    try:
        first = await resume_loop(config, learner, policy)
        with TreeStore.open(config.store_at) as store:
            async with open_worlds(["kg"]) as worlds:
                await run_loop(config, worlds, policy, learner, store, first, on_tree, on_trees=kept.append)
    finally:
        await policy.close()
    return learner, kept


async def test_trees_are_one_update_old_corrected_for_it_and_each_of_one_version(tmp_path: Path) -> None:
    learner, kept = await looped(configured(tmp_path))
    rounds, versions = learner.rounds, learner.trainer.versions
    assert [r.drawn_by for r in rounds] == [versions[0], versions[0], versions[1]]
    assert [r.trained for r in rounds] == versions[1:] and len(set(versions)) == 4
    assert [r.stats["oldest"] for r in rounds] == [0, 1, 1]
    assert learner.trainer.settings.max_staleness == 1
    assert rounds[0].stats["sampler_gap"] < 1e-3 < rounds[1].stats["sampler_gap"]  # the update lies between the two
    for done, trees in zip(rounds, kept, strict=True):
        assert {t.header.policy_version for t in trees} == {done.drawn_by} and all(t.exact for t in trees)


async def test_a_step_changes_no_weight_under_a_tree_that_grows(tmp_path: Path) -> None:
    config = configured(tmp_path / "behind", "loop.iterations=2")
    _, kept = await looped(config)
    policy = open_policy("seedling", batch_requests=False)
    async with open_worlds(["kg"]) as worlds:
        tasks = tasks_for(worlds, "train", 1, config.loop.tasks)
        alone = await grow_for_training(config, tasks, worlds, policy, "t/1", 1)
    await policy.close()
    assert [t.digest() for t in kept[1]] == [t.digest() for t in alone]


class Waiting(Learner):
    """Its first step does not end before a tree of the next round is there."""

    grown = threading.Event()

    def learn(self, trees: Sequence[Tree], extra: dict[str, Any]) -> tuple[dict[str, float], Any]:
        assert self.rounds or self.grown.wait(60), "nothing was collected while the trainer worked"
        return super().learn(trees, extra)


async def test_the_next_round_grows_while_the_trainer_works(tmp_path: Path) -> None:
    config = configured(tmp_path, "loop.iterations=2")

    def note(tree: Tree) -> None:
        if tree.header.run == "t/1":
            Waiting.grown.set()

    Waiting.grown.clear()
    learner, _ = await looped(config, learner_of(config, Waiting), note)
    assert len(learner.rounds) == 2


class Stop(Exception):
    pass


async def test_a_loop_that_stopped_goes_on_with_the_weights_that_its_round_was_begun_with(tmp_path: Path) -> None:
    config = configured(tmp_path / "stopped")
    whole, kept = await looped(configured(tmp_path / "whole"))
    seen = []

    def stop(tree: Tree) -> None:
        seen.append(tree.header.run)
        if seen.count("t/2") == 2:
            raise Stop

    with pytest.raises(Stop):
        await looped(config, on_tree=stop)
    saved = checkpoint.latest(config.home / "checkpoints")
    extra = json.loads((not_none(saved).path / "manifest.json").read_text())["extra"]
    assert extra["iteration"] == 2 and extra["ahead"]["drawn_by"] == whole.rounds[2].drawn_by
    learner, rest = await looped(config)
    assert [(r.index, r.drawn_by) for r in learner.rounds] == [(2, whole.rounds[2].drawn_by)]
    assert [t.digest() for t in rest[0]] == [t.digest() for t in kept[2]] and all(t.exact for t in rest[0])
    for a, b in zip(whole.trainer.model.parameters(), learner.trainer.model.parameters(), strict=True):
        assert_near(a, b)


CHILD = """
import asyncio, sys, threading
from treewright.agent.runs import loop
from treewright.agent.cli.main import app
grow, learn, half = loop.grow_for_training, loop.Learner.learn, threading.Event()

async def half_a_round(config, tasks, *rest, **named):
    if rest[3] < 2:
        return await grow(config, tasks, *rest, **named)
    await grow(config, tasks[:2], *rest, **named)
    half.set()
    await asyncio.Event().wait()

def saves_then_says(self, trees, extra):
    done = learn(self, trees, extra)
    if extra["iteration"] == 2:
        half.wait()
        print("half of round 2 is there, and the step beside it is saved", flush=True)
    return done

loop.grow_for_training, loop.Learner.learn = half_a_round, saves_then_says
app(sys.argv[1:])
"""


def test_a_killed_loop_goes_on_by_the_same_line(tmp_path: Path) -> None:
    line = ["loop", "--suites", "kg"]
    for setting in (f"folder={tmp_path}", *SETTINGS[1:]):
        line += ["--set", setting]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with forked.Child(line, None, env, code=CHILD) as child:
        while "is saved" not in (said := child.stdout.readline()):
            assert said, "ended before its third round"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    done = forked.treewright(line, tmp_path, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout and "iteration 3" in done.stdout
    manifest = json.loads((not_none(checkpoint.latest(tmp_path / "checkpoints")).path / "manifest.json").read_text())
    assert {"policy": "seedling", "iteration": 3}.items() <= manifest["extra"].items()
    assert len(manifest["versions"]) == 4
    with TreeStore.open(tmp_path / "trees.sqlite", read_only=True) as store:
        trees = [store.load(row.tree_id) for row in store.trees(status="done")]
    drawn_by = {(t.header.run, t.header.policy_version) for t in trees}
    assert len(trees) == 12 and all(t.exact for t in trees)
    assert drawn_by == {(f"run/{i}", manifest["versions"][old]) for i, old in enumerate((0, 0, 1))}


async def test_trees_of_a_loop_that_was_behind_are_refused_where_only_fresh_ones_are_allowed(tmp_path: Path) -> None:
    await looped(configured(tmp_path, "loop.iterations=2"))
    config = configured(tmp_path, "loop.iterations=3", "loop.behind=0")
    learner = learner_of(config)
    learner.restore(checkpoint.latest(config.home / "checkpoints"))
    with TreeStore.open(config.store_at, read_only=True) as store:
        old = [store.load(row.tree_id) for row in store.trees(status="done")]
    learner.trainer.consumed.clear()
    with pytest.raises(StaleTrees):
        learner.trainer.update(old)


async def test_a_server_that_sleeps_while_the_trainer_works_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path)
    policy: Any = open_policy("seedling")
    policy.colocated = True
    with pytest.raises(TreewrightError, match=r"loop\.behind=0"):
        await looped(config, policy=policy)
    with pytest.raises(ConfigError, match=r"loop\.behind = 2"):
        load_config(None, ["loop.behind=2"])


async def test_weights_that_are_gone_are_named(tmp_path: Path) -> None:
    learner = learner_of(configured(tmp_path))
    with pytest.raises(TreewrightError, match=r"loop\.checkpoints"):
        learner.folder_of("somebody else's", SEEDLING)
