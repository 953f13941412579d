"""Choosing between memory and passages by calibrated confidence."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from not_none import not_none

from treewright.agent.runs.probtree import Calibration, calibrate, expected_calibration_error, probtree
from treewright.envs.errors import TreewrightError
from treewright.search.planning.all_nodes import Answer, Parts, solve


def says(**answers: Any) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    async def reader(question: str) -> Answer | None:
        found = answers.get(question.replace(" ", "_"))
        return None if found is None else Answer(*found)

    return reader


def by_last_word(question: str) -> Parts | None:
    *first, last = question.split()
    return Parts((" ".join(first), f"#1 {last}")) if len(first) > 1 else None


async def test_at_every_hop_the_surer_way_answers() -> None:
    closed = says(ada_boss=("bob", 0.9), bob_rival=("eve", 0.2))
    opened = says(ada_boss=("zoe", 0.6), bob_rival=("kim", 0.7))
    both = await solve("ada boss rival", probtree(closed, opened, by_last_word))
    assert not_none(both.answer).text == "kim" and not_none(both.answer).confidence == pytest.approx(0.9 * 0.7)
    never = await solve("ada boss rival", probtree(closed, None, by_last_word))
    assert not_none(never.answer).text == "eve"
    nothing = await solve("ada boss rival", probtree(None, opened, by_last_word))
    assert nothing.answer is None, "the passages lead to zoe, about whom there is nothing"


async def test_calibration_decides_which_way_is_surer() -> None:
    closed, opened = says(ada_boss=("bob", 0.8)), says(ada_boss=("zoe", 0.99))
    boastful = {"opened": Calibration(0.2, 0.0)}
    assert not_none((await solve("ada boss", probtree(closed, opened, by_last_word))).answer).text == "zoe"
    assert not_none((await solve("ada boss", probtree(closed, opened, by_last_word, boastful))).answer).text == "bob"


def test_calibration_finds_the_slope_that_made_the_answers() -> None:
    rng = random.Random(0)
    given = [rng.uniform(0.02, 0.98) for _ in range(4000)]
    made = Calibration(0.5, -0.3)
    right = [rng.random() < made(p) for p in given]
    found = calibrate(given, right)
    assert found.slope == pytest.approx(0.5, abs=0.05) and found.shift == pytest.approx(-0.3, abs=0.1)
    before, after = (expected_calibration_error(x, right) for x in (given, [found(p) for p in given]))
    assert after < 0.03 < before


@pytest.mark.parametrize("right", [[True] * 20, [False] * 20, [True] * 14 + [False] * 6])
def test_certain_answers_are_calibrated_too(right: list[bool]) -> None:
    found = calibrate([1.0] * 20, right)
    assert 0 < found(1.0) < 1 and found(1.0) == pytest.approx(sum(right) / 20, abs=0.15)


def test_the_calibration_error_by_hand() -> None:
    assert expected_calibration_error([0.9, 0.9, 0.1], [True, False, False]) == pytest.approx(2 / 3 * 0.4 + 1 / 3 * 0.1)


def test_nothing_to_calibrate_on_and_no_way_to_answer_are_refused() -> None:
    with pytest.raises(TreewrightError, match="answers with known truth"):
        calibrate([], [])
    with pytest.raises(TreewrightError, match="from memory, from passages, or both"):
        probtree(None, None, by_last_word)


def test_choosing_beats_both_fixed_ways() -> None:
    torch = pytest.importorskip("torch")
    from treewright.benchmarks.probtree import KnownGraph, success

    torch.set_num_threads(1)
    graph = KnownGraph.make(2, steps=500)
    calibrations, errors = graph.calibrations()
    assert all(after < before for before, after in errors.values())
    asked = graph.questions(150)
    both, always, never = (
        success(asked, closed, opened, calibrations)
        for closed, opened in ((graph.closed, graph.opened), (None, graph.opened), (graph.closed, None))
    )
    assert both > max(always, never) + 0.05
