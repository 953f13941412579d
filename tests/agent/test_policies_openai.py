"""Served policies against real HTTP servers on loopback, well-behaved and not."""

import asyncio
import contextlib
import json
import logging
import socket
from collections import deque

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.openai import OpenAIPolicy, VLLMPolicy
from treewright.agent.policies.opening import open_policy, serve_weights
from treewright.agent.policies.policy import Policy
from treewright.envs import maze
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Observation, Task, ToolSpec
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.screen import parse_action
from treewright.search.types import Budget, Context, Exchange, PolicyFault

from .small import compact, qwen3

TASK = Task("kg", "1", "Who is ada's mother?")
TOOLS = (ToolSpec("search", "look up", {"properties": {"entity": {"type": "string"}}}),)
FIRST = Observation("start")


def said(*texts, **more):
    """A chat completion with one choice for each text."""
    choices = [{"index": i, "message": {"role": "assistant", "content": t}, **more} for i, t in enumerate(texts)]
    return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 2 * len(texts)}}


class Server:
    """Answers with what is queued (a body, a Response or a coroutine function of the request), then with `always`."""

    def __init__(self, always=None):
        self.queue, self.always, self.seen, self.headers = deque(), always or said("look {}"), [], []

    async def answer(self, request):
        body = await request.json()
        self.seen.append((request.url.path, body))
        self.headers.append(request.headers)
        reply = self.queue.popleft() if self.queue else self.always
        if callable(reply) and not isinstance(reply, Response):
            reply = reply(body)
            reply = await reply if asyncio.iscoroutine(reply) else reply
        return reply if isinstance(reply, Response) else JSONResponse(reply)


@contextlib.asynccontextmanager
async def serving(server, control=None):
    """`control` answers what goes to other places than the model's, vLLM's orders among them."""
    routes = [Route(path, server.answer, methods=["POST"]) for path in ("/v1/completions", "/v1/chat/completions")]
    if control is not None:
        routes.append(Route("/{rest:path}", control, methods=["POST"]))
    app = Starlette(routes=routes)
    sock = socket.create_server(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    web.capture_signals = contextlib.nullcontext
    task = asyncio.create_task(web.serve(sockets=[sock]))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    finally:
        web.should_exit = True
        await task
        sock.close()


@contextlib.asynccontextmanager
async def opened(server, model="m", **options):
    async with serving(server) as url:
        policy = open_policy(f"openai:{model}@{url}", **{"backoff": 0.01, "deadline": 20.0, **options})
        try:
            yield policy
        finally:
            await policy.close()


def root(policy):
    return policy.context(TASK, TOOLS, FIRST, (), ())


async def test_messages_go_out_and_drafts_come_back(caplog):
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
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == len(caplog.records) == 1
    assert (policy.stats.draws, policy.stats.sampled_tokens, policy.stats.prompt_tokens) == (4, 8, 18)


async def test_a_server_that_gives_fewer_drafts_is_asked_again_and_each_seed_can_have_its_own_request():
    server = Server(lambda body: said(f"say {body['seed']}"))
    async with opened(server) as policy:
        assert [c.text for c in await policy.draw(root(policy), [1, 2, 3], 4)] == ["say 1", "say 2", "say 3"]
    assert [body.get("n") for _, body in server.seen] == [3, 2, None]
    async with opened(server, together=False) as policy:
        assert [c.text for c in await policy.draw(root(policy), [3, 1, 2], 4)] == ["say 3", "say 1", "say 2"]


async def test_tool_schemas_go_out_and_tool_calls_come_back_as_text_that_parses():
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
async def test_what_may_pass_is_tried_again(bad):
    server = Server()
    server.queue.extend([bad, bad])
    async with opened(server) as policy:
        (done,) = await policy.draw(root(policy), [1], 9)
        assert done.text == "look {}" and policy.stats.retries == 2 and len(server.seen) == 3
        server.always = bad
        policy.backoff, policy.deadline = 60, 9  # the first pause would pass the deadline
        with pytest.raises(PolicyFault, match=r"given up after 1 attempts; last: (HTTP|malformed|DecodingError)"):
            await policy.draw(root(policy), [1], 9)
        assert policy.stats.faults == 1


async def test_a_retry_after_beyond_the_deadline_gives_up_at_once():
    server = Server(PlainTextResponse("no", 429, headers={"retry-after": "600"}))
    async with opened(server) as policy:
        with pytest.raises(PolicyFault, match="after 1 attempts; last: HTTP 429"):
            await policy.draw(root(policy), [1], 9)


async def test_what_will_not_pass_is_not_tried_again_and_the_key_is_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server = Server(PlainTextResponse("bad key sk-secret", 401))
    with caplog.at_level(logging.DEBUG):
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


async def test_a_server_without_log_probs_is_asked_without():
    server = Server(
        lambda body: said("ok {}") if "logprobs" not in body else PlainTextResponse("logprobs unsupported", 400)
    )
    async with opened(server) as policy:
        await policy.draw(root(policy), [1], 9)
        (done,) = await policy.draw(root(policy), [1], 9)
    assert done.text == "ok {}" and done.logprobs == () and len(server.seen) == 3


async def test_a_hanging_server_is_left_at_the_deadline():
    never = asyncio.Event()

    async def hang(body):
        await never.wait()

    server = Server(hang)
    loop = asyncio.get_running_loop()
    async with opened(server, deadline=0.3) as policy:
        began = loop.time()
        with pytest.raises(PolicyFault, match="no answer within 0"):
            await policy.draw(root(policy), [1], 9)
        assert loop.time() - began < 2
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
async def test_half_a_stream_is_tried_again_then_a_fault(half):
    broken, calls = 2, 0
    whole = json.dumps(said("look {}")).encode()
    whole = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(whole), whole)

    async def serve(reader, writer):
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
        policy = OpenAIPolicy("m", f"http://127.0.0.1:{port}/v1/", backoff=0.01, deadline=20)
        assert (await policy.draw(root(policy), [1], 9))[0].text == "look {}" and calls == 3
        broken, policy.backoff, policy.deadline = 10**9, 60, 9
        with pytest.raises(PolicyFault):
            await policy.draw(root(policy), [1], 9)
        await policy.close()
    with pytest.raises(PolicyFault, match="ConnectError"):
        await policy.draw(root(policy), [1], 9)
    await policy.close()


