"""Going on after a commit: sessions that begin where it left the world, or in the world as it is now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from treewright.envs.errors import RestoreUnsupported
from treewright.envs.types import (
    Action,
    Effect,
    Environment,
    Observation,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    is_sandboxed,
)
from treewright.search.past import Past
from treewright.search.tree import Tree

__all__ = ["Committed", "continue_from", "past_of"]


class Committed(Protocol):
    """What is read of a CommitResult: the state after the commit, where the world can save it."""

    @property
    def snapshot(self) -> Snapshot | None: ...


def continue_from(
    open: Callable[[], Awaitable[Environment]], result: Committed
) -> Callable[[], Awaitable[Environment]]:
    """Sessions whose first state is the one after the commit:

        pool = Pool(continue_from(suite.open, result))
        tree = await search(
            result.task, pool, policy, settings=replace(old, attempt=1), continues=result.continues, past=result.past
        )

    Nothing is executed again on the way there. Where the state after the commit was saved, or lives on in the server
    that made the commit, each session begins in it. Everywhere else a session begins with a reset, and shows the world
    as it is now: what only the old session held (a server's memory, an open page) is not in it.

    With `past` the next tree's prompts hold what was done before, and behind the last answer what the state shows, if
    that is something else; without it they begin with what the state shows. Fork snapshots die with the process.
    """
    if result.snapshot is None:
        return open
    snapshot = result.snapshot

    async def opened() -> Environment:
        env = await open()
        # The way to an earlier commit's state is closed: in a live world the later commit has changed what is there.
        return _Continued(env.inner if isinstance(env, _Continued) else env, snapshot)

    return opened


def past_of(tree: Tree, node: int) -> Past | None:
    """What was done up to `node`, the past of `tree` included; None if that is nothing."""
    if not node:
        return tree.header.past
    ids, above = tree.ids[node], tree.context_ids(tree.parent[node])
    said = above + ids if above and ids else ()
    return Past(first=tree.header.first, turns=tree.exchanges(node), ids=said, version=tree.header.policy_version)


class _Continued:
    """A session that starts at a snapshot, or in a live world that cannot go back there in the world as it is now."""

    def __init__(self, inner: Environment, start: Snapshot) -> None:
        self.inner, self.start, self.name = inner, start, inner.name
        self.restore_ways, self.sandboxed, self.stochastic = inner.restore_ways, is_sandboxed(inner), inner.stochastic

    async def reset(self, task: Task, key: int) -> Observation:
        # Not after a reset, which would end a server that stands there.
        try:
            return await self.inner.restore(self.start)
        except RestoreUnsupported:
            if self.sandboxed:
                raise
            return await self.inner.reset(task, key)

    async def step(self, action: Action, key: int) -> StepResult:
        return await self.inner.step(action, key)

    async def actions(self) -> Sequence[ToolSpec]:
        return await self.inner.actions()

    async def effect(self, action: Action) -> Effect:
        return await self.inner.effect(action)

    async def recognise(self, fingerprint: str, step: int) -> float | None:
        judge = getattr(self.inner, "recognise", None)
        return None if judge is None else await judge(fingerprint, step)

    async def snapshot(self) -> Snapshot:
        return await self.inner.snapshot()

    async def restore(self, snapshot: Snapshot) -> Observation:
        return await self.inner.restore(snapshot)

    async def close(self) -> None:
        await self.inner.close()
