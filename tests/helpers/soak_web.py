"""Many steps in a browser that is killed now and then: every state is found again, and no process is left behind.

`python tests/helpers/soak_web.py 10000` for the long run; a test runs a few hundred.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from treewright.envs import InvalidAction, SessionDied
from treewright.envs.types import Action
from treewright.envs.web.bazaar import SUITE

SETTLES = 10.0  # seconds that killed processes may take to go away


def browsers():
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

    def below(pid):
        while pid in parent:
            pid = parent[pid]
            if pid == os.getpid():
                return True
        return False

    return {pid for pid in named if below(pid)}


async def soak(steps, kill_every, seed=0):
    """Random clicks over many tasks; says what happened. Raises AssertionError where a state is not found again."""
    rng, env, report = random.Random(seed), await SUITE.open(), {"steps": 0, "kills": 0, "restores": 0}
    seen_pids, most = set(), 0
    tasks = SUITE.tasks("train", 24)
    try:
        seen = await env.reset(tasks[0], 0)
        snapshot = await env.snapshot()
        while report["steps"] < steps:
            report["steps"] += 1
            if report["steps"] % 25 == 0:
                seen = await env.reset(rng.choice(tasks), 0)
                snapshot = await env.snapshot()
            if report["steps"] % kill_every == 0:
                pids = browsers()
                seen_pids |= pids
                most = max(most, len(pids))
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                report["kills"] += 1
            elements = list(env._view.elements)
            action = Action.of("click", ref=rng.choice(elements)) if elements else Action.of("goto", path="/")
            try:
                await env.step(action, 0)
            except InvalidAction:
                continue
            except SessionDied:
                found = await env.restore(snapshot)
                assert found == seen, "another state came back"
                report["restores"] += 1
    finally:
        await env.close()
        await SUITE.close()
    until = time.monotonic() + SETTLES
    for _ in range(int(SETTLES / 0.05)):
        left = browsers()
        if not left or time.monotonic() > until:
            break
        await asyncio.sleep(0.05)
    return report | {"processes_at_most": most, "processes_killed": len(seen_pids), "processes_left": len(left)}


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    result = asyncio.run(soak(asked, max(50, asked // 20)))
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["processes_left"] or not result["restores"] else 0)
