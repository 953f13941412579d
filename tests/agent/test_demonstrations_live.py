"""What acts outside a search has nobody to ask: in a live world it executes nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from treewright.agent.judges.plans import demonstrated_plans
from treewright.agent.seedling.demos import Bank, Noise, demonstrate
from treewright.agent.seedling.evaluate import _begin
from treewright.envs.errors import TreewrightError
from treewright.envs.maze import SUITE, Maze


class LiveMaze(Maze):
    """A maze whose author promised nothing; counts what was executed."""

    stepped = 0

    def __init__(self):
        super().__init__()
        self.sandboxed = False

    async def step(self, action, key):
        LiveMaze.stepped += 1
        return await super().step(action, key)


async def opened():
    return LiveMaze()


async def plans(open_env):
    return await demonstrated_plans(SUITE.tasks("train", 1), open_env, SUITE.oracle)


async def noisy_demonstrations(open_env):
    task = SUITE.tasks("train", 1)[0]
    return await demonstrate(await open_env(), replace(SUITE, open=open_env), task, Noise(), Bank(), random.Random(0))


async def measuring_the_seedling(open_env):
    return await _begin(SUITE.tasks("train", 1)[0], await open_env(), 0)


@pytest.mark.parametrize("act", [plans, noisy_demonstrations, measuring_the_seedling])
async def test_a_live_world_is_refused_before_anything_is_executed_and_a_sandboxed_one_is_not(act):
    LiveMaze.stepped = 0
    with pytest.raises(TreewrightError, match="not declared sandboxed: nothing was executed"):
        await act(opened)
    assert LiveMaze.stepped == 0
    await act(SUITE.open)
