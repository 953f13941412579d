"""A proxy on loopback between a client and a server of ours that breaks the answers as a test asks: real sockets.

    async with FaultProxy(upstream_port) as proxy:
        proxy.queue += [reset, status(429, {"retry-after": "0"})]      # these requests, then
        proxy.always = half                                            # every other; None passes all through

A fault is an async function of one `Exchange`. It reads the whole request first, so a fault is never the client's.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

__all__ = ["Exchange", "Fault", "FaultProxy", "body", "drip", "half", "latency", "reset", "self_signed", "silent",
           "status"]  # fmt: skip


@dataclass(slots=True)
class Exchange:
    """One request on its way: what was asked (head and body as they came), and where the answer goes."""

    asked: bytes
    writer: asyncio.StreamWriter
    proxy: FaultProxy

    @property
    def path(self) -> str:
        return self.asked.split(b" ", 2)[1].decode("latin-1")

    async def answered(self) -> bytes:
        """The whole true answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.upstream)
        try:
            writer.write(self.asked)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def pass_on(self) -> None:
        """The true answer, as it comes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.upstream)
        try:
            writer.write(self.asked)
            await writer.drain()
            while data := await reader.read(65_536):
                await self.send(data)
        finally:
            writer.close()


Fault = Callable[[Exchange], Awaitable[None]]


async def reset(exchange: Exchange) -> None:
    """The connection is broken instead of an answer (TCP RST)."""
    sock = exchange.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.transport.abort()


async def half(exchange: Exchange) -> None:
    """The head and half of what follows, then the end."""
    whole = await exchange.answered()
    head = whole.index(b"\r\n\r\n") + 4
    await exchange.send(whole[: head + (len(whole) - head) // 2])


async def silent(exchange: Exchange) -> None:
    """No answer, and no end either, until the proxy is closed or the client goes."""
    await exchange.proxy.closing.wait()


def latency(seconds: float) -> Fault:
    async def late(exchange: Exchange) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exchange.proxy.closing.wait(), seconds)
        await exchange.pass_on()

    return late


def drip(seconds: float) -> Fault:
    """The true answer byte by byte with so much time between: each is progress, and the whole never comes in time."""

    async def dripping(exchange: Exchange) -> None:
        for byte in await exchange.answered():
            await exchange.send(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(exchange.proxy.closing.wait(), seconds)
                return

    return dripping


def status(code: int, headers: Mapping[str, str] | None = None, text: bytes = b"not now") -> Fault:
    """Another answer than the server's: what a balancer says for it."""

    async def said(exchange: Exchange) -> None:
        extra = "".join(f"{key}: {value}\r\n" for key, value in (headers or {}).items())
        head = f"HTTP/1.1 {code} Said\r\n{extra}content-length: {len(text)}\r\nconnection: close\r\n\r\n"
        await exchange.send(head.encode() + text)

    return said


def body(text: bytes, kind: str = "application/json") -> Fault:
    """A 200 with other words."""
    return status(200, {"content-type": kind}, text)


@dataclass
class FaultProxy:
    """Listens on `port` of 127.0.0.1; asks `upstream` of it. Every exchange has a connection of its own.

    seen  paths in the order they were asked for;  tls  spoken to the client
    """

    upstream: int
    tls: ssl.SSLContext | None = None
    queue: deque[Fault | None] = field(default_factory=deque)
    always: Fault | None = None
    chosen: Callable[[Exchange], Fault | None] | None = None
    seen: list[str] = field(default_factory=list)
    port: int = 0

    async def __aenter__(self) -> FaultProxy:
        self.closing = asyncio.Event()
        self._busy: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.close()
        if self._busy:
            await asyncio.wait(self._busy, timeout=5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)
        try:
            exchange = Exchange(await _request(reader), writer, self)
            self.seen.append(exchange.path)
            fault = self.chosen(exchange) if self.chosen is not None else None
            if fault is None:
                fault = self.queue.popleft() if self.queue else self.always
            await (exchange.pass_on() if fault is None else fault(exchange))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client went, which is its right
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """A whole request that asks for one answer alone on its connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith((b"connection:", b"proxy-"))]
    size = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
    return b"\r\n".join([*lines, b"connection: close", b"", b""]) + await reader.readexactly(size)


def self_signed(folder: Path, name: str = "localhost") -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody vouches for; the certificate is `folder`/server.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate, private = folder / "server.pem", folder / "server.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return context
