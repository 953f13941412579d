"""No page gets a packet past the allow-list; the same pages do with the guard off."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from bypasses import CASES, SPELLINGS, WAYS, over_udp, run
from speed import patient

from treewright.envs.web.browser import close_browser, find_chromium
from treewright.envs.web.guard import AllowList, Gate

pytestmark = pytest.mark.asyncio(loop_scope="module")
needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)
# A sample that holds every way and every spelling at least once, about a hundred cases.
SAMPLE = [
    *(case for i, case in enumerate(CASES) if case.spelling == list(SPELLINGS)[i // len(SPELLINGS) % len(SPELLINGS)]),
    *random.Random(1).sample(CASES, 110 - len(WAYS)),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def browser() -> AsyncIterator[None]:
    yield
    await close_browser()


async def test_the_sweep_has_more_than_five_hundred_cases_and_the_sample_holds_every_kind() -> None:
    assert len(CASES) > 500 and len(SAMPLE) >= 100
    assert {c.way for c in SAMPLE} == set(WAYS) and {c.spelling for c in SAMPLE} == set(SPELLINGS)


@needs_browser
async def test_with_the_guard_not_one_connection_reaches_the_canary() -> None:
    marks, connections, denied = await run(SAMPLE, guarded=True, batch=28, seconds=patient(1.0), stay=30)
    assert connections == 0 and not marks
    assert denied > 50, "the pages did not even try"


@needs_browser
async def test_without_the_guard_most_of_the_same_cases_do() -> None:
    marks, _, _ = await run(SAMPLE, guarded=False, batch=28, seconds=patient(2.0))
    assert len(marks) > len(SAMPLE) / 2


@needs_browser
async def test_webrtc_sends_no_packet_past_the_proxy_and_does_without_the_guard() -> None:
    assert await over_udp(guarded=True) == 0
    assert await over_udp(guarded=False) > 0


async def raw(gate: Gate, *lines: str, body: bytes = b"") -> Any:
    """What the gate answers to a request that is written by hand."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gate.url.rsplit(":", 1)[1]))
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
    try:
        return await asyncio.wait_for(reader.read(), patient(5))
    finally:
        writer.close()


@pytest_asyncio.fixture(loop_scope="module")
async def allowed() -> AsyncIterator[tuple[Any, list[Any]]]:
    """A server that may be reached: (port, request lines it was sent)."""
    asked = []

    async def serve(reader: Any, writer: Any) -> None:
        while line := await reader.readline():
            asked.append(line.decode("latin-1").strip())
            while (await reader.readline()).strip():
                pass
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
            writer.close()
            return

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], asked
    server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def forbidden() -> AsyncIterator[tuple[Any, list[Any]]]:
    """A server that may not be reached: (port, one entry for each connection)."""
    hits = []

    async def serve(reader: Any, writer: Any) -> None:
        hits.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], hits
    server.close()


@pytest.mark.parametrize("guarded", [True, False])
async def test_requests_written_by_hand_reach_listed_hosts_only(
    allowed: tuple[Any, list[Any]], forbidden: tuple[Any, list[Any]], guarded: bool
) -> None:
    port, _ = allowed
    canary, hits = forbidden
    hosts = [f"127.0.0.1:{port}"] if guarded else [f"127.0.0.1:{port}", "127.0.0.1", "::1", "[::1]"]
    gate = Gate(AllowList.of(hosts))
    await gate.start()
    targets = [
        f"http://127.0.0.1:{canary}/",
        f"http://127.0.0.1:{port}@127.0.0.1:{canary}/",
        f"http://x:y@127.0.0.1:{canary}/",
        f"http://127.0.0.1:{canary}/http://127.0.0.1:{port}/",
        f"http://127.0.0.1:{canary}#@127.0.0.1:{port}/",
        f"http://127.0.0.1:{canary}?@127.0.0.1:{port}/",
        f"HTTP://127.0.0.1.:{canary}/",
    ]
    try:
        for target in targets:
            await raw(gate, f"GET {target} HTTP/1.1", f"Host: 127.0.0.1:{port}")
        for target in (f"127.0.0.1:{canary}", f"127.0.0.1:{port}@127.0.0.1:{canary}"):
            await raw(
                gate, f"CONNECT {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", body=b"GET / HTTP/1.1\r\n\r\n"
            ) if guarded else None
    finally:
        await gate.close()
    assert bool(hits) is not guarded


async def test_what_follows_a_request_in_the_same_connection_is_not_passed_on(allowed: tuple[Any, list[Any]]) -> None:
    port, asked = allowed
    gate = Gate(AllowList.of([f"127.0.0.1:{port}"]))
    gate.writes = False
    await gate.start()
    hidden = f"POST http://127.0.0.1:{port}/hidden HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    try:
        await raw(gate, f"GET http://127.0.0.1:{port}/seen HTTP/1.1", "Host: x", body=hidden)
    finally:
        await gate.close()
    assert asked == ["GET /seen HTTP/1.1"]


