"""Chat policies against real HTTP servers on loopback, well-behaved and not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

import pytest
from speed import patient
from starlette.responses import JSONResponse, PlainTextResponse, Response

from treewright.agent.policies.openai import OpenAIPolicy
from treewright.agent.policies.policy import Policy
from treewright.envs import maze
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Observation
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.screen import parse_action
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Exchange, PolicyFault

from .fake_server import FIRST, TASK, TOOLS, Server, opened, root, said, serving


async def test_messages_go_out_and_drafts_come_back(caplog: pytest.LogCaptureFixture) -> None:
    lp = {"logprobs": {"content": [{"token": "look", "logprob": -0.5}, {"token": " {}", "logprob": -0.25}]}}
    server = Server(said("look {}", "wait {}", finish_reason="length", **lp))
    async with opened(server) as policy:
        assert isinstance(policy, Policy) and (policy.name, policy.version) == ("openai:m", "m@127.0.0.1")
        turns = [Exchange("go {}", Action.of("go"), Observation("a door"))]
        context = policy.context(TASK, TOOLS, FIRST, turns, (1, 2, 3))
        with caplog.at_level(logging.WARNING):
            done = await policy.draw(context, [5, 6], 33)
            await policy.draw(context, [5, 6], 33)
    path, body = server.seen[0]
    assert path == "/v1/chat/completions" and len(server.seen) == 2
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][-1]["content"] == "a door" and "- search(entity?: string)" in body["messages"][0]["content"]
    assert (body["seed"], body["n"], body["max_tokens"], body["logprobs"], body["model"]) == (5, 2, 33, True, "m")
    assert [c.text for c in done] == ["look {}", "wait {}"] and done[0].logprobs == (-0.5, -0.25)
    assert not done[0].trainable and done[0].token_ids == () and done[0].finish_reason == "length"
    told = [r.message for r in caplog.records if r.name.startswith("treewright")]
    assert len(told) == 1
    assert (policy.stats.draws, policy.stats.sampled_tokens, policy.stats.prompt_tokens) == (4, 8, 18)


async def test_a_server_that_gives_fewer_drafts_is_asked_again_and_each_seed_can_have_its_own_request() -> None:
    server = Server(lambda body: said(f"say {body['seed']}"))
    async with opened(server) as policy:
        assert [c.text for c in await policy.draw(root(policy), [1, 2, 3], 4)] == ["say 1", "say 2", "say 3"]
    assert [body.get("n") for _, body in server.seen] == [3, None, None]
    async with opened(server, together=False) as policy:
        assert [c.text for c in await policy.draw(root(policy), [3, 1, 2], 4)] == ["say 3", "say 1", "say 2"]


async def test_tool_schemas_go_out_and_tool_calls_come_back_as_text_that_parses() -> None:
    call = {"type": "function", "id": "1", "function": {"name": "search", "arguments": '{"entity": "a\\"b"}'}}
    reply = said("thinking")
    reply["choices"][0]["message"]["tool_calls"] = [call, call]
    server = Server(reply)
    async with opened(server, tools_as="schema") as policy:
        (done,) = await policy.draw(root(policy), [1], 9)
    assert server.seen[0][1]["tools"] == [TOOLS[0].to_openai()]
    assert [c.arguments for c in parse_action(done.text, TOOLS).calls] == [{"entity": 'a"b'}] * 2
    with pytest.raises(TreewrightError, match="'text' or 'schema'"):
        OpenAIPolicy("m", "http://127.0.0.1/v1", tools_as="xml")


@pytest.mark.parametrize(
    "bad",
    [
        PlainTextResponse("slow down", 429, headers={"retry-after": "0"}),
        PlainTextResponse("busy", 503),
        PlainTextResponse("", 500),
        PlainTextResponse("<html>garbage"),
        PlainTextResponse('{"choices": [{"mess'),
        JSONResponse({"choices": []}),
        JSONResponse({"choices": [{"message": {"content": 7}}]}),
        JSONResponse([1]),
        Response(b"\xff\xfe", headers={"content-encoding": "gzip"}),
    ],
)
async def test_errors_that_may_pass_are_tried_again(bad: PlainTextResponse | JSONResponse | Response) -> None:
    server = Server()
    server.queue.extend([bad, bad])
    policy: Any
    async with opened(server) as policy:
        (done,) = await policy.draw(root(policy), [1], 9)
        assert done.text == "look {}" and policy.stats.retries == 2 and len(server.seen) == 3
        server.always = bad
        policy.backoff, policy.deadline = 60, 9  # the first pause would pass the deadline
        with pytest.raises(PolicyFault, match=r"given up after 1 attempts; last: (HTTP|malformed|DecodingError)"):
            await policy.draw(root(policy), [1], 9)
        assert policy.stats.faults == 1


async def test_a_retry_after_beyond_the_deadline_gives_up_at_once() -> None:
    server = Server(PlainTextResponse("no", 429, headers={"retry-after": "600"}))
    async with opened(server) as policy:
        with pytest.raises(PolicyFault, match="after 1 attempts; last: HTTP 429"):
            await policy.draw(root(policy), [1], 9)


async def test_errors_that_stay_are_not_tried_again_and_the_key_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server = Server(PlainTextResponse("bad key sk-secret", 401))
    with caplog.at_level(logging.DEBUG):
        policy: Any
        async with opened(server, api_key_env="MY_KEY", together=False) as policy:
            with pytest.raises(PolicyFault, match=r"HTTP 401: bad key \*\*\*; set MY_KEY"):
                await policy.draw(root(policy), [1, 2], 9)
            assert "sk-secret" not in repr(vars(policy))
            server.always = PlainTextResponse("busy sk-secret", 503)
            policy.backoff, policy.deadline = 60, 9
            with pytest.raises(PolicyFault, match="given up"):
                await policy.draw(root(policy), [1], 9)
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in caplog.text.replace("Bearer sk-secret", "")
    assert not any("sk-secret" in r.getMessage() for r in caplog.records if r.name.startswith("treewright"))


async def test_a_server_without_log_probs_is_asked_without() -> None:
    server = Server(
        lambda body: said("ok {}") if "logprobs" not in body else PlainTextResponse("logprobs unsupported", 400)
    )
    async with opened(server) as policy:
        await policy.draw(root(policy), [1], 9)
        (done,) = await policy.draw(root(policy), [1], 9)
    assert done.text == "ok {}" and done.logprobs == () and len(server.seen) == 3


async def test_a_hanging_server_is_left_at_the_deadline() -> None:
    never = asyncio.Event()

    async def hang(body: Any) -> None:
        await never.wait()

    server = Server(hang)
    loop = asyncio.get_running_loop()
    async with opened(server, deadline=0.3) as policy:
        began = loop.time()
        with pytest.raises(PolicyFault, match="no answer within 0"):
            await policy.draw(root(policy), [1], 9)
        assert loop.time() - began < patient(20)
        never.set()
    server = Server()
    never.clear()
    server.queue.append(hang)
    async with opened(server, attempt_timeout=0.2) as policy:
        assert (await policy.draw(root(policy), [1], 9))[0].text == "look {}"
        never.set()


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b'HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{"choices": [',
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"cho\r\n',
        b"\x00\x01garbage\r\n\r\n",
    ],
)
async def test_half_a_stream_is_tried_again_then_a_fault(half: bytes) -> None:
    broken, calls = 2, 0
    whole = json.dumps(said("look {}")).encode()
    whole = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(whole), whole)

    async def serve(reader: Any, writer: Any) -> None:
        nonlocal calls
        calls += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(half if calls <= broken else whole)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        policy = OpenAIPolicy("m", f"http://127.0.0.1:{port}/v1/", backoff=0.01, deadline=patient(20))
        assert (await policy.draw(root(policy), [1], 9))[0].text == "look {}" and calls == 3
        broken, policy.backoff, policy.deadline = 10**9, 60, 9
        with pytest.raises(PolicyFault):
            await policy.draw(root(policy), [1], 9)
        await policy.close()
    with pytest.raises(PolicyFault, match="ConnectError"):
        await policy.draw(root(policy), [1], 9)
    await policy.close()


async def test_no_more_requests_than_allowed_are_under_way() -> None:
    now = most = 0

    async def slow(body: Any) -> dict[str, Any]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return said("look {}")

    async with opened(Server(slow), concurrency=3, together=False) as policy:
        await asyncio.gather(*(policy.draw(root(policy), range(4), 9) for _ in range(5)))
        assert most == 3 and policy.stats.requests == 20 and 0 < policy.stats.seconds < 5


def test_one_policy_serves_several_event_loops() -> None:
    async def once(policy: OpenAIPolicy, url: str) -> list[Completion]:
        policy.wire.base_url = policy.wire.base_url.copy_with(port=int(url.rsplit(":", 1)[1].split("/")[0]))
        return await policy.draw(root(policy), [1], 9)

    async def main(policy: OpenAIPolicy) -> list[Completion]:
        async with serving(Server()) as url:
            return await once(policy, url)

    policy = OpenAIPolicy("m", "http://127.0.0.1:1/v1", backoff=0.01)
    assert asyncio.run(main(policy)) == asyncio.run(main(policy))


# -- budgets, tools, repair -----------------------------------------------------------------------------------------


async def grown(policy: Policy, **ceilings: Any) -> Tree:
    return await search(
        maze.SUITE.tasks("train", 1)[0], maze.SUITE, policy, rule=best_first(draws=3), budget=Budget(**ceilings),
        settings=Settings(max_tokens=40, in_flight=2, retries=0),
    )  # fmt: skip


@pytest.mark.parametrize("reported", [True, False])
async def test_budgets_of_tokens_and_money_are_never_exceeded(reported: bool) -> None:
    def answer(body: Any) -> dict[str, Any]:
        reply = said(*['go {"to": 1}'] * body["n"])
        reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 40 * body["n"]} if reported else None
        return reply

    policy: Any
    async with opened(Server(answer), price_in=1.0, price_out=1000.0, longest_prompt=4000) as policy:
        assert policy.dearest(40) == pytest.approx(0.044)
        tree = await grown(policy, policy_tokens=700)
        assert tree.stopped_by == "policy_tokens" and 400 < tree.spent.policy_tokens <= 700
        tree = await grown(policy, money=0.5)
        assert tree.stopped_by == "money" and 0.2 < tree.spent.money <= 0.5
        policy.longest_prompt = 10
        with pytest.raises(PolicyFault, match="longer than longest_prompt = 10"):
            await policy.draw(root(policy), [1], 9)


async def test_a_conversation_with_schemas_shows_calls_as_tool_calls_and_observations_as_their_results() -> None:
    server = Server()
    async with opened(server, tools_as="schema") as policy:
        two = '<tool_call>{"name": "search", "arguments": {"entity": "a"}}</tool_call>'
        turns = [
            Exchange("Hm. " + two + two, None, Observation("eve")),
            Exchange("what?", None, Observation("error: no action")),
            Exchange('search {"entity": "é"}', None, Observation("bob")),
        ]
        await policy.draw(policy.context(TASK, TOOLS, FIRST, turns, ()), [1], 9)
    messages = server.seen[0][1]["messages"]
    roles = ["system", "user", "assistant", "tool", "tool", "assistant", "user", "assistant", "tool"]
    assert [m["role"] for m in messages] == roles
    assert "Tools:" not in messages[0]["content"] and messages[2]["content"] == "Hm."
    assert [c["id"] for c in messages[2]["tool_calls"]] == [m["tool_call_id"] for m in messages[3:5]]
    assert messages[3]["content"] == "eve" and messages[5] == {"role": "assistant", "content": "what?"}
    assert json.loads(messages[7]["tool_calls"][0]["function"]["arguments"]) == {"entity": "é"}


async def test_a_server_is_asked_for_the_schema_of_an_action_and_what_is_none_is_repaired() -> None:
    server = Server(said("Sure: search {'entity': 'ada'} - done"))
    policy: Any
    async with opened(server, grammar=True, repair=True) as policy:
        assert policy.sampling == {"grammar": "actions of the node's tools"}
        (done,) = await policy.draw(root(policy), [1], 9)
    assert done.text == 'search {"entity": "ada"}' and not done.trainable
    sent = server.seen[0][1]["response_format"]["json_schema"]["schema"]["anyOf"][0]
    assert sent["properties"]["name"] == {"const": "search"}
