"""The server by the official clients: what their documentation says works, errors and streams too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import openai
import pytest
from later import later
from not_none import not_none
from served import FIND, KEY, helper, served

from treewright.agent.policies.policy import PolicyStats
from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.store import TreeStore
from treewright.search.types import Completion, Context, Exchange, Message

anthropic = later("anthropic")
FIND_ANTHROPIC = {"name": "find", "description": "Finds a word.", "input_schema": FIND["function"]["parameters"]}


def clients(at: str, session: str = "") -> tuple[Any, Any]:
    path = f"/s/{session}" if session else ""
    return (
        openai.AsyncOpenAI(base_url=f"{at}{path}/v1", api_key=KEY, max_retries=0),
        anthropic.AsyncAnthropic(base_url=f"{at}{path}", api_key=KEY, max_retries=0),
    )


USER = [{"role": "user", "content": "hello"}]


async def test_chat_completions_answer_with_usage_and_a_reason() -> None:
    async with served(ScriptedPolicy(helper)) as at:
        client, _ = clients(at)
        done = await client.chat.completions.create(model="m", messages=USER, n=2, logprobs=True)
        assert [c.message.content for c in done.choices] == ["You said: hello"] * 2
        assert [c.finish_reason for c in done.choices] == ["stop"] * 2
        assert not_none(done.usage).completion_tokens == 2 * 16 and not_none(done.usage).prompt_tokens > 5
        assert (
            not_none(done.usage).total_tokens
            == not_none(done.usage).prompt_tokens + not_none(done.usage).completion_tokens
        )
        rows = not_none(done.choices[0].logprobs).content
        assert "".join(r.token for r in not_none(rows)) == "You said: hello" and all(
            r.logprob == 0.0 for r in not_none(rows)
        )
        assert (await client.models.list()).data[0].id == "scripted"


async def test_chat_tools_are_called_in_parallel_and_their_results_go_on() -> None:
    async with served(ScriptedPolicy(helper)) as at:
        client, _ = clients(at, "one")
        said = [{"role": "system", "content": "Help."}, {"role": "user", "content": "find twice"}]
        first = await client.chat.completions.create(model="m", messages=said, tools=[FIND])
        message = first.choices[0].message
        assert first.choices[0].finish_reason == "tool_calls" and message.content == "Two."
        assert [json.loads(c.function.arguments) for c in message.tool_calls] == [
            {"word": "tea"},
            {"word": "milk"},
        ]
        assert len({c.id for c in message.tool_calls}) == 2
        said.append(message.model_dump(exclude_none=True))
        said += [{"role": "tool", "tool_call_id": c.id, "content": "hot"} for c in message.tool_calls]
        second = await client.chat.completions.create(model="m", messages=said, tools=[FIND])
        assert second.choices[0].message.content == "It is tool: hot\ntool: hot."


async def test_chat_streams_say_the_same_as_whole_answers() -> None:
    async with served(ScriptedPolicy(helper)) as at:
        client, _ = clients(at)
        stream = await client.chat.completions.create(
            model="m", messages=USER, n=2, stream=True, stream_options={"include_usage": True}
        )
        texts, reasons, usage = ["", ""], [None, None], None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert texts == ["You said: hello"] * 2 and reasons == ["stop"] * 2 and not_none(usage).completion_tokens == 32
        async with client.chat.completions.stream(model="m", messages=USER, tools=[FIND]) as events:
            done = await events.get_final_completion()
        assert not_none(done.choices[0].message.tool_calls)[0].function.arguments == '{"word": "tea"}'


async def test_stop_texts_and_lengths_cut_text_and_tokens_alike() -> None:
    async with served(ScriptedPolicy(helper)) as at:
        client, other = clients(at)
        asked = dict(model="m", messages=USER, extra_body={"return_token_ids": True})
        cut = (await client.chat.completions.create(**asked, stop=["said"])).choices[0]
        assert cut.message.content == "You " and cut.finish_reason == "stop"
        assert bytes(cut.token_ids) == b"You said"  # up to the token that completes the stop text
        short = (await client.chat.completions.create(**asked, max_completion_tokens=5)).choices[0]
        assert short.message.content == "You s" and short.finish_reason == "length"
        message = await other.messages.create(model="m", max_tokens=64, messages=USER, stop_sequences=["said"])
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "said")
        assert (await other.messages.create(model="m", max_tokens=5, messages=USER)).stop_reason == "max_tokens"


async def test_a_schema_is_kept_by_drawing_again_and_such_draws_are_not_trained_on() -> None:
    table = [("no json", 0.5), ('{"age": 3}', 0.5)]
    form = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "object", "required": ["age"]}},
    }
    async with served(scripted_choice(table), tries=40) as at:
        client, _ = clients(at)
        raw = await client.chat.completions.with_raw_response.create(
            model="m", messages=USER, n=4, response_format=form
        )
        assert [c.message.content for c in raw.parse().choices] == ['{"age": 3}'] * 4
        assert raw.headers["x-treewright-trainable"].startswith("no")
        plain = await client.chat.completions.with_raw_response.create(model="m", messages=USER, temperature=0.2)
        assert plain.headers["x-treewright-trainable"] == "yes"
        assert plain.headers["x-treewright-ignored"] == "temperature"
        with pytest.raises(openai.InternalServerError, match="no answer that"):
            await client.chat.completions.create(model="m", messages=USER, tools=[FIND], tool_choice="required")


async def test_responses_answer_stream_and_go_on_by_id() -> None:
    async with served(ScriptedPolicy(helper)) as at:
        client, _ = clients(at, "r")
        done = await client.responses.create(model="m", input="hello", instructions="Be brief.")
        assert done.status == "completed" and done.output_text == "You said: hello"
        tool = {"type": "function", **FIND["function"]}
        called = await client.responses.create(model="m", input="what?", tools=[tool])
        (call,) = called.output
        assert (call.type, call.name, call.arguments) == ("function_call", "find", '{"word": "tea"}')
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "hot"}
        after = await client.responses.create(model="m", input=[result], tools=[tool], previous_response_id=called.id)
        assert after.output_text == "It is hot."
        given = [{"role": "user", "content": "what?"}, call.model_dump(exclude_none=True), result]
        assert (await client.responses.create(model="m", input=given, tools=[tool])).output_text == "It is hot."
        async with client.responses.stream(model="m", input="hello") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert final.output_text == "You said: hello" and kinds[0] == "response.created"
        async with client.responses.stream(model="m", input="what?", tools=[tool]) as stream:
            assert (await stream.get_final_response()).output[0].arguments == '{"word": "tea"}'
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="m", input="x", previous_response_id="resp_unknown")


async def test_messages_answer_stream_call_tools_and_count() -> None:
    async with served(ScriptedPolicy(helper)) as at:
        _, client = clients(at, "a")
        asked: dict[str, Any] = dict(model="m", max_tokens=200)
        done = await client.messages.create(**asked, messages=USER)
        assert (done.content[0].text, done.stop_reason) == ("You said: hello", "end_turn")
        assert done.usage.output_tokens == 16
        said: list[dict[str, Any]] = [{"role": "user", "content": "find twice"}]
        called = await client.messages.create(**asked, system="Help.", messages=said, tools=[FIND_ANTHROPIC])
        assert called.stop_reason == "tool_use" and called.content[0].text == "Two."
        assert [b.input for b in called.content[1:]] == [{"word": "tea"}, {"word": "milk"}]
        said.append({"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in called.content]})
        results = [
            {"type": "tool_result", "tool_use_id": b.id, "content": [{"type": "text", "text": "hot"}]}
            for b in called.content[1:]
        ]
        said.append({"role": "user", "content": results})
        after = await client.messages.create(**asked, system="Help.", messages=said, tools=[FIND_ANTHROPIC])
        assert after.content[0].text == "It is tool: hot\ntool: hot."
        async with client.messages.stream(
            **asked, messages=[{"role": "user", "content": "find twice"}], tools=[FIND_ANTHROPIC]
        ) as stream:
            final = await stream.get_final_message()
        assert [b.type for b in final.content] == ["text", "tool_use", "tool_use"]
        assert final.content[2].input == {"word": "milk"} and final.stop_reason == "tool_use"
        counted = await client.messages.count_tokens(model="m", messages=USER)
        assert counted.input_tokens == done.usage.input_tokens


async def test_errors_have_the_shape_of_the_api_that_was_called() -> None:
    async with served(ScriptedPolicy(helper)) as at:
        client, other = clients(at)
        stranger: Any = openai.AsyncOpenAI(base_url=f"{at}/v1", api_key="not-it", max_retries=0)
        no: Any
        with pytest.raises(openai.AuthenticationError) as no:
            await stranger.chat.completions.create(model="m", messages=USER)
        assert no.value.body["type"] == "authentication_error" and "not-it" not in str(no.value.body)
        bad: Any
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="m", messages=[{"role": "nobody", "content": "x"}])
        assert bad.value.body["param"] == "messages[0].role"
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="m", messages=USER, temperature=9)
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="m", input="x", tools=[{"type": "web_search"}])
        with pytest.raises(openai.APIStatusError) as large:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 200_000}])
        assert large.value.status_code == 413
        wrong: Any
        with pytest.raises(anthropic.BadRequestError) as wrong:
            await other.messages.create(model="m", max_tokens=0, messages=USER)
        assert wrong.value.body["type"] == "error" and "max_tokens" in wrong.value.body["error"]["message"]
        unknown: Any = anthropic.AsyncAnthropic(base_url=at, api_key="wrong", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError):
            await unknown.messages.create(model="m", max_tokens=9, messages=USER)
        with pytest.raises(anthropic.BadRequestError, match="image"):
            picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}
            await other.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": [picture]}])


async def test_a_policy_that_fails_is_503_and_a_broken_body_400() -> None:
    import httpx

    def fails(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        raise ValueError("secret prompt")

    async with served(ScriptedPolicy(fails)) as at:
        client, _ = clients(at)
        with pytest.raises(openai.InternalServerError) as down:
            await client.chat.completions.create(model="m", messages=USER)
        assert down.value.status_code == 503
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}) as web:
            for path in ("chat/completions", "responses", "messages"):
                for body in ("", "{", "[]", "[" * 100_000, '{"model": 3}'):
                    got = await web.post(f"{at}/v1/{path}", content=body)
                    assert got.status_code == 400, (path, body[:10])
                    assert ("type" in got.json()) == (path == "messages") and got.json()["error"]["message"]
            tool = '{"type": "function", "name": "look", "parameters": {"maximum": 1e999}}'
            got = await web.post(f"{at}/v1/responses", content=f'{{"model": "m", "input": "hi", "tools": [{tool}]}}')
            assert got.status_code == 400 and "1e999 is no number in JSON" in got.json()["error"]["message"]
            half, said = '{"model": "\\ud800", "stream": true, ', '"messages": [{"role": "user", "content": "hi"}]'
            for path, rest in (("responses", '"input": "hi"'), ("chat/completions", said), ("messages", said)):
                got = await web.post(f"{at}/v1/{path}", content=f'{half}"max_tokens": 9, {rest}}}')
                assert got.status_code == 400 and "half of a surrogate pair" in got.json()["error"]["message"], path
            large = "1" + "0" * 400  # a number of JSON, and no float
            short = f'"max_tokens": 9, {said}'
            for path, rest in (("responses", '"input": "hi"'), ("chat/completions", short), ("messages", short)):
                for sign in ("", "-"):
                    asked = f'{{"model": "m", {rest}, "temperature": {sign}{large}}}'
                    got = await web.post(f"{at}/v1/{path}", content=asked)
                    assert got.status_code == 400 and "must be a number from 0" in got.json()["error"]["message"], path
            got = await web.post(f"{at}/s/one/end", content=f'{{"reward": {large}}}')
            assert got.status_code == 400 and got.json()["error"]["message"] == "reward must be a number"
            assert (await web.get(f"{at}/v1/nothing")).status_code == 404


class Mute:
    """A policy without token ids."""

    name, version, stats = "mute", "1", PolicyStats()

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        return Context(keep=0, delta=(), ids=(), messages=(Message("user", task.goal),))

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Any]:
        return [Completion("hm", (), (), trainable=False, hidden=3) for _ in seeds]

    async def close(self) -> None:
        pass


async def test_a_policy_without_token_ids_is_said_to_be_unfit_for_training_in_header_and_tree(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        async with served(Mute(), store) as at:
            client, _ = clients(at)
            raw = await client.chat.completions.with_raw_response.create(model="m", messages=USER)
            assert raw.headers["x-treewright-trainable"] == "no; the policy gives no token ids"
            assert not_none(raw.parse().usage).completion_tokens == 3
        (row,) = store.trees()
        tree = store.load(row.tree_id)
        assert not tree.exact and any("log-probs" in reason for reason in tree.reasons) and not tree.trainable[1]
