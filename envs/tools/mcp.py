"""Any MCP server as a world: its tools are the actions, its answers the observations.

What a server says about itself is not believed: hints about effects count only with `trust_hints=True`, and its
text is shown with provenance 'tool' or 'error'. Effects come from the owner's table, else they are UNKNOWN.

Ways back
- Without a folder the snapshot is the journal of state-changing calls and their answers. To restore it, the server is
  started afresh and only these calls are made again, each answer compared with the recorded one (Divergence where
  they differ); nothing is restarted where the server already stands there, or short of it. The fingerprint is a chain
  over the same calls and answers. A server that answers alike in different states is beyond this check.
- With a folder in which the server keeps everything, the folder's bytes are the snapshot. The server must not hold
  files of it open between calls, since they are swapped under it.
- REPLAY by the engine works in both cases; it takes every recorded action again.

In a live world (not `sandboxed`) no call of irreversible or unknown effect is ever made again, by any of these ways:
what would need that is RestoreUnsupported. What follows such a call goes on in the running server that answered it, as
long as this process keeps it; since that server cannot be started again where it stands, nothing done in it counts as
reversible any more. Give the server a folder, or declare `sandboxed`, where a restart brings everything back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import Tool

from treewright.envs.errors import (
    Divergence,
    EnvFault,
    InvalidAction,
    RestoreUnsupported,
    TreewrightError,
    boundary,
)
from treewright.envs.tools.answer import answer_parts, answer_text
from treewright.envs.tools.asked import Answers
from treewright.envs.tools.connection import Connection
from treewright.envs.tools.episode import Episode, episode_from_json, episode_to_json
from treewright.envs.tools.folder import clear_folder, folder_digest, pack_folder, unpack_folder
from treewright.envs.tools.fresh import Doubt, Freshness
from treewright.envs.tools.listing import Listing, harmless_calls, say_what_waits
from treewright.envs.tools.living import Living, living_server
from treewright.envs.tools.room import Place
from treewright.envs.tools.schema import check_action
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Call,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    digest,
    is_sandboxed,
)

__all__ = ["DONE", "Judge", "MCPEnvironment", "StateFolder"]

DONE = ToolSpec(
    "done",
    "ends the task",
    {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]},
    Effect.READ,
    terminal=True,
)

P = ParamSpec("P")
T = TypeVar("T")

Judge = Callable[[Task, str, Path | None], float]
"""The truth at the end: task, answer, and the state folder where there is one → reward."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where a server keeps everything that its tools touch.

    path         the folder; its whole content belongs to the session
    setup        writes a task's first state into the empty folder: (folder, task, key)
    fingerprint  hash of the state; give one that ignores what is volatile. Default: names and bytes
    scratch      remove the folder when the session closes
    """

    path: Path
    setup: Callable[[Path, Task, int], None]
    fingerprint: Callable[[Path], str] = folder_digest
    scratch: bool = False


class MCPEnvironment(BaseEnvironment):
    """A session of a world behind an MCP server.

    server       how to start it over stdio, or the URL of one that speaks streamable HTTP
    effects      what each tool does, by name; declared here or UNKNOWN
    trust_hints  believe the server's annotations for tools that `effects` does not name
    state        its state folder, where the owner knows one (see the module's docstring)
    fresh        a new connection finds the first state of what the server itself holds; default: true over stdio,
                 false behind a URL. It says nothing of what tools do outside: that is `sandboxed`
    end          the name of the tool that ends the episode; another one where the server has a tool `done`
    sandboxed    the owner's promise that restart or folder cover everything the tools touch
    judge        the reward of `done`; without one it is NaN, which means unknown
    deadline     seconds for the start and for each call; then ActionTimeout
    max_chars    an answer longer than this is cut, and says so
    probe        check at the first restarts that they bring the first state back, see Freshness; the sessions of one
                 world share one
    place        where the server and the policy see the folder, if not where it is
    answers      what the server is told when it asks for a form or a text itself; without them it is refused

    A composite action makes its calls in order and shows their answers one per line; it has the worst effect
    of them. `done {"answer": …}` is added to the server's tools and ends the episode.

    A call that the server refuses is a result: an observation with provenance 'error'. A server that dies is
    SessionDied; the next reset or restore starts a new one. Without a state folder, a server that is not `fresh`
    offers no way back. `starts` and `repeated` count server starts and calls made again by restores.
    """

    def __init__(
        self,
        server: StdioServerParameters | str,
        *,
        name: str = "mcp",
        effects: Mapping[str, Effect] | None = None,
        trust_hints: bool = False,
        state: StateFolder | None = None,
        fresh: bool | None = None,
        end: str = "done",
        sandboxed: bool = False,
        judge: Judge | None = None,
        deadline: float = 30.0,
        max_chars: int = 20_000,
        answers: Answers | None = None,
        place: Place | None = None,
        probe: Freshness | bool = True,
    ) -> None:
        self.name = name
        self.sandboxed = sandboxed
        self._server = server
        self._state, self._judge, self._deadline, self._max_chars = state, judge, deadline, max_chars
        self._answers, self._place = answers, place
        fresh = not isinstance(server, str) if fresh is None else fresh
        back = fresh or state is not None
        restarts = fresh and state is None
        self._probe = (Freshness(name) if probe is True else probe or None) if restarts else None
        self.restore_ways = frozenset({Restore.STATE, Restore.REPLAY} if back else {Restore.NONE})
        self._fresh, self._end = fresh, dataclasses.replace(DONE, name=end)
        self._listing = Listing(name, dict(effects or {}), trust_hints, self._end)
        self.starts = self.repeated = 0
        self._living: Living | None = None
        self._specs: tuple[ToolSpec, ...] = ()
        self._listed: Sequence[Tool] | None = None
        self._episode: Episode | None = None

    async def reset(self, task: Task, key: int) -> Observation:
        if self._state is None:
            if self._fresh and self._living is not None and (self._living.made or self._living.sent):
                await self._disconnect()
        else:
            await self._drop_outgrown()
            await self._in_thread("setup", _set_up, self._state, task, key)
        await self._connect()
        self._episode = Episode(task, digest(self.name, task.suite, task.id, str(task.seed)), Observation(""))
        return await self._show("ready", "environment")

    async def step(self, action: Action, key: int) -> StepResult:
        episode = self._running()
        if episode.ended:
            raise InvalidAction("the task has ended; nothing more can be called")
        await self._connect_if_never()
        check_action(action, self._specs)
        self._stands_alone(episode)
        effect = await self.effect(action)
        if action.name == self._end.name:
            return await self._finish(episode, str(action.arguments["answer"]))
        rows: list[tuple[str, bool]] = []
        parts: list[Mapping[str, Any]] = []
        for call in action.calls:
            text, failed, more = await self._make(episode, call)
            rows.append((text, failed))
            parts += more
        provenance = "error" if all(failed for _, failed in rows) else "tool"
        shown = await self._show("\n".join(text for text, _ in rows), provenance, tuple(parts))
        journal = [{"name": call.name, "error": failed} for call, (_, failed) in zip(action.calls, rows, strict=True)]
        return StepResult(shown, effect=effect, info={"calls": journal})

    async def actions(self) -> Sequence[ToolSpec]:
        connection = await self._connect_if_never()
        if not connection.dead:
            await connection.listed()
            self._know_tools(connection)
        return self._specs

    async def effect(self, action: Action) -> Effect:
        await self._connect_if_never()
        return max((self._effect_of(c) for c in action.calls), key=lambda e: e.severity, default=Effect.UNKNOWN)

    async def snapshot(self) -> Snapshot:
        if Restore.STATE not in self.restore_ways:
            return await super().snapshot()
        episode = self._running()
        packed = b"" if self._state is None else await self._in_thread("snapshot", pack_folder, self._state.path)
        data = json.dumps(episode_to_json(episode)).encode() + b"\n" + packed
        return Snapshot(Restore.STATE, data, episode.shown.fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        """Back to a snapshot of any session with the same server and folder layout, started for any task.

        Raises Divergence if the folder does not have the recorded fingerprint afterwards, or if a repeated call is
        answered otherwise than the first time; RestoreUnsupported where a live world would see an irreversible or
        unknown call twice.
        """
        if Restore.STATE not in self.restore_ways or snapshot.kind is not Restore.STATE:
            return await super().restore(snapshot)
        head, _, packed = bytes(snapshot.data).partition(b"\n")
        episode = episode_from_json(json.loads(head))
        await self._drop_outgrown()
        if self._state is None:
            await self._repeat(episode)
            found = episode.chain
        else:
            found = await self._put_back(self._state, packed, episode)
        self._episode = episode
        if found != snapshot.fingerprint:
            raise Divergence(snapshot.fingerprint, found, 0)
        return episode.shown

    async def close(self) -> None:
        await self._disconnect()
        if self._state is not None and self._state.scratch:
            await asyncio.to_thread(shutil.rmtree, self._state.path, ignore_errors=True)

    async def _finish(self, episode: Episode, answer: str) -> StepResult:
        folder = self._state.path if self._state is not None else None
        reward = float("nan")
        if self._judge is not None:
            reward = await self._in_thread("judge", self._judge, episode.task, answer, folder)
        episode.ended = True
        episode.chain = digest(episode.chain, self._end.name, answer)
        shown = await self._show("done", "environment")
        return StepResult(shown, reward, terminated=True, effect=self._end.effect)

    async def _put_back(self, state: StateFolder, packed: bytes, episode: Episode) -> str:
        """Writes the folder's bytes and gives the fingerprint that is then found, once the server runs."""
        if self._living is None:
            await self._in_thread("restore", unpack_folder, packed, state.path)
            await self._connect()
            return await self._fingerprint(episode)
        found = await self._in_thread("restore", _unpacked, state, packed)  # one turn of a thread, not two
        return digest(found, episode.chain) if episode.ended else found

    async def _repeat(self, episode: Episode) -> None:
        """Brings the server to where the journal ends, by as few calls as possible."""
        if episode.server:
            return await self._rejoin(episode)
        made = self._living.made if self._living is not None else []
        if (self._living is not None and self._living.sent) or tuple(made) != episode.journal[: len(made)]:
            await self._disconnect()
        await self._connect()
        made = self._running_server().made
        calls = [call for key, _ in episode.journal[len(made) :] for call in Action.from_key(key).calls]
        if final := next((call for call in calls if self._is_final(call)), None):
            raise RestoreUnsupported(self._no_way_back(f"would make {final.name} again"))
        for i in range(len(made), len(episode.journal)):
            key, answer = episode.journal[i]
            (call,) = Action.from_key(key).calls
            text, _, _ = await self._call(call)
            made.append((key, text))
            self.repeated += 1
            if text != answer:
                raise Divergence(digest(answer), digest(text), i + 1)

    async def _rejoin(self, episode: Episode) -> None:
        """Back into the server that made this journal's calls, if it still stands where they left it."""
        living = living_server(episode.server)
        if living is None:
            raise RestoreUnsupported(self._no_way_back("would make the calls of a server again that has ended"))
        if tuple(living.made) != episode.journal:
            raise RestoreUnsupported(self._no_way_back("leads to a state that its server has left since"))
        if living is not self._living:
            await self._disconnect()
            self._living = living.join()
            self._know_tools(living.connection)

    def _stands_alone(self, episode: Episode) -> None:
        """Nothing is done in a shared server that another session has moved."""
        if episode.server and tuple(self._running_server().made) != episode.journal:
            raise RestoreUnsupported(self._no_way_back("leads to a state that its server has left since"))

    def _no_way_back(self, why: str) -> str:
        return (
            f"{self.name}: the way back {why}; what happened for real is never repeated. Declare sandboxed = true if a "
            "restart undoes all that the tools touch, or give the server a folder to keep its state in"
        )

    def _is_final(self, call: Call) -> bool:
        """A live world must not see this call a second time."""
        return not is_sandboxed(self) and self._effect_of(call).needs_commit

    async def _make(self, episode: Episode, call: Call) -> tuple[str, bool, list[Mapping[str, Any]]]:
        """One call of the policy; it enters journal and chain unless it only reads."""
        if self._effect_of(call) is Effect.READ:
            told = await self._call(call)
            if self._probe is not None and not self._running_server().made:
                self._probe.saw(Action((call,)), told[0])
            return told
        key = Action((call,)).key
        await self._connect_if_never()
        living = self._running_server()
        if self._state is None and self._is_final(call):
            living.sent = True
            episode.server = living.id if self._fresh else ""
        with self._probe.writing(for_good=self._is_final(call)) if self._probe is not None else nullcontext():
            text, failed, parts = await self._call(call)
        if self._state is None:
            episode.journal = (*episode.journal, (key, text))
        living.made.append((key, text))
        episode.chain = digest(episode.chain, key, text)
        return text, failed, parts

    async def _call(self, call: Call) -> tuple[str, bool, list[Mapping[str, Any]]]:
        """The answer's text, whether it is an error, and its images."""
        connection = await self._connect_if_never()
        try:
            result = await connection.call(call.name, call.arguments, once=self._is_final(call))
        except MCPError as error:
            return self._cut(f"error: {error.message}"), True, []
        finally:
            self._know_tools(connection)
        return self._cut(answer_text(result)), bool(result.is_error), answer_parts(result)

    def _cut(self, text: str) -> str:
        if len(text) <= self._max_chars:
            return text
        return f"{text[: self._max_chars]}… ({len(text) - self._max_chars} more characters)"

    async def _show(self, text: str, provenance: str, parts: tuple[Mapping[str, Any], ...] = ()) -> Observation:
        episode = self._running()
        episode.shown = Observation(text, await self._fingerprint(episode), provenance=provenance, parts=parts)
        return episode.shown

    async def _fingerprint(self, episode: Episode) -> str:
        if self._state is None:
            return episode.chain
        found = await self._in_thread("fingerprint", self._state.fingerprint, self._state.path)
        return digest(found, episode.chain) if episode.ended else found

    @property
    def _connection(self) -> Connection | None:
        return self._living.connection if self._living is not None else None

    def _running(self) -> Episode:
        if self._episode is None:
            raise EnvFault(f"{self.name}: no task yet; call reset(task, key) first")
        return self._episode

    def _running_server(self) -> Living:
        if self._living is None:
            raise EnvFault(f"{self.name}: no server is running; call reset(task, key) first")
        return self._living

    def _effect_of(self, call: Call) -> Effect:
        effect = next((spec.effect for spec in self._specs if spec.name == call.name), Effect.UNKNOWN)
        stuck = self._living is not None and self._living.sent and self._state is None and not is_sandboxed(self)
        return Effect.IRREVERSIBLE if stuck and effect is Effect.REVERSIBLE else effect

    async def _connect_if_never(self) -> Connection:
        # Only the first time: a dead connection must show itself as SessionDied, not be replaced in mid-episode.
        return await self._connect() if self._living is None else self._living.connection

    async def _connect(self) -> Connection:
        if self._living is not None and not self._living.connection.dead:
            return self._living.connection
        await self._disconnect()
        connection = Connection(self._server, deadline=self._deadline, answers=self._answers, place=self._place)
        self._living = Living(connection)
        self.starts += 1
        await connection.open()
        try:
            self._listing.check_effects(connection.tools)
            self._know_tools(connection)
            say_what_waits(self.name, self._specs, is_sandboxed(self))
            harmless = harmless_calls(connection.tools, self._specs, is_sandboxed(self))
            if self._probe is not None and (doubt := await self._probe.started(self._ask, harmless)):
                connection = await self._judged(self._probe, doubt)
        except TreewrightError:
            await self._disconnect()
            raise
        return connection

    async def _judged(self, probe: Freshness, doubt: Doubt) -> Connection:
        """The server of one more start, if that tells that a restart brings the first state back."""
        self._probe = None  # the next start is part of this probe
        try:
            await self._disconnect()
            connection = await self._connect()
            await probe.judge(self._ask, doubt)
        finally:
            self._probe = probe
        return connection

    async def _ask(self, action: Action) -> str:
        return (await self._call(action.calls[0]))[0]

    def _know_tools(self, connection: Connection) -> None:
        """The specs of the tools as the server listed them last."""
        if self._listed is not connection.tools:
            self._listed = connection.tools
            self._specs = self._listing.read(connection.tools, is_sandboxed(self))

    async def _in_thread(self, what: str, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Runs what touches the disk, or is the owner's, off the event loop; its failures are faults."""
        with boundary(f"{self.name}: {what}", trouble=(Exception,)):
            return await asyncio.to_thread(function, *arguments, **named)

    async def _drop_outgrown(self) -> None:
        """Ends a server that was abandoned, so that it cannot write into the folder any more, or whose tools changed
        since it started: no folder brings those back."""
        known = self._connection
        if known is not None and (known.dead or (self._state is not None and known.changed)):
            await self._disconnect()

    async def _disconnect(self) -> None:
        living, self._living = self._living, None
        if living is not None:
            await living.leave()


def _unpacked(state: StateFolder, packed: bytes) -> str:
    unpack_folder(packed, state.path)
    return state.fingerprint(state.path)


def _set_up(state: StateFolder, task: Task, key: int) -> None:
    clear_folder(state.path)
    state.setup(state.path, task, key)