@pytest.mark.parametrize(
    ("writes", "posts", "passes"), [(True, (), True), (False, (), False), (False, ("/ask",), True)]
)
async def test_methods_that_may_change_something_are_stopped_at_the_gate(
    allowed: tuple[Any, list[Any]], writes: bool, posts: tuple[str], passes: bool
) -> None:
    port, asked = allowed
    gate = Gate(AllowList.of([f"127.0.0.1:{port}"]), posts)
    gate.writes = writes
    await gate.start()
    try:
        for method in ("POST", "PUT", "PATCH", "DELETE", "QUERY", "post"):
            await raw(gate, f"{method} http://127.0.0.1:{port}/ask HTTP/1.1", "Host: x", "Content-Length: 0")
        for method in ("GET", "HEAD", "OPTIONS"):
            await raw(gate, f"{method} http://127.0.0.1:{port}/ask HTTP/1.1", "Host: x")
    finally:
        await gate.close()
    assert len(asked) == (9 if passes else 3)
    assert (f"PUT 127.0.0.1:{port}/ask" in gate.denied) is not passes


def frame(code: int, text: bytes) -> bytes:
    """A client's WebSocket frame (RFC 6455, section 5.2), masked with zeros; code 0 continues, 1 is text, 9 a ping."""
    size = len(text)
    head = [size] if size < 126 else [126, *size.to_bytes(2, "big")]
    return bytes([128 | code, 128 | head[0], *head[1:], 0, 0, 0, 0]) + text


@pytest.mark.parametrize(("writes", "posts", "passes"), [(True, (), True), (False, (), False), (False, ("/s",), True)])
async def test_messages_of_a_web_socket_are_stopped_at_the_gate_while_pings_pass(
    writes: bool, posts: tuple[str], passes: bool
) -> None:
    got, done = bytearray(), asyncio.Event()

    async def serve(reader: Any, writer: Any) -> None:
        got.extend(await reader.readuntil(b"\r\n\r\n"))
        while data := await reader.read(1000):
            got.extend(data)
        done.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    gate = Gate(AllowList.of([f"127.0.0.1:{port}"]), posts)
    gate.writes = writes
    await gate.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gate.url.rsplit(":", 1)[1]))
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        assert b"200" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), patient(5))
        extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
        writer.write(f"GET /s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n{extension}\r\n".encode())
        for part in (frame(9, b"ping"), frame(1, b"a" * 300), frame(0, b"more"), frame(9, b"pong")):
            writer.write(part)
        writer.write_eof()
        await asyncio.wait_for(done.wait(), patient(5))
        writer.close()
    finally:
        await gate.close()
        server.close()
    assert b"ping" in got and b"pong" in got and b"permessage" not in got
    assert (b"aaa" in got and b"more" in got) is passes
    assert (list(gate.denied) == [f"SEND 127.0.0.1:{port}/s"]) is not passes


async def test_a_tunnel_carries_nothing_readable_but_a_web_socket(allowed: tuple[Any, list[Any]]) -> None:
    port, asked = allowed
    gate = Gate(AllowList.of([f"127.0.0.1:{port}"]))
    await gate.start()
    try:
        for line in ("POST /x HTTP/1.1", "GET /x HTTP/1.1"):
            await raw(gate, f"CONNECT 127.0.0.1:{port} HTTP/1.1", body=f"{line}\r\nHost: x\r\n\r\n".encode())
    finally:
        await gate.close()
    assert asked == [] and list(gate.denied) == [f"POST 127.0.0.1:{port}/x", f"GET 127.0.0.1:{port}/x"]


async def test_a_name_is_resolved_once_for_each_connection_and_never_to_a_private_address(
    allowed: tuple[Any, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that changes its address between look-up and use gains nothing: what was checked is what is called."""
    port, asked = allowed
    answers, looked = [["93.184.216.34"], ["127.0.0.1"], ["10.0.0.1", "::1", "169.254.169.254"]], []

    async def rebinding(host: str, port: int, **_: Any) -> list[Any]:
        looked.append(host)
        found = answers[min(len(looked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    called = []

    async def connect(address: str, port: int) -> None:
        called.append(address)
        raise OSError("not from a test")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebinding)
    gate = Gate(AllowList.of([f"rebinding.example:{port}"]))
    await gate.start()
    reader_writers = [await asyncio.open_connection("127.0.0.1", int(gate.url.rsplit(":", 1)[1])) for _ in range(3)]
    monkeypatch.setattr(asyncio, "open_connection", connect)
    try:
        for reader, writer in reader_writers:
            writer.write(f"GET http://rebinding.example:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await asyncio.wait_for(reader.read(), patient(5))
            writer.close()
    finally:
        await gate.close()
    assert len(looked) == 3 and called == ["93.184.216.34"] and asked == []


@needs_browser
@pytest.mark.parametrize(("tunnels", "answer"), [(False, "204"), (True, "stopped")])
async def test_methods_are_stopped_in_the_browser_too_where_a_tunnel_would_hide_them(
    allowed: tuple[Any, list[Any]], tunnels: bool, answer: str
) -> None:
    from treewright.envs.web.tab import Tab

    port, asked = allowed
    tab = await Tab.open(AllowList.of([f"127.0.0.1:{port}"]), {}, (400, 300), tunnels=tunnels)
    try:
        tab.gate.writes = False
        await tab.navigate(f"http://127.0.0.1:{port}/page")
        await tab.page.wait_for_load_state("networkidle")
        sent = "fetch('/x', {method: 'DELETE'}).then(r => String(r.status), () => 'stopped')"
        assert await tab.page.evaluate(sent) == answer
        assert f"DELETE 127.0.0.1:{port}/x" in tab.gate.denied
    finally:
        await tab.close()
    assert not [line for line in asked if line.startswith("DELETE")]
