"""Figures of tool and code worlds for `treewright bench worlds`: AgentDojo solved, forks, search over programs."""

from __future__ import annotations

import asyncio
import statistics
import time

from treewright.agent.judges.code_judge import TestsPassed
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.evaluate import evaluate, paired_gain
from treewright.envs.code.bugs import Programmer
from treewright.envs.code.sandbox import run_calls
from treewright.envs.code.world import SUITE
from treewright.envs.tools.agentdojo import NAMES, agentdojo_suite
from treewright.envs.tools.world import ToolWorld
from treewright.envs.types import Suite, Turn

__all__ = ["figures"]

SKILL = 0.3  # chance that the scripted programmer's draft, or repair, is right


def figures(quick: bool) -> dict[str, tuple[float, str]]:
    """name → (value, unit). AgentDojo's 97 tasks are always played whole; `quick` shortens the programs' part."""
    return {**asyncio.run(_agentdojo()), **asyncio.run(_code(20 if quick else 44, 1 if quick else 5))}


async def _agentdojo() -> dict[str, tuple[float, str]]:
    solved, forks = 0.0, list[float]()
    for name in NAMES:
        reward, times = await _play(agentdojo_suite(name))
        solved += reward
        forks += times
    return {
        "agentdojo_solved": (solved, "of 97 user tasks, by ground truth"),
        "fork_ms_p50": (1e3 * statistics.median(forks), "ms, a second live session of an AgentDojo world"),
        "fork_ms_p95": (1e3 * statistics.quantiles(forks, n=20)[-1], "ms"),
    }


async def _play(suite: Suite) -> tuple[float, list[float]]:
    """Plays the ground truth of every task; forks before each action and goes on in the fork."""
    solved, times = 0.0, []
    for task in suite.tasks("all", 97):
        env = await suite.open()
        assert isinstance(env, ToolWorld) and suite.oracle is not None
        history = [Turn(None, await env.reset(task, 0))]
        while True:
            began = time.perf_counter()
            env = await env.fork()
            times.append(time.perf_counter() - began)
            action = suite.oracle(task, history, await env.actions())
            result = await env.step(action, 0)
            history.append(Turn(action, result.observation))
            if result.terminated:
                break
        solved += result.reward
    return solved, times


async def _code(count: int, rounds: int) -> dict[str, tuple[float, str]]:
    tasks = [*SUITE.tasks("test", count), *SUITE.tasks("train", count)][:count]
    alone, searched, gains = [], [], []
    async with open_worlds([SUITE]) as worlds:
        for seed in range(rounds):
            found = []
            for expansions in (0, 6):
                policy = ScriptedPolicy(Programmer(SKILL, SKILL), trainable=False)
                result, _ = await evaluate(
                    tasks,
                    worlds,
                    policy,
                    expansions=expansions,
                    draws=2,
                    root_draws=3,
                    evaluator=TestsPassed(),
                    seed=seed,
                )
                found.append(result["code"])
            alone.append(found[0].rate)
            searched.append(found[1].rate)
            gains.append(paired_gain(found[0], found[1])[0])
    began = time.perf_counter()
    for _ in range(10):
        await run_calls("def f(): return 1", ["f()"])
    return {
        "code_alone": (100 * statistics.mean(alone), "% of programming tasks, one attempt"),
        "code_searched": (100 * statistics.mean(searched), "% with 6 expansions, valued by public tests"),
        "code_gain_points": (statistics.mean(gains), "points"),
        "sandbox_ms": (1e2 * (time.perf_counter() - began), "ms, start, fences, one call, end"),
    }
