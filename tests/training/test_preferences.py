"""OpenAI's own JSON lines read back: preference rows as trees with two ends, fine-tuning rows as conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus
from treewright.training.export import View, grown_trees
from treewright.training.export.messages import INEXACT
from treewright.training.export.peers import openai_preference, openai_sft
from treewright.training.export.rows import dpo_rows

CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"word": "tea"}'}}
FIND = {
    "type": "function",
    "function": {
        "name": "find", "description": "Finds.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}  # fmt: skip
ASKED: list[dict[str, Any]] = [
    {"role": "system", "content": "Help."},
    {"role": "user", "content": "tea?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "hot"},
]
PLAIN: dict[str, Any] = {
    "input": {"messages": [{"role": "user", "content": "How cold is it?"}], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": "Five below."}],
    "non_preferred_output": [{"role": "assistant", "content": "Cold."}],
}
LONG: dict[str, Any] = {
    "input": {"messages": ASKED, "tools": [FIND], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": "It is hot."}],
    "non_preferred_output": [{"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "call_2"}]}],
}


def trees(folder: Path, *rows: Any) -> list[Tree]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return [grown.tree for grown in grown_trees(path)]


def test_a_preference_is_a_tree_with_two_ends_of_which_one_is_better(tmp_path: Path) -> None:
    plain, tree = trees(tmp_path, PLAIN, LONG)
    assert plain.text[1:] == ["Five below.", "Cold."] and plain.parent == [-1, 0, 0] and plain.drawn[0] == 2
    assert tree.parent == [-1, 0, 1, 1] and tree.task.goal == "tea?" and not_none(tree.observation[1]).text == "hot"
    assert [tree.outcome_of(i) for i in (2, 3)] == [1.0, 0.0] and tree.chosen == 2
    assert tree.status[2:] == [NodeStatus.TERMINAL] * 2 and tree.action[3] == Action.of("find", word="tea")
    assert INEXACT in tree.reasons and not any(tree.trainable[1:])


def test_preferences_that_were_imported_are_exported_as_they_were(tmp_path: Path) -> None:
    plain, tree = trees(tmp_path, PLAIN, LONG)
    (row,) = dpo_rows(View(plain))
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("Five below.", "Cold.")
    (again,) = openai_preference(View(plain))
    assert again["preferred_output"] == PLAIN["preferred_output"]
    assert again["non_preferred_output"] == PLAIN["non_preferred_output"]
    assert again["input"]["messages"][-1] == {"role": "user", "content": "How cold is it?"}
    (couple,) = trees(tmp_path, json.loads(json.dumps(next(openai_preference(View(tree))))))
    assert couple.text[-2:] == tree.text[-2:] and [couple.outcome_of(i) for i in couple.leaves()] == [1.0, 0.0]


def test_fine_tuning_rows_are_read_with_all_their_fields(tmp_path: Path) -> None:
    said = [*ASKED[:2], {**ASKED[2], "weight": 0}, ASKED[3], {"role": "assistant", "content": "Hot.", "weight": 1}]
    row = {"messages": said, "tools": [FIND], "parallel_tool_calls": True}
    (tree,) = trees(tmp_path, {**row, "success": True})
    assert tree.action[1] == Action.of("find", word="tea") and tree.text[2] == "Hot." and tree.parent == [-1, 0, 1]
    (again,) = openai_sft(View(tree))
    (back,) = trees(tmp_path, again)
    assert back.text == tree.text and back.action == tree.action


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input": "hello"}, "input: expected an object with messages"),
        ({"input": {"messages": []}}, "input.messages: expected the messages"),
        ({"input": {"messages": [{"role": "nobody", "content": "x"}]}}, r"input\.messages\[0\]\.role"),
        ({"preferred_output": []}, "preferred_output: expected one message of the assistant"),
        ({"non_preferred_output": [{"role": "user", "content": "x"}]}, "non_preferred_output: expected one message"),
        ({"non_preferred_output": [{"role": "assistant"}]}, r"non_preferred_output\[0\]\.?.*content"),
    ],
)
def test_what_is_wrong_with_a_preference_is_named_by_its_field(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(TreewrightError, match=said):
        trees(tmp_path, {**PLAIN, **change})
