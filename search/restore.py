"""Sessions and the way back: already there, snapshot, or verified replay from the nearest ancestor.

A session stands at a *waypoint*, named by the node's draw seed (ids are given later, when a result is applied).
Every arrival is checked against the recorded fingerprint; a mismatch is a Divergence, never silently continued.

A way back executes actions that were executed before. In a world that nobody declared sandboxed that is refused for
what is irreversible or of unknown effect (`refuse_repeat`): the node is UNREACHABLE, and nothing happens twice.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from time import perf_counter
from types import CoroutineType, TracebackType
from typing import Any, Generic, TypeVar

from treewright.envs.errors import (
    ActionTimeout,
    Divergence,
    EnvFault,
    InvalidAction,
    RestoreUnsupported,
    TreewrightError,
    cancelled,
    shown_by,
)
from treewright.envs.naming import place_of
from treewright.envs.records import quick
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Environment,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    is_sandboxed,
)
from treewright.search.meter import clock, recorder

T = TypeVar("T")

__all__ = ["Begun", "Pool", "Session", "Snapshots", "Waypoint", "refuse_repeat"]


async def refuse_repeat(env: Environment, action: Action, recorded: Effect = Effect.READ) -> None:
    """Asked before an action that was executed before is executed again, wherever that is.

    recorded  the effect that was seen when it was executed. Raises RestoreUnsupported unless the world is sandboxed or
    the action only reads or can be undone.
    """
    if is_sandboxed(env):
        return
    effect = max(recorded, await env.effect(action), key=lambda effect: effect.severity)
    if effect.needs_commit:
        raise RestoreUnsupported(
            f"the way back would execute {action} again, whose effect is {effect}, and {env.name} is not declared "
            "sandboxed: what happened for real is never repeated. Declare sandboxed = True if a new session undoes "
            "all that its actions touch, or the effect of this one if it only reads or can be undone"
        )


@quick
@dataclass(frozen=True, slots=True)
class Waypoint:
    """One node on a path: how to get there from its parent and what must be found there.

    action  None where nothing is executed (the root, or invalid output that left the state as it was)
    effect  what it was seen to do
    """

    seed: int
    key: int
    action: Action | None
    fingerprint: str
    effect: Effect = Effect.READ


class Snapshots:
    """Least recently used snapshots, at most `cap` bytes of them."""

    def __init__(self, cap: int = 256 << 20) -> None:
        self.cap = cap
        self._held: OrderedDict[int, Snapshot] = OrderedDict()
        self._bytes = 0

    def get(self, seed: int) -> Snapshot | None:
        found = self._held.get(seed)
        if found is not None:
            self._held.move_to_end(seed)
        return found

    def put(self, seed: int, snapshot: Snapshot) -> None:
        if seed in self._held:
            return
        self._held[seed] = snapshot
        self._bytes += snapshot.size
        while self._bytes > self.cap and self._held:
            _, gone = self._held.popitem(last=False)
            self._bytes -= gone.size

    def __contains__(self, seed: int) -> bool:
        return seed in self._held


class Begun(Generic[T]):
    """An awaitable that ran until it first waited, for `first`; awaiting this goes on from there.

    A plain class: whether a result is one is asked at every step, and abstract classes are slow to answer.
    """

    def __init__(self, running: Generator[Any, Any, T], first: Any) -> None:
        self._running, self._first = running, first

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for = self._first
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                step = functools.partial(self._running.throw, error)
            else:
                step = functools.partial(self._running.send, sent)
            try:
                waits_for = step()
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]


@dataclass(slots=True, eq=False)
class Session:
    """One live environment and where it stands (a waypoint's seed, None = unknown).

    distance  how far the state that was come back to is from the recorded one, where it counted as the same
    """

    env: Environment
    at: int | None = None
    tree: str | None = None
    distance: float = 0.0

    def lost(self) -> None:
        """After trouble: nothing is known about where the session stands."""
        self.at = None


@dataclass(slots=True, eq=False)
class Pool:
    """Sessions of one world, opened on demand up to `size`, shared by the searches of many tasks.

    open      makes a session;  deadline  seconds one environment call may take before it is an ActionTimeout
    around    put around the policy of every search in this world, see Suite.around
    """

    open: Callable[[], Awaitable[Environment]]
    size: int = 1
    deadline: float = 60.0
    _: KW_ONLY
    around: Callable[[Any], Any] | None = None
    _idle: list[Session] = field(default_factory=list)
    _made: int = 0
    _gate: asyncio.Semaphore | None = None
    _asked: int = 0  # leases that are held or waited for

    @property
    def spare(self) -> int:
        """Sessions that nobody has or waits for at the moment."""
        return max(self.size - self._asked, 0)

    def lease(self, tree: str, prefer: Sequence[int] = ()) -> Lease:
        """A session for a while; one that stands at the first possible of `prefer` (seeds, best first) if idle."""
        return Lease(self, tree, prefer)

    async def _take(self, tree: str, prefer: Sequence[int]) -> Session:
        for seed in prefer:
            for session in self._idle:
                if session.tree == tree and session.at == seed:
                    self._idle.remove(session)
                    return session
        for session in self._idle:
            if session.tree != tree or session.at is None:
                self._idle.remove(session)
                return session
        if self._made < self.size:
            self._made += 1
            try:
                return Session(await self._opened())
            except BaseException:
                self._made -= 1
                raise
        return self._idle.pop(0)

    async def replace(self, session: Session) -> None:
        """A new environment in the place of a broken one."""
        session.lost()
        with suppress(Exception):  # closing what is already broken may fail in any way
            await asyncio.wait_for(session.env.close(), 5.0)
        session.env = await self._opened()

    async def _opened(self) -> Environment:
        try:
            return await self.open()
        except TreewrightError:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            raise foreign(error, "opening a session") from error

    async def close(self) -> None:
        """Closes every session; call it when nobody holds a lease."""
        idle, self._idle, self._made = self._idle, [], 0
        await asyncio.gather(*(s.env.close() for s in idle), return_exceptions=True)

    # -- getting somewhere --------------------------------------------------------------------------------------

    async def timed(self, call: Awaitable[T], what: str) -> T:
        """Awaits an environment call. Past the deadline it becomes an ActionTimeout, and whatever a world raises that
        is no TreewrightError an EnvFault: it is that call's alone, not the end of the run."""
        given = self.begin(call, what)
        return await self.waited(given, what) if isinstance(given, Begun) else given

    def begin(self, call: Awaitable[T], what: str) -> T | Begun[T]:
        """An environment call up to where it first waits, which no timer watches: a world inside this process answers
        before, and gives its result; else `waited` goes on from there. Raises as `timed`."""
        meter = recorder()
        began = 0.0 if meter is None else perf_counter()
        try:
            if type(call) is CoroutineType:
                return Begun(call, call.send(None))  # type: ignore[arg-type]
            running: Any = call.__await__()
            return Begun(running, next(running))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        except TreewrightError:
            raise
        except TimeoutError as error:
            raise self._late(what) from error
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            raise foreign(error, what) from error
        finally:
            if meter is not None:
                meter.world.add(began)

    async def waited(self, begun: Begun[T], what: str) -> T:
        """The result of a call that `begin` found waiting."""
        try:
            with clock("world"):
                async with asyncio.timeout(self.deadline):
                    return await begun
        except TimeoutError as error:
            raise self._late(what) from error
        except TreewrightError:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            raise foreign(error, what) from error

    def _late(self, what: str) -> ActionTimeout:
        return ActionTimeout(f"{what}: no answer within {self.deadline:g} s")

    async def reach(
        self, session: Session, tree: str, task: Task, path: Sequence[Waypoint], snapshots: Snapshots
    ) -> int:
        """Brings the session to the last waypoint of `path` and returns how many steps were replayed.

        Raises Divergence if what is found is not what was recorded, RestoreUnsupported if there is no way, or none
        that does not repeat what a live world must not see twice.
        """
        here = session.at if session.tree == tree else None
        if here == path[-1].seed:
            return 0
        session.at, session.distance = None, 0.0
        last, at = path[-1], len(path) - 1
        while at and path[at].action is None and path[at].seed != here and path[at].seed not in snapshots:
            at -= 1  # nothing was executed: the state is that of the node above
        point = path[at]
        if point.seed == here:
            session.at = last.seed
            return 0
        if (held := snapshots.get(point.seed)) is not None:  # the way that is taken most
            given = self.begin(session.env.restore(held), "restore")
            seen = await self.waited(given, "restore") if isinstance(given, Begun) else given
            session.tree = tree
            if (found := shown_by(seen, Observation, "restore").fingerprint) != point.fingerprint:
                await self._arrived(session, point, found, at)
            session.at = last.seed
            return 0
        ways = session.env.restore_ways
        start = self._nearest(path, here, snapshots, ways)
        if start is None:
            if len(path) > 1 and Restore.REPLAY not in ways:
                raise RestoreUnsupported(f"{session.env.name} offers no way back to a node at depth {len(path) - 1}")
            seen = shown_by(await self.timed(session.env.reset(task, path[0].key), "reset"), Observation, "reset")
            start, fingerprint = 0, seen.fingerprint
        elif path[start].seed == here:
            fingerprint = path[start].fingerprint
        else:
            held = snapshots.get(path[start].seed)
            assert held is not None
            seen = shown_by(await self.timed(session.env.restore(held), "restore"), Observation, "restore")
            fingerprint = seen.fingerprint
        session.tree = tree
        await self._arrived(session, path[start], fingerprint, start)
        steps = await self._replay(session, path, start)
        session.at = path[-1].seed
        return steps

    @staticmethod
    def _nearest(
        path: Sequence[Waypoint], here: int | None, snapshots: Snapshots, ways: frozenset[Restore]
    ) -> int | None:
        replays = Restore.REPLAY in ways
        for i in range(len(path) - 1, -1, -1):
            if path[i].seed == here or path[i].seed in snapshots:
                return i
            if not replays and path[i].action is not None:
                return None
        return None

    async def _replay(self, session: Session, path: Sequence[Waypoint], start: int) -> int:
        steps = 0
        for i in range(start + 1, len(path)):
            point = path[i]
            if point.action is None:
                continue
            await self.timed(refuse_repeat(session.env, point.action, point.effect), "effect")
            try:
                result = await self.timed(session.env.step(point.action, point.key), "replay")
                shown_by(result, StepResult, "step")
            except InvalidAction as error:
                raise Divergence(point.fingerprint, f"invalid action: {error}", i) from error
            steps += 1
            await self._arrived(session, point, result.observation.fingerprint, i)
        return steps

    async def _arrived(self, session: Session, point: Waypoint, found: str, step: int) -> None:
        """Raises Divergence unless what is found is what was recorded, or the world says that it counts as that."""
        if found == point.fingerprint:
            return
        judge = getattr(session.env, "recognise", None)
        distance = await self.timed(judge(point.fingerprint, step), "recognise") if judge is not None else None
        if distance is None:
            raise Divergence(point.fingerprint, found, step)
        session.distance = max(session.distance, distance)

    @staticmethod
    def plain_tools(session: Session) -> tuple[ToolSpec, ...]:
        """The tools of a world that has the same everywhere; () where it must be asked."""
        env = session.env
        if isinstance(env, BaseEnvironment) and getattr(env.actions, "__func__", None) is BaseEnvironment.actions:
            try:
                return tuple(env.tools)
            except Exception:
                return ()  # what goes wrong goes wrong again where it is asked
        return ()

    async def tools(self, session: Session) -> tuple[ToolSpec, ...]:
        if tools := self.plain_tools(session):
            return tools
        env = session.env
        return tuple(await self.timed(env.actions(), "actions"))


def foreign(error: BaseException, what: str) -> EnvFault:
    """A world's own exception as a fault, with the place in its code. Raises CancelledError again where it is meant."""
    if isinstance(error, asyncio.CancelledError) and cancelled():
        raise error
    return EnvFault(f"{what} raised {type(error).__name__}: {error}{place_of(error)}")


class Lease:
    """`async with` it to hold a session; see Pool.lease."""

    __slots__ = ("_gate", "_pool", "_prefer", "_session", "_tree")

    def __init__(self, pool: Pool, tree: str, prefer: Sequence[int]) -> None:
        self._pool, self._tree, self._prefer = pool, tree, prefer

    async def __aenter__(self) -> Session:
        pool = self._pool
        if pool._gate is None:
            pool._gate = asyncio.Semaphore(pool.size)
        self._gate = pool._gate
        pool._asked += 1
        try:
            await self._gate.acquire()
            try:
                self._session = await pool._take(self._tree, self._prefer)
            except BaseException:
                self._gate.release()
                raise
        except BaseException:
            pool._asked -= 1
            raise
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # A call may have been cut in its middle: what the session shows next could be anything.
            self._session.lost()
        self._pool._idle.append(self._session)
        self._pool._asked -= 1
        self._gate.release()
