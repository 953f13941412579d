"""What an evaluation counts, and what it cannot know."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from mazewalk import walker

from treewright.agent.runs.collect import World
from treewright.agent.runs.evaluate import any_solved, evaluate
from treewright.envs import EnvFault
from treewright.envs.maze import SUITE, Maze
from treewright.envs.types import Action, Observation, StepResult, Task
from treewright.search.restore import Pool
from treewright.search.store import TreeStore
from treewright.search.types import NodeStatus


class Closed(Maze):
    """A maze whose third task never comes up."""

    async def reset(self, task: Task, key: int) -> Observation:
        if task.id == TASKS[2].id:
            raise EnvFault("the door is locked")
        return await super().reset(task, key)


TASKS = SUITE.tasks("test", 4)


async def closed() -> Closed:
    return Closed()


async def test_a_tree_that_the_world_kept_from_growing_is_unknown_and_no_failure(tmp_path: Path) -> None:
    worlds = {"maze": World(SUITE, Pool(closed))}
    with TreeStore.open(tmp_path / "trees.db") as store:
        found, trees = await evaluate(TASKS, worlds, walker, expansions=6, store=store, run="a")
        await evaluate(TASKS, worlds, walker, expansions=6, store=store, run="b")
        one = found["maze"]
        assert one.tasks == tuple(t.id for i, t in enumerate(TASKS) if i != 2)
        assert len(one.success) == 3 and (one.faults, one.lost) == (1, 1)
        assert [t.lost for t in trees] == [False, False, True, False]
        rows = {row.task_id: row.success for row in store.trees(run="a")}
        assert rows[TASKS[2].id] is None and all(rows[t.id] is not None for t in (TASKS[0], TASKS[1], TASKS[3]))
        assert [c.tasks for c in store.compare("a", "b")] == [3]


class Unrated(Maze):
    """A maze that tells no reward for its end."""

    async def step(self, action: Action, key: int) -> StepResult:
        result = await super().step(action, key)
        return replace(result, reward=math.nan) if result.terminated else result


async def unrated() -> Unrated:
    return Unrated()


async def test_a_task_whose_reward_nobody_knows_is_left_out_and_counted() -> None:
    found, trees = await evaluate(TASKS, {"maze": World(SUITE, Pool(unrated))}, walker, expansions=6)
    one = found["maze"]
    ended = [t for t in trees if t.chosen is not None and t.status[t.chosen] is NodeStatus.TERMINAL]
    assert ended and (one.unknown, one.lost, one.faults) == (len(ended), 0, 0)
    assert len(one.tasks) == len(TASKS) - len(ended) and one.figures()["unknown"] == len(ended)
    assert not any(one.success) and all(any_solved(tree) is None for tree in ended)
