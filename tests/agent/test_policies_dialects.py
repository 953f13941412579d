"""Chat servers as they really answer: each takes, refuses and writes things in its own way.

Every server here refuses and answers as the named one does (status, form and words of its errors).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from treewright.envs.maze import SUITE as MAZE
from treewright.envs.maze import Maze
from treewright.envs.types import Action, Observation, StepResult, Task
from treewright.search.engine import search
from treewright.search.rules import best_first
from treewright.search.screen import parse_action
from treewright.search.store import TreeStore
from treewright.search.types import Budget, NodeStatus, PolicyFault

from .fake_server import TASK, TOOLS, Server, opened, root, said

ACT = 'search {"entity": "ada"}'
BIG = 2**62 + 5  # draw seeds have 63 bits


def error(status: int, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": {"message": message, **more}}, status)


def forbidden(*fields: str) -> JSONResponse:
    """FastAPI with extra fields forbidden, wrapped as Mistral wraps it."""
    detail = [{"type": "extra_forbidden", "loc": ["body", f], "msg": "Extra inputs are not permitted"} for f in fields]
    return JSONResponse({"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"}, 422)


def echo(body: Any) -> dict[str, Any]:
    return said(*[ACT] * body.get("n", 1))


def azure_reasoning(body: Any) -> JSONResponse | dict[str, Any]:
    """Azure's and OpenAI's reasoning models: another limit, no log-probs, one temperature."""
    if "max_tokens" in body:
        told = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return error(400, told, type="invalid_request_error", param="max_tokens", code="unsupported_parameter")
    if "logprobs" in body:
        return error(403, "You are not allowed to request logprobs from this model", param="logprobs")
    if "temperature" in body:
        told = "Unsupported parameter: 'temperature' is not supported with this model."
        return error(400, told, param="temperature", code="unsupported_parameter")
    return echo(body)


def mistral(body: Any) -> JSONResponse | dict[str, Any]:
    if unknown := [f for f in ("seed", "logprobs", "max_completion_tokens") if f in body]:
        return forbidden(*unknown)
    return echo(body)


def groq(body: Any) -> JSONResponse | dict[str, Any]:
    if body.get("logprobs"):
        return error(400, "`logprobs` is not supported with this model", type="invalid_request_error")
    if body.get("n", 1) > 1:
        return error(400, "'n' : number must be at most 1", type="invalid_request_error")
    return echo(body)


def gemini(body: Any) -> JSONResponse | dict[str, Any]:
    if "logprobs" in body:
        return JSONResponse([{"error": {"code": 400, "message": "Unknown name \"logprobs\": Cannot find field.",
                                        "status": "INVALID_ARGUMENT"}}], 400)  # fmt: skip
    if not -(2**31) <= body["seed"] < 2**31:
        return JSONResponse([{"error": {"code": 400, "message":
                                        "Invalid value at 'generation_config.seed' (TYPE_INT32), " + str(body["seed"]),
                                        "status": "INVALID_ARGUMENT"}}], 400)  # fmt: skip
    return echo(body)


def old_llama_cpp(body: Any) -> JSONResponse | dict[str, Any]:
    """An exception in the handler: 500, where the request would never pass."""
    if body.get("n", 1) > 1:
        return error(500, "Only one completion choice is allowed", code=500, type="server_error")
    if "logprobs" in body:
        return error(501, "logprobs is not supported", code=501, type="not_supported_error")
    return echo(body)


def vllm_gemma(body: Any) -> JSONResponse | dict[str, Any]:
    """A template without a system role, refused in vLLM's flat form of errors."""
    if body["messages"][0]["role"] == "system":
        return JSONResponse({"object": "error", "message": "System role not supported", "type": "BadRequestError",
                             "param": None, "code": 400}, 400)  # fmt: skip
    return echo(body)


def tgi(body: Any) -> JSONResponse | dict[str, Any]:
    if body.get("n", 1) > 1:
        told = "Input validation error: `n` must be 1"
        return JSONResponse({"error": told, "error_type": "validation"}, 422)
    reply = echo(body)
    reply["choices"][0]["finish_reason"] = "eos_token"
    return reply


def lm_studio(body: Any) -> dict[str, Any]:
    """Takes everything and gives one choice; reports no usage."""
    return {**said(ACT), "usage": None}


