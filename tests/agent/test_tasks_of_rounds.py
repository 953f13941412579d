"""Which training tasks a round takes: in turn, from the first that is not left out, and again from there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from treewright.agent.runs.collect import World, open_worlds
from treewright.agent.runs.setup import left_out, rounds_for, tasks_of_round
from treewright.envs.errors import TreewrightError
from treewright.envs.registry import suite
from treewright.envs.types import Task
from treewright.training.sections import LoopSection


def forty(error: type[Exception]) -> Callable[[str, int], Sequence[Task]]:
    """A suite's tasks, of which there are forty; more are refused with this error."""

    def tasks(split: str, count: int) -> Sequence[Task]:
        if count > 40:
            raise error(f"there are 40 {split} tasks")
        return suite("kg").tasks(split, count)

    return tasks


@pytest.fixture
async def worlds() -> AsyncIterator[Mapping[str, World]]:
    async with open_worlds(("stdlib", "workbench")) as opened:
        yield opened


def ids(name: str, first: int, last: int) -> list[str]:
    return [task.id for task in suite(name).tasks("train", last)[first:]]


@pytest.mark.parametrize("error", [ValueError, TreewrightError])
async def test_a_suite_that_runs_out_begins_again_behind_what_is_left_out(
    worlds: Mapping[str, World], error: type[Exception]
) -> None:
    world = worlds["workbench"]
    one = {"few": replace(world, suite=replace(world.suite, tasks=forty(error)))}
    found = rounds_for(one, "train", 1, 6, skip={"few": 30})
    assert [task.id for task, _ in found] == ids("kg", 36, 40) + ids("kg", 30, 32)
    assert [attempt for _, attempt in found] == [0] * 4 + [1] * 2
    assert [attempt for _, attempt in rounds_for(one, "train", 1, 30)] == [0] * 10 + [1] * 20
    assert left_out(one, 39) == {"few": 39} and left_out(one, 40) == {}


async def test_the_last_training_task_of_workbench_is_followed_by_its_first(worlds: Mapping[str, World]) -> None:
    found = rounds_for({"workbench": worlds["workbench"]}, "train", 1, 2010)
    assert [attempt for _, attempt in found] == [0] * 1990 + [1] * 20
    assert [task.id for task, attempt in found if attempt] == ids("workbench", 0, 20)


async def test_rounds_follow_each_other_from_the_first_task_that_is_not_left_out(worlds: Mapping[str, World]) -> None:
    section = LoopSection(tasks=3, suite_tasks={"workbench": 2}, skip_tasks={"stdlib": 5})
    for index in (0, 1):
        found = [task.id for task in tasks_of_round(worlds, section, index)]
        assert found == ids("stdlib", 5 + 3 * index, 8 + 3 * index) + ids("workbench", 2 * index, 2 * index + 2)


async def test_leaving_out_every_task_is_refused(worlds: Mapping[str, World]) -> None:
    with pytest.raises(
        TreewrightError, match=r"loop\.skip_tasks\.workbench = 4000 leaves none of its 4000 train tasks"
    ):
        tasks_of_round(worlds, LoopSection(skip_tasks={"workbench": 4000}), 0)


async def test_what_was_imitated_is_left_out_where_there_are_other_tasks(worlds: Mapping[str, World]) -> None:
    assert left_out(worlds, 100) == {"stdlib": 100, "workbench": 100}
    assert left_out(worlds, 4000) == {}
