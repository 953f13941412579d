"""Many steps in a browser that is killed now and then: every state is found again, and no process is left behind.

Half of the steps are random clicks of one session; the other half are taken by searches with two sessions, whose trees
must be those of searches that nobody disturbed. `python tests/helpers/soak_web.py 10000 docs/web_soak.json` for the
long run; a test runs a few hundred steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from not_none import not_none

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.figures import write_result
from treewright.envs import EnvFault, InvalidAction
from treewright.envs.types import Action, Task
from treewright.envs.web.bazaar import SUITE
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget

SETTLES = 10.0  # seconds that killed processes may take to go away


def browsers() -> set[Any]:
    """Process ids of this process's descendants that are browsers, zombies left out."""
    parent, named = {}, set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = stat.read_text().rsplit(")", 1)[1].split()[:2]
            parent[int(stat.parent.name)] = int(above)
            if state not in "ZX" and "chrom" in (stat.parent / "cmdline").read_text().split("\0")[0]:
                named.add(int(stat.parent.name))
        except (OSError, ValueError):
            continue

    def below(pid: int) -> bool:
        while pid in parent:
            pid = parent[pid]
            if pid == os.getpid():
                return True
        return False

    return {pid for pid in named if below(pid)}


class Killer:
    """Kills every browser of this process, and remembers how many."""

    def __init__(self) -> None:
        self.seen: set[Any]
        self.kills, self.seen, self.most = 0, set(), 0

    def __call__(self) -> None:
        pids = browsers()
        if not pids:
            return
        self.seen |= pids
        self.most = max(self.most, len(pids))
        self.kills += 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def patiently(work: Callable[..., Any]) -> Any:
    """A reset or a restore, again where the browser died under it."""
    for _ in range(5):
        with contextlib.suppress(EnvFault):
            return await work()
    return await work()


async def wander(steps: int, every: int, rng: random.Random, kill: Killer) -> int:
    """Random clicks over many tasks, a kill now and then, also while a step is under way; returns how often a state
    was found again. Raises AssertionError where another one came back."""
    env: Any
    env, restores, tasks = await SUITE.open(), 0, SUITE.tasks("train", 24)
    loop = asyncio.get_running_loop()
    try:
        seen = await env.reset(tasks[0], 0)
        snapshot = await env.snapshot()
        for step in range(1, steps + 1):
            if step % 25 == 0:
                task = rng.choice(tasks)
                seen = await patiently(lambda task=task: env.reset(task, 0))
                snapshot = await env.snapshot()
            if step % every == 0:
                loop.call_later(rng.uniform(0, 0.05), kill)
            elements = list(env._view.elements)
            action = Action.of("click", ref=rng.choice(elements)) if elements else Action.of("goto", path="/")
            try:
                await env.step(action, 0)
            except InvalidAction:
                continue
            except EnvFault:
                found = await patiently(lambda kept=snapshot: env.restore(kept))
                assert found == seen, "another state came back"
                restores += 1
    finally:
        await env.close()
    return restores


async def grown(task: Task, seed: int, kill: Killer | None = None, after: set[Any] | tuple[Any, ...] = ()) -> Tree:
    """The tree of one search with two sessions; `kill` is called so many expansions in as `after` says."""
    applied = 0

    def count(tree: Tree, new: Any) -> None:
        nonlocal applied
        applied += 1
        if kill is not None and applied in after:
            asyncio.get_running_loop().call_later(0.01 * (applied % 4), kill)

    pool = Pool(SUITE.open, 2)
    policy = ScriptedPolicy(clicks, name="clicks", trainable=False)
    try:
        return await search(
            task, pool, policy, rule=best_first(2, 2), budget=Budget(expansions=25),
            settings=Settings(max_tokens=100, seed=seed), on_expansion=count,
        )  # fmt: skip
    finally:
        await pool.close()


def clicks(task: Task, turns: Any, tools: Any, rng: random.Random) -> str:
    """A click on any of the elements that were shown last, or the shop's front page."""
    shown = turns[-1].observation.text.count(" e") if turns else 6
    if rng.random() < 0.1:
        return 'goto {"path": "/shop"}'
    return f'click {{"ref": "e{rng.randint(1, max(1, shown))}"}}'


async def searches(steps: int, every: int, rng: random.Random, kill: Killer) -> tuple[int, int]:
    """Searches disturbed by kills until they have taken `steps` steps; returns (steps, trees). Raises AssertionError
    where a tree is not the one of a quiet search."""
    taken, trees, tasks = 0, 0, SUITE.tasks("train", 24)
    while taken < steps:
        task, seed = tasks[trees % len(tasks)], trees
        quiet = await grown(task, seed)
        after = {rng.randint(1, 20)} if quiet.spent.env_steps * (trees + 1) % every < quiet.spent.env_steps else set()
        shaken = await grown(task, seed, kill, after)
        assert shaken.digest() == quiet.digest(), f"a killed browser changed the tree of {task.id}"
        taken += quiet.spent.env_steps + shaken.spent.env_steps
        trees += 2
    return taken, trees


async def soak(steps: int, every: int, seed: int = 0) -> dict[str, Any]:
    """Half of the steps alone, half in searches; says what happened."""
    rng, kill = random.Random(seed), Killer()
    began = time.monotonic()
    try:
        restores = await wander(steps // 2, every, rng, kill)
        alone = kill.kills
        taken, trees = await searches(steps - steps // 2, every, rng, kill)
    finally:
        await not_none(SUITE.close)()
    for _ in range(int(SETTLES / 0.05)):
        if not (left := browsers()):
            break
        await asyncio.sleep(0.05)
    return {
        "steps": steps // 2 + taken,
        "kills": kill.kills,
        "kills_in_mid_search": kill.kills - alone,
        "restores": restores,
        "trees_equal_to_quiet_ones": trees // 2,
        "processes_at_most": kill.most,
        "processes_killed": len(kill.seen),
        "processes_left": len(left),
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    result = asyncio.run(soak(asked, max(50, asked // 20)))
    print(json.dumps(result, indent=1))
    if len(sys.argv) > 2:
        write_result(Path(sys.argv[2]), result)
    sys.exit(1 if result["processes_left"] or not result["restores"] or not result["kills_in_mid_search"] else 0)
