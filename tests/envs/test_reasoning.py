"""Puzzles: one solution is right, what is wrong is not, and what is no answer does no harm."""

from __future__ import annotations

import random
import sys
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
from not_none import not_none

from treewright.envs import suite
from treewright.envs.errors import TreewrightError
from treewright.envs.reasoning.answering import Answering, answer
from treewright.envs.reasoning.puzzles import KINDS, LEVELS, SUITE, puzzle, puzzles_suite, value_of
from treewright.envs.spelling import split_suites
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


@pytest.mark.parametrize("level", range(LEVELS))
def test_the_steps_lead_to_the_solution(level: int) -> None:
    for seed in range(25):
        for kind in ("chain", "countdown"):
            made = KINDS[kind](random.Random(seed), level)
            steps = [step.split(" = ") for step in made.steps.split("; ")]
            assert len(steps) == level + 1
            assert all(not_none(value_of(left))[0] == int(right) for left, right in steps)
            wanted = made.solution if kind == "chain" else str(not_none(value_of(made.solution))[0])
            assert steps[-1][1] == wanted
        made = KINDS["sorting"](random.Random(seed), level)
        row = [int(n) for n in made.question.removeprefix("Sort ").split(" by ")[0].split()]
        for step in made.steps.split("; "):
            place, then = int(step.split(": ")[0]), [int(n) for n in step.split(": ")[1].split()]
            row[place - 1], row[place] = row[place], row[place - 1]
            assert row == then
        assert row == sorted(row)
        made = KINDS["grid"](random.Random(seed), level)
        found = [step for step in made.steps.split("; ") if "=" in step]
        assert set(found) <= set(made.solution.split(", ")) and len(found) >= 1


def test_kinds_and_levels_are_suites_of_their_own() -> None:
    one, several = suite("puzzles:sorting-1"), suite("puzzles:chain,grid-0")
    assert {(t.suite, t.data["kind"], t.data["level"]) for t in one.tasks("train", 5)} == {
        ("puzzles:sorting-1", "sorting", 1)
    }
    assert {(t.data["kind"], t.data["level"]) for t in several.tasks("test", 10)} == {
        *(("chain", level) for level in range(LEVELS)), ("grid", 0)
    }  # fmt: skip
    with pytest.raises(TreewrightError, match="did you mean 'sorting'"):
        puzzles_suite("sortin")
    with pytest.raises(TreewrightError, match="sorting-0 to sorting-3"):
        puzzles_suite("sorting-9")


def test_a_list_of_suites_keeps_the_commas_within_them() -> None:
    assert split_suites("reasoning:chain_sum,countdown") == ["reasoning:chain_sum,countdown"]
    assert split_suites("puzzles:sorting,chain-0,kg,puzzles") == ["puzzles:sorting,chain-0", "kg", "puzzles"]


async def test_a_demonstration_writes_the_steps_before_the_answer() -> None:
    from transformers import AutoTokenizer

    from treewright.agent.policies.policy import SEEDLING
    from treewright.agent.policies.prompts import template_for
    from treewright.agent.runs.imitation import demonstrate, episode_rows
    from treewright.search.screen import parse_action

    one = suite("puzzles:chain-1")
    task = one.tasks("train", 1)[0]
    episode = await demonstrate(await one.open(), one, task, 0)
    assert episode.reward == 1.0
    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    (row,) = episode_rows(episode, template_for(tokenizer))
    said = tokenizer.decode(row.response, skip_special_tokens=True)
    assert said == f"{puzzle(task).steps}</think>\n\n{answer(puzzle(task).solution)}"
    assert parse_action(said) == answer(puzzle(task).solution)


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
        with pytest.raises(TreewrightError, match=r"pip install 'treewright\[reasoning\]'"):
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


RECORDED = {  # entries of chain_sum of reasoning-gym 0.1.25, by seed + index, and what its scorer gives
    1: ("State the final answer to the following arithmetic problem: 4 - 1 - 7 =", "-4"),
    2: ("State the final answer to the following arithmetic problem: 1 + 5 =", "6"),
    1 + (1 << 20): ("State the final answer to the following arithmetic problem: 144 - 859 + 680 =", "-35"),
    2 + (1 << 20): (
        "State the final answer to the following arithmetic problem: 477 + 438 - 843 - 188 + 113 + 286 =", "283"
    ),
}  # fmt: skip
SCORED = {"-4": 1.0, "x": 0.0, "-4 apples": 0.2222222222222222}


class Recorded:
    """A dataset as that package has it, of the entries above: entry i is made from seed + i."""

    def __init__(self, name: str, seed: int, size: int) -> None:
        self.name, self.seed, self.size = name, seed, size

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert 0 <= index < self.size
        question, right = RECORDED[self.seed + index]
        return {"question": question, "answer": right, "metadata": {"source_index": index}}

    def score_answer(self, said: str, entry: dict[str, Any]) -> float:
        return SCORED[said] if entry["answer"] == "-4" else float(said == entry["answer"])


async def test_recorded_entries_are_tasks_that_training_and_test_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.envs.reasoning import gym

    package, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    monkeypatch.setattr(package, "create_dataset", Recorded, raising=False)
    monkeypatch.setattr(factory, "DATASETS", {"chain_sum": object}, raising=False)
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    gym._dataset.cache_clear()
    try:
        found = suite("reasoning:chain_sum")
        train, test = found.tasks("train", 2), found.tasks("test", 2)
        assert [t.goal for t in (*train, *test)] == [question for question, _ in RECORDED.values()]
        for said, paid in SCORED.items():
            env = await found.open()
            await env.reset(train[0], 1)
            assert (await env.step(answer(said), 1)).reward == paid
    finally:
        gym._dataset.cache_clear()
