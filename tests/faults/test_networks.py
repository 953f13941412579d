"""Bad networks between the product and its servers: what passes is retried, what stays is a fault, nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_proxy import Exchange, Fault, FaultProxy, body, drip, half, latency, reset, self_signed, silent, status
from speed import patient

from treewright.agent.gateway.draws import Draws
from treewright.agent.gateway.server import make_app
from treewright.agent.judges.checklist import Checklist
from treewright.agent.policies import transport
from treewright.agent.policies.light import LightTokenizer
from treewright.agent.policies.openai import OpenAIPolicy
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.policies.vllm_client import VLLMPolicy
from treewright.envs import ActionTimeout, EnvFault, SessionDied, suite
from treewright.envs.tools.mcp import MCPEnvironment
from treewright.envs.types import Action, Effect, Observation, Task, ToolSpec
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget, Candidate, Completion, NodeStatus, PolicyFault

TASK, FIRST = Task("kg", "1", "Who is ada's mother?"), Observation("start")
TOOLS = (ToolSpec("look", "look around", {}),)
LATER = status(429, {"retry-after": formatdate(time.time() + 3600, usegmt=True)})

PASSING: dict[str, Fault] = {
    "late": latency(0.02),
    "reset": reset,
    "half": half,
    "429": status(429),
    "429 in no time": status(429, {"retry-after": "0"}),
    "429 until a date": status(429, {"retry-after": formatdate(time.time() - 5, usegmt=True)}),
    "429 until nonsense": status(429, {"retry-after": "nan"}),
    "500": status(500),
    "html": body(b"<html>Bad gateway</html>", "text/html"),
    "half a JSON": body(b'{"choices": [{"mess'),
    "another JSON": body(b'[{"choices": 7}]'),
    "nothing": body(b""),
}
ENDLESS: dict[str, Fault] = {"silent": silent, "drip": drip(0.02)}


@contextlib.asynccontextmanager
async def model() -> AsyncIterator[int]:
    """A model server, the same answer for the same request; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(1)
        if head == b"\x16":  # TLS
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()
            return
        head += await reader.readuntil(b"\r\n\r\n")
        size = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:"))
        asked = json.loads(await reader.readexactly(size))
        number = int(hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest(), 16)
        chance = (number >> 8) % 4
        text = ['go {"to": "1,0"}', 'go {"to": "0,1"}', "look {}", "nothing that is an action"][chance]
        if "max_tokens" in asked and asked["max_tokens"] == 1:
            text = "yes"
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        alternatives = [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": -2.5}]
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.5, "top_logprobs": alternatives}]}
        if "prompt" in asked:
            choice = {"text": text, "token_ids": [5, 6, 7], "logprobs": {"token_logprobs": [-0.5, -0.25, -0.1]}}
        answer = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer))
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def policy_at(port: int, kind: str = "draw", **options: Any) -> OpenAIPolicy:
    url = f"http://127.0.0.1:{port}/v1"
    given = {"backoff": 0.01, "deadline": patient(20), "attempt_timeout": patient(10), **options}
    if kind == "vllm":
        return VLLMPolicy("m", url, tokenizer=LightTokenizer(SEEDLING), version="v", **given)
    return OpenAIPolicy("m", url, together=False, **given)


async def drawn(policy: OpenAIPolicy) -> Any:
    done = await policy.draw(policy.context(TASK, TOOLS, FIRST, (), ()), [1, 2], 9)
    return [(c.text, c.token_ids, c.logprobs) for c in done]


async def judged(policy: OpenAIPolicy) -> Any:
    judge = Checklist(policy, items=lambda task: ("it is done", "it is right"))
    seen = Candidate((), Completion("look {}"), Action.of("look"), None, FIRST, NodeStatus.OPEN, 0.0, 1)
    return [score.value for score in await judge.evaluate(TASK, [seen])]


async def written(policy: OpenAIPolicy) -> Any:
    return await asyncio.gather(*(policy.write("What is left to do?", seed, 40) for seed in (3, 4)))


