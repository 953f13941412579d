"""A LangGraph agent of your own, searched: its steps are drafts, the world is treewright's, and going back is possible.

    python docs/examples/search_your_agent.py

The agent is an ordinary compiled graph: a node that decides and a node that runs tools. Here the deciding node guesses;
put a chat model bound to your tools in its place. Alone it reaches the corner of the maze by luck, searched it does.
"""

from __future__ import annotations

import asyncio
import random

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from treewright.agent.policies.langgraph import GraphPolicy
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first, chains
from treewright.search.types import Budget


def decide(state, config):
    """Looks at the newest message and picks an open door; stops at the goal. Any chat model fits here."""
    seen = state["messages"][-1].content
    rng = random.Random(config["configurable"]["seed"])
    if " goal " in seen:
        call = {"name": "stop", "args": {}, "id": "1"}
    else:
        call = {"name": "move", "args": {"to": rng.choice(seen.split(" open ")[-1].split())}, "id": "1"}
    return {"messages": [AIMessage("", tool_calls=[call])]}


def tools(state):
    raise RuntimeError("the search stops before this node: the world executes the calls")


graph = StateGraph(MessagesState)
graph.add_node("decide", decide)
graph.add_node("tools", tools)
graph.add_edge(START, "decide")
graph.add_conditional_edges("decide", lambda state: "tools" if state["messages"][-1].tool_calls else END)
graph.add_edge("tools", "decide")
agent = graph.compile()


async def success(rule, expansions: int, tasks: int) -> float:
    """Share of mazes in which the chosen path ends at the goal."""
    policy, won = GraphPolicy(agent), 0
    for task in SUITE.tasks("test", tasks):
        tree = await search(
            task, SUITE, policy, rule=rule, budget=Budget(expansions=expansions), settings=Settings(close=False)
        )
        won += tree.chosen is not None and tree.outcome_of(tree.chosen) == 1.0
    return won / tasks


async def main(tasks: int = 20) -> tuple[float, float]:
    alone = await success(chains(draws=1), 12, tasks)
    searched = await success(best_first(draws=2, root_draws=3, weighted=False), 40, tasks)
    print(f"the agent alone: {alone:.0%} of the mazes; searched with 40 expansions: {searched:.0%}")
    return alone, searched


if __name__ == "__main__":
    asyncio.run(main())
