"""Argument schemas that other people wrote: one odd tool never takes the others with it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from mcp.client.stdio import StdioServerParameters
from raw_server import RAW
from speed import patient

from treewright.envs import Action, Effect, InvalidAction, Task, ToolSpec, TreewrightError
from treewright.envs.tools.mcp import MCPEnvironment
from treewright.envs.tools.mend import mend_schema
from treewright.envs.tools.schema import check_schema
from treewright.search.screen import validate_action

SERVER = (
    RAW
    + """
pages = json.loads(sys.argv[1])
seen = []

def call(name, arguments):
    if name == "grow":
        pages[0].append({"name": "new", "inputSchema": {"type": "object"}})
        print(json.dumps({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}), flush=True)
    seen.append(name)
    return f"{name} {json.dumps(arguments)}"

serve(pages, call)
"""
)
PUT = {"name": "put", "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}}


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., Coroutine[Any, Any, Any]]:
    (tmp_path / "raw.py").write_text(SERVER)

    async def start(*pages: Any, **options: Any) -> MCPEnvironment:
        arguments = [str(tmp_path / "raw.py"), json.dumps(pages)]
        env = MCPEnvironment(
            StdioServerParameters(command=sys.executable, args=arguments), deadline=patient(20), **options
        )
        await env.reset(Task("raw", "t", "go"), 0)
        return env

    return start


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


OBJECT = {**of(q={"type": "string"}), "required": ["q"]}
OLD = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        # older drafts
        ({"$schema": OLD, **of(q={"type": "array", "items": [{"type": "number"}, {"type": "string"}]})},
         {"q": [1, "a"]}, {"q": ["a", 1]}),
        ({"$schema": OLD, **of(q={"items": [{"type": "null"}], "additionalItems": False})}, {"q": [None]}, {"q": [1]}),
        (of(q={"type": "number", "minimum": 0, "exclusiveMinimum": True}), {"q": 1}, {"q": 0}),
        (of(q={"type": "string", "required": True}), {"q": "x"}, {}),
        # other dialects
        (of(q={"type": "string", "pattern": r"^\p{L}+$"}), {"q": "lampe"}, {"q": 3}),
        (of(q={"type": "string", "pattern": r"^(?<year>\d{4})$"}), {"q": "2024"}, {"q": "x"}),
        (of(q={"type": "string", "nullable": True}), {"q": None}, {"q": 3}),
        (of(q={"type": "Str"}, n={"type": "int"}), {"q": "a", "n": 1}, {"n": "x"}),
        # null where nothing was meant, and other slips
        ({**of(q={"type": "string"}), "required": None}, {"q": "x"}, {"p": "x"}),
        ({"type": "object", "properties": None}, {}, {"q": 1}),
        ({"type": "object", "properties": 3}, {"anything": 1}, None),
        (None, {}, {"q": 1}),
        ({**of(q={"type": "strin"}), "required": ["q", 3]}, {"q": object.__name__}, {}),
        (of(q="string"), {"q": 3}, {"p": 1}),
        # numbers that JSON has not, as Python's libraries send them
        (of(q={"type": "number", "default": float("nan")}), {"q": 1}, {"q": "x"}),
        (of(q={"type": "number", "minimum": -float("inf"), "maximum": float("inf")}), {"q": 1}, {"q": "x"}),
        (of(q={"type": "object", "default": {"at": [float("inf")]}}), {"q": {}}, {"q": "x"}),
        # patterns that a short text keeps busy for ever
        (of(q={"type": "string", "pattern": "^(a+)+$"}), {"q": "a" * 60 + "!"}, {"q": 3}),
        (of(q={"type": "string", "pattern": "^(?:(x*)y?)*z$"}), {"q": "x" * 60}, {"q": 3}),
        (of(q={"type": "string", "pattern": r"^[a-z]+(-[a-z]+)*$"}), {"q": "a-b"}, {"q": "a--b"}),
        # the root
        ({"type": "object", "anyOf": [{**of(id={"type": "integer"}), "required": ["id"]}, OBJECT]}, {"q": "x"}, {}),
        ({"oneOf": [{**of(do={"const": "add"}, n={"type": "integer"}), "required": ["do", "n"]},
                    {**of(do={"const": "list"}), "required": ["do"]}]}, {"do": "list"}, {"do": "drop"}),
        ({"type": "object", "allOf": [OBJECT, of(n={"type": "integer"})]}, {"q": "x", "n": 1}, {"n": 1}),
        ({"$ref": "#/definitions/A", "definitions": {"A": OBJECT}, "$schema": OLD}, {"q": "x"}, {}),
        # references
        (of(q={"$ref": "https://example.org/thing.json"}), {"q": 1}, {"p": 1}),
        ({**of(q={"$ref": "#/$defs/A"}), "$defs": {"A": {"$ref": "#/$defs/A"}}}, {"q": 1}, {"p": 1}),
        ({**of(q={"$ref": "#/$defs/T"}), "$defs": {"T": of(kids={"type": "array", "items": {"$ref": "#/$defs/T"}})}},
         {"q": {"kids": [{"kids": []}]}}, {"q": {"kids": [3]}}),
    ],
)  # fmt: skip
async def test_a_call_that_the_server_takes_goes_through_and_what_is_knowably_wrong_is_still_told(
    schema: dict[str, Any] | None,
    good: dict[str, Any],
    bad: dict[str, Any] | None,
    session: Callable[..., Coroutine[Any, Any, Any]],
) -> None:
    env = await session([{"name": "odd", "inputSchema": schema}, PUT])
    specs = await env.actions()
    Draft202012Validator.check_schema(dict(specs[0].parameters))
    json.dumps(dict(specs[0].parameters), allow_nan=False)
    action = Action.of("odd", **good)
    validate_action(action, specs)
    assert (await env.step(action, 1)).observation.text == f"odd {json.dumps(good)}"
    assert (await env.step(Action.of("put", q="x"), 1)).observation.text == 'put {"q": "x"}'
    if bad is not None:
        with pytest.raises(InvalidAction):
            await env.step(Action.of("odd", **bad), 1)
    await env.close()


async def test_tools_that_cannot_be_called_are_left_out_by_name_and_the_others_stay(
    session: Callable[..., Coroutine[Any, Any, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    tools = [
        {"name": "text", "inputSchema": {"type": "string"}},
        {"name": "job", "inputSchema": {"type": "object"}, "execution": {"taskSupport": "required"}},
        {"inputSchema": {"type": "object"}},
        "nonsense",
        {"name": "word", "inputSchema": of(q={"type": "string", "pattern": r"^\p{L}+$"}), "annotations": [1]},
        {"name": "either", "inputSchema": {"type": "object"}, "execution": {"taskSupport": "optional"}},
        {"name": "put", "inputSchema": {"type": "object"}},
        PUT,
    ]
    with caplog.at_level(logging.WARNING):
        env = await session(tools, effects={"put": Effect.READ})
    assert [spec.name for spec in await env.actions()] == ["word", "either", "put", "done"]
    said = caplog.text
    assert "the tool 'text' is not offered: it takes arguments of type 'string', not 'object'" in said
    assert "the tool 'job' runs only as a task of the server and is not offered" in said
    assert said.count("a tool without a name is not offered") == 2
    assert "the arguments of 'word' are checked without /properties/q/pattern" in said
    await env.close()


async def test_of_two_tools_with_one_name_the_worse_effect_counts(
    session: Callable[..., Coroutine[Any, Any, Any]],
) -> None:
    tools = [{**PUT, "annotations": {"readOnlyHint": True}}, {**PUT, "annotations": {"destructiveHint": True}}]
    env = await session(tools, trust_hints=True)
    first = (await env.actions())[0]
    assert (first.name, first.effect) == ("put", Effect.IRREVERSIBLE)
    await env.close()


async def test_every_page_of_tools_is_read_and_a_circle_of_pages_ends(
    session: Callable[..., Coroutine[Any, Any, Any]],
) -> None:
    env = await session([PUT], [{**PUT, "name": "two"}], [{**PUT, "name": "three"}])
    assert [spec.name for spec in await env.actions()] == ["put", "two", "three", "done"]
    await env.close()


async def test_tools_that_the_server_adds_later_are_offered_at_once_and_gone_after_a_restart(
    session: Callable[..., Coroutine[Any, Any, Any]],
) -> None:
    env = await session([{"name": "grow", "inputSchema": {"type": "object"}}])
    start = await env.snapshot()
    await env.step(Action.of("grow"), 1)
    assert [spec.name for spec in await env.actions()] == ["grow", "new", "done"]
    assert (await env.step(Action.of("new"), 2)).observation.text == "new {}"
    await env.restore(start)
    assert [spec.name for spec in await env.actions()] == ["grow", "done"]
    await env.close()


def test_whatever_is_sent_becomes_a_valid_schema_or_none() -> None:
    parts: list[Any] = [None, 3, "x", [], {}, True, [{}, 3], {"a": 1}]
    parts += [{"type": "string"}, {"type": ["object", "x"]}, {"$ref": "#"}]
    keys = ["type", "properties", "required", "items", "anyOf", "allOf", "$ref", "$defs", "enum", "pattern", "minimum",
            "additionalProperties", "patternProperties", "format", "dependentRequired", "$id", "if"]  # fmt: skip
    for key in keys:
        for part in parts:
            for schema in ({key: part}, {"type": "object", key: part}, of(q={key: part}), {"anyOf": [{key: part}]}):
                mended, notes = mend_schema(schema)
                if mended is None:
                    assert notes
                else:
                    Draft202012Validator.check_schema(mended)
                    assert mended["type"] == "object"
                    list(Draft202012Validator(mended).iter_errors({"q": 1}))
    deep: dict[str, Any] = {}
    for _ in range(3000):
        deep = of(q=deep)
    assert mend_schema(deep)[1] == ("it is nested too deeply to be read here",)


def test_a_schema_that_is_no_json_is_checked_as_it_is() -> None:
    """Schemas of Python's own tools: read-only mappings, defaults that are objects."""
    check_schema(ToolSpec("t", parameters=MappingProxyType({"type": "object"})))
    check_schema(ToolSpec("t", parameters={"properties": {"x": {"default": Path("here")}}}))
    with pytest.raises(TreewrightError, match="'t' has a broken argument schema at type"):
        check_schema(ToolSpec("t", parameters=MappingProxyType({"type": "thing"})))
