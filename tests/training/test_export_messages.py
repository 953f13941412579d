"""Conversations in OpenAI's format become chains; what is wrong with a line is named with line and field."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from not_none import not_none
from search_trees import random_tree
from typer.testing import CliRunner

from treewright.agent.cli.data import data_app
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Call
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus, Origin
from treewright.training.credit import InexactTree, estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.export import (
    ExportOptions,
    View,
    export_dataset,
    grown_trees,
    import_trees,
    sft_rows,
)
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
def write(tmp_path: Path) -> Callable[..., Any]:
    def lines(*rows: Any) -> Path:
        path = tmp_path / "talks.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return path

    return lines


def one(path: Any, **options: Any) -> Tree:
    (grown,) = grown_trees(path, **options)
    return grown.tree


def test_a_conversation_is_a_chain_with_its_calls_and_answers(write: Callable[..., Any]) -> None:
    tree = one(write(TALK))
    assert tree.parent == [-1, 0, 1, 2] and tree.task.goal == "Find cats." and tree.task.data == {"system": "Be kind."}
    assert (
        tree.action[1] == Action((Call("search", {"q": "cats"}),))
        and not_none(tree.observation[1]).text == "three cats"
    )
    assert (tree.text[2], tree.action[2], tree.error[2]) == ("There are three.", None, None)
    assert not_none(tree.observation[2]).text == "Thanks." and not_none(tree.observation[2]).provenance == "user"
    assert tree.action[3] == Action.of("answer", text="bye")
    assert tree.status[3] is NodeStatus.TERMINAL and tree.outcome_of(3) == 1.0 and tree.chosen == 3
    assert (tree.task.suite, tree.task.id, tree.header.run, tree.header.policy_version) == (
        "support", "q1", "talks", "m-1",
    )  # fmt: skip


def test_what_was_not_drawn_here_is_untrainable_and_inexact_with_a_reason(write: Callable[..., Any]) -> None:
    tree = one(write(TALK), origin="demo")
    assert set(tree.origin[1:]) == {Origin.DEMO} and not any(tree.trainable[1:]) and not any(tree.logprobs)
    assert INEXACT in tree.reasons
    with pytest.raises(InexactTree):
        estimate("split_loo", tree_arrays([tree]))
    assert not tree_arrays([tree]).trainable.any()


def test_imported_demonstrations_can_be_exported_for_fine_tuning(write: Callable[..., Any]) -> None:
    rows = list(sft_rows(View(one(write(TALK), origin="demo"))))
    assert [r["on_policy"] for r in rows] == [False] * 3 and rows[0]["origin"] == "demo"
    assert rows[0]["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert (
        rows[0]["completion"][0]["content"] == '<tool_call>{"name": "search", "arguments": {"q": "cats"}}</tool_call>'
    )


def test_unknown_rewards_stay_unknown_and_success_counts_as_one_or_zero(write: Callable[..., Any]) -> None:
    bare = {"messages": TALK["messages"]}
    first, second, third = grown_trees(write(bare, {**bare, "success": True}, {**bare, "success": False}))
    assert math.isnan(first.tree.reward(3)) and second.tree.reward(3) == 1.0 and third.tree.reward(3) == 0.0
    assert [t.tree.task.id for t in (first, second, third)] == ["talks-1", "talks-2", "talks-3"]


def test_a_goal_that_the_first_message_repeats_is_said_once(write: Callable[..., Any]) -> None:
    messages = [{"role": "user", "content": "Find a flight"}, {"role": "assistant", "content": "LX1"}]
    other = [{"role": "user", "content": "From Bern"}, *messages[1:]]
    same, more = grown_trees(write({"goal": "Find a flight", "messages": messages}, {"goal": "Fly", "messages": other}))
    assert View(same.tree).messages(0) == [{"role": "user", "content": "Find a flight"}]
    assert View(more.tree).messages(0) == [{"role": "user", "content": "Fly\n\nFrom Bern"}]


def test_what_an_assistant_says_in_two_messages_is_one_turn(write: Callable[..., Any]) -> None:
    says: Callable[..., Any] = lambda text, **more: {"role": "assistant", "content": text, **more}  # noqa: E731
    row = talk_of(says("first", reasoning_content="hm"), says("second", tool_calls=[CALL]), says("third"), says("last"))
    tree = one(write(row))
    call = '<tool_call>{"name": "search", "arguments": {"q": "cats"}}</tool_call>'
    assert tree.text[1:] == [f"<think>\nhm\n</think>\n\nfirst\n\nsecond\n{call}", "third\n\nlast"]
    assert tree.task.horizon == 2 and tree.outcome_of(2) == 1.0
    assert [m["role"] for m in View(tree).messages(1)] == ["user", "assistant", "user"]  # the call has no answer


def test_two_answers_to_words_of_the_assistant_are_both_joined_to_them(write: Callable[..., Any]) -> None:
    row = {
        "input": {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Well,"}]},
        "preferred_output": [{"role": "assistant", "content": "yes"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    assert one(write(row)).text[1:] == ["Well,\n\nyes", "Well,\n\nno"]


def test_the_same_task_again_is_another_attempt_and_thinking_is_kept(write: Callable[..., Any]) -> None:
    thinking = {"id": 1, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "go {}", "reasoning_content": "hm"}]}  # fmt: skip # noqa: E501
    first, second = grown_trees(write(thinking, thinking))
    assert (first.tree.header.attempt, second.tree.header.attempt) == (0, 1)
    assert first.tree.text[1] == "<think>\nhm\n</think>\n\ngo {}" and first.tree.action[1] == Action.of("go")


def test_parallel_calls_are_one_action_and_a_cut_episode_is_truncated(write: Callable[..., Any]) -> None:
    two = [CALL, {"id": "c2", "function": {"name": "open", "arguments": {}}}]
    talk = {"truncated": True, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": two}]}
    tree = one(write(talk))
    assert not_none(tree.action[1]).name == "search+open" and tree.status[1] is NodeStatus.TRUNCATED


def broken(**message: Any) -> dict[str, Any]:
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
        ("{", "not valid JSON"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_field(
    write: Callable[..., Any], row: dict[str, Any] | str, said: str
) -> None:
    with pytest.raises(TreewrightError, match=rf"talks\.jsonl, line 2: .*{said}"):
        list(grown_trees(write(TALK, row), kind="auto" if isinstance(row, str) else "messages"))


def test_a_wrong_line_is_left_out_by_place_and_the_others_are_imported(
    write: Callable[..., Any], tmp_path: Path
) -> None:
    odd = [broken(role="robot", content="x"), "{", "null", {**TALK, "id": "q2", "reward": float("inf")}]
    path = write(TALK, *odd, {**TALK, "id": "q3"})
    with TreeStore.open(tmp_path / "s.sqlite") as store:
        report = asyncio.run(import_trees(path, store))
        assert len(report.added) == 2 and [s.split(": ")[0].split(", ")[1] for s in report.left_out] == [
            "line 2", "line 3", "line 4", "line 5",
        ]  # fmt: skip
        again = asyncio.run(import_trees(write(TALK, {**TALK, "id": "q2"}, {**TALK, "id": "q3"}), store))
        assert (len(again.added), again.present, again.left_out) == (1, 2, [])
        with pytest.raises(TreewrightError, match="line 2"):
            asyncio.run(import_trees(write(TALK, "{"), store, strict=True))
        assert not store.check()


def test_an_import_of_wrong_lines_alone_is_refused(write: Callable[..., Any], tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "s.sqlite") as store:
        with pytest.raises(TreewrightError, match=r"line 1: not valid JSON.*\(and 1 more\)"):
            asyncio.run(import_trees(write("{", "[]"), store))
        assert store.trees() == []


def test_files_are_read_however_they_were_saved(tmp_path: Path) -> None:
    mark, talk = b"\xef\xbb\xbf", json.dumps({**TALK, "goal": "one\u2028two\x85three"}, ensure_ascii=False)
    other = talk.replace('"q1"', '"q2"')
    for raw in (
        mark + talk.encode() + b"\r\n" + mark + other.encode(),
        f"{talk}\r\n{other}".encode("utf-16"),
        f"{talk}\r{other}".encode(),
    ):
        (tmp_path / "t.jsonl").write_bytes(raw)
        found = [g.tree.task for g in grown_trees(tmp_path / "t.jsonl")]
        assert [t.id for t in found] == ["q1", "q2"] and found[0].goal == "one\u2028two\x85three"


def test_optional_fields_that_are_empty_count_as_not_given(write: Callable[..., Any]) -> None:
    empty = {"id": "", "suite": "", "split": None, "goal": "", "reward": "", "success": None, "truncated": None}
    tree = one(write({**empty, "model": "", "tools": [], "messages": TALK["messages"]}))
    assert (tree.task.id, tree.task.suite, tree.task.split, tree.task.goal) == (
        "talks-1", "imported", "train", "Find cats.",
    )  # fmt: skip
    assert tree.header.policy_version == "imported" and math.isnan(tree.reward(3)) and "tools" not in tree.task.data


def test_half_surrogates_pass_through_import_and_every_export(write: Callable[..., Any], tmp_path: Path) -> None:
    talk = json.dumps(TALK).replace("three cats", "half \\ud83d").replace("There are three.", "\\udc00 yes")
    with TreeStore.open(tmp_path / "s.sqlite") as store:
        asyncio.run(import_trees(write(talk), store))
        for style in ("conversational", "text"):
            export_dataset(store, tmp_path / style, ExportOptions(style=style))
        assert {g.tree.digest() for g in grown_trees(tmp_path / "text")} == {
            store.load(row.tree_id).digest() for row in store.trees()
        }


# -- forms of other APIs --------------------------------------------------------------------------------------------


def said(name: str, arguments: dict[str, int]) -> Action:
    return Action((Call(name, arguments),))


def talk_of(*messages: Any | dict[str, Sequence[Collection[str]]]) -> dict[str, Any]:
    return {"success": True, "messages": [{"role": "user", "content": "book a table"}, *messages]}


BOOK = {"people": 2}
FORMS = {
    "anthropic": [
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "I book it."},
            {"type": "tool_use", "id": "u1", "name": "book", "input": BOOK},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "u1", "content": [{"type": "text", "text": "table 7"}]},
        ]},
    ],
    "responses": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I book it."}]},
        {"type": "function_call", "call_id": "u1", "name": "book", "arguments": json.dumps(BOOK)},
        {"type": "function_call_output", "call_id": "u1", "output": "table 7"},
    ],
    "first form": [
        {"role": "assistant", "content": "I book it.", "reasoning_content": "hm",
         "function_call": {"name": "book", "arguments": json.dumps(BOOK)}},
        {"role": "function", "name": "book", "content": "table 7"},
    ],
    "langchain": [
        {"role": "assistant", "content": [{"type": "reasoning", "reasoning": "hm", "text": "hm"}, "I book it."],
         "tool_calls": [{"name": "book", "args": BOOK, "id": "u1", "type": "tool_call"}]},
        {"role": "tool", "tool_call_id": "u1", "content": ["table 7"]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_calls_and_their_answers_are_taken_over_whatever_api_wrote_them(write: Callable[..., Any], form: str) -> None:
    tree = one(write(talk_of(*FORMS[form], {"role": "assistant", "content": "done"})))
    acted = [i for i in range(len(tree)) if tree.action[i] is not None]
    assert [tree.action[i] for i in acted] == [said("book", BOOK)]
    assert not_none(tree.observation[acted[0]]).text == "table 7"
    assert tree.text[acted[0]].startswith("<think>\nhm\n</think>\n\nI book it.")
    assert tree.outcome_of(len(tree) - 1) == 1.0


def test_what_a_user_says_beside_an_answer_is_kept_and_images_stay_parts(write: Callable[..., Any]) -> None:
    parts = [
        {"type": "tool_result", "tool_use_id": "u1", "content": "table 7"},
        {"type": "text", "text": "and now pay"},
        {"type": "image_url", "image_url": {"url": "data:,x"}},
    ]
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "u1", "name": "book", "input": BOOK}]}
    tree = one(write(talk_of(call, {"role": "user", "content": parts}, {"role": "assistant", "content": "done"})))
    assert not_none(tree.observation[1]).text == "table 7\n\nand now pay"
    assert not_none(tree.observation[1]).parts == ({"type": "image_url", "image_url": {"url": "data:,x"}},)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "assistant", "content": [{"type": "hologram"}]}, r"messages\[1\].content\[0\].type: 'hologram'"),
        ({"role": "assistant", "content": [{"type": "image_url"}]}, r".*content\[0\].type: 'image_url'"),
        ({"role": "assistant", "content": [{"text": "x"}]}, r"messages\[1\].content\[0\]: a part is an object"),
        ({"role": "assistant", "content": [{"type": "tool_use", "input": {}}]}, r"messages\[1\].*name: Field required"),
        ({"role": "assistant", "content": []}, r"messages\[1\]: content: a message without tool_calls"),
        ({"role": "assistant", "content": None, "audio": {"id": "x"}}, r"messages\[1\]: content"),
        ("hello", r"messages\[1\]: expected an object, found str"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_by_its_place(
    write: Callable[..., Any], message: dict[str, Any] | str, named: str
) -> None:
    with pytest.raises(TreewrightError, match=f"line 1: {named}"):
        one(write(talk_of(message)))


def test_places_are_those_of_the_file_though_messages_are_taken_apart(write: Callable[..., Any]) -> None:
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "u1", "name": "book", "input": BOOK}]}
    two = [{"type": "tool_result", "tool_use_id": "u1", "content": "a"}, {"type": "text", "text": "b"}]
    row = talk_of(call, {"role": "user", "content": two}, {"role": "tool", "tool_call_id": "z", "content": "c"})
    with pytest.raises(TreewrightError, match=r"messages\[3\].tool_call_id: 'z' answers no call"):
        one(write(row))


SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}, "page": {"type": ["integer", "null"]}}}


def test_nulls_that_nobody_gave_are_left_out_by_the_tools_schema(write: Callable[..., Any]) -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": SCHEMA}}]
    call = {"role": "assistant", "tool_calls": [
        {"function": {"name": "find", "arguments": {"q": "x", "page": None, "coins": None}}},
        {"function": {"name": "other", "arguments": {"q": None}}},
    ]}  # fmt: skip
    assert not_none(one(write({**talk_of(call), "tools": tools})).action[1]).calls == (
        Call("find", {"q": "x", "page": None}), Call("other", {"q": None}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"), [({"kind": "csv"}, "no kind of import"), ({"origin": "policy"}, "neither demo nor stored")]
)
def test_wrong_arguments_are_named(write: Callable[..., Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(TreewrightError, match=said):
        list(grown_trees(write(TALK), **options))


def test_a_path_that_is_no_table_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    for path, said in ((tmp_path / "x.csv", "is none of"), (tmp_path / "gone", "no file"), (tmp_path, "holds no")):
        with pytest.raises(TreewrightError, match=said):
            list(grown_trees(path))


def test_the_commands_import_export_and_import_again(write: Callable[..., Any], tmp_path: Path) -> None:
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
def test_commands_fail_with_an_error_for_people(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(data_app, args)
    assert isinstance(result.exception, TreewrightError) and said in str(result.exception)


def test_the_commands_can_be_registered_in_another_app() -> None:
    from treewright.agent.cli.data import export_command, import_command

    app = typer.Typer()
    app.command("export")(export_command)
    app.command("import")(import_command)
    shown = CliRunner().invoke(app, ["export", "--help"])
    assert shown.exit_code == 0 and "dataset" in shown.output


def test_a_tree_without_rewards_is_refused() -> None:
    tree = random_tree(1)
    tree._revealed = False
    with pytest.raises(TreewrightError, match="sealed"):
        View(tree)


def test_export_needs_finished_trees(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "s.sqlite") as store, pytest.raises(TreewrightError, match="none of the 0"):
        export_dataset(store, tmp_path / "d", ExportOptions(file_type="jsonl"))