ASKED: dict[str, Callable[[OpenAIPolicy], Awaitable[Any]]] = {
    "draw": drawn, "vllm": drawn, "judge": judged, "write": written
}  # fmt: skip


@pytest.mark.parametrize("kind", ASKED)
async def test_what_passes_is_tried_again_until_the_answer_is_that_of_a_quiet_network(kind: str) -> None:
    async with model() as port, FaultProxy(port) as proxy:
        policy = policy_at(proxy.port, kind)
        quiet = await ASKED[kind](policy)
        for name, fault in PASSING.items():
            proxy.queue.extend([fault, fault])
            before = policy.stats.retries
            assert await ASKED[kind](policy) == quiet, name
            assert not proxy.queue and policy.stats.retries - before == (0 if name == "late" else 2), name
        await policy.close()


@pytest.mark.parametrize("kind", ASKED)
async def test_what_stays_is_a_fault_at_the_deadline_and_never_an_answer(kind: str) -> None:
    async with model() as port:
        faults = {**PASSING, **ENDLESS, "429 for an hour": LATER}
        del faults["late"]

        async def ends(name: str) -> None:
            async with FaultProxy(port, always=faults[name]) as own:
                for longer in (1, 5, 25):  # where the machine was so busy that nothing was sent by then
                    policy = policy_at(own.port, kind, deadline=patient(0.4 * longer))
                    began = time.monotonic()
                    with pytest.raises(PolicyFault, match=r"last: |the server was silent"):
                        await ASKED[kind](policy)
                    assert time.monotonic() - began < patient(60), name  # and not the hour
                    await policy.close()
                    if own.seen:
                        break
                assert own.seen if name != "429 for an hour" else len(own.seen) <= 2, name

        await asyncio.gather(*map(ends, faults))


async def test_an_attempt_ends_at_its_time_out_however_slowly_the_answer_drips() -> None:
    async with model() as port, FaultProxy(port) as proxy:
        policy = policy_at(proxy.port, attempt_timeout=0.3)
        quiet = await drawn(policy)
        proxy.queue.extend([drip(0.05), drip(0.05)])
        assert await drawn(policy) == quiet and policy.stats.retries == 2
        await policy.close()


def grown(policy: OpenAIPolicy) -> Awaitable[Tree]:
    maze = suite("maze")
    return search(
        maze.tasks("train", 1)[0], maze, policy, rule=best_first(draws=2, root_draws=2), budget=Budget(expansions=6),
        settings=Settings(close=True, max_tokens=40),
    )  # fmt: skip


async def test_a_tree_grown_over_a_bad_network_is_that_of_a_quiet_one() -> None:
    async with model() as port, FaultProxy(port) as proxy:
        policy = policy_at(proxy.port)
        quiet = await grown(policy)
        faults = [fault for fault in PASSING.values() for _ in range(2)]
        proxy.queue.extend(one for fault in faults for one in (fault, None))
        shaken = await grown(policy)
        await policy.close()
        assert len(quiet) > 10 and shaken.digest() == quiet.digest()
        assert shaken.reasons == quiet.reasons and NodeStatus.FAULT not in shaken.status
        assert policy.stats.retries > 10


# -- servers that are not there, or not who they should be -----------------------------------------------------------


async def test_a_dead_server_is_told_after_two_seconds_with_what_is_tried_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert transport.TOLD_AFTER == 2.0
    monkeypatch.setattr(transport, "TOLD_AFTER", 0.2)
    with socket.socket() as full:  # nobody takes connections from its queue, which is full
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        policy = policy_at(port, deadline=1.0, attempt_timeout=0.7)
        with caplog.at_level(logging.WARNING), pytest.raises(PolicyFault, match=r"no answer within|given up"):
            await drawn(policy)
        await policy.close()
        for one in waiting:
            one.close()
    told = [record.getMessage() for record in caplog.records]
    assert f"no connection to http://127.0.0.1:{port}/v1 yet" in told[0] and "an attempt may take 0.7 s" in told[0]
    assert any("trying again in" in line and "policy.options.deadline" in line for line in told)


