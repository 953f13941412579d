"""A LangGraph agent of your own, searched: each of its answers is a draft, and the search goes back where it was wrong.

    python examples/langgraph_agent.py
    treewright run maze/0 --policy langgraph:langgraph_agent:agent

The graph is an ordinary compiled one. It stops before the node that runs tools: the world executes the calls instead,
so that they can be taken back. A real agent has a chat model in `decide`.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph

import treewright
from treewright.agent.policies.langgraph import GraphPolicy
from treewright.search import Budget, rule


def decide(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
    """Picks an open door that the newest message shows; stops at the goal."""
    seen = state["messages"][-1].content
    rng = random.Random(config["configurable"]["seed"])  # each draw has its own seed, so that a tree can be repeated
    if " goal " in seen:
        call = {"name": "stop", "args": {}, "id": "1"}
    else:
        call = {"name": "move", "args": {"to": rng.choice(seen.split(" open ")[-1].split())}, "id": "1"}
    return {"messages": [AIMessage("", tool_calls=[call])]}


def tools(state: MessagesState) -> None:
    raise RuntimeError("the search stops before this node")


graph = StateGraph(MessagesState)
graph.add_node("decide", decide)
graph.add_node("tools", tools)
graph.add_edge(START, "decide")
graph.add_conditional_edges("decide", lambda state: "tools" if state["messages"][-1].tool_calls else END)
graph.add_edge("tools", "decide")
agent = graph.compile()


async def main(tasks: int = 6) -> None:
    suite, policy = treewright.suite("maze"), GraphPolicy(agent)
    for name, grown, expansions in (("alone", rule("chains", draws=1), 12), ("searched", rule("best_first"), 40)):
        won = 0
        for task in suite.tasks("test", tasks):
            tree = await treewright.search(task, suite, policy, rule=grown, budget=Budget(expansions=expansions))
            won += tree.chosen is not None and tree.outcome_of(tree.chosen) == 1.0
        print(f"{name}: {won} of {tasks} mazes")


if __name__ == "__main__":
    asyncio.run(main())