async def test_no_more_requests_than_allowed_are_under_way():
    now = most = 0

    async def slow(body):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return said("look {}")

    async with opened(Server(slow), concurrency=3, together=False) as policy:
        await asyncio.gather(*(policy.draw(root(policy), range(4), 9) for _ in range(5)))
        assert most == 3 and policy.stats.requests == 20 and 0 < policy.stats.seconds < 5


def test_one_policy_serves_several_event_loops():
    async def once(policy, url):
        policy.base_url = policy.base_url.copy_with(port=int(url.rsplit(":", 1)[1].split("/")[0]))
        return await policy.draw(root(policy), [1], 9)

    async def main(policy):
        async with serving(Server()) as url:
            return await once(policy, url)

    policy = OpenAIPolicy("m", "http://127.0.0.1:1/v1", backoff=0.01)
    assert asyncio.run(main(policy)) == asyncio.run(main(policy))


# -- vLLM -----------------------------------------------------------------------------------------------------------


class FakeVLLM(Server):
    """Speaks vLLM's completions with token ids, a local model behind it."""

    def __init__(self, local, **changes):
        super().__init__(self.complete)
        self.local, self.changes = local, changes

    async def complete(self, body):
        ids = tuple(body["prompt"])
        (done,) = await self.local.draw(Context(0, ids, ids), [body["seed"]], body["max_tokens"])
        choice = {
            "text": "decoded by the server",
            "finish_reason": done.finish_reason,
            "token_ids": list(done.token_ids),
            "logprobs": {"token_logprobs": list(done.logprobs)},
        } | self.changes
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "prompt_tokens_details": None}}


@pytest.fixture
async def local():
    policy = HFPolicy(qwen3(), compact(), batch_requests=False)
    yield policy
    await policy.close()


async def test_vllm_takes_and_returns_token_ids_like_a_local_model(local):
    server = FakeVLLM(local)
    async with serving(server) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), version="v1")
        context = root(policy)
        assert context == local.context(TASK, TOOLS, FIRST, (), ())
        got, want = await policy.draw(context, [4, 9, 2], 12), await local.draw(context, [4, 9, 2], 12)
        await policy.close()
    for a, b in zip(got, want, strict=True):
        assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert all(c.trainable and c.policy_version == "v1" for c in got)
    path, body = server.seen[0]
    assert path == "/v1/completions" and tuple(body["prompt"]) == context.ids and "n" not in body
    assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, 1.0, -1, 1.0)
    assert body["return_token_ids"] and body["stop_token_ids"] == sorted(policy.template.stop_ids)


async def test_without_token_ids_or_with_changed_sampling_a_draw_acts_but_is_not_trained_on(local, caplog):
    async with serving(FakeVLLM(local, token_ids=None, text="look {}")) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact())
        (done,) = await policy.draw(root(policy), [1], 5)
        await policy.close()
    assert (done.text, done.token_ids, done.trainable) == ("look {}", (), False)
    assert "no token ids" in caplog.text
    async with serving(FakeVLLM(local)) as url:
        for options in ({"temperature": 0.0}, {"extra": {"top_p": 0.9}}):
            policy = VLLMPolicy("m", url, tokenizer=compact(), **options)
            assert not (await policy.draw(root(policy), [1], 5))[0].trainable
            await policy.close()


