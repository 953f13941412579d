"""AND/OR search: the most promising plan first, the most confident answer at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import math
import random
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none

from treewright.envs import Task, TreewrightError
from treewright.search.planning.all_nodes import Answer, Parts, as_tree, majority, solve
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Expansion, NodeKind, NodeStatus
from treewright.training.credit import TreeArrays
from treewright.training.credit.graphs import split_loo_graph
from treewright.training.credit.trees import tree_arrays


def table(**options: Any) -> tuple[Callable[[Any], Coroutine[Any, Any, Any]], list[Any]]:
    asked = []

    async def solver(goal: str) -> list[Any]:
        asked.append(goal)
        found: list[Any] = options.get(goal, [])
        return found

    return solver, asked


async def test_all_parts_are_needed_and_confidences_multiply() -> None:
    solver, asked = table(q=[Parts(("a", "b"))], a=[Answer("1", 0.8)], b=[Answer("2", 0.5)])
    found = await solve("q", solver)
    assert found.answer == Answer("2", 0.4) and asked == ["q", "a", "b"] and found.asked == 3


async def test_a_later_part_is_asked_with_the_earlier_answer() -> None:
    solver, asked = table(q=[Parts(("who", "boss of #1"))], who=[Answer("ada")], **{"boss of ada": [Answer("bob")]})
    assert not_none((await solve("q", solver)).answer).text == "bob" and asked[-1] == "boss of ada"


async def test_the_search_leaves_a_plan_that_can_no_longer_win() -> None:
    solver, asked = table(
        q=[Parts(("a", "b")), Parts(("c",)), Answer("x", 0.5)],
        a=[Answer("1", 0.3)],
        b=[Answer("2")],
        c=[Answer("3", 0.6)],
    )
    found = await solve("q", solver)
    assert found.answer == Answer("3", 0.6) and asked == ["q", "a", "c"], "b cannot lift .3 above .6"


async def test_the_most_confident_part_answers_under_max() -> None:
    solver, asked = table(
        q=[Parts(("closed", "open", "slow"), "max")], closed=[Answer("1", 0.4)], open=[Answer("2", 0.9)], slow=[]
    )
    found = await solve("q", solver, estimate=lambda goal: 0.5 if goal == "slow" else 1.0)
    assert found.answer == Answer("2", 0.9) and asked == ["q", "closed", "open"]


async def test_reduce_sees_all_answers_and_equal_goals_are_asked_once() -> None:
    votes = [Answer("x", 0.9), Answer("y", 0.9), Answer("x", 0.9)]
    solver, asked = table(
        q=[Parts(("1", "2", "3", "1"), "reduce", lambda answers: majority(answers[:3]))],
        **{str(i + 1): [v] for i, v in enumerate(votes)},
    )
    found = await solve("q", solver)
    assert not_none(found.answer).text == "x" and not_none(found.answer).confidence > 0.85
    assert sorted(asked) == ["1", "2", "3", "q"]


async def test_a_goal_without_an_answer_has_none_and_a_budget_ends_the_search() -> None:
    solver, asked = table(q=[Parts(("a", "b"))], a=[])
    found = await solve("q", solver)
    assert found.answer is None and found.bound == 0 and asked == ["q", "a"]

    async def deeper(goal: str) -> list[Any]:
        return [Parts((goal + "'",))]

    assert (await solve("q", deeper, budget=5)).asked == 5


def random_options(rng: random.Random, name: str, depth: int, options: dict[str, Any]) -> None:
    """Fills `options` with a random AND/OR problem below the goal `name`."""
    rows: list[Answer | Parts] = [Answer(f"{name}{i}", rng.random()) for i in range(rng.randint(0 if depth else 1, 2))]
    for i in range(rng.randint(0, 2) if depth else 0):
        parts = tuple(f"{name}{i}{j}" for j in range(rng.randint(1, 2)))
        for part in parts:
            random_options(rng, part, depth - 1, options)
        rows.append(Parts(parts, rng.choice(["all", "max"])))
    options[name] = rows


def best(options: dict[str, Any], name: str) -> float:
    values = [0.0]
    for row in options[name]:
        if isinstance(row, Answer):
            values.append(row.confidence)
        else:
            inner = [best(options, goal) for goal in row.goals]
            values.append(math.prod(inner) if row.combine == "all" else max(inner))
    return max(values)


async def test_the_answer_is_the_best_of_all_plans_on_random_problems() -> None:
    for seed in range(60):
        options: dict[str, Any] = {}
        random_options(random.Random(seed), "q", 3, options)
        solver, asked = table(**options)
        found = await solve("q", solver)
        assert (found.answer.confidence if found.answer else 0.0) == pytest.approx(best(options, "q"))
        assert len(asked) == len(set(asked)) <= len(options)


async def test_the_search_is_kept_as_a_tree_with_all_nodes_and_credited(tmp_path: Path) -> None:
    solver, _ = table(q=[Parts(("a", "b"))], a=[Answer("1", 0.8), Answer("9", 0.1)], b=[Answer("2", 0.5)])
    found = await solve("q", solver)
    tree = as_tree(found, Task("own", "1", "q"), "plans", lambda goal, answer: float(answer.text != "9"))
    assert [i for i in range(len(tree)) if tree.kind[i] is NodeKind.ALL] == [1] and not tree.exact
    with TreeStore.open(tmp_path / "trees.db") as store:
        store.create(tree.header)
        first = 1
        for expansion in _expansions(tree):
            store.append_nowait(tree.tree_id, expansion, first)
            first += len(expansion.drafts)
        store.finish(tree)
        await store.flush()
        again = store.load(tree.tree_id)
    assert again.digest() == tree.digest() and again.kind == tree.kind
    grown = tree_arrays([again])  # every leaf has a known reward: exact for the solver's own choices
    arrays = TreeArrays.of(grown.parent, kind=grown.kind, reward=grown.reward)
    credit = split_loo_graph(arrays, combine="product", tau=0.0)
    assert credit.value[0] == pytest.approx(0.5) and credit.weight[2:4].tolist() == [1.0, 0.5]


def _expansions(tree: Tree) -> Iterator[Expansion]:
    from treewright.search.types import Completion, Draft, Expansion, Outcome, Spent

    for seq, group in itertools.groupby(range(1, len(tree)), key=lambda i: tree.born[i]):
        ids = list(group)
        drafts = tuple(
            Draft(
                after=0,
                slot=tree.slot[i],
                mult=1,
                share=tree.share[i],
                seed=tree.seed[i],
                completion=Completion(tree.text[i], trainable=False),
                action=None,
                score=tree.score[i],
                outcome=Outcome(not_none(tree.observation[i]), _as_grown(tree, i), reward=tree.reward(i)),
            )
            for i in ids
        )
        yield Expansion(
            seq=seq,
            node=tree.parent[ids[0]],
            closing=False,
            drawn=len(ids),
            outcome=None,
            drafts=drafts,
            spent=Spent(expansions=1),
        )


def _as_grown(tree: Tree, i: int) -> NodeStatus:
    from treewright.search.types import NodeStatus

    return NodeStatus.OPEN if tree.children[i] else tree.status[i]


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(TreewrightError, match="may only name the answers of parts before it"):
        Parts(("a #2", "b"))
    with pytest.raises(TreewrightError, match="one of all, max, mean, reduce"):
        Parts(("a",), "sum")
    with pytest.raises(TreewrightError, match="needs a function"):
        Parts(("a",), "reduce")


def test_the_example_answers_more_questions_by_votes() -> None:
    path = Path(__file__).parents[2] / "docs" / "examples" / "decomposed_questions.py"
    spec = importlib.util.spec_from_file_location("decomposed_questions", path)
    example = importlib.util.module_from_spec(not_none(spec))
    not_none(not_none(spec).loader).exec_module(example)
    found = example.main(60)
    assert found[3][0] > found[1][0] + 0.1 and found[1][0] > 0.5


async def test_goals_in_a_circle_end_and_others_get_their_turn() -> None:
    """mix needs salt; salt needs mix, or is an answer."""
    solver, asked = table(mix=[Parts(("salt",))], salt=[Parts(("mix",)), Answer("from the sea", 0.5)])
    found = await asyncio.wait_for(solve("mix", solver), 120)
    assert found.answer == Answer("from the sea", 0.5) and asked == ["mix", "salt"]
    solver, asked = table(mix=[Parts(("salt",))], salt=[Parts(("mix",))])
    found = await asyncio.wait_for(solve("mix", solver), 120)
    assert found.answer is None and found.bound == 0.0 and asked == ["mix", "salt"]


async def test_a_knot_of_circles_ends_by_its_looks_and_hangs_nothing() -> None:
    """Every goal needs any other of twelve: more ways through than could ever be looked at. A watchdog keeps time."""
    names = [f"g{i}" for i in range(12)]
    solver, asked = table(**{n: [Parts((m,)) for m in names if m != n] for n in names})
    turns = 0

    async def watch() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    watchdog = asyncio.create_task(watch())
    found = await asyncio.wait_for(solve("g0", solver, looks=3000), 120)
    watchdog.cancel()
    assert found.answer is None and len(asked) == 12 and turns > 3
