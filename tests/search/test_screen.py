"""Parsing, validating and merging what a policy wrote."""

from __future__ import annotations

import json
import random
import timeit
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import Action, Call, ToolSpec
from treewright.search.screen import merge_identical, parse_action, validate_action
from treewright.search.types import Completion

TOOLS = (
    ToolSpec(
        "search",
        "look up a relation",
        {
            "type": "object",
            "properties": {"entity": {"type": "string"}, "relation": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["entity", "relation"],
            "additionalProperties": False,
        },
    ),
    ToolSpec("answer", "give the answer", {"type": "object", "properties": {"text": {"type": "string"}}}),
    ToolSpec("look"),
)
ADA = Action.of("search", entity="ada", relation="mother")


@pytest.mark.parametrize(
    "text",
    [
        'search {"entity": "ada", "relation": "mother"}',
        ' search{"relation":"mother","entity":"ada"}\n',
        '{"name": "search", "arguments": {"entity": "ada", "relation": "mother"}}',
        '{"name": "search", "parameters": {"entity": "ada", "relation": "mother"}}',
        '{"type": "function", "function": {"name": "search", "arguments": "{\\"entity\\": \\"ada\\", '
        '\\"relation\\": \\"mother\\"}"}}',
        'I think {so}.\n<tool_call>\n{"name": "search", "arguments": {"entity": "ada", "relation": "mother"}}\n'
        "</tool_call>\n",
        '<think>maybe answer {"text": "x"}</think>\nsearch {"entity": "ada", "relation": "mother"}',
        'think {hard} <tool_call>{"name": "search", "arguments": {"entity": "ada", "relation": "mother"}}</tool_call>',
    ],
)
def test_every_spelling_gives_the_same_action(text: str) -> None:
    action = parse_action(text, TOOLS)
    validate_action(action, TOOLS)
    assert action.key == ADA.key


def test_several_tool_calls_are_one_composite_action_and_its_text_parses_back() -> None:
    call = '<tool_call>{"name": "answer", "arguments": {"text": "%s"}}</tool_call>'
    action = parse_action("both:" + call % "a" + "\n" + call % "b </tool_call> {", TOOLS)
    assert action == Action((Call("answer", {"text": "a"}), Call("answer", {"text": "b </tool_call> {"})))
    assert parse_action(str(action), TOOLS) == action


def test_a_tool_may_be_called_by_its_name_alone() -> None:
    assert parse_action(" look\n", TOOLS) == Action.of("look")
    with pytest.raises(InvalidAction, match="no action found"):
        parse_action("lock", TOOLS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write one line"),
        ("hello", "tools: search, answer, look"),
        ('search {"entity": }', "not valid JSON"),
        ('search {"entity": "ada"', "not valid JSON"),
        ('answer {"text": "a"} and more', "text after the action"),
        ('answer {"text": "a"}\nanswer {"text": "b"}', "text after the action"),
        ('<tool_call>{"name": "look"}', "not closed"),
        ('<tool_call>{"name": "look"}</tool_call> done', "text after the last"),
        ("<tool_call>[1]</tool_call>", "expected a JSON object"),
        ('{"arguments": {}}', 'no "name"'),
        ('{"name": "look", "arguments": [1]}', "must be a JSON object"),
        ('answer {"text": NaN}', "NaN"),
        ('answer {"text": 1e999}', "too large"),
        ('answer {"text": ' + "9" * 5000 + "}", "not valid JSON"),
        ('answer {"text": "\\ud800"}', "surrogate"),
        ('answer {"text": ' + "[" * 70 + "]" * 70 + "}", "nested deeper"),
        ('answer {"text": ' + "[" * 200_000, "nested deeper"),
    ],
)
def test_what_is_wrong_with_the_text_is_said(text: str, says: str) -> None:
    with pytest.raises(InvalidAction, match=says):
        parse_action(text, TOOLS)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (Action.of("serch"), "no tool named 'serch'; did you mean 'search'"),
        (Action.of("zzz"), "known: search, answer, look"),
        (Action.of("search", entity="a"), "needs the argument 'relation'; search takes entity, relation"),
        (Action.of("search", entity="a", relatoin="b"), "no argument 'relatoin'; did you mean 'relation'"),
        (Action.of("search", entity="a", relation=3), "relation: 3 is not of type 'string'"),
        (Action.of("search", entity="a", relation="b", limit="c" * 999), "limit: 'ccc"),
        (Action((Call("look"), Call("lok"))), "did you mean 'look'"),
    ],
)
def test_a_call_that_does_not_fit_its_tool_is_told_what_fits(action: Action, says: str) -> None:
    with pytest.raises(InvalidAction) as caught:
        validate_action(action, TOOLS)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_broken_schema_is_not_the_policys_fault() -> None:
    for schema in ({"type": "objekt"}, {"properties": {"x": {"$ref": "http://127.0.0.1:9/schema"}}}, {"type": object}):
        with pytest.raises(TreewrightError) as caught:
            validate_action(Action.of("t", x=1), [ToolSpec("t", "", schema)])
        assert not isinstance(caught.value, InvalidAction)


