"""Prompts that tell of other branches: exactly derived from the store, the same for any number of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from walker import Likelihood, Walker

from treewright.agent.config import load_config
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import TreewrightError
from treewright.envs.maze import SUITE, Maze
from treewright.envs.types import Action, StepResult, Task
from treewright.search.engine import Settings, search
from treewright.search.peers import TOLD, told_in
from treewright.search.restore import Pool
from treewright.search.rules import best_first, breadth_first
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Context

TASK = SUITE.tasks("train", 3)[2]


class Recording(Walker):
    """Keeps the prompts that it was given by the seeds of the draws."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prompts: dict[int, str] = {}

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        self.prompts |= dict.fromkeys(seeds, bytes(context.ids).decode())
        return await super().draw(context, seeds, max_tokens)


async def grow(
    policy: Recording | ScriptedPolicy,
    peers: int = 2,
    sessions: int = 1,
    width: int = 3,
    eager: bool = True,
    store: TreeStore | None = None,
    world: Any = Maze,
    **more: Any,
) -> Tree:
    async def opened() -> Any:
        return world()

    return await search(
        TASK, Pool(opened, sessions), policy, rule=breadth_first(draws=3, root_draws=4, eager=eager), store=store,
        evaluator=Likelihood(), budget=Budget(expansions=12), settings=Settings(peers=peers, in_flight=width), **more,
    )  # fmt: skip


@pytest.mark.parametrize("eager", [True, False])
async def test_the_stored_tree_gives_back_every_message_that_a_prompt_had(tmp_path: Path, eager: bool) -> None:
    policy = Recording()
    with TreeStore.open(tmp_path / "trees.sqlite") as store:
        tree = await grow(policy, eager=eager, store=store)
        told = told_in(store.header(tree.tree_id), store.expansions(tree.tree_id))
    assert len(told) >= 5
    for node in range(1, len(tree)):
        prompt, pop = policy.prompts[tree.seed[node]], tree.born[node]
        if pop not in told:
            assert "Other attempts" not in prompt
            continue
        assert prompt.endswith(f"\n\n{told[pop].text}\n") and 1 <= len(told[pop].sources) <= 2
        for source in told[pop].sources:
            assert tree.born[source] <= pop - 3 and source not in tree.path(node) and tree.text[source] in prompt
    assert TOLD in tree.reasons and not tree.exact
    assert all(tree.trainable[i] == (tree.born[i] not in told) for i in range(1, len(tree)))


async def test_the_nearest_branches_come_first_and_tell_what_came_of_them() -> None:
    policy = Recording()
    tree = await grow(policy, peers=1, width=1)
    pop = next(p for p, node in enumerate(tree.pops) if tree.depth[node] == 2)
    shown = policy.prompts[tree.seed[tree.children[tree.pops[pop]][0]]]
    line = next(line for line in shown.splitlines() if line.startswith("- "))
    siblings = [i for i in tree.children[tree.parent[tree.pops[pop]]] if i != tree.pops[pop]]
    best = max(siblings, key=lambda i: (tree.score[i], -i))
    assert line.startswith(f"- {tree.text[best]} → ") and f"estimate {tree.score[best]:.2f}" in line


@pytest.mark.parametrize("eager", [True, False])
async def test_sessions_and_timing_change_nothing(eager: bool) -> None:
    one, narrow = Recording(), Recording()
    tree = await grow(one, eager=eager)
    for _ in range(2):
        many = Recording(delay=True)
        assert (await grow(many, sessions=4, eager=eager)).digest() == tree.digest()
        assert many.prompts == one.prompts
    await grow(narrow, width=1, eager=eager)
    assert narrow.prompts != one.prompts  # which knows of more when it pops


class Stop(Exception):
    pass


async def test_a_resumed_search_shows_peers_the_same_messages(tmp_path: Path) -> None:
    whole, parts = Recording(), Recording()
    with TreeStore.open(tmp_path / "whole.sqlite") as store:
        expected = await grow(whole, store=store)
    with TreeStore.open(tmp_path / "parts.sqlite") as store:

        def stop(tree: Tree, new: Any) -> None:
            if len(tree.pops) == 6:
                raise Stop

        with pytest.raises(Stop):
            await grow(parts, store=store, on_expansion=stop)
        with pytest.raises(TreewrightError, match="peers changed"):
            await grow(parts, peers=1, store=store)
        resumed = await grow(parts, store=store)
    assert resumed.digest() == expected.digest() and resumed.reasons == expected.reasons
    assert parts.prompts == whole.prompts


async def test_peers_are_told_no_reward() -> None:
    class Generous(Maze):
        async def step(self, action: Action, key: int) -> StepResult:
            result = await super().step(action, key)
            return replace(result, reward=result.reward + 0.37)

    plain, paid = Recording(), Recording()
    await grow(plain)
    await grow(paid, world=Generous)
    assert plain.prompts == paid.prompts


async def test_a_policy_can_go_where_no_other_branch_went() -> None:
    def walk(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        seen = turns[-1].observation.text if turns else ""
        ways = [way for way in ("north", "east", "south", "west") if f'"{way}"' not in seen]
        return f'move {{"to": "{rng.choice(ways or ["north"])}"}}'

    async def states(peers: int) -> int:
        tree = await grow(ScriptedPolicy(walk, trainable=False), peers=peers, width=1)
        return len({seen.fingerprint for seen in tree.observation if seen is not None})

    assert await states(3) != await states(0)


async def test_off_by_default_and_then_nothing_is_different() -> None:
    assert load_config().search.peers == 0 and load_config(None, ["search.peers=2"]).search.peers == 2
    tree = await grow(Recording(), peers=0)
    assert "peers" not in tree.header.settings and TOLD not in tree.reasons
    with pytest.raises(TreewrightError, match=r"settings\.peers"):
        Settings(peers=-1)
    alone = await search(TASK, SUITE, Recording(), rule=best_first(), budget=Budget(expansions=4))
    assert all(alone.trainable)
