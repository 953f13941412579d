"""LangGraph both ways: its checkpointers keep an episode through a kill, and its agents are policies to be searched."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph
from not_none import not_none

from treewright.agent.policies.langgraph import GraphPolicy
from treewright.agent.policies.opening import open_policy
from treewright.benchmarks.graph import figures
from treewright.envs import Observation, Task, TreewrightError
from treewright.search.screen import parse_action
from treewright.search.types import Completion, PolicyFault

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(not_none(spec))
    not_none(not_none(spec).loader).exec_module(module)
    return module


def agent(reply: Callable[..., Any], **nodes: Any) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("decide", reply)
    graph.add_edge(START, "decide")
    graph.add_edge("decide", END)
    return graph.compile()


async def drawn(policy: GraphPolicy, seeds: list[Any]) -> list[Completion]:
    context = policy.context(Task("own", "1", "go home"), (), Observation("a door"), (), ())
    return await policy.draw(context, seeds, 64)


async def test_a_searched_agent_does_better_than_the_agent_alone() -> None:
    alone, searched = await example("search_your_agent").main(12)
    assert searched > alone and searched >= 0.75


async def test_the_graph_sees_the_messages_and_its_calls_are_the_draw() -> None:
    seen = []

    def reply(state: Any, config: RunnableConfig) -> dict[str, Any]:
        seen.append(([m.content for m in state["messages"]], config["configurable"]["seed"]))
        calls = [{"name": "look", "args": {"at": "x"}, "id": "1"}, {"name": "go", "args": {}, "id": "2"}]
        return {"messages": [AIMessage("hm", tool_calls=calls)]}

    first, second = await drawn(GraphPolicy(agent(reply)), [7, 8])
    assert [c.name for c in parse_action(first.text).calls] == ["look", "go"]
    assert not first.trainable and first.text == second.text
    assert {seed for _, seed in seen} == {7, 8} and "go home\n\na door" in seen[0][0][-1]


async def test_a_failing_graph_is_a_fault_and_wrong_things_are_refused() -> None:
    def reply(state: Any) -> None:
        raise KeyError("no key")

    with pytest.raises(PolicyFault, match="KeyError"):
        await drawn(GraphPolicy(agent(reply)), [1])
    with pytest.raises(TreewrightError, match="no compiled LangGraph graph"):
        GraphPolicy(lambda: None)
    with pytest.raises(TreewrightError, match="langgraph"):
        open_policy("langgraph:treewright.nothing:agent")


def test_an_episode_killed_in_mid_search_goes_on_from_langgraphs_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("langgraph.checkpoint.sqlite.aio", reason="pip install langgraph-checkpoint-sqlite")
    whole = run(tmp_path / "whole")
    child = start(tmp_path / "killed")
    seen = [not_none(child.stdout).readline() for _ in range(25)]
    assert all(line.startswith("step") for line in seen[1:])
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    rest = run(tmp_path / "killed")
    assert "taking up after" in rest[0] and "nothing" not in rest[0]
    assert 0 < len(rest) < len(whole) and rest[-1] == whole[-1], "the same tree as without the kill"


BETWEEN = """
import os, runpy, signal, sys
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
write, left = AsyncSqliteSaver.aput_writes, [10]
async def aput_writes(*given, **more):
    await write(*given, **more)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
AsyncSqliteSaver.aput_writes = aput_writes
sys.argv = [sys.argv[1], sys.argv[2]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_episode_killed_between_a_step_and_its_checkpoint_is_no_new_one(tmp_path: Path) -> None:
    pytest.importorskip("langgraph.checkpoint.sqlite.aio", reason="pip install langgraph-checkpoint-sqlite")
    command = [sys.executable, "-P", "-c", BETWEEN, str(EXAMPLES / "durable_episode.py"), str(tmp_path)]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=300).returncode == -signal.SIGKILL
    rest = run(tmp_path)
    assert "taking up after" in rest[0] and "nothing" not in rest[0], "a step was done; its checkpoint was not written"
    assert rest[-1].startswith("tree ")


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(EXAMPLES / "durable_episode.py"), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(folder: Path) -> Any:
    child = start(folder)
    lines = not_none(child.stdout).read().splitlines()
    assert child.wait() == 0
    return lines


def test_the_overhead_is_measured_per_expansion() -> None:
    found = figures(quick=True)
    assert found["engine_us_per_expansion"][0] > 0 and found["langgraph_us_per_expansion"][1] == "µs"
