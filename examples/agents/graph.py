"""The agent of react.py as a LangGraph graph: a node that asks the model, a node that runs its tools."""

from __future__ import annotations

import operator
import sys
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from openai import OpenAI
from react import TOOLS, finish, run


class State(TypedDict):
    messages: Annotated[list[Any], operator.add]
    over: bool


def model(state: State) -> dict[str, Any]:
    reply = OpenAI().chat.completions.create(model="kg", messages=state["messages"], tools=TOOLS, max_tokens=48)
    return {"messages": [reply.choices[0].message.model_dump(exclude_none=True)]}


def tools(state: State) -> dict[str, Any]:
    calls = state["messages"][-1].get("tool_calls")
    if not calls:
        return {"messages": [{"role": "user", "content": "error: call a tool"}], "over": False}
    over = any(finish(call) for call in calls)
    return {"messages": [{"role": "tool", "tool_call_id": c["id"], "content": run(c)} for c in calls], "over": over}


graph = StateGraph(State)
graph.add_node("model", model)
graph.add_node("tools", tools)
graph.add_edge(START, "model")
graph.add_edge("model", "tools")
graph.add_conditional_edges("tools", lambda state: END if state["over"] else "model")
agent = graph.compile()

if __name__ == "__main__":
    said = [{"role": "user", "content": sys.argv[1]}, {"role": "user", "content": "ready"}]
    agent.invoke({"messages": said, "over": False}, {"recursion_limit": 20})
