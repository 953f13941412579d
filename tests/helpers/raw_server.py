"""MCP servers over stdio written by hand, a line at a time: ten times faster to start, and able to break the rules."""

RAW = """
import json, os, sys

LAST = {"capabilities": {}}  # what the client said of itself, and its last request

class Answered(Exception):
    pass  # a call that wrote its answer itself

def serve(tools, call=None):
    # Tools in a list, or in pages of lists, the last of which leads back to the first
    for line in sys.stdin:
        ask = LAST["ask"] = json.loads(line)
        if "id" not in ask:
            continue
        answer = {"jsonrpc": "2.0", "id": ask["id"]}
        if ask["method"] == "initialize":
            LAST["capabilities"] = ask["params"]["capabilities"]
            answer["result"] = {"protocolVersion": ask["params"]["protocolVersion"], "capabilities": {"tools": {}},
                                "serverInfo": {"name": "raw", "version": "0"}}
        elif ask["method"] == "tools/list":
            page = int((ask.get("params") or {}).get("cursor") or 0)
            paged = bool(tools) and isinstance(tools[0], list)
            answer["result"] = {"tools": tools[page] if paged else tools}
            if paged and len(tools) > 1:
                answer["result"]["nextCursor"] = str((page + 1) % len(tools))
        elif ask["method"] == "tools/call":
            try:
                said = call(ask["params"]["name"], ask["params"].get("arguments") or {})
            except Answered:
                continue
            answer["result"] = said if isinstance(said, dict) else {"content": [{"type": "text", "text": said}]}
        else:
            answer["error"] = {"code": -32601, "message": "no such method"}
        print(json.dumps(answer), flush=True)
"""
