"""Trees in the forms of others: what the rows say, on agents' trees and on trees of worlds."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from search_trees import random_tree

from treewright.agent.gateway.agents import agent_suite
from treewright.agent.policies.scripted import scripted_choice
from treewright.envs.types import Task
from treewright.search import Budget, Pool, Settings, best_first, search
from treewright.search.store import TreeRow
from treewright.search.tree import Tree
from treewright.search.types import Spent
from treewright.training.export import View
from treewright.training.export.atif18 import atif18
from treewright.training.export.foreign import conversations_in
from treewright.training.export.inspect_log import InspectLog
from treewright.training.export.own import own_formats
from treewright.training.export.peers import PEERS, openai_preference, openai_sft, verifiers_trace
from treewright.training.export.requests import conversation_at

WALKER = f"{sys.executable} {Path(__file__).parents[1] / 'agent' / 'agents' / 'walker.py'}"


def moves(task: Task, turns: Any, tools: Any) -> list[Any]:
    """Knows the way, mostly; as the guide it says one thing."""
    if task.goal == "where?":
        return [("left", 1.0)]
    at = re.findall(r"you are at (\w+)", turns[-1].observation.text)[-1] if turns else "home"
    right = {"home": 'go {"to": "mill"}', "mill": 'go {"to": "lake"}', "lake": 'go {"to": "inn"}', "inn": "here"}
    return [(right.get(at, "here"), 0.7), ("lost", 0.3)]


@pytest.fixture(scope="module")
def tree() -> Tree:
    async def grown() -> Tree:
        suite = agent_suite(WALKER, sandboxed=True, learn=False, env={"WALKER": "helper"})
        pool = Pool(suite.open, 1, around=suite.around)
        try:
            return await search(
                Task("agent", "7", "find the inn"), pool, scripted_choice(moves), rule=best_first(draws=2),
                budget=Budget(expansions=6), settings=Settings(max_tokens=64, close=True),
            )  # fmt: skip
        finally:
            await pool.close()
            await not_none(suite.close)()

    return asyncio.run(grown())


def test_fine_tuning_rows_are_conversations_in_the_agents_own_roles(tree: Tree) -> None:
    rows = list(openai_sft(View(tree)))
    assert rows
    whole = rows[-1]["messages"]
    assert [m["role"] for m in whole[:3]] == ["system", "user", "assistant"]
    assert whole[-1] == {"role": "assistant", "content": "here"}
    calls = [c for m in whole for c in m.get("tool_calls", [])]
    results = [m["tool_call_id"] for m in whole if m["role"] == "tool"]
    assert [c["function"]["name"] for c in calls] == ["go"] * 3 and len(results) == 3
    assert rows[-1]["tools"][0]["function"]["name"] == "go"
    helpers = [row for row in rows if row["messages"][0]["content"] == "You are a guide."]
    assert len(helpers) == 1 and helpers[0]["messages"][-1]["role"] == "assistant"


def test_preference_rows_are_two_answers_to_one_conversation(tree: Tree) -> None:
    rows = list(openai_preference(View(tree)))
    assert rows
    for row in rows:
        assert row["input"]["messages"][-1]["role"] in ("user", "tool")
        assert row["preferred_output"] != row["non_preferred_output"]
        assert [m["role"] for m in row["preferred_output"]] == ["assistant"]


def test_traces_hold_the_tokens_of_every_prompt_and_the_trees_gradient_once(tree: Tree) -> None:
    view = View(tree)
    rows = list(verifiers_trace(view))
    leaves = list(view.leaves())
    assert len(rows) == len(leaves)
    total: dict[int, Any] = {}
    for row, leaf in zip(rows, leaves, strict=True):
        sampled = [i for i, node in enumerate(row["nodes"]) if node.get("sampled")]
        for at, node in zip(sampled, tree.path(leaf)[1:], strict=True):
            mask: list[Any]
            ids: list[Any]
            ids, mask, up = [], [], at
            while up is not None:
                ids, mask = row["nodes"][up]["token_ids"] + ids, row["nodes"][up]["mask"] + mask
                up = row["nodes"][up]["parent"]
            whole = tree.context_ids(tree.parent[node]) + tree.ids[node]
            assert tuple(ids) == whole and len(mask) == len(ids)
            assert row["nodes"][at]["logprobs"] == list(tree.logprobs[node])
            total[node] = total.get(node, 0.0) + row["nodes"][at]["advantages"][0]
    assert total == pytest.approx({node: view.coef[node] for node in total}) and any(total.values())


def test_atif_documents_embed_helpers_and_mark_what_earlier_ones_hold(tree: Tree) -> None:
    rows = list(atif18(View(tree)))
    assert [row["trajectory_id"] for row in rows] == [f"{tree.tree_id}-{leaf}" for leaf in View(tree).leaves()]
    agent_steps = [s for row in rows for t in (row, *row.get("subagent_trajectories", ())) for s in t["steps"]]
    fresh = [s["extra"]["node"] for s in agent_steps if "node" in s.get("extra", {}) and not s.get("is_copied_context")]
    held = {node for leaf in View(tree).leaves() for node in tree.path(leaf)[1:]}
    assert sorted(fresh) == sorted(held)  # each answer is new once
    whole = next(row for row in rows if row["steps"][-1]["message"] == "here")
    (helper,) = whole["subagent_trajectories"]
    refs = [r for s in whole["steps"] for r in s.get("observation", {}).get("results", ())]
    assert [{"trajectory_id": helper["trajectory_id"]}] in [r.get("subagent_trajectory_ref") for r in refs]
    assert [s["message"] for s in helper["steps"]] == ["You are a guide.", "where?", "left"]
    called = [s for s in whole["steps"] if s.get("tool_calls")]
    assert all(s["observation"]["results"][0]["source_call_id"] == s["tool_calls"][0]["tool_call_id"] for s in called)


def test_atif_documents_are_what_the_formats_own_package_reads(tree: Tree) -> None:
    atif = pytest.importorskip("atif", reason="with make test-formats")
    for row in [*atif18(View(tree)), *(r for r in atif18(_revealed(random_tree(3))))]:
        assert atif.Trajectory.model_validate(row).steps


@pytest.fixture(scope="module")
def log(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a log of Inspect."""
    head, path = tree.header, tmp_path_factory.mktemp("log") / "log.json"
    row = TreeRow(
        tree_id=tree.tree_id, run=head.run, suite=head.task.suite, task_id=head.task.id, split=head.task.split,
        attempt=0, policy_version=head.policy_version, status="done", nodes=len(tree), chosen=tree.chosen,
        stopped_by=None, outcome=None, success=None, exact=tree.exact, reasons=(), spent=Spent(), created=1.7e9,
        ended=None,
    )  # fmt: skip
    with InspectLog(path) as log:
        assert log.write(View(tree), row)
    return path


