"""Demonstrations by the oracles of suites, as the policy that is to imitate them would have read and written them.

An episode is played once in a sandboxed world. Its prompts are rendered with the policy's own template and the tools
that the world offers, its responses in the form in which the template writes actions; so what is imitated stands in
the tokens that the policy meets when it acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.prompt_text import THOUGHT
from treewright.agent.policies.prompts import prompt_options
from treewright.agent.policies.template import Template
from treewright.agent.policies.worked import Worked, WorkedStep, chosen
from treewright.agent.runs.collect import World
from treewright.agent.runs.evaluate import Evaluation, evaluate
from treewright.agent.runs.setup import tasks_for
from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import Environment, Observation, Suite, Task, ToolSpec, Turn, require_sandbox, seed_of
from treewright.envs.waiting import together
from treewright.search.types import Exchange
from treewright.training.decoders.check import running
from treewright.training.loss import Mode
from treewright.training.pack import TokenRow
from treewright.training.step import Trainer

__all__ = ["Episode", "alone", "demonstrate", "demonstrations", "episode_rows", "oracle_episodes", "worked_examples"]

SOLVED = 1.0 - 1e-6


@dataclass(frozen=True, slots=True)
class Episode:
    """What an oracle did: `tools` are those of the first turn, `reward` is the episode's truth."""

    task: Task
    tools: tuple[ToolSpec, ...]
    first: Observation
    turns: tuple[Exchange, ...]
    reward: float


async def demonstrate(env: Environment, suite: Suite, task: Task, seed: int) -> Episode:
    """The oracle's episode, up to its end or the task's horizon. Raises TreewrightError for a suite without oracle."""
    if suite.oracle is None:
        raise TreewrightError(
            f"suite {suite.name!r} has no oracle to imitate; collect trees with a policy that solves some of its tasks "
            "and imitate their best paths: treewright train sft --name RUN"
        )
    require_sandbox(env, "a demonstration")
    first = await env.reset(task, seed)
    offered = tuple(await env.actions())
    history, turns, reward, tools = [Turn(None, first)], list[Exchange](), 0.0, offered
    for step in range(task.horizon):
        action = suite.oracle(task, history, tools)
        try:
            result = await env.step(action, seed_of("demonstration", seed, step))
        except InvalidAction as error:
            raise TreewrightError(f"the oracle of {suite.name} took an invalid action in {task.id}: {error}") from error
        thought = suite.thoughts(task, tuple(history)) if suite.thoughts is not None else ""
        said = f"{thought}{THOUGHT}\n\n{action}" if thought else str(action)
        turns.append(Exchange(said, action, result.observation))
        history.append(Turn(action, result.observation))
        reward += result.reward
        if result.terminated or result.truncated:
            break
        tools = tuple(await env.actions())
    return Episode(task, offered, first, tuple(turns), reward)


async def demonstrations(worlds: Mapping[str, World], tasks: Sequence[Task], seed: int = 0) -> list[Episode]:
    """The oracles' episodes in the order of the tasks, solved or not; each suite opens one session."""

    async def play(name: str, world: World) -> list[Episode]:
        env = await world.suite.open()
        try:
            mine = (task for task in tasks if task.suite == name)
            return [await demonstrate(env, world.suite, task, seed_of("demo", seed, task.id)) for task in mine]
        finally:
            await env.close()

    found = await together(play(name, world) for name, world in worlds.items())
    place = {(task.suite, task.id): i for i, task in enumerate(tasks)}
    every = [episode for group in found for episode in group]
    return sorted(every, key=lambda one: place[one.task.suite, one.task.id])


async def oracle_episodes(worlds: Mapping[str, World], tasks: Sequence[Task], seed: int = 0) -> list[Episode]:
    """Those of `demonstrations` that solve their task. Raises TreewrightError where a suite's oracle solves none."""
    every = await demonstrations(worlds, tasks, seed)
    solved = [episode for episode in every if episode.reward >= SOLVED]
    if unsolved := sorted({one.task.suite for one in every} - {one.task.suite for one in solved}):
        name, many = unsolved[0], sum(one.task.suite == unsolved[0] for one in every)
        raise TreewrightError(f"the oracle of {name} solves none of {many} tasks; nothing to imitate")
    return solved


def episode_rows(episode: Episode, template: Template) -> list[TokenRow]:
    """One row for each step: the prompt that a policy with this template has there, and the oracle's action in it."""
    rows, turns, base = list[TokenRow](), list[Exchange](), tuple[int, ...]()
    for turn in episode.turns:
        prompt = template.context(episode.task, episode.tools, episode.first, turns, base).ids
        text = template.says(turn.response, turn.action)
        said = tuple(template.response(text))
        rows.append(TokenRow(context=tuple(prompt), response=said, mode=Mode.SFT))
        base = (*prompt, *said)
        turns.append(Exchange(text, turn.action, turn.observation))
    return rows


async def worked_examples(worlds: Mapping[str, World], count: int, pool: int, seed: int = 0) -> list[Worked]:
    """`count` examples of each suite by its oracle, out of `pool` training tasks, nearest to as many other ones as can
    be."""
    out = []
    for name, world in worlds.items():
        mine = {name: world}
        episodes = await oracle_episodes(mine, tasks_for(mine, "train", 0, pool), seed)
        known = [
            Worked(
                name, e.task.goal, e.first.text, tuple(WorkedStep(str(t.action), t.observation.text) for t in e.turns)
            )
            for e in episodes
        ]
        out += chosen(known, [task.goal for task in tasks_for(mine, "train", 1, pool)], count)
    return out


async def alone(
    trainer: Trainer, options: Mapping[str, Any], worlds: Mapping[str, World], tasks: Sequence[Task], seed: int = 0
) -> dict[str, Evaluation]:
    """Success of the trainer's weights as they are now, one sampled rollout for each task, by suite.

    The policy reads the trainer's own weights, no copy of the model, and is closed before training goes on.

    options  of the policy, of which those count here that say what prompts look like
    """
    trainer.optimizer.zero_grad(set_to_none=True)  # gradients of training that is over need not stay beside it
    with running(trainer.model, "sdpa"):
        policy = HFPolicy(trainer.model, trainer.tokenizer, name="alone", **prompt_options(options))
        try:
            found, _ = await evaluate(tasks, worlds, policy, expansions=0, seed=seed)
        finally:
            await policy.close()
    return found
