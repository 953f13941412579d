"""The server by the OpenAI Agents SDK, over both of OpenAI's APIs (make test-clients).

What it sends is kept in traffic.jsonl, which test_gateway_traffic.py sends again without the package. Where it differs,
a new file is written with TREEWRIGHT_KEEP=1.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from served import KEY, helper, served

from treewright.agent.gateway.record import request_of
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs.types import Task
from treewright.search.store import TreeStore

pytest.importorskip("agents.models.openai_chatcompletions", reason="with make test-clients")
openai: Any = pytest.importorskip("openai")  # not before: it takes a second
sdk: Any = pytest.importorskip("agents")

TRAFFIC = Path(__file__).parent / "traffic.jsonl"
BOTH = pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
SENT: list[dict[str, Any]] = []
MADE = re.compile(r"(chatcmpl|resp|msg|fc|call)_[0-9a-f]{20,}")


@pytest.fixture(scope="module", autouse=True)
def _kept() -> Iterator[None]:
    """What was sent is what the file says."""
    sdk.set_tracing_disabled(True)
    yield
    lines = [MADE.sub(r"\1_0", json.dumps(one, sort_keys=True)) for one in SENT]
    if os.environ.get("TREEWRIGHT_KEEP"):
        TRAFFIC.write_text("\n".join(lines) + "\n")
    assert lines == TRAFFIC.read_text().splitlines()


def model(at: str, responses: bool, session: str = "", key: str = KEY) -> Any:
    base = f"{at}/s/{session}/v1" if session else f"{at}/v1"
    client = openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0)
    kind = sdk.OpenAIResponsesModel if responses else sdk.OpenAIChatCompletionsModel
    return kind(model="m", openai_client=client)


def find(word: str) -> str:
    """Finds a word."""
    return f"hot {word}"


def tool() -> Any:
    return sdk.function_tool(find)


@BOTH
async def test_an_agent_answers_whole_and_in_a_stream(responses: bool) -> None:
    async with served(ScriptedPolicy(helper), sent=SENT) as at:
        agent = sdk.Agent(name="a", instructions="Be brief.", model=model(at, responses))
        done = await sdk.Runner.run(agent, "hello")
        assert done.final_output == "You said: hello"
        used = done.context_wrapper.usage
        assert used.requests == 1 and used.output_tokens == 16 and used.input_tokens > 5
        stream = sdk.Runner.run_streamed(agent, "hello")
        said = [
            e.data.delta async for e in stream.stream_events() if getattr(e, "data", None) and "delta" in e.data.type
        ]
        assert "".join(said) == "You said: hello" == stream.final_output and len(said) > 1


@BOTH
async def test_its_tools_are_called_in_parallel_and_its_session_is_one_tree(responses: bool, tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        async with served(ScriptedPolicy(helper), store, SENT) as at:
            agent = sdk.Agent(name="a", model=model(at, responses, "one"), tools=[tool()])
            done = await sdk.Runner.run(agent, "find twice")
            assert done.final_output == "It is tool: hot tea\ntool: hot milk."
            stream = sdk.Runner.run_streamed(agent, "find")
            kinds = [e.name async for e in stream.stream_events() if e.type == "run_item_stream_event"]
            assert kinds == ["tool_called", "tool_output", "message_output_created"]
            assert stream.final_output == "It is hot tea."
        (row,) = store.trees()
        tree = store.load(row.tree_id)
    links = [not_none(request_of(tree.observation[i]))["link"] for i in range(len(tree)) if tree.drawn[i]]
    assert links == ["spawns", "continues", "spawns", "continues"] and tree.exact
    for node in (1, 3):  # nothing is encoded twice
        whole = tree.context_ids(tree.parent[node]) + tree.ids[node]
        assert tree.context_ids(node)[: len(whole)] == whole


@BOTH
async def test_a_helper_is_handed_the_talk_and_a_type_of_output_is_kept(responses: bool) -> None:
    import pydantic

    class Age(pydantic.BaseModel):
        age: int

    def hands(task: Task, turns: Any, tools: Any, rng: Any) -> str:
        if any(one.name == "transfer_to_sage" for one in tools):
            return "transfer_to_sage {}"
        return '{"age": 3}' if rng.random() < 0.3 else "three"

    async with served(ScriptedPolicy(hands), sent=SENT, tries=60) as at:
        sage = sdk.Agent(name="sage", instructions="You know ages.", model=model(at, responses), output_type=Age)
        first = sdk.Agent(name="first", model=model(at, responses), handoffs=[sage])
        done = await sdk.Runner.run(first, "how old?")
        assert done.final_output == Age(age=3) and done.last_agent.name == "sage"


@BOTH
async def test_it_raises_the_clients_errors(responses: bool) -> None:
    def fails(*_: Any) -> str:
        raise ValueError("down")

    async with served(ScriptedPolicy(fails)) as at:
        with pytest.raises(openai.AuthenticationError):
            await sdk.Runner.run(sdk.Agent(name="a", model=model(at, responses, key="wrong")), "x")
        with pytest.raises(openai.InternalServerError):
            await sdk.Runner.run(sdk.Agent(name="a", model=model(at, responses)), "x")
        hot = sdk.ModelSettings(temperature=9)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await sdk.Runner.run(sdk.Agent(name="a", model=model(at, responses), model_settings=hot), "x")
