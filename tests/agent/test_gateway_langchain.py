"""The server by LangChain's model classes, over both of OpenAI's APIs: answers, streams, tools, schemas, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from later import later
from not_none import not_none
from pydantic import SecretStr
from served import FIND, KEY, helper, served

from treewright.agent.gateway.record import request_of
from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.search.store import TreeStore

messages, chat_models = later("langchain_core.messages"), later("langchain_openai")
BOTH = pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])


def model(at: str, responses: bool, session: str = "", key: str = KEY) -> Any:
    base = f"{at}/s/{session}/v1" if session else f"{at}/v1"
    return chat_models.ChatOpenAI(
        model="m", base_url=base, api_key=SecretStr(key), max_retries=0, use_responses_api=responses
    )  # fmt: skip


@BOTH
async def test_langchain_gets_answers_and_nothing_of_them_is_logged(
    responses: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(ScriptedPolicy(helper)) as at:
        message = await model(at, responses).ainvoke([messages.HumanMessage("my secret")])
        assert message.text == "You said: my secret" and not_none(message.usage_metadata)["output_tokens"] == 20
        pieces = [piece async for piece in model(at, responses).astream([messages.HumanMessage("my secret")])]
        assert "".join(piece.text for piece in pieces) == "You said: my secret" and len(pieces) > 2
        assert "secret" not in caplog.text and KEY not in caplog.text


@BOTH
async def test_langchain_calls_tools_and_its_session_is_one_tree(responses: bool, tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        async with served(ScriptedPolicy(helper), store) as at:
            asks = model(at, responses, "one").bind_tools([FIND])
            said: list[Any] = [messages.HumanMessage("find twice")]
            called = await asks.ainvoke(said)
            assert called.text == "Two." and [c["args"] for c in called.tool_calls] == [
                {"word": "tea"},
                {"word": "milk"},
            ]
            said += [called, *(messages.ToolMessage("hot", tool_call_id=c["id"]) for c in called.tool_calls)]
            assert (await asks.ainvoke(said)).text == "It is tool: hot\ntool: hot."
            whole: Any = None
            async for piece in asks.astream([messages.HumanMessage("find")]):
                whole = piece if whole is None else whole + piece
            assert whole.tool_calls[0]["args"] == {"word": "tea"}
        (row,) = store.trees()
        tree = store.load(row.tree_id)
    assert [not_none(request_of(seen))["link"] for seen in tree.observation[:2]] == ["spawns", "continues"]
    assert tree.context_ids(1)[: len(tree.context_ids(0) + tree.ids[1])] == tree.context_ids(0) + tree.ids[1]


@BOTH
async def test_langchain_gets_a_schema_that_it_insists_on(responses: bool) -> None:
    schema = {"title": "age", "type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    async with served(scripted_choice([("no json", 0.5), ('{"age": 3}', 0.5)]), tries=40) as at:
        asks = model(at, responses).with_structured_output(schema, method="json_schema")
        assert await asks.ainvoke([messages.HumanMessage("how old?")]) == {"age": 3}


@BOTH
async def test_langchain_raises_the_clients_errors(responses: bool) -> None:
    def fails(*_: Any) -> str:
        raise ValueError("down")

    async with served(ScriptedPolicy(fails)) as at:
        with pytest.raises(openai.AuthenticationError):
            await model(at, responses, key="wrong").ainvoke("x")
        with pytest.raises(openai.InternalServerError):
            await model(at, responses).ainvoke("x")
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await model(at, responses).bind(temperature=9).ainvoke("x")
