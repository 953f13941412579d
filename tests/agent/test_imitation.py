"""Imitation of oracles: in the tokens that the policy meets when it acts, and with what it costs to get there."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.prompts import template_for
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.imitation import Episode, alone, episode_rows, oracle_episodes
from treewright.envs import TreewrightError, suite
from treewright.envs.maze import SUITE as MAZE
from treewright.search.screen import parse_action
from treewright.search.store import TreeStore
from treewright.search.types import Exchange
from treewright.training.pack import pack_rows
from treewright.training.recipes.imitate import learn_rows, rate_at
from treewright.training.step import Trainer, TrainSettings

from .small import chatml, qwen3


async def kg_episodes(count: int) -> list[Episode]:
    async with open_worlds(["kg"]) as worlds:
        return await oracle_episodes(worlds, suite("kg").tasks("train", count))


async def test_rows_are_the_prompts_and_responses_of_a_policy_that_takes_the_oracles_actions() -> None:
    episode = (await kg_episodes(2))[0]
    policy = HFPolicy(qwen3(), chatml())
    rows = episode_rows(episode, policy.template)
    assert len(rows) == len(episode.turns) > 1
    turns: list[Any]
    turns, base = [], ()
    for row, turn in zip(rows, episode.turns, strict=True):
        assert row.context == policy.context(episode.task, episode.tools, episode.first, turns, base).ids
        said = policy.template.encoder.text(list(row.response[:-1]))
        assert parse_action(said) == turn.action and row.response[-1] in policy.stop_ids
        base = (*row.context, *row.response)
        turns.append(Exchange(said, turn.action, turn.observation))
    await policy.close()


async def test_demonstrations_are_in_the_order_of_the_tasks_and_all_of_them_succeed() -> None:
    tasks = [*suite("kg").tasks("train", 6), *suite("workbench").tasks("train", 2)]
    async with open_worlds(["kg", "workbench"]) as worlds:
        found = await oracle_episodes(worlds, tasks)
    names = [(e.task.suite, e.task.id) for e in found]
    every = [(t.suite, t.id) for t in tasks]
    assert names == [name for name in every if name in names] and len(names) >= 4
    assert all(episode.reward == 1.0 for episode in found)


async def test_a_suite_without_an_oracle_says_what_to_do_instead() -> None:
    from dataclasses import replace

    async with open_worlds([replace(MAZE, oracle=None)]) as worlds:
        with pytest.raises(TreewrightError, match="has no oracle to imitate"):
            await oracle_episodes(worlds, MAZE.tasks("train", 1))


async def test_imitation_lowers_the_loss_and_leaves_a_fresh_optimizer() -> None:
    template = template_for(chatml())
    rows = [episode_rows(episode, template) for episode in await kg_episodes(4)]
    trainer = Trainer(qwen3(max_position_embeddings=2048), TrainSettings(lr=1e-5, max_tokens=2048))
    told = []
    stats = learn_rows(trainer, rows, lr=3e-3, epochs=3, batch=2, on_step=lambda *seen: told.append(seen))
    steps = 3 * -(-len(rows) // 2)
    assert stats["steps"] == steps == trainer.steps and [seen[:2] for seen in told] == [
        (i + 1, steps) for i in range(steps)
    ]
    assert stats["loss"] < 0.9 * stats["first_loss"]
    assert not trainer.optimizer.state and trainer.lr == 1e-5
    with pytest.raises(TreewrightError, match="no demonstration"):
        learn_rows(trainer, [], lr=1e-3)


async def test_the_loss_is_the_mean_over_the_steps_tokens() -> None:
    """One step on two groups of unlike length, against plain rows through the model's own forward."""
    template, model = template_for(chatml()), qwen3(max_position_embeddings=2048)
    rows = [episode_rows(episode, template) for episode in await kg_episodes(3)][:2]
    flat = [row for group in rows for row in group]
    nats = tokens = 0.0
    for row in flat:
        ids = torch.tensor([row.context + row.response])
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)
        at = range(len(row.context) - 1, ids.shape[1] - 1)
        nats -= sum(float(logp[i, ids[0, i + 1]]) for i in at)
        tokens += len(row.response)
    stats = learn_rows(Trainer(model, TrainSettings(max_tokens=256)), rows, lr=1e-6, batch=2)
    assert stats["loss"] == pytest.approx(nats / tokens, rel=1e-4)


async def test_steps_of_an_episode_fill_a_pack_once() -> None:
    """A group's size is that of its tokens in the trie, though every row repeats what went before."""
    template = template_for(chatml())
    groups = [episode_rows(episode, template) for episode in await kg_episodes(4)]
    longest = max(len(row.context) + len(row.response) for group in groups for row in group)
    packs = pack_rows(groups, len(groups) * longest)
    assert len(packs) == 1 and len(packs[0]) < len(groups) * longest
    assert sum(len(r.context) + len(r.response) for group in groups for r in group) > 1.5 * len(packs[0])
    apart = pack_rows(groups, longest)
    assert len(apart) > 1 and all(len(pack) <= longest for pack in apart)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(i, 20, 4) for i in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[4:]))


def test_the_command_measures_before_and_after_and_saves_weights_that_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "sft", "--suites", "kg", "--demos", "6", "--held-out", "4", "--name", "begun"]
    done = CliRunner(env={"COLUMNS": "160"}).invoke(app, words)
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert "before  kg:" in done.output and "gain in points" in done.output
    (folder,) = (tmp_path / "runs/begun/checkpoints").glob("step-*")
    open_policy(f"hf:{folder}")
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, TreewrightError) and "already" in str(again.exception)
    few = ["--set", "loop.iterations=1", "--set", "loop.tasks=2", "--set", "search.expansions=1"]
    following = done.output.partition("; next: treewright ")[2].splitlines()[0]
    assert following == """loop --name begun --set 'loop.skip_tasks={"kg": 6}'"""
    looped = CliRunner().invoke(app, [*shlex.split(following), *few])
    assert looped.exit_code == 0 and "iteration 1: kg" in looped.output, f"{looped.output}\n{looped.exception!r}"
    with TreeStore.open(tmp_path / "runs/begun/trees.sqlite", read_only=True) as store:
        assert {tree.task_id for tree in store.trees()} == {task.id for task in suite("kg").tasks("train", 8)[6:]}


async def test_measuring_alone_leaves_the_trainers_model_as_it_was() -> None:
    trainer = Trainer(qwen3(max_position_embeddings=4096), TrainSettings(), tokenizer=chatml())
    before = trainer.model.config._attn_implementation
    async with open_worlds(["kg"]) as worlds:
        found = await alone(trainer, {}, worlds, suite("kg").tasks("test", 2))
    assert trainer.model.config._attn_implementation == before and len(found["kg"].tasks) == 2
