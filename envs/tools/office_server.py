"""The MCP server of the suite `office`: 48 tools over an SQLite file and a folder of text files.

    python -m treewright.envs.tools.office_server --root DIR [--scratch]

speaks MCP over stdin and stdout and ends when stdin does. It opens the database for each call and closes it again, so
that the whole of DIR may be swapped between two calls.
"""

from __future__ import annotations

import argparse
import inspect
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field

from treewright.envs.tools.office_tools import KINDS, TOOLS, OfficeTool, call_tool
from treewright.envs.tools.office_world import load, write_changes
from treewright.envs.types import Effect

__all__ = ["build"]


def build(root: Path) -> MCPServer:
    """The server over the office in `root`."""
    server = MCPServer("office", log_level="ERROR")
    for tool in TOOLS.values():
        hints = ToolAnnotations(
            read_only_hint=tool.effect is Effect.READ,
            destructive_hint=tool.effect is Effect.IRREVERSIBLE,
            open_world_hint=False,
        )
        add = server.tool(name=tool.name, description=tool.description, annotations=hints, structured_output=False)
        add(_handler(tool, root))
    return server


def _handler(tool: OfficeTool, root: Path) -> Callable[..., Awaitable[CallToolResult]]:
    """A tool that answers in one line, refusals and trouble with the files included."""

    async def call(**arguments: Any) -> CallToolResult:
        try:
            before = load(root)
            after, text, failed = call_tool(before, tool.name, arguments)
            write_changes(before, after, root)
        except (OSError, ValueError, sqlite3.Error) as error:
            text, failed = f"error: {error}", True
        return CallToolResult(content=[TextContent(type="text", text=text.replace("\n", " / "))], is_error=failed)

    # The server library reads names and types of the arguments from here.
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=_type(kind))
        for name, kind in tool.arguments.items()
    ]
    call.__signature__ = inspect.Signature(parameters, return_annotation=CallToolResult)  # type: ignore[attr-defined]
    call.__name__ = tool.name
    return call


def _type(kind: str) -> Any:
    schema = KINDS[kind]
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    return Annotated[str, Field(pattern=schema["pattern"])]


def main() -> None:
    parser = argparse.ArgumentParser(description="MCP server of the office suite, over stdin and stdout.")
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
