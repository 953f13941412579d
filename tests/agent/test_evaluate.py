"""What an evaluation counts, and what it cannot know."""

from __future__ import annotations

from pathlib import Path

from mazewalk import walker

from treewright.agent.runs.collect import World
from treewright.agent.runs.evaluate import evaluate
from treewright.envs import EnvFault
from treewright.envs.maze import SUITE, Maze
from treewright.envs.types import Observation, Task
from treewright.search.restore import Pool
from treewright.search.store import TreeStore


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
