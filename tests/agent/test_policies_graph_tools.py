"""A searched LangGraph agent never runs its tools, whatever their node is called; the ledger is a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from treewright.agent.policies.langgraph import GraphPolicy
from treewright.envs import Observation, Task, TreewrightError
from treewright.search.types import PolicyFault

if TYPE_CHECKING:
    from langchain_core.tools.base import BaseTool


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def send(ledger: Path) -> BaseTool:
    @tool
    def send(to: str) -> str:
        """Sends a mail."""
        with open(ledger, "a") as file:
            file.write(f"{to}\n")
        return "sent"

    return send


def decide(state: Any) -> dict[str, Any]:
    return {"messages": [AIMessage("", tool_calls=[{"name": "send", "args": {"to": "ada"}, "id": "1"}])]}


def agent(name: str, node: Callable[[Any], Any], decide: Any = decide, back: bool = True) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("model", decide)
    graph.add_node(name, node)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: name if len(state["messages"]) < 6 else END, [name, END])
    graph.add_edge(name, "model" if back else END)
    return graph.compile()


async def drawn(policy: GraphPolicy) -> str:
    context = policy.context(Task("own", "1", "write to ada"), (), Observation("an inbox"), (), ())
    return (await policy.draw(context, [7], 64))[0].text


@pytest.mark.parametrize("name", ["tools", "act", "execute the calls"])
async def test_a_tool_node_is_stopped_before_whatever_it_is_called(ledger: Path, send: BaseTool, name: str) -> None:
    policy = GraphPolicy(agent(name, ToolNode([send])))
    assert '"send"' in await drawn(policy) and policy.stop_before == [name]
    assert not ledger.exists()  # noqa: ASYNC240


async def test_a_tool_node_that_stop_before_forgets_is_stopped_before_all_the_same(
    ledger: Path, send: BaseTool
) -> None:
    policy = GraphPolicy(agent("act", ToolNode([send])), stop_before=["model"])
    assert policy.stop_before == ["model", "act"]
    nodes = ToolNode([send])
    hidden = GraphPolicy(agent("act", lambda state: nodes.invoke(state)))
    assert '"send"' in await drawn(hidden) and hidden.stop_before == ["act"] and not ledger.exists()  # noqa: ASYNC240


def test_a_name_that_is_no_node_is_refused_with_the_names_there_are(send: BaseTool) -> None:
    graph = agent("act", ToolNode([send]))
    with pytest.raises(
        TreewrightError, match=r"stop_before names 'acts', but .* did you mean 'act'\? its nodes: model"
    ):
        GraphPolicy(graph, stop_before=("acts",))
    with pytest.raises(TreewrightError, match="run_inside names 'calculator'"):
        GraphPolicy(graph, run_inside=("calculator",))


def test_a_graph_of_which_it_is_not_known_what_runs_is_refused(send: BaseTool) -> None:
    known = {"send": send}

    def by_hand(state: Any) -> dict[str, Any]:
        calls = state["messages"][-1].tool_calls
        return {"messages": [ToolMessage(known[c["name"]].invoke(c["args"]), tool_call_id=c["id"]) for c in calls]}

    def blind(state: Any) -> dict[str, Any]:
        return {"messages": [AIMessage(eval("'who knows'"))]}

    for node, why in [
        (by_hand, "uses tools of its own|reads the tool calls"),
        (agent("act", ToolNode([send])), "a graph of its own, whose node 'act'"),
        (blind, "goes round through act → model → act"),
    ]:
        with pytest.raises(TreewrightError, match=why) as told:
            GraphPolicy(agent("act", node))
        assert "stop_before" in str(told.value) and "run_inside" in str(told.value)
        assert GraphPolicy(agent("act", node), stop_before=("act",)).stop_before == ["act"]


async def test_a_tool_that_is_called_nevertheless_does_not_begin(ledger: Path, send: BaseTool) -> None:
    def sly(state: Any) -> dict[str, Any]:
        by_name = globals().get("nothing") or {"send": [send]}
        by_name["send"][0].invoke({"to": "ada"})
        return decide(state)

    hide = {"held": {"deep": sly}}

    class Model:
        def __call__(self, state: Any) -> dict[str, Any]:
            return hide["held"]["deep"](state)

    policy = GraphPolicy(agent("act", ToolNode([send]), Model()), run_inside=())
    with pytest.raises(PolicyFault, match=r"send,? (which )?was not run"):
        await drawn(policy)
    assert not ledger.exists()  # noqa: ASYNC240


async def test_a_node_that_may_run_inside_runs(ledger: Path, send: BaseTool) -> None:
    policy = GraphPolicy(agent("act", ToolNode([send]), back=False), run_inside=("act",))
    assert policy.stop_before == [] and await drawn(policy) == "sent"
    assert ledger.read_text() == "ada\n"  # noqa: ASYNC240
