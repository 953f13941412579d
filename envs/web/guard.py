"""The request guard: every byte that a session's pages send passes a filtering proxy on loopback.

The browser context is told to use the proxy for everything, loopback included, so redirects, beacons, prefetches,
workers and WebSockets are covered too; hooks inside the browser miss some of those. A denied request gets
`204 No Content`, which leaves a page that tried to navigate where it was.

While `Gate.writes` is False, requests that may change something (every method but GET, HEAD and OPTIONS) are stopped
here, too, and so are the messages that a page sends by WebSocket. Inside of a TLS tunnel the gate sees neither: there
the browser's own hooks stop them. A tunnel carries TLS or one WebSocket, nothing else.

Covered: TCP that Chromium opens for a page. UDP (WebRTC, QUIC) is switched off by browser flags instead.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import deque
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from treewright.envs.web.trace import Sink, Tee, Trace

__all__ = ["AllowList", "Gate"]

_HEAD_LIMIT = 64 * 1024
_DENIED = b"HTTP/1.1 204 No Content\r\nConnection: close\r\nX-Denied: 1\r\n\r\n"
_REFUSED = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_UNREACHABLE = b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_TLS = b"\x16"  # the first byte of a TLS handshake
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class AllowList:
    """Hosts that may be reached: 'example.org' (any port), 'example.org:8080' or '127.0.0.1:8080'. Empty denies all.

    A name matches only itself, not its subdomains. A name that resolves to a private or loopback address is denied;
    such an address must be named as itself.
    """

    hosts: frozenset[str]

    @classmethod
    def of(cls, hosts: Iterable[str]) -> AllowList:
        return cls(frozenset(host.lower() for host in hosts))

    def allows(self, host: str, port: int) -> bool:
        """True if this host and port are listed; says nothing yet about the address that a name resolves to."""
        host = host.lower().rstrip(".")
        shown = f"[{host}]" if ":" in host else host
        return bool(host) and (shown in self.hosts or f"{shown}:{port}" in self.hosts)

    def allows_url(self, url: str) -> bool:
        """True for http, https, ws and wss URLs without user information whose host and port are listed."""
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            return False
        return parts.scheme in _PORTS and "@" not in parts.netloc and self.allows(parts.hostname or "", port)

    async def resolve(self, host: str, port: int) -> str | None:
        """The address to connect to, or None if this host and port may not be reached."""
        if not self.allows(host, port):
            return None
        with suppress(ValueError):
            return str(ipaddress.ip_address(host))
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            return None
        public = (str(info[4][0]) for info in found if ipaddress.ip_address(str(info[4][0])).is_global)
        return next(public, None)


class Gate:
    """A filtering HTTP proxy for one session.

    denied  the last 1,000 host:port, or 'METHOD host:port/path', that were asked for in vain; `refused` counts all
    writes  whether methods that may change something may pass
    posts   beginnings of paths that may be sent to by any method at any time: sites that ask by POST
    trace   takes what passes, requests in tunnels aside; None: nobody asks for it
    """

    def __init__(self, allow: AllowList, posts: Iterable[str] = ()) -> None:
        self.allow = allow
        self.posts = tuple(posts)
        self.writes = True
        self.denied: deque[str] = deque(maxlen=1000)
        self.refused = 0
        self.trace: Trace | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    def stops(self, method: str, path: str) -> bool:
        """True for a request that may change something while nothing may be changed."""
        return not self.writes and method.upper() not in _SAFE and not path.startswith(self.posts or ("\0",))

    @property
    def url(self) -> str:
        if self._server is None:
            raise RuntimeError("the gate is not open; await start() first")
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def deny(self, what: str) -> None:
        self.denied.append(what)
        self.refused += 1

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_HEAD_LIMIT)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # either side went away: the browser reports what that means for the page
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, headers = head.partition(b"\r\n")
        method, target, _ = line.decode("latin-1").split(" ", 2)
        tunnel = method == "CONNECT"
        host, port, path = _target(target, tunnel)
        address = await self.allow.resolve(host, port)
        if address is None:
            self.deny(f"{host}:{port}")
            writer.write(_REFUSED if tunnel else _DENIED)
            await writer.drain()
            return
        if not tunnel and self.stops(method, path):
            self.deny(f"{method} {host}:{port}{path}")
            writer.write(_DENIED)
            await writer.drain()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.write(_UNREACHABLE)
            await writer.drain()
            return
        try:
            if tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await _both(self._tunnel(reader, up_writer, f"{host}:{port}"), _pipe(up_reader, writer))
                return
            line = f"{method} {path} HTTP/1.1\r\n".encode("latin-1")
            if self.trace is None:
                up_writer.write(line + _one_request(headers))
                await _both(_body(reader, up_writer, headers), _pipe(up_reader, writer))
                return
            known = self.trace.begin(method, target, headers)
            up_writer.write(line + _one_request(_readable(headers)))
            await _both(_body(reader, Tee(up_writer, known.sent), headers), _pipe(up_reader, Tee(writer, known.answer)))
        finally:
            up_writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: str) -> None:
        """Passes on what goes up a tunnel: TLS as it is, a WebSocket message by message, nothing else."""
        first = await reader.readexactly(1)
        if first == _TLS:
            writer.write(first)
            await _pipe(reader, writer)
            return
        head = first + await reader.readuntil(b"\r\n\r\n")
        line, _, headers = head.partition(b"\r\n")
        method, path, _ = line.decode("latin-1").split(" ", 2)
        fields = _fields(headers)
        if method != "GET" or fields.get(b"upgrade", b"").lower() != b"websocket":
            self.deny(f"{method} {place}{path}")
            return
        # Without extensions: where messages are compressed, none of them could be left out.
        kept = [x for x in headers.split(b"\r\n") if x and not x.lower().startswith(b"sec-websocket-extensions")]
        writer.write(b"\r\n".join([line, *kept, b"", b""]))
        await self._messages(reader, writer, place, path)

    async def _messages(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: str, path: str
    ) -> None:
        """The frames of a WebSocket (RFC 6455, section 5.2); messages with data are left out while nothing may be
        changed, pings and closing pass."""
        stopped = False
        while True:
            head = await reader.readexactly(2)
            code, size = head[0] & 15, head[1] & 127
            if longer := {126: 2, 127: 8}.get(size, 0):
                head += await reader.readexactly(longer)
                size = int.from_bytes(head[2:])
            if 0 < code < 8:  # a message begins; what continues it has code 0
                stopped = self.stops("SEND", path)
                if stopped:
                    self.deny(f"SEND {place}{path}")
            passes = code >= 8 or not stopped
            left = size + (4 if head[1] & 128 else 0)
            if passes:
                writer.write(head)
            while left:
                data = await reader.read(min(left, 64 * 1024))
                if not data:
                    return
                left -= len(data)
                if passes:
                    writer.write(data)
                    await writer.drain()


def _target(target: str, tunnel: bool) -> tuple[str, int, str]:
    """Host, port and path of a proxy request line; an unreadable one gives an empty host, which nothing allows."""
    try:
        parts = urlsplit(f"//{target}" if tunnel else target)
        port = parts.port or (443 if tunnel else 80)
    except ValueError:
        return "", 0, ""
    if not tunnel and parts.scheme != "http":
        return "", 0, ""
    path = parts.path or "/"
    return parts.hostname or "", port, f"{path}?{parts.query}" if parts.query else path


def _one_request(headers: bytes) -> bytes:
    """The headers without hop-by-hop ones, closing the connection after this request: each request is checked."""
    kept = [
        line
        for line in headers.split(b"\r\n")
        if line and line.partition(b":")[0].strip().lower() not in (b"connection", b"proxy-connection", b"keep-alive")
    ]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


def _fields(headers: bytes) -> dict[bytes, bytes]:
    """Header fields by their names in lower case."""
    pairs = (line.partition(b":") for line in headers.split(b"\r\n"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _readable(headers: bytes) -> bytes:
    """The headers, asking for answers that can be unpacked here."""
    name = b"accept-encoding"
    kept = [line for line in headers.split(b"\r\n") if line and line.partition(b":")[0].strip().lower() != name]
    return b"\r\n".join([*kept, b"Accept-Encoding: gzip, deflate"])


async def _body(reader: asyncio.StreamReader, writer: Sink, headers: bytes) -> None:
    """Passes on this request's body and nothing after it: what follows would be a request that nobody checked."""
    fields = _fields(headers)
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        await _chunks(reader, writer)
    else:
        left = int(fields.get(b"content-length", b"0") or 0)
        while left and (data := await reader.read(min(left, 64 * 1024))):
            writer.write(data)
            await writer.drain()
            left -= len(data)
    await reader.read(1)  # the other direction ends this exchange, or the browser goes away


async def _chunks(reader: asyncio.StreamReader, writer: Sink) -> None:
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        writer.write(line + await reader.readexactly(size + 2))
        await writer.drain()
        if not size:
            return


async def _pipe(reader: asyncio.StreamReader, writer: Sink) -> None:
    while data := await reader.read(64 * 1024):
        writer.write(data)
        await writer.drain()


async def _both(upward: Coroutine[Any, Any, None], downward: Coroutine[Any, Any, None]) -> None:
    """Runs both directions until either side is done."""
    tasks = [asyncio.create_task(upward), asyncio.create_task(downward)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
