#!/bin/bash
# LangGraph: a graph that stops at a static breakpoint before its first node gives back its input as if it were a result.
# invoke() raises nothing and puts no "__interrupt__" beside it (it does for a call of interrupt() in a node), so the
# last message of the "answer" is the user's own. A caller that takes messages[-1] acts on what it asked.
# Second: a thread id that comes back goes on with the conversation that a checkpointer has under it.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install langgraph==1.2.22 langgraph-checkpoint==4.3.2 langchain-core==1.7.2
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt


def graph(node, **options):
    made = StateGraph(MessagesState)
    made.add_node("model", node)
    made.add_edge(START, "model")
    made.add_edge("model", END)
    return made.compile(checkpointer=InMemorySaver(), **options)


def model(state):
    return {"messages": [AIMessage(f"answer to {len(state['messages'])} messages")]}


def asks(state):
    interrupt("may I?")


def thread(name):
    return {"configurable": {"thread_id": name}}


ask = {"messages": [{"role": "user", "content": "question"}]}
static = graph(model, interrupt_before=["model"]).invoke(ask, thread("a"))
dynamic = graph(asks).invoke(ask, thread("a"))
kept = graph(model)
once, twice = (kept.invoke(ask, thread("same"))["messages"][-1].content for _ in range(2))
print("langgraph", version("langgraph"))
print("static breakpoint: keys", sorted(static), "last message", static["messages"][-1].type)
print("interrupt() in a node: keys", sorted(dynamic), "last message", dynamic["messages"][-1].type)
print("the same thread id twice:", once, "|", twice)
as_seen = (
    sorted(static) == ["messages"] and static["messages"][-1].type == "human"
    and "__interrupt__" in dynamic and (once, twice) == ("answer to 1 messages", "answer to 3 messages")
)
sys.exit(0 if as_seen else 1)
PY
