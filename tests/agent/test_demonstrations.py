"""Imported conversations become rows as the policy itself would read and write them: its template, its tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from treewright.agent.policies.prompts import system_text
from treewright.agent.runs.recipes import encoder_of, listed_tools, spoken_by
from treewright.envs.types import Action
from treewright.search.screen import parse_action
from treewright.search.tree import Tree
from treewright.training.export import grown_trees
from treewright.training.pack import TokenRow
from treewright.training.recipes.imitate import path_rows

from .small import compact
from .tokenizer_kinds import template, tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray


SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "search", "arguments": '{"q": "cats"}'}}]}  # fmt: skip # noqa: E501
TALK: dict[str, Any] = {
    "id": "q1",
    "reward": 1.0,
    "tools": [{"type": "function", "function": {"name": "search", "description": "look up", "parameters": SCHEMA}}],
    "messages": [
        {"role": "user", "content": "Find cats."},
        CALL,
        {"role": "tool", "tool_call_id": "c1", "content": "three cats"},
        {"role": "assistant", "content": "There are three."},
    ],
}


def rows_of(
    tmp_path: Path, tok: Any, options: dict[str, Any] | None = None, talk: dict[str, Any] = TALK
) -> tuple[Tree, list[TokenRow]]:
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk))
    (grown,) = grown_trees(tmp_path / "talks.jsonl", origin="demo")
    (rows,) = path_rows([grown.tree], encode=encoder_of(tok, options))
    return grown.tree, rows


def text(tok: Any, ids: tuple[int, ...] | NDArray[Any]) -> Any:
    return tok.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(("kind", "name"), [("llama3", "qwen2_5"), ("llama3", "llama3_1"), ("llama", "zephyr")])
def test_a_chat_template_shows_the_tools_and_actions_have_the_form_that_its_rules_ask_for(
    tmp_path: Path, kind: str, name: str
) -> None:
    tok = tokenizer(kind, template(name))
    tree, (first, second) = rows_of(tmp_path, tok)
    messages = [
        {"role": "system", "content": system_text(listed_tools(tree))},
        {"role": "user", "content": "Find cats.\n\n"},
        {"role": "assistant", "content": 'search {"q": "cats"}'},
        {"role": "user", "content": "three cats"},
    ]
    assert "- search(q: string): look up" in text(tok, first.context)
    for row, count in ((first, 2), (second, 4)):
        whole = tok.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=True)
        assert tuple(row.context) == tuple(tok.encode(whole, add_special_tokens=False))
    assert parse_action(text(tok, first.response[:-1])) == Action.of("search", q="cats")


def test_with_schemas_tools_and_calls_have_the_templates_own_form(tmp_path: Path) -> None:
    tok = tokenizer("llama3", template("qwen2_5"))
    options = {"template_options": {"tools_as": "schema"}}
    tree, (first, _) = rows_of(tmp_path, tok, options)
    said = text(tok, first.response)
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "search", "arguments": {"q": "cats"}}}]},
    ]  # fmt: skip
    rendered = tok.apply_chat_template(messages, tokenize=False, tools=tree.task.data["tools"])
    assert said in rendered and '"description": "look up"' in text(tok, first.context)
    names = tok.convert_ids_to_tokens(list(first.response))
    assert names[0] == "<tool_call>" and names[-1] == "<|im_end|>" and parse_action(said[: -len("<|im_end|>")])


def test_a_template_whose_own_calls_cannot_be_read_back_gets_blocks(tmp_path: Path) -> None:
    odd = template("qwen2_5").replace("<tool_call>", "<call>").replace("</tool_call>", "</call>")
    tok = tokenizer("llama3", odd)
    _, (first, _) = rows_of(tmp_path, tok, {"template_options": {"tools_as": "schema"}})
    assert parse_action(text(tok, first.response[:-1])) == Action.of("search", q="cats")


def test_thinking_stays_in_front_of_the_action(tmp_path: Path) -> None:
    talk = {**TALK, "messages": [TALK["messages"][0], {**CALL, "reasoning_content": "hm", "content": "I look."}]}
    tok = tokenizer("llama3", template("qwen3"))
    _, (first,) = rows_of(tmp_path, tok, None, talk)
    assert text(tok, first.response) == '<think>\nhm\n</think>\n\nsearch {"q": "cats"}<|im_end|>'
    assert tok.convert_ids_to_tokens(first.response[0]) == "<think>"


def test_the_compact_form_and_its_window_are_those_of_the_policy(tmp_path: Path) -> None:
    tok = compact()
    _, (_, second) = rows_of(tmp_path, tok, {"window": 1})
    assert text(tok, second.context) == (
        '<|task|>imported Find cats.<|obs|><|act|>search {"q": "cats"}<|end|><|obs|>three cats<|act|>'
    )


def test_what_another_policy_drew_is_imitated_in_ones_own_tokens(tmp_path: Path) -> None:
    tok = compact()
    tree, rows = rows_of(tmp_path, tok)
    nodes, last = tree.path(tree.leaves()[0])[1:], rows[-1]
    for node, row in zip(nodes, rows, strict=True):
        tree.ids[node] = row.response
    assert spoken_by(tok)(tree)
    for node in nodes:  # as a script writes
        tree.ids[node] = (*tree.text[node].encode(), 256)
    assert not spoken_by(tok)(tree)
    ((*_, again),) = path_rows([tree], encode=encoder_of(tok), spoken=spoken_by(tok))
    assert (again.context, again.response) == (last.context, last.response)
    tree.ids[nodes[0]] = (len(tok),)  # no token at all
    assert not spoken_by(tok)(tree)