async def test_ids_and_log_probs_that_do_not_match_are_malformed(local):
    async with serving(FakeVLLM(local, logprobs={"token_logprobs": [-1.0] * 99})) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), backoff=60, deadline=9)
        with pytest.raises(PolicyFault, match=r"malformed answer: .* with 99 log-probs"):
            await policy.draw(root(policy), [1], 5)
        await policy.close()


def test_a_missing_tokenizer_says_what_to_pass(tmp_path):
    with pytest.raises(TreewrightError, match="pass tokenizer=FOLDER"):
        open_policy(f"vllm:{tmp_path}@http://127.0.0.1:1/v1")


# -- budgets, tools, repair -----------------------------------------------------------------------------------------


async def grown(policy, **ceilings):
    return await search(
        maze.SUITE.tasks("train", 1)[0], maze.SUITE, policy, rule=best_first(draws=3), budget=Budget(**ceilings),
        settings=Settings(max_tokens=40, in_flight=2, retries=0),
    )  # fmt: skip


@pytest.mark.parametrize("reported", [True, False])
async def test_budgets_of_tokens_and_money_are_never_exceeded(reported):
    def answer(body):
        reply = said(*['go {"to": 1}'] * body["n"])
        reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 40 * body["n"]} if reported else None
        return reply

    async with opened(Server(answer), price_in=1.0, price_out=1000.0, longest_prompt=4000) as policy:
        assert policy.dearest(40) == pytest.approx(0.044)
        tree = await grown(policy, policy_tokens=700)
        assert tree.stopped_by == "policy_tokens" and 400 < tree.spent.policy_tokens <= 700
        tree = await grown(policy, money=0.5)
        assert tree.stopped_by == "money" and 0.2 < tree.spent.money <= 0.5
        policy.longest_prompt = 10
        with pytest.raises(PolicyFault, match="longer than longest_prompt = 10"):
            await policy.draw(root(policy), [1], 9)


async def test_a_conversation_with_schemas_shows_calls_as_tool_calls_and_observations_as_their_results():
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


async def test_a_server_is_asked_for_the_schema_of_an_action_and_what_is_none_is_repaired():
    server = Server(said("Sure: search {'entity': 'ada'} - done"))
    async with opened(server, grammar=True, repair=True) as policy:
        assert policy.sampling == {"grammar": "actions of the node's tools"}
        (done,) = await policy.draw(root(policy), [1], 9)
    assert done.text == 'search {"entity": "ada"}' and not done.trainable
    sent = server.seen[0][1]["response_format"]["json_schema"]["schema"]["anyOf"][0]
    assert sent["properties"]["name"] == {"const": "search"}


async def test_vllm_is_sent_the_grammar_and_such_draws_are_trained_on_only_with_masked_log_probs(local):
    server = FakeVLLM(local)
    async with serving(server) as url:
        for exact in (False, True):
            policy = VLLMPolicy("m", url, tokenizer=compact(), grammar=True, masked_exact=exact)
            (done,) = await policy.draw(root(policy), [1], 5)
            assert done.trainable is exact and "search" in server.seen[-1][1]["structured_outputs"]["grammar"]
            await policy.close()


async def test_weights_adapters_and_sleep_of_a_server(tmp_path, local):
    (tmp_path / "model.safetensors").write_bytes(b"new")
    calls, statuses = [], [200]

    async def control(request):
        body = await request.body()
        calls.append((request.url.path, dict(request.query_params), json.loads(body) if body else None))
        return Response(status_code=statuses[-1])

    fake = FakeVLLM(local)
    async with serving(fake, control) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), version="v1", colocated=True, extended=True)
        assert await policy.sleep() is True
        waits = asyncio.create_task(policy.draw(root(policy), [1], 3))
        await asyncio.sleep(0.05)
        assert not waits.done() and not fake.seen
        version = await serve_weights(policy, tmp_path)
        assert (await waits)[0].policy_version == version == policy.version != "v1"
        assert (await policy.load_adapter(tmp_path)).startswith(version + "+") and policy.model != "m"
        assert [c[0] for c in calls] == [
            "/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache", "/v1/load_lora_adapter"
        ]  # fmt: skip
        assert calls[2][2] == {"method": "take_folder", "kwargs": {"folder": str(tmp_path)}}
        for status, says in ((404, "VLLM_SERVER_DEV_MODE"), (500, "HTTP 500")):
            statuses.append(status)
            with pytest.raises(TreewrightError, match=says):
                await policy.load_weights(tmp_path)
        await policy.close()
    with pytest.raises(TreewrightError, match="collective_rpc failed: ConnectError"):
        await policy.load_weights(tmp_path)
    await policy.close()
