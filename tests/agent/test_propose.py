"""Several contexts for one node, and draws without replacement with the weights that make them usable."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from noisy_expert import noisy
from not_none import not_none
from walker import Walker

from treewright.agent.config import load_config
from treewright.agent.policies.policy import Policy
from treewright.agent.policies.propose import (
    Distinct,
    Memory,
    Past,
    Variety,
    examples,
    history,
    memory_of,
    open_proposer,
    plain,
    rephrased,
)
from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.envs import Action, Observation, Task, TreewrightError
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget, Completion, Context, Exchange, PolicyFault
from treewright.training.credit.graphs import without_replacement

TASK = SUITE.tasks("train", 3)[2]
TURNS = [Exchange(f"move {i}", Action.of("move"), Observation(f"cell {i}")) for i in range(4)]


def told(task: Task, turns: Any, tools: Any, rng: Random) -> str:
    """A policy that says which goal it was shown."""
    return f"turns={len(turns)} {task.goal}"


async def drawn(
    proposer: Variety | Distinct, seeds: range | list[Any], turns: tuple[Any, ...] | list[Exchange] = TURNS
) -> list[Completion]:
    context = proposer.context(Task("maze", "1", "go home"), (), Observation("door"), turns, ())
    return await proposer.draw(context, seeds, 10_000)


async def test_which_draw_has_which_context_is_fixed_by_its_number() -> None:
    own = ScriptedPolicy(told)
    proposer = Variety(own, [plain, history(2), history(0), rephrased(lambda task: f"please: {task.goal}")])
    done = await drawn(proposer, range(6))
    assert [one.text.splitlines()[0] for one in done] == [
        "turns=4 go home", "turns=0 go home", "turns=0 go home", "turns=0 please: go home", "turns=4 go home",
        "turns=0 go home",
    ]  # fmt: skip
    assert "move 2" in done[1].text and "move 1" not in done[1].text and "move" not in done[2].text
    assert all(f"cell {i}" in done[3].text for i in range(4))
    assert [one.trainable for one in done] == [True, False, False, False, True, False]


async def test_a_draw_that_fails_ends_those_of_other_contexts_before_it_is_told() -> None:
    ended = []

    class Failing(ScriptedPolicy):
        async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
            if 1 in seeds:
                raise PolicyFault("no answer")
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(tuple(seeds))
            return []

    proposer = Variety(Failing(told), [plain, rephrased(lambda task: f"please: {task.goal}")])
    with pytest.raises(PolicyFault, match="no answer"):
        await drawn(proposer, range(4))
    assert ended == [(0, 2)]


async def test_with_the_plain_context_alone_nothing_changes() -> None:
    bare = await search(TASK, SUITE, noisy("maze"), budget=Budget(expansions=6), settings=Settings(close=True))
    same = Variety(noisy("maze"), [plain])
    tree = await search(TASK, SUITE, same, budget=Budget(expansions=6), settings=Settings(close=True))
    assert tree.digest() == bare.digest() and tree.exact == bare.exact


async def test_solved_tasks_of_the_store_are_shown_to_similar_ones(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "trees.db") as store:
        for task in SUITE.tasks("train", 6):
            await search(task, SUITE, noisy("maze", 0.9), budget=Budget(expansions=8), store=store)
        memory = memory_of(store)
    assert memory.past and all(past.said[-1] == "stop {}" for past in memory.past)
    near = Memory((Past("kg", "find ada", ("a",)), Past("maze", "go to ada", ("b",)), Past("maze", "eat", ("c",))))
    assert [p.said for p in near.nearest(Task("maze", "1", "go ada"), 1)] == [("b",)]
    (one,) = await drawn(Variety(ScriptedPolicy(told), [examples(near, 1)]), [1])
    assert "Example: go to ada\n> b" in one.text and "go home" in one.text and not one.trainable


async def test_distinct_draws_differ_and_carry_the_unordered_set_weights() -> None:
    proposer = Distinct(scripted_choice([("a {}", 0.6), ("b {}", 0.3), ("c {}", 0.08), ("d {}", 0.02)]), patience=64)
    for seed in range(20):
        done = await drawn(proposer, [10 * seed, 10 * seed + 1, 10 * seed + 2], ())
        p = [math.exp(one.logprob) for one in done]
        assert len({one.text for one in done}) == 3 and not any(one.trainable for one in done)
        assert sum(not_none(one.share) for one in done) == pytest.approx(1.0)
        assert [one.share for one in done] == pytest.approx(without_replacement(p, [0.0] * 3).share.tolist())


async def test_the_weighted_mean_of_distinct_draws_is_unbiased() -> None:
    value = {"a {}": 1.0, "b {}": -2.0, "c {}": 5.0}
    proposer = Distinct(scripted_choice([("a {}", 0.6), ("b {}", 0.3), ("c {}", 0.1)]))
    means = []
    for seed in range(1500):
        done = await drawn(proposer, [7 * seed, 7 * seed + 3], ())
        means.append(sum(not_none(one.share) * value[one.text] for one in done))
    mean = sum(means) / len(means)
    error = math.sqrt(sum((m - mean) ** 2 for m in means)) / len(means)
    assert abs(mean - 0.5) < 4 * error


async def test_a_tree_of_distinct_draws_records_what_its_credit_needs() -> None:
    tree = await search(
        TASK,
        SUITE,
        Distinct(cast(Policy, Around(Walker()))),
        rule=best_first(draws=3, root_draws=3),
        budget=Budget(expansions=6),
    )
    assert not tree.exact
    for node in (i for i in range(len(tree)) if tree.drawn[i]):
        kids = tree.children[node]
        assert len(kids) == 3 and len({tree.text[c] for c in kids}) == 3
        p = [math.exp(math.fsum(tree.logprobs[c])) for c in kids]
        credit = without_replacement(p, [1.0, 0.0, 0.0], weight=tree.mass[node])
        assert [tree.share[c] for c in kids] == pytest.approx(credit.share.tolist())


class Around:
    """The walker with what a policy has beside a proposer."""

    def __init__(self, inner: Walker) -> None:
        self.inner, self.name, self.stats = inner, "walker", None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def test_a_policy_with_too_few_ideas_repeats_them_and_limits_are_told() -> None:
    done = await drawn(Distinct(scripted_choice([("a {}", 1.0)])), [1, 2, 3], ())
    assert [one.text for one in done] == ["a {}"] * 3
    with pytest.raises(PolicyFault, match="at most 12"):
        await drawn(Distinct(scripted_choice([("a {}", 1.0)])), range(13), ())
    with pytest.raises(TreewrightError, match="at least one context"):
        Variety(ScriptedPolicy(told), [])
    with pytest.raises(TreewrightError, match="at least 1"):
        Distinct(ScriptedPolicy(told), patience=0)


async def test_contexts_are_named_in_the_configuration(tmp_path: Path) -> None:
    def opened(*sets: str) -> Policy:
        return open_proposer(load_config(settings=["policy.spec=scripted:noisy_expert:maze", *sets]).policy)

    assert opened().name == "noisy-maze"
    varied: Any = opened('policy.contexts=["plain", "history:2"]', "policy.distinct=true")
    assert isinstance(varied, Distinct)
    inner: Any = varied.inner
    assert [v.name for v in inner.variants] == ["plain", "history-2"]
    with TreeStore.open(tmp_path / "trees.db") as store:
        await search(SUITE.tasks("train", 1)[0], SUITE, noisy("maze", 0.95), budget=Budget(expansions=8), store=store)
    shown = opened('policy.contexts=["examples:1"]', f"policy.memory={tmp_path / 'trees.db'}")
    assert isinstance(shown, Variety)
    for wrong, says in (('["examples:1"]', r"set policy\.memory"), ('["history:x"]', "no context 'history:x'")):
        with pytest.raises(TreewrightError, match=says):
            opened(f"policy.contexts={wrong}")