async def test_a_certificate_that_nobody_vouches_for_is_no_matter_of_trying_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with model() as port, FaultProxy(port, tls=self_signed(tmp_path)) as proxy:
        policy = OpenAIPolicy("m", f"https://localhost:{proxy.port}/v1", together=False, deadline=patient(120))
        began = time.monotonic()
        with pytest.raises(PolicyFault, match=r"certificate is not trusted .*export SSL_CERT_FILE=CA.pem"):
            await drawn(policy)
        assert time.monotonic() - began < patient(60) and not proxy.seen and not policy.stats.retries
        await policy.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
        trusting = OpenAIPolicy("m", f"https://localhost:{proxy.port}/v1", together=False, deadline=patient(20))
        assert len(await drawn(trusting)) == 2
        await trusting.close()
    async with model() as port:
        policy = OpenAIPolicy("m", f"https://127.0.0.1:{port}/v1", together=False, deadline=patient(20))
        with pytest.raises(PolicyFault, match="does not speak TLS; write its address with http://"):
            await drawn(policy)
        await policy.close()


# -- the gateway's upstream -----------------------------------------------------------------------------------------


async def test_agents_behind_the_gateway_are_told_503_of_a_policy_that_stays_away_and_get_the_answer_of_one_that_comes(
) -> None:  # fmt: skip
    asked = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    async with model() as port, FaultProxy(port) as proxy:
        app = make_app(Draws(policy := policy_at(proxy.port)), "key")
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")

        async def post() -> httpx.Response:
            return await client.post("/v1/chat/completions", json=asked, headers={"authorization": "Bearer key"})

        for fault in PASSING.values():
            proxy.queue.append(fault)
            assert (await post()).status_code == 200
        policy.deadline = patient(0.3)
        for fault in (reset, half, status(429), body(b"<html>"), silent, drip(0.02)):
            proxy.always = fault
            answer = await post()
            assert answer.status_code == 503
            assert "the policy could not be asked" in answer.json()["error"]["message"]
        await client.aclose()
        await policy.close()


# -- MCP over HTTP --------------------------------------------------------------------------------------------------


class Tools(BaseHTTPRequestHandler):
    """An MCP server with one tool, `look`."""

    def do_POST(self) -> None:
        ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        version = (ask.get("params") or {}).get("protocolVersion", "2025-06-18")
        start = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "n", "version": "0"}}
        listed = {"tools": [{"name": "look", "inputSchema": {"type": "object"}}]}
        shown = {"content": [{"type": "text", "text": "a door"}]}
        results = {"initialize": start, "tools/list": listed, "tools/call": shown}
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": ask.get("id")}
        if ask["method"] in results:
            answer["result"] = results[ask["method"]]
        else:
            answer["error"] = {"code": -32601, "message": "no such method"}
        self.send_response(200 if "id" in ask else 202)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode() if "id" in ask else b"")

    def do_GET(self) -> None:
        self.send_response(405)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def tools() -> Any:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Tools)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


async def looked(port: int, faults: list[Fault | None], deadline: float, proxy: FaultProxy) -> Observation:
    env = MCPEnvironment(f"http://127.0.0.1:{port}/mcp", deadline=deadline, effects={"look": Effect.READ})
    try:
        await env.reset(TASK, 0)
        proxy.queue.extend(faults)
        return (await env.step(Action.of("look"), 1)).observation
    finally:
        proxy.queue.clear()
        await env.close()


SSE = {"content-type": "text/event-stream"}
UNTAKEN = {"429": status(429), "503 with a time": status(503, {"retry-after": "0"}), "late": latency(0.02)}
NO_ANSWER: dict[str, Fault] = {
    **{name: fault for name, fault in PASSING.items() if not name.startswith(("429", "late"))},
    "503": status(503), "502 in JSON": status(502, {"content-type": "application/json"}, b'{"error": "upstream"}'),
    "404": status(404), "202": status(202), "moved": status(302, {"location": "http://127.0.0.1:1/x"}),
    "events that end": status(200, SSE, b"event: message\r\n"), "429 for an hour": LATER, "silent": silent,
    "drip": drip(0.05),
}  # fmt: skip


