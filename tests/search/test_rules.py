"""Each rule's order of expansions on stored small trees, with ties and duplicates; options, names, pruning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from golden_trees import order_of, stored
from not_none import not_none
from walker import Likelihood, Walker

from treewright.envs import TreewrightError
from treewright.envs.doors import options_of
from treewright.envs.maze import SUITE, Maze
from treewright.search.engine import Settings, search
from treewright.search.frontier import ByDescent, ByPriority, ucb
from treewright.search.restore import Pool
from treewright.search.rules import RULES, known_rules, rule
from treewright.search.rules.base import Rule
from treewright.search.rules.plan_memory import Plan, PlanMemory
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, NodeStatus

TASK = SUITE.tasks("train", 3)[2]
GOLDEN = [(name, case) for name in ("errand", "ties") for case in stored(name)["orders"]]


def spelled(value: Any) -> str:
    name, case = value
    options = ",".join(f"{k}={v}" for k, v in case["options"].items())
    return f"{name}-{case['rule']}({options})-{case['width']}"


@pytest.mark.parametrize("golden", GOLDEN, ids=spelled)
def test_the_order_of_expansions_is_the_stored_one(golden: tuple[str, Any]) -> None:
    name, case = golden
    world = stored(name)
    options = dict(case["options"])
    if case["rule"] == "astar":
        options["memory"] = PlanMemory(tuple(Plan("golden", p["goal"], tuple(p["steps"])) for p in world["plans"]))
    order, dropped, _ = order_of(rule(case["rule"], **options), world, case["width"])
    assert (order, dropped) == (case["order"], case["dropped"])


def test_every_rule_has_a_golden_order() -> None:
    assert set(RULES) <= {case["rule"] for _, case in GOLDEN} <= set(known_rules())


def test_astar_goes_straight_down_a_remembered_plan_and_uniform_cost_does_not() -> None:
    world = stored("errand")
    memory = PlanMemory(tuple(Plan("golden", p["goal"], tuple(p["steps"])) for p in world["plans"]))
    assert order_of(rule("astar", memory=memory, trust=0), world)[0][:3] == ["root", "a", "a1"]
    assert order_of(rule("uniform_cost"), world)[0].index("a1") == 6


def test_cascade_expands_equal_actions_once_and_destructive_ones_last() -> None:
    order, dropped, _ = order_of(rule("cascade"), stored("errand"))
    assert dropped == ["c"] and order[-2:] == ["d", "d1"]
    assert order.index("e") < order.index("a1")  # invalid output before what cannot be undone


def test_cascade_puts_ends_off_until_two_are_known_when_it_is_lazy() -> None:
    world = {
        "goal": "g",
        "nodes": {
            "root": [
                {"name": "stop", "say": "done", "score": 0.9, "end": True},
                {"name": "look", "say": "look", "score": 0.5},
            ],
            "look": [
                {"name": "more", "say": "look at=x", "score": 0.4},
                {"name": "end", "say": "done answer=x", "score": 0.3, "end": True},
            ],
            "more": [],
        },
    }
    order, _, _ = order_of(rule("cascade"), world, eager=False)
    assert order[:3] == ["root", "look", "stop"]
    assert order_of(rule("cascade", enough=1), world, eager=False)[0][:2] == ["root", "stop"]


def test_best_first_chooses_by_a_vote_of_the_policy_or_by_the_highest_score() -> None:
    world = {
        "goal": "g",
        "nodes": {
            "root": [
                {"name": "early", "say": "done", "score": 0.4, "end": True},
                {"name": "look", "say": "look", "score": 0.5},
            ],
            "look": [
                {"name": "late", "say": "done answer=x", "score": 0.9, "end": True},
                {"name": "on", "say": "look at=x", "score": 0.1},
                {"name": "off", "say": "look at=y", "score": 0.1},
            ],
            "on": [],
            "off": [],
        },
    }
    said = {}
    for pick in ("mass", "score"):
        order = rule("best_first", pick=pick)
        _, _, tree = order_of(order, world)
        said[pick] = tree.text[not_none(order.choose(tree))]
    assert said == {"mass": "early done", "score": "late done answer=x"}
    with pytest.raises(TreewrightError, match="pick"):
        rule("best_first", pick="truth")


def test_virtual_loss_turns_the_second_walker_elsewhere() -> None:
    world = stored("ties")
    with_loss = order_of(rule("uct", virtual_loss=1.0), world, width=2)[0]
    without = order_of(rule("uct", virtual_loss=0.0), world, width=2)[0]
    assert with_loss[4:6] == ["a1", "b1"] and without[4:6] == ["a1", "a2"]


async def grow(order: Rule, sessions: int = 1, walker: Walker | Wordy | None = None, **settings: Any) -> Tree:
    async def opened() -> Maze:
        return Maze()

    return await search(
        TASK, Pool(opened, sessions), walker or Walker(), rule=order, evaluator=Likelihood(),
        budget=Budget(expansions=14), settings=Settings(**settings),
    )  # fmt: skip


@pytest.mark.parametrize("name", list(RULES))
@pytest.mark.parametrize("eager", [True, False])
async def test_eight_sessions_and_one_give_the_same_tree_at_the_same_width(name: Any, eager: bool) -> None:
    order = rule(name, eager=eager)
    one = await grow(order, in_flight=4, close=True)
    eight = await grow(order, 8, Walker(delay=True), in_flight=4, close=True)
    assert one.digest() == eight.digest() and one.chosen == eight.chosen


class Wordy(Walker):
    """Writes the same move in two ways, with a space or without."""

    def _one(self, seed: int) -> Completion:
        done = super()._one(seed)
        text = done.text.replace(": ", ":") if seed % 2 else done.text
        ids = tuple(text.encode())
        return replace(done, text=text, token_ids=ids, logprobs=(-1.0,) * len(ids))


@pytest.mark.parametrize("name", ["beam", "ets", "depth_first_critic", "cascade"])
async def test_a_rule_that_gives_nodes_up_says_so_in_the_tree(name: str) -> None:
    tree = await grow(rule(name, root_draws=8, draws=4), walker=Wordy(), close=True)
    pruned = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.PRUNED]
    assert pruned and not tree.exact
    assert any(name in reason or "merged" in reason for reason in tree.reasons)
    assert all(not tree.children[i] for i in pruned)


@pytest.mark.parametrize("name", ["beam", "ets", "depth_first_critic"])
async def test_without_pruning_the_same_rule_leaves_an_exact_tree(name: str) -> None:
    tree = await grow(rule(name, prune=False), close=True)
    assert tree.exact, tree.reasons
    assert not {NodeStatus.PRUNED, NodeStatus.OPEN} & set(tree.status)


@pytest.mark.parametrize("name", ["best_first", "uct", "uniform_cost", "astar", "late_branch", "split", "fan"])
async def test_rules_that_give_nothing_up_leave_exact_trees(name: str) -> None:
    assert (await grow(rule(name), close=True)).exact


def test_names_hold_all_options_so_that_a_resume_with_others_is_noticed() -> None:
    memory = PlanMemory((Plan("s", "g", ("a",)),))
    assert rule("astar").name != rule("astar", memory=memory).name
    for name in RULES:
        known = [option for option in not_none(options_of(known_rules()[name])) if option != "memory"]
        assert all(f"{option}=" in rule(name).name for option in known), name


def test_an_unknown_option_names_its_neighbour() -> None:
    with pytest.raises(TreewrightError, match="did you mean 'alpha'"):
        rule("astar", alfa=1)
    with pytest.raises(TreewrightError, match="no rule named 'astra'"):
        rule("astra")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("astar", {"alpha": 2}), ("astar", {"restore_price": -1}), ("beam", {"width": 0}), ("ets", {"width": 0}),
        ("uct", {"exploration": -1}), ("uniform_cost", {"irreversible": -1}), ("fan", {"widths": []}),
        ("best_first", {"draws": 0}), ("ets", {"encode": "nowhere:f"}),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(TreewrightError):
        rule(name, **options)


def test_a_nan_priority_is_refused_and_an_empty_frontier_shows_nothing() -> None:
    _, _, tree = order_of(rule("best_first"), stored("ties"))
    broken = ByPriority(tree, lambda node: math.nan)
    with pytest.raises(ValueError, match="NaN"):
        broken.offer(1)
    assert broken.peek() is None
    with pytest.raises(IndexError):
        ByDescent(tree, lambda node: 1.0, 1.0, 1.0).take()


def test_the_bound_of_an_unvisited_node_is_infinite_and_falls_with_visits() -> None:
    assert ucb(0.0, 0, 10, 1.0) == math.inf
    assert ucb(1.0, 2, 10, 1.0) == pytest.approx(0.5 + math.sqrt(math.log(10) / 2))
    assert ucb(5.0, 10, 20, 1.0) < ucb(1.0, 2, 20, 1.0)
