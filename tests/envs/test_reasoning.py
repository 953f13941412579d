"""Puzzles: one solution is right, what is wrong is not, and what is no answer does no harm."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from not_none import not_none

from treewright.envs import suite
from treewright.envs.errors import TreewrightError
from treewright.envs.reasoning.answering import Answering, answer
from treewright.envs.reasoning.puzzles import KINDS, LEVELS, SUITE, puzzle, value_of
from treewright.envs.types import Action, Task


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", range(LEVELS))
def test_the_solution_is_right_and_others_are_not(kind: str, level: int) -> None:
    for seed in range(25):
        made = KINDS[kind](random.Random(seed), level)
        assert made.right(made.solution), made
        for wrong in ("", "0.5", "x", made.solution + " 1", "ann=tea", "(" * 300, "9**9**9", "__import__('os')"):
            assert not made.right(wrong), (made, wrong)


def test_a_chain_is_the_number_and_nothing_else() -> None:
    made = KINDS["chain"](random.Random(0), 2)
    assert made.right(f" {made.solution}\n")
    assert not made.right(str(int(made.solution) + 1)) and not made.right(f"{made.solution}.0")


def test_countdown_takes_any_expression_that_uses_each_number_at_most_once() -> None:
    made = KINDS["countdown"](random.Random(3), 1)
    target, shown = made.question.split(":")[0].removeprefix("Make ").split(" from ")
    assert made.right(f"{made.solution} * 1") == ("1" in shown.split(", "))
    assert not made.right(target) or target in shown.split(", ")


def test_arithmetic_is_exact_and_takes_nothing_else() -> None:
    assert value_of("1/3 + 1/3 + 1/3") == (Fraction(1), [1, 3, 1, 3, 1, 3])
    for text in ("1/0", "1.5", "2**3", "abs(1)", "True", "1 if 1 else 2", "(1", "1;2", "'a'*9"):
        assert value_of(text) is None, text


def test_grids_have_one_solution() -> None:
    import itertools
    import re

    for seed in range(20):
        made = KINDS["grid"](random.Random(seed), seed % LEVELS)
        names, rest = made.question.split(" each drink another one of ")
        drinks = rest.split(":")[0].split(", ")
        clues = re.findall(r"(\w+) does not drink (\w+)", made.question)
        people = names.split(", ")
        ways = [dict(zip(people, way, strict=True)) for way in itertools.permutations(drinks)]
        left = [way for way in ways if all(way[who] != what for who, what in clues)]
        assert len(left) == 1 and made.right(", ".join(f"{who}={what}" for who, what in left[0].items()))


async def test_an_answer_ends_the_episode_and_is_paid_by_the_checker() -> None:
    for task in SUITE.tasks("test", 8):
        for said, paid in ((puzzle(task).solution, 1.0), ("nonsense", 0.0)):
            env = await SUITE.open()
            await env.reset(task, 1)
            result = await env.step(Action.of("answer", text=said), 1)
            assert (result.reward, result.terminated) == (paid, True)


async def test_a_session_restores_what_another_one_saw_of_another_task() -> None:
    one, other = Answering(lambda task, said: float(said == task.id)), Answering(lambda task, said: 0.0)
    first, second = Task("puzzles", "a", "?"), Task("puzzles", "b", "?")
    seen = await one.reset(first, 0)
    held = await one.snapshot()
    await other.reset(second, 0)
    assert (await other.restore(held)).fingerprint == seen.fingerprint
    fresh = Answering(lambda task, said: float(said == task.id))
    await fresh.restore(held)
    assert (await fresh.step(answer("a"), 0)).reward == 1.0
    told = await fresh.snapshot()
    assert (await other.restore(told)).text == "answered"


def test_datasets_of_reasoning_gym_are_suites_or_say_what_to_install() -> None:
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        with pytest.raises(TreewrightError, match="pip install reasoning-gym"):
            suite("reasoning:countdown")
    else:
        with pytest.raises(TreewrightError, match="did you mean 'countdown'"):
            suite("reasoning:countdow")


async def test_what_the_packages_scorer_says_is_the_reward() -> None:
    pytest.importorskip("reasoning_gym")
    found = suite("reasoning:chain_sum,countdown")
    train, test = found.tasks("train", 6), found.tasks("test", 6)
    assert not {t.goal for t in train} & {t.goal for t in test}
    for task in test:
        env = await found.open()
        await env.reset(task, 1)
        result = await env.step(not_none(found.oracle)(task, (), ()), 1)
        assert result.reward == 1.0 and result.terminated
