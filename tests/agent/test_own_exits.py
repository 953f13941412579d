"""Parts of one's own that exit, in the middle of a run: a fault or one sentence, never a silent end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treewright.agent.cli.options import go
from treewright.agent.gateway.errors import ApiError
from treewright.agent.gateway.fields import entries
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import Action, EnvFault, Task
from treewright.envs.errors import TreewrightError
from treewright.envs.tools.world import ToolWorld
from treewright.envs.types import Observation, StepResult
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool

TASK = Task("desk", "one", "look")


class Exits:
    name, tools = "exits", ()

    async def reset(self, task: Task, key: int) -> Observation:
        raise SystemExit(3)

    async def step(self, action: Action, key: int) -> StepResult:
        await asyncio.sleep(0)
        raise asyncio.CancelledError("mine")


async def test_an_environment_that_exits_or_gives_up_is_a_fault_with_its_place() -> None:
    async def opened() -> Any:
        raise SystemExit(1)

    env, pool = Exits(), Pool(opened, size=1)
    with pytest.raises(EnvFault, match=r"^reset raised SystemExit: 3 \(test_own_exits\.py, line"):
        await pool.timed(env.reset(TASK, 0), "reset")
    with pytest.raises(EnvFault, match=r"^step raised CancelledError: mine \(test_own_exits\.py, line"):
        await pool.timed(env.step(Action.of("x"), 0), "step")
    with pytest.raises(EnvFault, match=r"^opening a session raised SystemExit: 1 "):
        await pool._opened()


class Desk:
    sandboxed = True

    def __init__(self) -> None:
        self.rows: list[int] = []

    def put(self, n: int) -> str:
        self.rows.append(n)
        raise SystemExit(0)


async def test_a_tree_of_a_tool_that_exits_is_grown_and_says_so_in_its_answers() -> None:
    def script(task: Task, turns: Any, tools: Any, rng: Any) -> str:
        return 'done {"answer": ""}' if len(turns) == 2 else 'put {"n": 3}'

    world = ToolWorld.of(Desk, effects={"put": "reversible"}, judge=lambda end: len(end.object.rows) == 2)
    tree = await search(TASK, world, ScriptedPolicy(script, trainable=False), settings=Settings(max_tokens=100))
    assert max(tree.outcome_of(leaf) for leaf in tree.leaves()) == 1.0


def test_an_exit_in_a_task_of_somebodys_own_ends_a_command_with_one_sentence() -> None:
    async def work() -> None:
        async def node() -> None:
            raise SystemExit(0)

        await asyncio.gather(node(), asyncio.sleep(1))

    with pytest.raises(TreewrightError, match=r"^a part of yours ended the run by SystemExit: 0 \(test_own_exits"):
        go(work)


@pytest.mark.parametrize("name", ["messages", "input"])
def test_an_empty_list_where_entries_are_needed_is_called_empty(name: str) -> None:
    with pytest.raises(ApiError, match=f"^{name} must be an array with at least one entry, not an empty array$"):
        entries({name: []}, name, needed=True)
