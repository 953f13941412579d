"""Every built-in suite keeps the contract, never shares a task between splits, and can be solved by its oracle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from speed import patiently

from treewright.envs import TreewrightError, suite
from treewright.envs.check import check_env
from treewright.envs.registry import BUILT_IN
from treewright.envs.types import Suite

PLAYED = {"market": 5}  # the task that the kit plays, where another one than the first does more: it buys
SIZES = {"code": (30, 14)}  # suites with fewer than 200 tasks a split


def opened(name: str) -> Suite:
    found = suite(name)
    if found.available is not None:
        try:
            found.available()
        except TreewrightError as error:
            pytest.skip(str(error))
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played() -> AsyncIterator[list[Suite]]:
    """The suites that were played, closed at the end: those with equal browsers share one."""
    suites: list[Suite] = []
    yield suites
    for found in suites:
        if found.close is not None:
            await found.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", list(BUILT_IN))
async def test_the_conformance_kit_passes(name: Any, played: list[Suite]) -> None:
    found = opened(name)
    played.append(found)
    at = PLAYED.get(name, 0)
    tasks = (found.tasks("train", at + 1) or found.tasks("test", at + 1))[at:]
    report = await check_env(patiently(found.open), tasks, oracle=found.oracle)
    report.raise_if_failed()


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_splits_never_share_a_task_nor_a_world(name: Any) -> None:
    found = opened(name)
    if name == "webarena":
        pytest.skip("the tasks of a file are all for tests")
    train, test = found.tasks("train", 200), found.tasks("test", 200)
    assert (len(train), len(test)) == SIZES.get(name, (200, 200))
    assert not {t.id for t in train} & {t.id for t in test}
    assert not {(t.seed, t.goal) for t in train} & {(t.seed, t.goal) for t in test}
    assert [t.id for t in found.tasks("test", 50)] == [t.id for t in test[:50]]


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_truth_is_not_in_what_is_shown_of_a_task(name: Any) -> None:
    assert all("truth" not in repr(t) for t in opened(name).tasks("test", 5))
