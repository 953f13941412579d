"""Plans: what a step is, what is remembered and from which tasks, and the costs of A*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_trees import order_of, stored
from walker import Walker

from treewright.envs import Action, Observation, Task, TreewrightError
from treewright.envs.maze import SUITE
from treewright.search.engine import search
from treewright.search.rules import rule
from treewright.search.rules.astar import PathCosts, lcs
from treewright.search.rules.plan_memory import Plan, PlanMemory, alike, goal_marks, step_of, words_of
from treewright.search.tree import Tree
from treewright.search.types import Budget, Exchange

TASK = Task("office", "1", "send Ada a mail about #late")


def turn(text: str, tool: Any, /, **arguments: Any) -> Exchange:
    return Exchange("", Action.of(tool, **arguments), Observation(text))


def test_a_step_says_where_each_argument_came_from() -> None:
    before = [turn("person Ada: mail ada12@corp.io", "find_contact", name="Ada"), turn("ada12@corp.io", "again")]
    send = Action.of("send_mail", to="ada12@corp.io", topic="#late", copy="nobody")
    assert step_of(TASK, before, send) == "send_mail copy=new to=find_contact topic=goal"
    assert step_of(TASK, [], Action.of("count", number=3)) == "count number=new"


def test_words_come_without_punctuation_and_once() -> None:
    assert words_of('Say "hi", order k12: hi. (#late)') == ("Say", "hi", "order", "k12", "#late")


def test_goals_that_differ_in_numbers_alone_look_alike() -> None:
    assert goal_marks("pay order k12") == goal_marks("pay order k99") != goal_marks("ship order k12")


@pytest.mark.parametrize(("one", "other", "much"), [("a x=1", "a x=1", 1.0), ("a x=1", "a x=2", 0.5), ("a", "b", 0.0)])
def test_steps_are_alike_wholly_by_tool_or_not_at_all(one: str, other: str, much: float) -> None:
    assert alike(one, other) == much


def test_the_longest_common_subsequence_keeps_the_order() -> None:
    assert lcs(["a", "b", "c"], ["a", "x", "c"]) == 2.0
    assert lcs(["c", "a"], ["a", "c"]) == 1.0
    assert lcs([], ["a"]) == 0.0
    assert lcs(["a x=1", "b"], ["a x=2", "b"]) == 1.5


async def solved_tree(split: str) -> Tree:
    ways = ("north", "east", "south", "west")
    walker = Walker([(f'move {{"to": "{way}"}}', 0.2) for way in ways] + [("stop {}", 0.2)])
    order = rule("breadth_first", draws=8, root_draws=8)
    for task in SUITE.tasks(split, 6):
        tree = await search(task, SUITE, walker, budget=Budget(expansions=300), rule=order)
        if any(tree.outcome_of(i) >= 1 for i in tree.leaves()):
            return tree
    raise AssertionError("no maze was solved")


async def test_only_solved_training_tasks_are_learned_from() -> None:
    tree = await solved_tree("train")
    memory = PlanMemory().learn([tree, tree])
    assert len(memory) == 1
    assert memory.plans[0].steps[-1] == "stop" and memory.plans[0].steps[0].startswith("move to=")
    assert len(PlanMemory().learn([await solved_tree("test")])) == 0


def test_learning_gives_a_new_memory_with_another_name() -> None:
    first = PlanMemory((Plan("s", "g", ("a",)),))
    second = first.with_plans([Plan("s", "h", ("b",)), Plan("s", "g", ("a",))])
    assert (len(first), len(second)) == (1, 2) and first.digest != second.digest


def test_near_plans_come_first_each_once_and_of_the_own_suite() -> None:
    plans = [Plan("office", "pay order k1", ("p",)), Plan("office", "send Ben a mail about #news", ("s", "t"))]
    plans += [Plan("office", "send Eva a mail about #x", ("s", "t")), Plan("kg", "send Ada a mail about #late", ("k",))]
    memory = PlanMemory(tuple(plans))
    assert [p.steps for p in memory.near(TASK, 0)] == [("s", "t"), ("p",)]
    assert [p.steps for p in memory.near(TASK, 1)] == [("s", "t")]


def test_a_saved_memory_comes_back_and_damage_names_its_line(tmp_path: Path) -> None:
    memory = PlanMemory((Plan("s", "g", ("a", "b")), Plan("s", "h", ())))
    memory.save(tmp_path / "m" / "plans.jsonl")
    assert PlanMemory.load(tmp_path / "m" / "plans.jsonl") == memory
    (tmp_path / "bad.jsonl").write_text('{"suite": "s"}\n')
    with pytest.raises(TreewrightError, match="line 1"):
        PlanMemory.load(tmp_path / "bad.jsonl")
    with pytest.raises(TreewrightError, match="treewright plans"):
        rule("astar", memory=str(tmp_path / "none.jsonl"))


def test_costs_on_a_path_that_is_a_plan_are_zero_and_h_falls_along_it() -> None:
    world = stored("errand")
    memory = PlanMemory(tuple(Plan("golden", p["goal"], tuple(p["steps"])) for p in world["plans"]))
    _, _, tree = order_of(rule("uniform_cost"), world)
    costs = PathCosts(tree, memory)
    a = next(i for i in range(len(tree)) if tree.text[i].startswith("a "))
    a1 = next(i for i in range(len(tree)) if tree.text[i].startswith("a1 "))
    done = next(i for i in range(len(tree)) if tree.text[i].startswith("a11 "))
    assert [costs.g(i) for i in (a, a1, done)] == [0.0, 0.0, 0.0]
    assert costs.h(0) == 1.0 > costs.h(a) > costs.h(a1) > costs.h(done) == 0.0
    b = next(i for i in range(len(tree)) if tree.text[i].startswith("b "))
    # one of six draws, nothing like it in memory: (1 - 0)^.5 (1 - 1/6)^.5
    assert costs.g(b) == pytest.approx((5 / 6) ** 0.5)


def test_alpha_one_ignores_frequencies_and_zero_ignores_plans() -> None:
    world = stored("errand")
    memory = PlanMemory(tuple(Plan("golden", p["goal"], tuple(p["steps"])) for p in world["plans"]))
    _, _, tree = order_of(rule("uniform_cost"), world)
    b = next(i for i in range(len(tree)) if tree.text[i].startswith("b "))
    assert PathCosts(tree, memory, alpha=1.0).g(b) == 1.0
    assert PathCosts(tree, memory, alpha=0.0).g(b) == pytest.approx(5 / 6)