def alternating(body: Any) -> JSONResponse | dict[str, Any]:
    roles = [m["role"] for m in body["messages"]]
    if roles[0] == "system":
        return error(400, "Conversation roles must alternate user/assistant/user/assistant/...", code=400)
    return echo(body)


SERVERS: dict[Callable[[Any], Any], list[tuple[str, str]]] = {
    azure_reasoning: [("max_completion_tokens", "max_completion_tokens"), ("logprobs", "not allowed to request"),
                      ("temperature", "not supported")],
    mistral: [("logprobs", "Extra inputs"), ("random_seed", "Extra inputs")],
    groq: [("logprobs", "not supported"), ("one draw", "at most 1")],
    gemini: [("logprobs", "Cannot find"), ("31 bits", "TYPE_INT32")],
    old_llama_cpp: [("one draw", "Only one completion"), ("logprobs", "not supported")],
    vllm_gemma: [("without a system message", "System role")],
    tgi: [("one draw", "must be 1")],
    lm_studio: [("1 a request", "1 of 3")],
    alternating: [("without a system message", "must alternate")],
}  # fmt: skip


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.__name__)
async def test_a_servers_ways_are_learnt_once_said_in_a_line_each_and_kept(
    server: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    fake = Server(server)
    async with opened(fake) as policy:
        with caplog.at_level(logging.WARNING):
            done = await policy.draw(root(policy), [BIG, BIG + 1, BIG + 2], 30)
        lines = [r.getMessage() for r in caplog.records if "not trained on" not in r.getMessage()]
        first, count = len(fake.seen), len(SERVERS[server])
        again = await policy.draw(root(policy), [BIG, BIG + 1, BIG + 2], 30)
    assert [c.text for c in (*done, *again)] == [ACT] * 6 and not any(c.trainable for c in done)
    assert len(lines) == count and len(caplog.records) <= count + 1, "said again, or nothing was"
    for (what, why), line in zip(SERVERS[server], lines, strict=True):
        assert line.startswith("openai:m: ") and what in line and why in line and "\n" not in line
    asked = {json.dumps(sorted(body)) for _, body in fake.seen[first:]}
    assert len(asked) == 1 and len(fake.seen) - first in (1, 3), "what was learnt is not asked for again"
    assert policy.stats.faults == policy.stats.retries == 0


async def test_seeds_go_under_the_servers_name_and_size_and_stay_different() -> None:
    fake = Server(mistral)
    async with opened(fake, together=False) as policy:
        await policy.draw(root(policy), [BIG, BIG + 1], 9)
        await policy.draw(root(policy), [BIG, BIG + 1], 9)
    assert sorted(body["random_seed"] for _, body in fake.seen[-2:]) == [BIG, BIG + 1]
    fake = Server(gemini)
    async with opened(fake, together=False) as policy:
        await policy.draw(root(policy), [BIG, BIG + 1], 9)
    assert {body["seed"] for _, body in fake.seen[-2:]} == {5, 6}


async def test_the_rules_go_before_the_first_message_of_the_user() -> None:
    fake = Server(vllm_gemma)
    async with opened(fake) as policy:
        await policy.draw(root(policy), [1], 9)
    first = fake.seen[-1][1]["messages"][0]
    assert first["role"] == "user" and "- search(entity?: string)" in first["content"] and "mother" in first["content"]


async def test_what_the_user_asked_for_is_never_dropped_in_silence() -> None:
    told = "Unsupported value: 'temperature' does not support 0.2. Only the default (1) value is supported."
    policy: Any
    async with opened(Server(lambda body: error(400, told, param="temperature")), temperature=0.2) as policy:
        with pytest.raises(PolicyFault, match=r"Only the default.*policy\.options\.temperature=1"):
            await policy.draw(root(policy), [1], 9)
    async with opened(Server(lambda body: forbidden("top_k")), extra={"top_k": 5}) as policy:
        with pytest.raises(PolicyFault, match=r"top_k: Extra inputs.*leave top_k out of policy\.options\.extra"):
            await policy.draw(root(policy), [1], 9)
    told = "registry.ollama.ai/library/gemma:2b does not support tools"
    async with opened(Server(lambda body: error(400, told)), tools_as="schema") as policy:
        with pytest.raises(PolicyFault, match=r"does not support tools.*policy\.options\.tools_as=text"):
            await policy.draw(root(policy), [1], 9)
    async with opened(Server(lambda body: error(400, "the seed sector is not supported", param="model"))) as policy:
        with pytest.raises(PolicyFault, match="seed sector"):
            await policy.draw(root(policy), [1], 9)
    assert policy.ways.reasons == {}


@pytest.mark.parametrize("told", [
    "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 256 tokens.",
    "max_tokens is too large: 999999. This model supports at most 4096 completion tokens.",
])  # fmt: skip
async def test_a_limit_that_is_too_large_is_a_fault_and_no_other_name(told: str) -> None:
    fake = Server(lambda body: error(400, told, param="max_tokens"))
    async with opened(fake) as policy:
        with pytest.raises(PolicyFault, match="too large"):
            await policy.draw(root(policy), [1], 512)
    assert len(fake.seen) == 1


async def test_what_a_judge_learns_does_not_change_what_draws_ask_for() -> None:
    def fixed(body: Any) -> JSONResponse | dict[str, Any]:
        if body.get("temperature", 1) != 1:
            return error(
                400, "Unsupported value: 'temperature'. Only the default (1) is supported", param="temperature"
            )
        top = [{"token": "Yes", "logprob": -0.1}]
        return said("Yes", logprobs={"content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": top}]})

    policy: Any
    async with opened(Server(fixed), temperature=0.5, logprobs=False) as policy:
        assert await policy.first_tokens(["done?"]) == [{"Yes": -0.1}]
        with pytest.raises(PolicyFault, match="Only the default"):
            await policy.draw(root(policy), [1], 9)


