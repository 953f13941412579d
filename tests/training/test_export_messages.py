"""Conversations in OpenAI's format become chains; what is wrong with a line is named with line and field."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
import typer
from search_trees import random_tree
from typer.testing import CliRunner

from treewright.agent.cli.data import data_app
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Call
from treewright.search.store import TreeStore
from treewright.search.types import NodeStatus, Origin
from treewright.training.credit import InexactTree, estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.export import ExportOptions, View, export_dataset, grown_trees, import_trees, sft_rows
from treewright.training.export.messages import INEXACT

CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "cats"}'}}
TALK = {
    "id": "q1",
    "suite": "support",
    "reward": 1.0,
    "model": "m-1",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Find cats."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "three cats"},
        {"role": "assistant", "content": [{"type": "text", "text": "There are three."}]},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": 'answer {"text": "bye"}'},
    ],
}


@pytest.fixture
def write(tmp_path):
    def lines(*rows):
        path = tmp_path / "talks.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return path

    return lines


def one(path, **options):
    (grown,) = grown_trees(path, **options)
    return grown.tree


def test_a_conversation_is_a_chain_with_its_calls_and_answers(write):
    tree = one(write(TALK))
    assert tree.parent == [-1, 0, 1, 2] and tree.task.goal == "Find cats." and tree.task.data == {"system": "Be kind."}
    assert tree.action[1] == Action((Call("search", {"q": "cats"}),)) and tree.observation[1].text == "three cats"
    assert (tree.text[2], tree.action[2], tree.error[2]) == ("There are three.", None, None)
    assert tree.observation[2].text == "Thanks." and tree.observation[2].provenance == "user"
    assert tree.action[3] == Action.of("answer", text="bye")
    assert tree.status[3] is NodeStatus.TERMINAL and tree.outcome_of(3) == 1.0 and tree.chosen == 3
    assert (tree.task.suite, tree.task.id, tree.header.run, tree.header.policy_version) == (
        "support", "q1", "talks", "m-1",
    )  # fmt: skip


def test_what_was_not_drawn_here_is_untrainable_and_inexact_with_a_reason(write):
    tree = one(write(TALK), origin="demo")
    assert set(tree.origin[1:]) == {Origin.DEMO} and not any(tree.trainable[1:]) and not any(tree.logprobs)
    assert INEXACT in tree.reasons
    with pytest.raises(InexactTree):
        estimate("split_loo", tree_arrays([tree]))
    assert not tree_arrays([tree]).trainable.any()


def test_imported_demonstrations_can_be_exported_for_fine_tuning(write):
    rows = list(sft_rows(View(one(write(TALK), origin="demo"))))
    assert [r["on_policy"] for r in rows] == [False] * 3 and rows[0]["origin"] == "demo"
    assert rows[0]["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert (
        rows[0]["completion"][0]["content"] == '<tool_call>{"name": "search", "arguments": {"q": "cats"}}</tool_call>'
    )


def test_unknown_rewards_stay_unknown_and_success_counts_as_one_or_zero(write):
    bare = {"messages": TALK["messages"]}
    first, second, third = grown_trees(write(bare, {**bare, "success": True}, {**bare, "success": False}))
    assert math.isnan(first.tree.reward(3)) and second.tree.reward(3) == 1.0 and third.tree.reward(3) == 0.0
    assert [t.tree.task.id for t in (first, second, third)] == ["talks-1", "talks-2", "talks-3"]


def test_the_same_task_again_is_another_attempt_and_thinking_is_kept(write):
    thinking = {"id": 1, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "go {}", "reasoning_content": "hm"}]}  # fmt: skip # noqa: E501
    first, second = grown_trees(write(thinking, thinking))
    assert (first.tree.header.attempt, second.tree.header.attempt) == (0, 1)
    assert first.tree.text[1] == "<think>\nhm\n</think>\n\ngo {}" and first.tree.action[1] == Action.of("go")


def test_parallel_calls_are_one_action_and_a_cut_episode_is_truncated(write):
    two = [CALL, {"id": "c2", "function": {"name": "open", "arguments": {}}}]
    talk = {"truncated": True, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": two}]}
    tree = one(write(talk))
    assert tree.action[1].name == "search+open" and tree.status[1] is NodeStatus.TRUNCATED


def broken(**message):
    return {"messages": [{"role": "user", "content": "?"}, message]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (broken(role="robot", content="x"), r"messages\[1\].role: Input should be 'system'"),
        (broken(role="assistant"), r"messages\[1\]: content: a message without tool_calls needs content"),
        (broken(role="assistant", content=3), r"messages\[1\].content"),
        (
            broken(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
            r"messages\[1\].tool_calls\[0\].function.arguments: not JSON",
        ),
        (
            broken(role="assistant", tool_calls=[{"function": {"arguments": "{}"}}]),
            r"messages\[1\].tool_calls\[0\].function.name: Field required",
        ),
        (broken(role="user", content="x"), "messages: there is no assistant message"),
        (
            {"messages": [{"role": "assistant", "content": "x"}, {"role": "tool", "tool_call_id": "z", "content": ""}]},
            r"messages\[1\].tool_call_id: 'z' answers no call",
        ),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({**TALK, "reward": "high"}, "reward: Input should be a valid number"),
        ("[1]", "expected an object"),
        ("{", "not JSON"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_field(write, row, said):
    with pytest.raises(TreewrightError, match=rf"talks\.jsonl, line 2: .*{said}"):
        list(grown_trees(write(TALK, row), kind="auto" if isinstance(row, str) else "messages"))


def test_lines_before_the_wrong_one_are_imported_and_the_same_call_goes_on(write, tmp_path):
    with TreeStore.open(tmp_path / "s.sqlite") as store:
        with pytest.raises(TreewrightError, match="line 2"):
            asyncio.run(import_trees(write(TALK, broken(role="robot", content="x")), store))
        assert len(store.trees()) == 1
        report = asyncio.run(import_trees(write(TALK, {**TALK, "id": "q2"}), store))
        assert len(report.added) == 1 and report.present == 1 and len(store.trees(suite="support", success=True)) == 2
        assert not store.check()


@pytest.mark.parametrize(
    ("options", "said"), [({"kind": "csv"}, "no kind of import"), ({"origin": "policy"}, "neither demo nor stored")]
)
def test_wrong_arguments_are_named(write, options, said):
    with pytest.raises(TreewrightError, match=said):
        list(grown_trees(write(TALK), **options))


def test_a_path_that_is_no_table_says_what_to_do(tmp_path):
    (tmp_path / "x.csv").write_text("a")
    for path, said in ((tmp_path / "x.csv", "neither"), (tmp_path / "gone", "no file"), (tmp_path, "holds no")):
        with pytest.raises(TreewrightError, match=said):
            list(grown_trees(path))


def test_the_commands_import_export_and_import_again(write, tmp_path):
    app, talks = CliRunner(), write(TALK)
    store, data, back = (str(tmp_path / n) for n in ("a.sqlite", "data", "b.sqlite"))
    first = app.invoke(data_app, ["import", str(talks), "--store", store, "--origin", "demo"])
    assert first.exit_code == 0 and "1 trees with 4 nodes added" in first.output.replace("\n", "")
    out = app.invoke(data_app, ["export", data, "--store", store, "--file-type", "jsonl", "--formats", "sft,raw"])
    assert out.exit_code == 0 and "sft     3 rows" in out.output
    assert app.invoke(data_app, ["import", data, "--store", back]).exit_code == 0
    with TreeStore.open(store, read_only=True) as a, TreeStore.open(back, read_only=True) as b:
        (row,) = a.trees()
        assert a.load(row.tree_id).digest() == b.load(row.tree_id).digest()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["export", "d", "--store", "gone.sqlite"], "there is no store"),
        (["export", "d", "--tokenizer", "x"], "is for --style text"),
        (["export", "d", "--formats", "sft,gpt"], "no format named 'gpt'"),
        (["import", "gone"], "no file or folder"),
    ],
)
def test_commands_fail_with_an_error_for_people(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(data_app, args)
    assert isinstance(result.exception, TreewrightError) and said in str(result.exception)


def test_the_commands_can_be_registered_in_another_app():
    from treewright.agent.cli.data import export_command, import_command

    app = typer.Typer()
    app.command("export")(export_command)
    app.command("import")(import_command)
    shown = CliRunner().invoke(app, ["export", "--help"])
    assert shown.exit_code == 0 and "dataset" in shown.output


def test_a_tree_without_rewards_is_refused():
    tree = random_tree(1)
    tree._revealed = False
    with pytest.raises(TreewrightError, match="sealed"):
        View(tree)


def test_export_needs_finished_trees(tmp_path):
    with TreeStore.open(tmp_path / "s.sqlite") as store, pytest.raises(TreewrightError, match="none of the 0"):
        export_dataset(store, tmp_path / "d", ExportOptions(file_type="jsonl"))
