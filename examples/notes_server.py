"""A small MCP server over stdio: a list of notes in a file. Nothing of treewright is in it; see mcp_server.py."""

from __future__ import annotations

import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")
notes = Path(sys.argv[1])


@server.tool()
def read() -> str:
    """All notes, one a line."""
    return notes.read_text()


@server.tool()
def add(text: str) -> str:
    """Adds a note."""
    notes.write_text(f"{notes.read_text()}{text}\n")
    return f"{len(notes.read_text().splitlines())} notes"


if __name__ == "__main__":
    server.run()
