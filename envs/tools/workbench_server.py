"""The MCP server of the suite `workbench`: a small office in an SQLite file and a folder of text files.

    python -m treewright.envs.tools.workbench_server --root DIR [--scratch]

speaks MCP over stdin and stdout and ends when stdin does. It opens the database for each call and closes it again,
so that the whole of DIR may be swapped between two calls. Answers are one short line, at most 200 characters.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult, TextContent, ToolAnnotations

from treewright.envs.tools.workbench_world import DATABASE, FILES, free_event, is_file_name

__all__ = ["build"]

LIMIT = 200  # characters of an answer
Day = Literal["mon", "tue", "wed", "thu", "fri"]
Status = Literal["open", "paid", "sent", "held"]
Tool = Callable[..., Awaitable[CallToolResult]]


class Refused(Exception):
    """A call that cannot be done; its text is the answer."""


class Desk:
    """The tools as methods; each returns its one line or raises Refused."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def base(self) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self.root / DATABASE)
        try:
            # The folder is a scratch copy: nothing here has to survive a power cut, and no journal may lie beside it.
            base.executescript("pragma synchronous=off; pragma journal_mode=memory;")
            with base:
                yield base
        finally:
            base.close()

    def row(self, base: sqlite3.Connection, table: str, column: str, key: str, what: str) -> tuple[str, ...]:
        found = base.execute(f"select * from {table} where {column} = ?", (key,)).fetchone()
        if found is None:
            raise Refused(f"no {what} {key}")
        return tuple(found)

    def path(self, name: str, *, exists: bool = True) -> Path:
        if not is_file_name(name):
            raise Refused(f"bad file name {name[:40]!r}")
        path = self.root / FILES / name
        if exists and not path.is_file():
            raise Refused(f"no file {name}")
        return path

    def find_contact(self, name: str) -> str:
        """mail and team of a person"""
        with self.base() as base:
            _, mail, team = self.row(base, "contacts", "name", name, "contact")
        return f"contact {name}: mail {mail} team {team}"

    def list_files(self) -> str:
        """names of all files"""
        return "files: " + (" ".join(sorted(path.name for path in (self.root / FILES).iterdir())) or "none")

    def read_file(self, name: str) -> str:
        """text of a file"""
        return f"file {name}: {self.path(name).read_bytes().decode()}"

    def write_file(self, name: str, text: str) -> str:
        """makes or replaces a file"""
        self.path(name, exists=False).write_bytes(text.encode())
        return f"wrote {name}"

    def append_file(self, name: str, text: str) -> str:
        """adds a line to a file"""
        path = self.path(name)
        path.write_bytes(path.read_bytes() + b"\n" + text.encode())
        return f"appended to {name}"

    def delete_file(self, name: str) -> str:
        """deletes a file for good"""
        self.path(name).unlink()
        return f"deleted {name}"

    def list_events(self, who: str) -> str:
        """events of a person"""
        with self.base() as base:
            rows = base.execute("select id, title, day from events where who = ? order by id", (who,)).fetchall()
        return f"events {who}: " + (", ".join(" ".join(row) for row in rows) or "none")

    def create_event(self, who: str, title: str, day: Day) -> str:
        """makes an event"""
        with self.base() as base:
            self.row(base, "contacts", "name", who, "contact")
            new = free_event({row[0]: None for row in base.execute("select id from events")})
            base.execute("insert into events values (?, ?, ?, ?)", (new, who, title, day))
        return f"created {new}"

    def move_event(self, id: str, day: Day) -> str:
        """moves an event to another day"""
        with self.base() as base:
            self.row(base, "events", "id", id, "event")
            base.execute("update events set day = ? where id = ?", (day, id))
        return f"moved {id} to {day}"

    def cancel_event(self, id: str) -> str:
        """takes an event out"""
        with self.base() as base:
            self.row(base, "events", "id", id, "event")
            base.execute("delete from events where id = ?", (id,))
        return f"cancelled {id}"

    def find_order(self, id: str) -> str:
        """buyer, item and status of an order"""
        with self.base() as base:
            _, buyer, item, status = self.row(base, "orders", "id", id, "order")
        return f"order {id}: buyer {buyer} item {item} status {status}"

    def update_order(self, id: str, status: Status) -> str:
        """sets the status of an order"""
        with self.base() as base:
            self.row(base, "orders", "id", id, "order")
            base.execute("update orders set status = ? where id = ?", (status, id))
        return f"order {id} is now {status}"

    def send_mail(self, to: str, subject: str) -> str:
        """sends a mail; cannot be taken back"""
        if "@" not in to:
            raise Refused(f"{to[:40]!r} is no mail address")
        with self.base() as base:
            base.execute("insert into mails values (?, ?)", (to, subject))
        return f"sent to {to}"


_READS = ("find_contact", "list_files", "read_file", "list_events", "find_order")
_CHANGES = ("write_file", "append_file", "create_event", "move_event", "cancel_event", "update_order")
_FINAL = ("send_mail", "delete_file")


def build(root: Path) -> MCPServer:
    """The server over the office in `root`."""
    server = MCPServer("workbench", log_level="ERROR")
    desk = Desk(root)
    for name in (*_READS, *_CHANGES, *_FINAL):
        hints = ToolAnnotations(read_only_hint=name in _READS, destructive_hint=name in _FINAL, open_world_hint=False)
        method = getattr(desk, name)
        server.tool(name=name, description=method.__doc__, annotations=hints, structured_output=False)(_tool(method))
    return server


def _tool(method: Callable[..., str]) -> Tool:
    """A tool that answers in one line, refusals and trouble with the files included."""

    async def call(**arguments: Any) -> CallToolResult:
        try:
            text, failed = method(**arguments), False
        except (Refused, OSError, ValueError, sqlite3.Error) as error:
            text, failed = f"error: {error}", True
        line = " / ".join(text.split("\n"))[:LIMIT]
        return CallToolResult(content=[TextContent(type="text", text=line)], is_error=failed)

    # The server library reads names and types of the arguments from here.
    signature = inspect.signature(method, eval_str=True).replace(return_annotation=CallToolResult)
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__name__ = method.__name__
    return call


def main() -> None:
    parser = argparse.ArgumentParser(description="MCP server of the workbench suite, over stdin and stdout.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the office")
    parser.add_argument("--scratch", action="store_true", help="remove the folder at the end")
    options = parser.parse_args()
    try:
        build(options.root).run("stdio")
    finally:
        if options.scratch:
            shutil.rmtree(options.root, ignore_errors=True)


if __name__ == "__main__":
    main()
