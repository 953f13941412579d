"""One connection to an MCP server, usable from any task.

The client of the `mcp` package holds cancel scopes that must be left by the task that entered them. So each
connection lives in a task of its own and takes its calls from a queue: sessions may then be opened in one task,
used in another and closed in a third.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO, cast

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, CallToolResult, TextContent, Tool
from pydantic import ValidationError

from treewright.envs.errors import ActionTimeout, SessionDied
from treewright.envs.tools.asked import Answers
from treewright.envs.tools.over_http import OverHttp
from treewright.envs.tools.room import Place
from treewright.envs.tools.wire import Wire

__all__ = ["Connection"]

log = logging.getLogger(__name__)

_STDERR_TAIL = 400  # characters of a dead server's stderr that an error quotes
_LEAST_WAIT, _MOST_WAIT = 0.2, 5.0  # seconds before a request that was not taken is sent again, if it does not say


@dataclass(slots=True)
class _Request:
    name: str  # of the tool; empty: list the tools again
    arguments: Mapping[str, Any]
    answer: asyncio.Future[CallToolResult]
    once: bool = False  # never sent again, whatever is answered in the server's place


class _Life(asyncio.Task[None]):
    """A connection's task. Nobody cuts it short while its server is being ended; that takes seconds at most.

    The `mcp` package keeps its own cancel scopes from doing so, but not `Task.cancel`, which an event loop that closes
    calls on every task: the server would then run on, and this task wait for ever for the last of its output.
    """

    ending = False

    def cancel(self, msg: Any = None) -> bool:
        if self.ending and msg is None:  # with a message it is a time limit of the ending itself
            return False
        return super().cancel(msg)


class Connection:
    """A running server and the client that talks to it; one call at a time, in the order asked.

    server    how to start a server over stdio, or the URL of one that speaks streamable HTTP
    deadline  seconds that the start, and each call, may take
    answers   what the server is told when it asks for something itself
    place     where the server sees its folder, if not where it is

    `tools` follow the server where it says that they changed; `changed` counts how often that was. What a server sends
    is mended where it does not fit the protocol (see Wire), so an answer that came is never lost. What stands between
    may answer, too: a call that got no answer of the server is SessionDied, and one that was not taken (HTTP 429, or
    503 with Retry-After) is sent again until the deadline, unless it is to be sent once.

    A connection that timed out, was cancelled in mid-call or lost its server is `dead` and stays so: a late
    answer, or a late write of the server, must not reach whatever comes next. Open a new one.
    """

    def __init__(
        self,
        server: StdioServerParameters | str,
        *,
        deadline: float,
        answers: Answers | None = None,
        place: Place | None = None,
    ) -> None:
        self.server, self.deadline, self.place = server, deadline, place
        self.answers = answers or Answers()
        self.tools: tuple[Tool, ...] = ()
        self.changed = 0
        self.wire = Wire(self._what(), place.rewrite if place is not None else None)
        self.over = OverHttp()
        self._queue: asyncio.Queue[_Request | None] = asyncio.Queue()
        self._task: _Life | None = None
        self._stderr: TextIO | None = None
        self._lost = False  # no call is answered any more; the process may still be on its way out

    @property
    def dead(self) -> bool:
        return self._lost or self._task is None or self._task.done() or self._task.cancelling() > 0

    async def open(self) -> None:
        """Starts the server and reads its tools. Raises SessionDied or ActionTimeout, quoting the server's stderr."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[tuple[Tool, ...]] = loop.create_future()
        self._task = _Life(self._live(ready), loop=loop, name="mcp connection")
        try:
            self.tools = await asyncio.wait_for(asyncio.shield(ready), self.deadline)
        except TimeoutError as error:
            self.abandon()
            raise ActionTimeout(f"{self._what()} did not start within {self.deadline} s{self._last()}") from error
        except BaseException:
            self.abandon()
            raise

    async def call(self, name: str, arguments: Mapping[str, Any], once: bool = False) -> CallToolResult:
        """The server's answer to one call. Raises SessionDied, ActionTimeout, or MCPError for an error answer.

        once  what cannot be undone: who stands between may well say that it was not taken, and be wrong
        """
        if self.dead:
            raise SessionDied(f"{self._what()} is gone; reset or restore starts a new one{self._tail()}")
        request = _Request(name, arguments, asyncio.get_running_loop().create_future(), once)
        self._queue.put_nowait(request)
        try:
            return await asyncio.wait_for(request.answer, self.deadline)
        except TimeoutError as error:
            self.abandon()
            raise ActionTimeout(
                f"{self._what()}: {name} gave no answer within {self.deadline} s{self._last()}"
            ) from error
        except asyncio.CancelledError:
            self.abandon()
            raise

    async def listed(self) -> tuple[Tool, ...]:
        """The tools as they are now. Raises as `call` does."""
        if self.wire.changed and not self.dead:
            await self.call("", {})
        return self.tools

    def abandon(self) -> None:
        """Gives the server up without waiting; its task ends the process (stdin closed, then signals)."""
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def close(self) -> None:
        """Ends the server and waits for it, even when cancelled: who comes next may use its folder. Closing twice is
        fine."""
        if (task := self._task) is None:
            return
        self._queue.put_nowait(None)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            self.abandon()
            await asyncio.wait([task])
            raise
        finally:
            if self._stderr is not None:
                self._stderr.close()
                self._stderr = None

    async def _live(self, ready: asyncio.Future[tuple[Tool, ...]]) -> None:
        try:
            for attempt in itertools.count():
                if await self._lived(ready, attempt):
                    break
        except asyncio.CancelledError:
            self._fail(ready, "was given up")
        except Exception as error:
            self._fail(ready, f"ended: {self.over.trouble or _said(_leaf(error))}")
        else:
            self._fail(ready, "is closed")

    async def _lived(self, ready: asyncio.Future[tuple[Tool, ...]], attempt: int) -> bool:
        """One life of the connection, to its end; False where the server did not take it up yet."""
        try:
            async with self._client() as client:
                ready.set_result(await _list_tools(client))
                try:
                    await self._serve(client)
                finally:
                    self._lost = True
        except Exception:
            if ready.done() or not await self._later("the start", attempt):
                raise
            return False
        return True

    async def _later(self, what: str, attempt: int) -> bool:
        """Waits as long as the server asks before a request that it did not take; False where it took the last one."""
        if self.over.wait is None:
            return False
        wait = max(self.over.wait, min(_LEAST_WAIT * 2**attempt, _MOST_WAIT))
        if wait >= self.deadline:
            self.over.trouble += f"; it wants to be left alone for {wait:.0f} s, longer than a call may take"
            return False
        told = "%s: %s; %s is tried again in %.1f s, until %g s are over"
        log.log(logging.DEBUG if attempt else logging.WARNING, told, self._what(), self.over.trouble, what, wait,
                self.deadline)  # fmt: skip
        await asyncio.sleep(wait)
        return True

    async def _serve(self, client: Client) -> None:
        while (request := await self._queue.get()) is not None:
            try:
                answer = await self._answered(client, request)
            except MCPError as error:
                if error.code == CONNECTION_CLOSED and (self.wire.ended or _broken_off(error)):
                    _give(request.answer, SessionDied(f"{self._what()} died during {request.name}{self._tail()}"))
                    return
                if self.over.trouble:
                    _give(request.answer, SessionDied(f"{self._what()}: {request.name}: {self.over.trouble}"))
                    return
                _give(request.answer, error)
            except asyncio.CancelledError:
                # A transport that breaks cancels this task from within; the caller must not wait for its deadline.
                _give(request.answer, SessionDied(f"{self._what()} was lost during {request.name}"))
                raise
            except Exception as error:
                # Closed pipes, broken protocol: whatever the client raises here, this connection is of no more use.
                _give(request.answer, SessionDied(f"{self._what()} was lost during {request.name}: {error!r}"))
                return
            else:
                if not request.answer.done():
                    request.answer.set_result(answer)

    async def _answered(self, client: Client, request: _Request) -> CallToolResult:
        answer = CallToolResult(content=[])
        if request.name:
            try:
                answer = await self._called(client, request)
            except (ValidationError, RuntimeError) as error:
                # The server answered, so its work is done; only the client cannot read what it said.
                text = TextContent(type="text", text=f"error: {request.name} was answered, but {_said(error)}")
                answer = CallToolResult(content=[text], is_error=True)
        if self.wire.changed:
            with contextlib.suppress(MCPError, ValidationError):  # a server that cannot list its tools keeps the old
                self.tools = await _list_tools(client)
                self.changed += 1
            self.wire.changed = False
        return answer

    async def _called(self, client: Client, request: _Request) -> CallToolResult:
        for attempt in itertools.count():
            self.over.forget()
            try:
                return await client.call_tool(request.name, dict(request.arguments))
            except MCPError:
                if request.once or not self.over.trouble or not await self._later(request.name, attempt):
                    raise
        raise AssertionError("counting does not end")

    def _client(self) -> Client:
        if isinstance(self.server, str):
            return Client(self.wire.through(self._over_http(self.server)), **self.answers.options())
        if self._stderr is None:
            self._stderr = cast(TextIO, tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115 (closed by close)
        kind = self.server if self.place is None else self.place.parameters(self.server)
        kind = kind.model_copy(update={"encoding_error_handler": "replace"})
        return Client(self.wire.through(self._over_pipes(kind, self._stderr)), **self.answers.options())

    @contextlib.asynccontextmanager
    async def _over_pipes(self, kind: StdioServerParameters, stderr: TextIO) -> AsyncIterator[Any]:
        async with stdio_client(kind, errlog=stderr) as streams:
            try:
                yield streams
            finally:
                if self._task is not None:
                    self._task.ending = True

    @contextlib.asynccontextmanager
    async def _over_http(self, url: str) -> AsyncIterator[Any]:
        async with self.over.client() as client, streamable_http_client(url, http_client=client) as streams:
            yield streams

    def _fail(self, ready: asyncio.Future[tuple[Tool, ...]], why: str) -> None:
        _give(ready, SessionDied(f"{self._what()} {why}{self._tail()}"))
        if ready.done() and not ready.cancelled():
            ready.exception()  # read, or asyncio warns about it when nobody waits any more
        while not self._queue.empty():
            if (request := self._queue.get_nowait()) is not None:
                _give(request.answer, SessionDied(f"{self._what()} {why}"))

    def _what(self) -> str:
        if isinstance(self.server, str):
            return f"MCP server {self.server}"
        return f"MCP server `{' '.join([self.server.command, *self.server.args])}`"

    def _last(self) -> str:
        return f"; last: {self.over.trouble}" if self.over.trouble else self._tail()

    def _tail(self) -> str:
        if self._stderr is None or self._stderr.closed:
            return ""
        with contextlib.suppress(OSError, ValueError):
            self._stderr.seek(0)
            text = self._stderr.read().strip()[-_STDERR_TAIL:]
            return f"; its stderr ends with: {text}" if text else ""
        return ""


async def _list_tools(client: Client) -> tuple[Tool, ...]:
    """Every page of the list; a server whose pages lead in a circle is read once around."""
    found: list[Tool] = []
    cursor: str | None = None
    seen: set[str] = set()
    while True:
        page = await client.list_tools(cursor=cursor, cache_mode="bypass")
        found += page.tools
        cursor = page.next_cursor
        if not cursor or cursor in seen:
            return tuple(found)
        seen.add(cursor)


def _broken_off(error: MCPError) -> bool:
    """Whether a stream of events over HTTP ended before the answer; the code is also one that servers give."""
    return error.message.startswith("SSE stream")


def _leaf(error: BaseException) -> BaseException:
    """The first real error inside the groups that task groups wrap around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _said(error: BaseException) -> str:
    """The error in one line; for an answer that breaks the protocol, the field that does."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"its answer breaks the protocol at {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return repr(error)


def _give(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
