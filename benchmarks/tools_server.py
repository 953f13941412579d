"""A small MCP server for measuring its client: one tool that waits, then answers. Standard library alone.

python -I -S tools_server.py MILLISECONDS
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

TOOL = {
    "name": "wait",
    "description": "waits and says how often it was asked",
    "inputSchema": {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"]},
    "annotations": {"readOnlyHint": False, "destructiveHint": False},
}


def answer(message: dict[str, Any], seconds: float, count: int) -> dict[str, Any]:
    """The result of a request."""
    method, params = message["method"], message.get("params") or {}
    if method == "initialize":
        about = {"name": "wait", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        time.sleep(seconds)
        return {"content": [{"type": "text", "text": f"{count}: {params['arguments']['note']}"}], "isError": False}
    return {}


def main() -> None:
    seconds, count = float(sys.argv[1]) / 1000, 0
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message and "method" in message:
            count += message["method"] == "tools/call"
            if message["method"] == "server/discover":
                body: dict[str, Any] = {"error": {"code": -32601, "message": "no such method"}}
            else:
                body = {"result": answer(message, seconds, count)}
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **body}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