def test_a_log_of_inspect_shows_an_agents_roles_tools_and_calls(tree: Tree, log: Path) -> None:
    (sample,) = json.loads(log.read_text())["samples"]
    asked = [event for event in sample["events"] if event["event"] == "model"]
    assert {event["metadata"]["node"] for event in asked} == {n for n in range(1, len(tree)) if View(tree).executed(n)}
    assert [m["role"] for m in sample["messages"][:3]] == ["system", "user", "assistant"]
    assert any(tool["name"] == "go" for event in asked for tool in event["tools"])
    called = [e for e in sample["events"] if e["event"] == "tool"]
    assert called and all(e["function"] == "go" and "to" in e["arguments"] for e in called)
    talks = conversations_in(json.loads(log.read_text()))
    assert (
        talks is not None
        and talks[0]["tools"]
        and len(talks) == 1 + sum(e["event"] == "branch" for e in sample["events"])
    )


def test_a_log_of_an_agents_tree_is_what_inspect_itself_reads(log: Path) -> None:
    reader = pytest.importorskip("inspect_ai.log", reason="with make test-formats")
    assert reader.read_eval_log(str(log)).samples[0].timelines[0].root.content


def _revealed(other: Tree) -> View:
    other.reveal()
    return View(other)


def test_every_format_is_found_by_its_name_and_gives_rows_that_are_json(tree: Tree) -> None:
    formats = own_formats(list(PEERS), {})
    assert set(formats) == set(PEERS)
    for one in formats.values():
        for any_tree in (tree, random_tree(3)):
            any_tree.reveal()
            for row in one.rows(View(any_tree)):
                json.dumps(row, allow_nan=False)


def test_conversations_of_other_worlds_are_their_texts(tree: Tree) -> None:
    other = random_tree(3)
    other.reveal()
    messages, tools = conversation_at(View(other), 0)
    assert messages[0]["role"] == "user" and tools == []


def test_traces_are_what_verifiers_itself_reads(tree: Tree) -> None:
    trace = pytest.importorskip("verifiers.v1.graph", reason="with make test-formats")
    for row in verifiers_trace(View(tree)):
        for node in row["nodes"]:
            read = trace.MessageNode.model_validate(node)
            assert read.advantages is None or len(read.advantages) == sum(read.mask) == len(read.logprobs)