async def test_a_judge_without_log_probs_keeps_the_servers_reason() -> None:
    told = "You are not allowed to request logprobs from this model"
    server = Server(lambda body: error(403, told, param="logprobs") if "logprobs" in body else said("Yes"))
    policy: Any
    async with opened(server) as policy:
        with pytest.raises(PolicyFault, match="cannot judge: You are not allowed to request logprobs"):
            await policy.first_tokens(["done?"])
    assert "top_logprobs" not in server.seen[-1][1]


async def test_a_server_that_takes_neither_limit_ends_in_a_fault_with_its_words() -> None:
    def neither(body: Any) -> JSONResponse:
        name = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
        return error(400, f"Unsupported parameter: '{name}'", param=name)

    fake = Server(neither)
    async with opened(fake) as policy:
        with pytest.raises(PolicyFault, match="Unsupported parameter: 'max_completion_tokens'"):
            await policy.draw(root(policy), [1], 9)
    assert len(fake.seen) == 2


async def test_a_schema_is_loosened_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    def loose(body: Any) -> JSONResponse | dict[str, Any]:
        form = body.get("response_format", {})
        if form.get("json_schema", {}).get("strict"):
            return error(400, "Invalid schema for response_format 'action': schema must be of type 'object'",
                         param="response_format")  # fmt: skip
        if form.get("type") == "json_schema":
            return error(400, "This model does not support response format `json_schema`.", param="response_format")
        return echo(body)

    fake = Server(loose)
    async with opened(fake, grammar=True) as policy:
        await policy.draw(root(policy), [1], 9)
    assert fake.seen[-1][1]["response_format"] == {"type": "json_object"} and len(fake.seen) == 3
    assert "to a schema that is not strict" in caplog.text and "to be JSON" in caplog.text


# -- answers --------------------------------------------------------------------------------------------------------


def message(**said_so: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **said_so}, "finish_reason": "stop"}]}


def call(arguments: Any, name: str = "search") -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


FORMS = {
    "parts": message(content=[{"type": "text", "text": ACT}]),
    "plain parts": message(content=["search ", '{"entity": "ada"}']),
    "thinking parts": message(
        content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": ACT}]
    ),
    "arguments as text": message(content=None, tool_calls=[call('{"entity": "ada"}')]),
    "arguments as text in text": message(content="", tool_calls=[call('"{\\"entity\\": \\"ada\\"}"')]),
    "arguments as an object": message(content="", tool_calls=[call({"entity": "ada"})]),
    "a function call": message(content=None, function_call={"name": "search", "arguments": '{"entity": "ada"}'}),
}


@pytest.mark.parametrize("form", FORMS)
async def test_an_action_is_read_in_whichever_form_it_comes(form: str) -> None:
    async with opened(Server(FORMS[form])) as policy:
        (done,) = await policy.draw(root(policy), [1], 9)
    (made,) = parse_action(done.text, TOOLS).calls
    assert (made.name, made.arguments) == ("search", {"entity": "ada"})


