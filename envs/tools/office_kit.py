"""What the tools of the suite `office` are made of: pure functions from one office to the next, schemas of arguments.

The MCP server and the session without a server call the same functions. A call that cannot be done raises Refused.
Every kind of value has a form of its own (k12 an order, #late a topic, notes.txt a file), and schemas say which form
an argument takes: so it shows in a text what could be an argument of what.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from treewright.envs.tools.office_world import COLUMNS, DAYS, STATUSES, Office, update
from treewright.envs.types import Effect, ToolSpec

__all__ = [
    "CHANGE",
    "FINAL",
    "KINDS",
    "READ",
    "TOOLS",
    "OfficeTool",
    "Refused",
    "call_tool",
    "file_of",
    "keys_where",
    "line_of",
    "office_tool",
    "row_of",
    "schema_of",
    "with_file",
    "with_mail",
    "with_values",
]

KINDS: Mapping[str, Mapping[str, Any]] = {
    "person": {"type": "string", "pattern": "^[A-Z][a-z]+$"},
    "mail": {"type": "string", "pattern": "^[a-z0-9]+@corp\\.io$"},
    "team": {"type": "string", "pattern": "^team-[a-z]+$"},
    "file": {"type": "string", "pattern": "^[a-z]+\\.txt$"},
    "topic": {"type": "string", "pattern": "^#[a-z]+$"},
    "text": {"type": "string", "pattern": "^(#[a-z]+|[a-z]+-[0-9a-z]+|[A-Z][a-z]+)$"},
    "day": {"type": "string", "enum": list(DAYS)},
    "status": {"type": "string", "enum": list(STATUSES)},
    "event": {"type": "string", "pattern": "^e[0-9]{1,2}$"},
    "room": {"type": "string", "pattern": "^r[1-4]$"},
    "order": {"type": "string", "pattern": "^k[0-9]{2}$"},
    "invoice": {"type": "string", "pattern": "^i[0-9]{2}$"},
    "ticket": {"type": "string", "pattern": "^t[0-9]{2}$"},
    "message": {"type": "string", "pattern": "^m[0-9]$"},
    "project": {"type": "string", "pattern": "^p[0-9]{2}$"},
}
"""JSON schemas of the kinds of argument."""

Run = Callable[..., tuple[Office, str]]


class Refused(Exception):
    """A call that cannot be done; its text is the answer."""


@dataclass(frozen=True, slots=True)
class OfficeTool:
    """One tool: arguments by name with their kind, and (office, **arguments) → (office, answer)."""

    name: str
    description: str
    arguments: Mapping[str, str]
    effect: Effect
    run: Run

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(self.name, self.description, schema_of(self), self.effect)


TOOLS: dict[str, OfficeTool] = {}


def schema_of(tool: OfficeTool) -> dict[str, Any]:
    """JSON schema of the tool's arguments, all of them required."""
    properties = {name: dict(KINDS[kind]) for name, kind in tool.arguments.items()}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def call_tool(office: Office, name: str, arguments: Mapping[str, str]) -> tuple[Office, str, bool]:
    """The office after a call, the answer, and whether it was refused (then nothing changed)."""
    try:
        after, text = TOOLS[name].run(office, **arguments)
    except Refused as refused:
        return office, f"error: {refused}", True
    return after, text, False


def office_tool(effect: Effect, **arguments: str) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        name = run.__name__.removesuffix("_")
        TOOLS[name] = OfficeTool(name, inspect.getdoc(run) or name, arguments, effect, run)
        return run

    return add


READ, CHANGE, FINAL = Effect.READ, Effect.REVERSIBLE, Effect.IRREVERSIBLE
NOUNS = {
    "people": "person", "events": "event", "orders": "order", "invoices": "invoice", "tickets": "ticket",
    "messages": "message", "projects": "project",
}  # fmt: skip


def row_of(office: Office, table: str, key: str) -> tuple[str, ...]:
    row = office.tables[table].get(key)
    if row is None:
        raise Refused(f"no {NOUNS[table]} {key}")
    return row


def with_values(office: Office, table: str, key: str, **values: str) -> Office:
    row = dict(zip(COLUMNS[table], row_of(office, table, key), strict=True)) | values
    return update(office, table, key, tuple(row.values()))


def line_of(office: Office, table: str, key: str) -> str:
    said = " ".join(f"{k} {v}" for k, v in zip(COLUMNS[table], row_of(office, table, key), strict=True))
    return f"{NOUNS[table]} {key}: {said}".replace("orders ", "order ")


def keys_where(office: Office, table: str, column: str, value: str) -> list[str]:
    at = COLUMNS[table].index(column)
    return sorted(key for key, row in office.tables[table].items() if row[at] == value)


def file_of(office: Office, name: str) -> str:
    if name not in office.files:
        raise Refused(f"no file {name}")
    return office.files[name]


def with_file(office: Office, name: str, text: str) -> Office:
    return replace(office, files={**office.files, name: text})


def with_mail(office: Office, to: str, topic: str) -> Office:
    key = f"{to} {topic}"
    times = int(office.tables["sent"].get(key, ("0",))[0]) + 1
    return update(office, "sent", key, (str(times),))
