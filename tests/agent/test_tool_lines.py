"""What a policy reads of a tool's arguments: the types that pydantic, FastMCP and hand-written servers send."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from treewright.agent.policies.prompts import system_text
from treewright.envs.types import ToolSpec


class Size(BaseModel):
    name: str
    size: Literal["s", "m"] = "s"


class Tree(BaseModel):
    kids: list[Tree] = Field(default_factory=list)


def line(schema: dict[str, Any]) -> str:
    return system_text([ToolSpec("find", "finds", schema)]).split("Tools:\n")[1]


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ((str | None, None), "q?: string|null"),
        ((int | float, ...), "q: integer|number"),
        ((list[str], ...), "q: string[]"),
        ((list[int | None], ...), "q: (integer|null)[]"),
        ((Size, ...), "q: {name: string, size?: s|m}"),
        ((list[Size] | None, None), "q?: {name: string, size?: s|m}[]|null"),
        ((Literal["a"], ...), "q: a"),
        ((tuple[int, str], ...), "q: [integer, string]"),
        ((Tree, ...), "q: {kids?: object[]}"),
        ((dict[str, int], ...), "q: object"),
        ((object, ...), "q: any"),
    ],
)
def test_a_type_as_pydantic_writes_it_is_shown_in_a_few_words(kind: Any, shown: str) -> None:
    assert line(create_model("Arguments", q=kind).model_json_schema()) == f"- find({shown}): finds"


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ({"type": ["integer", "null"]}, "integer|null"),
        ({"oneOf": [{"const": 1}, {"type": "string"}]}, "1|string"),
        ({"anyOf": [{}, {"type": "string"}]}, "any"),
        ({"allOf": [{"type": "string"}]}, "string"),
        ({"$ref": "#/nowhere"}, "any"),
        (True, "any"),
        ({"type": "array"}, "array"),
    ],
)
def test_other_spellings_of_a_type_are_understood(kind: dict[str, Any] | bool, shown: str) -> None:
    assert line({"type": "object", "properties": {"q": kind}}) == f"- find(q?: {shown}): finds"
