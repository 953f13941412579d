"""What acts outside a search has nobody to ask: in a live world it executes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from not_none import not_none

from treewright.agent.judges.plans import demonstrated_plans
from treewright.agent.seedling.demos import Bank, Demo, Noise, demonstrate
from treewright.agent.seedling.evaluate import Episode, _begin
from treewright.envs.errors import TreewrightError
from treewright.envs.maze import SUITE, Maze
from treewright.envs.types import Action, StepResult

if TYPE_CHECKING:
    from treewright.search.rules.plan_memory import PlanMemory


class LiveMaze(Maze):
    """A maze whose author promised nothing; counts what was executed."""

    stepped = 0

    def __init__(self) -> None:
        super().__init__()
        self.sandboxed = False

    async def step(self, action: Action, key: int) -> StepResult:
        LiveMaze.stepped += 1
        return await super().step(action, key)


async def opened() -> LiveMaze:
    return LiveMaze()


async def plans(open_env: Any) -> PlanMemory:
    return await demonstrated_plans(SUITE.tasks("train", 1), open_env, not_none(SUITE.oracle))


async def noisy_demonstrations(open_env: Any) -> Demo:
    task = SUITE.tasks("train", 1)[0]
    return await demonstrate(await open_env(), replace(SUITE, open=open_env), task, Noise(), Bank(), random.Random(0))


async def measuring_the_seedling(open_env: Any) -> Episode:
    return await _begin(SUITE.tasks("train", 1)[0], await open_env(), 0)


@pytest.mark.parametrize("act", [plans, noisy_demonstrations, measuring_the_seedling])
async def test_a_live_world_is_refused_before_anything_is_executed_and_a_sandboxed_one_is_not(
    act: Callable[[Any], Coroutine[Any, Any, Any]],
) -> None:
    LiveMaze.stepped = 0
    with pytest.raises(TreewrightError, match="not declared sandboxed: nothing was executed"):
        await act(opened)
    assert LiveMaze.stepped == 0
    await act(SUITE.open)