async def test_calls_that_a_server_behind_a_url_did_not_take_are_made_again(tools: int) -> None:
    async with FaultProxy(tools) as proxy:
        for name, fault in UNTAKEN.items():
            seen = await looked(proxy.port, [fault, fault], patient(20), proxy)
            assert (seen.text, seen.provenance) == ("a door", "tool"), name


async def test_a_call_that_nothing_undoes_is_not_sent_again_whoever_says_that_it_was_not_taken(tools: int) -> None:
    async with FaultProxy(tools) as proxy:
        for name in ("429", "503 with a time"):
            for sandboxed in (False, True):
                env = MCPEnvironment(f"http://127.0.0.1:{proxy.port}/mcp", deadline=patient(20), sandboxed=sandboxed)
                try:
                    await env.reset(TASK, 0)
                    proxy.queue.extend([UNTAKEN[name], None])
                    if sandboxed:
                        assert (await env.step(Action.of("look"), 1)).observation.text == "a door", name
                    else:
                        with pytest.raises(SessionDied):
                            await env.step(Action.of("look"), 1)
                        assert len(proxy.queue) == 1, name  # nothing was sent after the first
                finally:
                    proxy.queue.clear()
                    await env.close()


async def test_an_answer_that_is_not_the_servers_is_a_fault_and_no_observation(
    tools: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def ends(name: str) -> None:
        async with FaultProxy(tools) as proxy:
            began, slow = time.monotonic(), name in ("silent", "drip")
            with pytest.raises(ActionTimeout if slow else SessionDied):
                await looked(proxy.port, [NO_ANSWER[name]], 0.7 if slow else patient(120), proxy)
            assert time.monotonic() - began < patient(60), name  # long before the deadline

    with caplog.at_level(logging.CRITICAL):
        await asyncio.gather(*map(ends, NO_ANSWER))


async def test_what_a_server_itself_refuses_is_still_told_to_the_policy(tools: int) -> None:
    said = b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32602, "message": "no such place"}}'
    async with FaultProxy(tools) as proxy:
        seen = await looked(proxy.port, [status(400, {"content-type": "application/json"}, said)], patient(20), proxy)
    assert (seen.text, seen.provenance) == ("error: no such place", "error")


# -- the browser ----------------------------------------------------------------------------------------------------


async def nothing(exchange: Exchange) -> None:
    """Hangs up without a word."""


async def test_a_page_that_the_network_lost_is_a_fault_and_no_blank_page() -> None:
    pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")
    from local_site import Visit, serve_pages

    from treewright.envs.web.browser import close_browser, find_chromium

    if find_chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell")
    link, form = "<a href=/two>two</a>", "<form method=post action=/two><button>send</button></form>"
    site = await serve_pages({"/": f"<title>one</title>{link}{form}", "/two": f"<h1>Two</h1><p>{'x' * 300}</p>"})
    lost: dict[str, Fault] = {
        "reset": reset, "half": half, "nothing": nothing, "429": status(429), "503": status(503, SSE | {"a": "b"}),
        "garbage": lambda exchange: exchange.send(b"\x00\x01\x02\r\n\r\n"), "drip": drip(0.05),
    }  # fmt: skip
    shown = {"late": latency(0.05), "404": status(404), "500": status(500, None, b"the shop says no")}
    try:
        for element in ("two", "send"):
            for name, fault in {**lost, **shown}.items():
                if element == "send" and name not in ("reset", "half", "503", "500"):
                    continue
                async with FaultProxy(site.sockets[0].getsockname()[1]) as proxy:
                    settings = {"deadline": 0.5, "patience": patient(2)} if name == "drip" else {}
                    visit = Visit(f"http://127.0.0.1:{proxy.port}/", locked=False, **settings)
                    await visit.env.reset(TASK, 0)
                    visit.seen, proxy.always = visit.env._view, fault
                    if name in shown:
                        assert {"late": "Two", "404": "not now", "500": "no"}[name] in await visit.do("click", element)
                    else:
                        with pytest.raises(EnvFault, match=r"could not load|no answer within"):
                            await visit.do("click", element)
                    await visit.env.close()
    finally:
        site.close()
        await close_browser()