def test_schemas_that_differ_are_not_confused_when_objects_are_short_lived() -> None:
    for i in range(200):
        tools = [ToolSpec("t", "", {"properties": {"x": {"const": i}}})]
        validate_action(Action.of("t", x=i), tools)
        with pytest.raises(InvalidAction):
            validate_action(Action.of("t", x=i + 1), tools)


PIECES = [
    *'{}[]":, \n\t\\<>/', "search", "answer", "look", '{"entity"', '"ada"', "name", "arguments", "<tool_call>",
    "</tool_call>", "</think>", "function", "null", "true", "NaN", "-1e99", "\\u", "d800", "\ud800", "\x00", "é", "🦊",
    'search {"entity": "ada", "relation": "mother"}', '{"name": "look", "arguments": "{}"}', "[[[[[[[[[[[[[[[[",
]  # fmt: skip


def test_twenty_thousand_garbage_texts_raise_nothing_but_invalid_action() -> None:
    rng = random.Random(7)
    parsed = 0
    for _ in range(20_000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(1, 24)))
        try:
            action = parse_action(text, TOOLS)
            parsed += 1
            assert Action.from_key(action.key).key.encode() == action.key.encode()
            validate_action(action, TOOLS)
        except InvalidAction as error:
            str(error).encode()
    assert parsed > 50


@given(st.text(st.characters(exclude_categories=())), st.sampled_from(["", "search ", "<tool_call>", '{"name": "a", ']))
@settings(max_examples=300, deadline=None)
def test_any_text_parses_or_is_invalid(text: str, before: Any) -> None:
    try:
        parse_action(before + text, TOOLS)
    except InvalidAction as error:
        str(error).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=5,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=9), JSON, max_size=3))
@settings(max_examples=100, deadline=None)
def test_arguments_come_back_as_written(arguments: dict[str, Any]) -> None:
    for text in (
        str(Action((Call("t", arguments),))),
        "<tool_call>" + json.dumps({"name": "t", "arguments": arguments}) + "</tool_call>",
    ):
        assert parse_action(text).calls == (Call("t", arguments),)


def test_a_small_valid_action_costs_few_times_what_reading_its_json_does() -> None:
    text = 'search {"entity": "ada", "relation": "mother"}'

    def screen() -> None:
        validate_action(parse_action(text, TOOLS), TOOLS)

    screen()
    plain = text.partition(" ")[2]
    read, screened = (min(timeit.repeat(call, number=200, repeat=10)) for call in (lambda: json.loads(plain), screen))
    assert screened < 60 * read  # about 15 times: both are as fast or as slow as the machine is


def test_only_token_identical_draws_merge() -> None:
    draws = [
        Completion("look", (1, 2)), Completion("look", (12,)), Completion("look", (1, 2)), Completion("look"),
        Completion("stay"), Completion("look"), Completion("look", (1, 2)),
    ]  # fmt: skip
    assert [(slot, mult) for slot, mult, _ in merge_identical(draws)] == [(0, 3), (1, 1), (3, 2), (4, 1)]
    assert [c.text for *_, c in merge_identical(draws)] == ["look", "look", "look", "stay"]
    assert merge_identical([]) == []
