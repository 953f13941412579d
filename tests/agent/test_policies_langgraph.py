"""A LangGraph agent as a policy keeps its draws apart, and answers only where its model did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from treewright.agent.policies.langgraph import GraphPolicy
from treewright.envs import Observation, Task
from treewright.search.screen import parse_action
from treewright.search.types import Completion, PolicyFault


def chain(*nodes: Callable[[Any], Any], **options: Any) -> Any:
    """A graph of these functions one after the other, by their names."""
    graph = StateGraph(MessagesState)
    last = START
    for node in nodes:
        graph.add_node(node.__name__, node)
        graph.add_edge(last, node.__name__)
        last = node.__name__
    graph.add_edge(last, END)
    return graph.compile(**options)


async def drawn(graph: Any, seeds: list[Any], text: str = "a door", **options: Any) -> list[Completion]:
    policy = GraphPolicy(graph, **options)
    return await policy.draw(policy.context(Task("own", "1", "go home"), (), Observation(text), (), ()), seeds, 64)


def decide(state: Any) -> dict[str, Any]:
    return {"messages": [AIMessage(f"look {{}} # {len(state['messages'])}")]}


async def test_draws_of_one_seed_never_see_each_others_conversation_whatever_is_checkpointed() -> None:
    saver = InMemorySaver()
    first = await drawn(chain(decide, checkpointer=saver), [7, 7])
    again = await drawn(chain(decide, checkpointer=saver), [7])
    resumed = await drawn(chain(decide, checkpointer=saver), [7, 8, 7])
    assert {done.text for done in (*first, *again, *resumed)} == {"look {} # 2"}
    assert not list(saver.list(None)), "what a draw left behind is dropped"


async def test_a_checkpointer_on_disk_is_shared_by_runs_and_their_draws_stay_apart(tmp_path: Path) -> None:
    aio = pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    said = []
    for _ in range(2):
        async with aio.AsyncSqliteSaver.from_conn_string(str(tmp_path / "agent.db")) as saver:
            said += await drawn(chain(decide, checkpointer=saver), [7])
            assert [row async for row in saver.alist(None)] == []
    assert [done.text for done in said] == ["look {} # 2"] * 2


async def test_a_checkpointer_that_cannot_forget_keeps_threads_that_nobody_reads() -> None:
    class Keeping(InMemorySaver):  # type: ignore[misc]
        async def adelete_thread(self, thread_id: str) -> None:
            raise NotImplementedError

    saver = Keeping()
    done = await drawn(chain(decide, checkpointer=saver), [7, 7, 7])
    assert {one.text for one in done} == {"look {} # 2"} and len(saver.storage) == 3


def ask_first(state: Any) -> dict[str, Any]:
    interrupt("may I think?")
    return {}


def greet(state: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("graph, says", [
    (chain(decide, interrupt_before=["decide"], checkpointer=InMemorySaver()), "interrupt_before"),
    (chain(ask_first, decide, checkpointer=InMemorySaver()), "interrupted before its model answered .may I think"),
    (chain(greet), "ended with a message of type 'human'"),
])  # fmt: skip
async def test_a_graph_that_stops_before_its_model_answered_is_a_fault_and_no_answer(graph: Any, says: str) -> None:
    with pytest.raises(PolicyFault, match=says):
        await drawn(graph, [1])


def approve(state: Any) -> dict[str, Any]:
    interrupt("run this?")
    return {}


async def test_an_interrupt_after_the_model_is_an_answer() -> None:
    def call(state: Any) -> dict[str, Any]:
        return {"messages": [AIMessage("", tool_calls=[{"name": "look", "args": {"at": "x"}, "id": "1"}])]}

    (done,) = await drawn(chain(call, approve, checkpointer=InMemorySaver()), [1])
    assert parse_action(done.text).calls[0].name == "look"


async def test_an_answer_that_was_given_is_not_the_models_own() -> None:
    def forget(state: Any) -> dict[str, Any]:
        from langchain_core.messages import RemoveMessage

        return {"messages": [RemoveMessage(state["messages"][-1].id)]}

    from treewright.search.types import Exchange

    policy = GraphPolicy(chain(forget))
    turns = [Exchange("look {}", None, Observation("seen"))]
    context = policy.context(Task("own", "1", "go home"), (), Observation("a door"), turns, ())
    with pytest.raises(PolicyFault, match="not with an answer of its model"):
        await policy.draw(context, [1], 64)


async def test_a_slow_graph_says_which_option_gives_it_more_time() -> None:
    async def think(state: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(PolicyFault, match=r"no answer within 0\.05 s; --set policy\.options\.deadline=N"):
        await drawn(chain(think), [1], deadline=0.05)


async def test_halves_of_characters_reach_neither_the_graph_nor_the_tree() -> None:
    seen = []

    def reply(state: Any) -> dict[str, Any]:
        seen.append(state["messages"][-1].content)
        return {"messages": [AIMessage("half \udc00")]}

    (done,) = await drawn(chain(reply), [1], text="a do\ud83d")
    assert done.text == "half �" and seen[0].endswith("a do�")