@pytest.mark.parametrize("nothing", ["", "  ", None, {}, []])
async def test_a_call_without_arguments_has_none(nothing: str | dict[str, Any] | list[Any] | None) -> None:
    async with opened(Server(message(content=None, tool_calls=[call(nothing)]))) as policy:
        (done,) = await policy.draw(root(policy), [1], 9)
    assert parse_action(done.text, TOOLS).calls[0].arguments == {}


async def test_thoughts_refusals_and_broken_arguments_are_the_policys_own_words_and_no_action() -> None:
    thinking = message(content=None, reasoning_content="I might say " + ACT)
    async with opened(Server(thinking)) as policy:
        assert (await policy.draw(root(policy), [1], 9))[0].text == ""
    async with opened(Server(message(content=None, refusal="I cannot help with that"))) as policy:
        assert (await policy.draw(root(policy), [1], 9))[0].text == "I cannot help with that"
    async with opened(Server(message(content=None, tool_calls=[call('{"entity": "ad')]))) as policy:
        assert '{"entity": "ad' in (await policy.draw(root(policy), [1], 9))[0].text


@pytest.mark.parametrize("odd", [
    {"logprobs": None}, {"logprobs": []}, {"logprobs": {"content": None}},
    {"logprobs": {"content": [{"token": "a", "logprob": None, "top_logprobs": []}]}},
    {"logprobs": {"content": [{"token": "a", "logprob": -9999.0}]}},
    {"logprobs": {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": None}},
])  # fmt: skip
async def test_log_probs_that_are_none_count_as_none(odd: dict[str, Any]) -> None:
    async with opened(Server(said(ACT, **odd))) as policy:
        (done,) = await policy.draw(root(policy), [1], 9)
    assert (done.text, done.logprobs) == (ACT, ())


async def test_minus_infinity_spelt_out_as_a_number_is_none_as_well() -> None:
    body = json.dumps(said(ACT, logprobs={"content": [{"token": "a", "logprob": 1}]})).replace(": 1}", ": -Infinity}")
    async with opened(Server(lambda asked: Response(body))) as policy:
        assert (await policy.draw(root(policy), [1], 9))[0].logprobs == ()


@pytest.mark.parametrize("usage, counted", [
    ({"prompt_tokens": 10.0, "completion_tokens": 5.5}, 6), ({"prompt_tokens": None, "completion_tokens": None}, 30),
    (None, 30), ([], 30),
])  # fmt: skip
async def test_tokens_are_counted_as_told_or_at_their_most(
    usage: dict[str, Any] | list[Any] | None, counted: int
) -> None:
    async with opened(Server({**said(ACT), "usage": usage})) as policy:
        assert (await policy.draw(root(policy), [1], 30))[0].tokens == counted


async def test_white_space_events_and_halves_of_characters_around_an_answer() -> None:
    body = json.dumps(said(ACT)).encode()
    for raw in (b"\n\n\n   " + body, b": OPENROUTER PROCESSING\n\ndata: " + body + b"\n\ndata: [DONE]\n\n",
                b"\xef\xbb\xbf" + body):  # fmt: skip
        async with opened(Server(lambda asked, raw=raw: Response(raw))) as policy:
            assert (await policy.draw(root(policy), [1], 9))[0].text == ACT
    half = json.dumps(said("half \ud83d, whole \ud83d\ude00, \u2028line")).encode()
    async with opened(Server(lambda asked: Response(half))) as policy:
        assert (await policy.draw(root(policy), [1], 9))[0].text == "half �, whole 😀, \u2028line"


@pytest.mark.parametrize("body, says", [
    ({"error": {"message": "Provider returned error", "code": 502, "metadata": {"raw": "upstream overloaded"}}},
     "HTTP 502: Provider returned error: upstream overloaded"),
    ({"id": "x", "choices": None, "error": "ResourceExhausted: busy"}, "HTTP 502: ResourceExhausted: busy"),
    ({"choices": [{"finish_reason": "error", "error": {"message": "gone"}, "message": {"content": "sea"}}]},
     r"broke the answer off \(error\): gone"),
    ({"choices": [{"finish_reason": "abort", "message": {"content": "sea"}}]}, r"broke the answer off \(abort\)"),
])  # fmt: skip
async def test_an_error_or_half_an_answer_inside_a_200_is_tried_again_and_named(
    body: dict[str, Any], says: str
) -> None:
    server = Server(said(ACT))
    server.queue.append(JSONResponse(body))
    policy: Any
    async with opened(server) as policy:
        (done,) = await policy.draw(root(policy), [1], 9)
        assert done.text == ACT and (policy.stats.retries, policy.stats.draws) == (1, 1)
        server.always, policy.backoff, policy.deadline = body, 60, 9
        with pytest.raises(PolicyFault, match=says):
            await policy.draw(root(policy), [1], 9)


async def test_an_error_inside_a_200_that_would_not_pass_is_not_tried_again() -> None:
    wrong = {"object": "error", "message": "The model `m` does not exist.", "type": "NotFoundError", "code": 404}
    server = Server(wrong)
    async with opened(server) as policy:
        with pytest.raises(PolicyFault, match=r"HTTP 404: The model `m` does not exist.*does the model's name fit"):
            await policy.draw(root(policy), [1], 9)
    assert len(server.seen) == 1


async def test_half_a_surrogate_pair_in_a_prompt_goes_out_as_a_whole_character() -> None:
    server = Server(said(ACT))
    policy: Any
    async with opened(server) as policy:
        seen = Observation("Great news \ud83d… \u2028 and \x85")
        await policy.draw(policy.context(TASK, TOOLS, seen, (), ()), [1], 9)
        await policy.write("half \udc00", 1, 9)
    assert server.seen[0][1]["messages"][1]["content"].endswith("Great news �… \u2028 and \x85")
    assert server.seen[1][1]["messages"][0]["content"] == "half ?"


class Halved(Maze):
    """A maze that shows half of an emoji and odd ends of lines, as a page whose script cuts a title does."""

    async def reset(self, task: Task, key: int) -> Observation:
        return replace(await super().reset(task, key), text="start \ud83d… \u2028\x85 here")

    async def step(self, action: Action, key: int) -> StepResult:
        done = await super().step(action, key)
        return replace(done, observation=replace(done.observation, text="\ude00 on"))


async def test_a_world_that_shows_halves_of_characters_is_searched_and_stored(tmp_path: Path) -> None:
    async def answer(body: Any) -> Response:
        return Response(json.dumps(said('go {"to": "\ud83d"}', 'go {"to": 1}')).encode())

    task = MAZE.tasks("train", 1)[0]
    async with opened(Server(answer)) as policy:
        with TreeStore.open(tmp_path / "trees.sqlite") as store:
            tree = await search(
                task, Halved(), policy, rule=best_first(draws=2, root_draws=2), budget=Budget(expansions=3), store=store
            )
            assert len(tree) > 3 and NodeStatus.FAULT not in tree.status
            assert store.load(tree.tree_id).text == tree.text


async def test_a_key_goes_where_the_server_wants_it_and_an_address_keeps_its_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_KEY", "k1")
    server = Server(said(ACT))
    policy: Any
    async with opened(server, api_key_env="AZURE_KEY", key_header="api-key") as policy:
        policy.wire.base_url = policy.wire.base_url.copy_with(query=b"api-version=2024-10-21")
        await policy.draw(root(policy), [1], 9)
        assert policy.wire.url("chat/completions").path == "/v1/chat/completions"
        assert str(policy.wire.url("chat/completions")).endswith("?api-version=2024-10-21")
    assert server.headers[0]["api-key"] == "k1" and "authorization" not in server.headers[0]


async def test_text_that_is_no_json_is_quoted_from_its_beginning() -> None:
    async with opened(Server(lambda body: PlainTextResponse("<html>login</html>")), backoff=60, deadline=9) as policy:
        with pytest.raises(PolicyFault, match=r"malformed answer: .*it begins '<html>login"):
            await policy.draw(root(policy), [1], 9)


@pytest.mark.parametrize(("status", "headers", "says"), [
    (301, {"location": "https://models.example/v1/chat/completions"}, "the server is at https://models.example/v1/chat"),
    (308, {"location": "/v2/chat/completions"}, "the server is at /v2/chat/completions; give that address"),
    (204, {}, "HTTP 204: nothing more was said"),
    (404, {}, "HTTP 404: nothing more was said"),
])  # fmt: skip
async def test_an_answer_without_words_says_what_is_known(status: int, headers: dict[str, str], says: str) -> None:
    async with opened(Server(Response("", status, headers=headers))) as policy:
        with pytest.raises(PolicyFault, match=says):
            await policy.draw(root(policy), [1], 9)
