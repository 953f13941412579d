"""The gateway's figures at a small size: what they are made of holds, whatever the machine."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from treewright.benchmarks.gateway import _overhead
from treewright.benchmarks.gateway_agents import AGENTS, Judge, searched
from treewright.benchmarks.gateway_kills import kills
from treewright.envs.types import Action, Observation, Task
from treewright.search.types import Candidate, Completion, Exchange, NodeStatus


def test_calls_of_many_sessions_are_counted_and_cost_something() -> None:
    figures = asyncio.run(_overhead(64))
    assert figures["gateway_calls"][0] == 64 and figures["gateway_calls_per_s"][0] > 0
    assert figures["gateway_cpu_ms_per_call"][0] > figures["gateway_direct_ms_p50"][0]


def test_a_recorder_that_is_killed_loses_no_acknowledged_call_and_leaves_no_process() -> None:
    figures = kills(3)
    assert figures["gateway_kills_acknowledged"][0] > 0
    assert figures["gateway_lost_calls"][0] == figures["gateway_orphans"][0] == 0


@pytest.mark.parametrize("agent", ["graph", "smolagents_agent"])
def test_agents_are_searched_by_what_their_transcripts_show_and_beat_runs_of_their_own(
    agent: str, tmp_path: Path
) -> None:
    row = asyncio.run(searched(agent, 1, tmp_path, sys.executable))
    assert row["lost_nodes"] == 0 and row["solved"] >= 1 and row["independent_runs"] >= 2
    assert row["policy_tokens"] <= row["independent_tokens"]  # a run that passes the search's tokens is finished
    assert row["steps_with_replays"] > 0


def test_the_judge_reads_the_transcript_and_never_the_facts() -> None:
    task = Task("agent", "1", "start ada, then boss. who is it ?", data={"start": "ada", "relations": ["boss"]})
    look, wrong, early, right = (
        Action.of("search", entity="ada", relation="boss"), Action.of("search", entity="nobody", relation="boss"),
        Action.of("answer", text="ada"), Action.of("final_answer", answer="bob"),
    )  # fmt: skip
    seen = Exchange("", None, Observation("user: Observation:\nada boss bob"))

    def scores(turns: tuple[Exchange, ...], *actions: Action) -> list[float]:
        drawn = [Candidate(turns, Completion(""), action, None, None, NodeStatus.DRAFT, 0.0, 1) for action in actions]
        return [one.value for one in asyncio.run(Judge().evaluate(task, drawn))]

    before, after = scores((), look, wrong, early, right), scores((seen,), look, wrong, early, right)
    assert before[0] > before[1] > before[2] == before[3] == 0.0
    assert after[3] == 1.0 and after[2] == 0.0 and after[1] == after[0] < 1.0


def test_the_figures_of_the_page_are_those_of_its_file() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page, held = (docs / "gateway.md").read_text(), json.loads((docs / "gateway.json").read_text())
    for name in AGENTS:
        row = held["agents"][name]
        cells = f"{100 * row['single_run_rate']:.0f} % | {row['solved']} | {row['independent']} | {row['gain']:.2f}"
        steps = f"{row['steps_with_replays']:,} | {row['independent_steps']:,}"
        assert row["tasks"] == 60 and f"| {name}.py | {cells} | {steps} |" in page
    figures = {name: one["value"] for name, one in held["figures"].items()}
    assert figures["agent_search_gain_min"] == min(held["agents"][name]["gain"] for name in AGENTS)
    assert figures["gateway_lost_calls"] == figures["gateway_orphans"] == 0
    assert f"{figures['gateway_kills']:,.0f} were killed" in page
