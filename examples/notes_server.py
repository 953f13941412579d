"""A small MCP server over stdio: a list of notes. Nothing of treewright is in it; see mcp_server.py."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")
notes: list[str] = []


@server.tool()
def read() -> str:
    """All notes, one a line."""
    return "\n".join(notes) or "no notes"


@server.tool()
def add(text: str) -> str:
    """Adds a note."""
    notes.append(text)
    return f"{len(notes)} notes"


if __name__ == "__main__":
    server.run()
