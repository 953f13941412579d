"""`check_env()`: does a world keep what its contract promises? For authors of environments, and for our own tests.

    report = await check_env(suite.open, suite.tasks("train", 2), oracle=suite.oracle)
    report.raise_if_failed()

Every sentence of the `Environment` docstrings is a clause below, with its own sessions, so that one broken promise
shows as one failed clause. What the contract leaves open is decided here:

- READ may move attention (the page looked at, the evidence read), and then the fingerprint may change; but going
  back to before the READ must give the same fingerprint and observation as before it.
- An ended episode stays ended: a further step raises InvalidAction or is `terminated` again.
- Arguments that no schema allows may be refused or answered, but are never a fault: a fault is the
  infrastructure's, and would be retried and masked.
- Strings that are no valid Unicode (half surrogates) are refused before a world sees them, and are not tried here.
- In a world that is not sandboxed, actions that need a commit are not executed, unless `live=True`.

Not covered: what a snapshot forgets and no action of the script shows; effects outside the world; load.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from treewright.envs.check import acting, declared, repeating, restoring
from treewright.envs.check.kit import CLAUSES, Kit, Open, Skip, Violated, Watched
from treewright.envs.check.report import CheckFailed, ClauseResult, Report
from treewright.envs.check.script import sample_arguments, write_script
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Oracle, Task, seed_of

__all__ = ["CLAUSES", "CheckFailed", "ClauseResult", "Report", "check_env", "sample_arguments"]

KINDS = (declared, repeating, restoring, acting)  # whose clauses registered themselves when they were imported


async def check_env(
    open: Open,
    tasks: Sequence[Task],
    *,
    steps: int = 3,
    seed: int = 0,
    oracle: Oracle | None = None,
    live: bool = False,
    clauses: Sequence[str] | None = None,
    limit: float = 120.0,
) -> Report:
    """Checks every clause on every task, in fresh sessions (about 20 a task).

    open     makes a new session
    steps    most actions of the script that is played (the oracle's, else made from the tools' schemas)
    live     also execute actions that need a commit in a world that is not sandboxed
    clauses  only these, by name; default all of `CLAUSES`
    limit    seconds that one clause may take before it counts as failed

    Raises TreewrightError for an empty task list or an unknown clause; everything else goes into the report.
    """
    if not tasks:
        raise TreewrightError("check_env needs at least one task")
    if unknown := sorted(set(clauses or ()) - set(CLAUSES)):
        raise TreewrightError(f"no clause named {unknown[0]!r}; known: {', '.join(CLAUSES)}")
    chosen = list(CLAUSES) if clauses is None else [name for name in CLAUSES if name in clauses]
    worst: dict[str, ClauseResult] = {}
    name = "environment"
    for task in tasks:
        kit = Kit(open, task, seed_of("check", seed, task.id), live=live, oracle=oracle)
        try:
            name = await asyncio.wait_for(_prepare(kit, steps, seed), limit)
        except Exception as error:
            detail = f"{task.id}: a session could not play its first actions: {error!r}"
            return Report(name, (ClauseResult("playable", "a session opens, resets and steps", False, detail),))
        for clause in chosen:
            result = await _judge(clause, kit, limit)
            if clause not in worst or _rank(result) > _rank(worst[clause]):
                worst[clause] = result
    return Report(name, tuple(worst[clause] for clause in chosen))


def _rank(result: ClauseResult) -> int:
    return {None: 0, True: 1, False: 2}[result.held]


async def _judge(clause: str, kit: Kit, limit: float) -> ClauseResult:
    promise, check = CLAUSES[clause]
    try:
        await asyncio.wait_for(check(kit), limit)
    except Skip as reason:
        return ClauseResult(clause, promise, None, str(reason))
    except Violated as seen:
        return ClauseResult(clause, promise, False, f"{kit.task.id}: {seen}")
    except TimeoutError:
        return ClauseResult(clause, promise, False, f"{kit.task.id}: not finished after {limit} s")
    except Exception as error:
        return ClauseResult(clause, promise, False, f"{kit.task.id}: raised {error!r}")
    return ClauseResult(clause, promise, True)


async def _prepare(kit: Kit, steps: int, seed: int) -> str:
    """Plays the script for the first time and fills in the kit; returns the world's name."""
    async with kit.session() as env:
        kit.sandboxed, kit.stochastic, kit.ways = env.sandboxed, env.stochastic, env.restore_ways
        ticker = asyncio.create_task(_watch_loop(kit))
        await asyncio.sleep(0)  # lets the ticker start
        try:
            watched = Watched(env, kit)
            kit.first = await watched.reset(kit.task, kit.key)
            await write_script(kit, watched, steps, random.Random(seed_of("script", seed, kit.task.id)))
        finally:
            ticker.cancel()
            await asyncio.wait([ticker])
        return env.name


async def _watch_loop(kit: Kit) -> None:
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        try:
            await asyncio.sleep(0.01)
        finally:
            kit.longest_block = max(kit.longest_block, loop.time() - before)
