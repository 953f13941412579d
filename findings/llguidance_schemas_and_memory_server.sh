#!/bin/bash
# 1. llguidance refuses a whole grammar for a schema that JSON Schema 2020-12 allows: an unknown `format` (an annotation,
#    to be ignored), `uniqueItems`; `lenient` helps there, but not with a look-ahead in `pattern`.
# 2. The memory server of npm keeps its graph beside its own code: another process, started elsewhere, shows it.
# Exits 1 if that changes. Needs python3 and npm.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet mcp==2.3.0 llguidance==1.9.1 2> /dev/null
npm install --silent --no-fund --no-audit @modelcontextprotocol/server-memory@2026.8.31
cat > grammar.py <<'P'
import json, sys
from importlib.metadata import version
from llguidance import LLMatcher, LLTokenizer
print("llguidance", version("llguidance"))
tokens = LLTokenizer("byte")
def works(schema, **options):
    return not LLMatcher(tokens, "start: %json " + json.dumps({"x-guidance": options, **schema})).is_error()
seen = {
    "unknown format": works({"type": "string", "format": "phone"}),
    "uniqueItems": works({"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
    "unknown format, lenient": works({"type": "string", "format": "phone"}, lenient=True),
    "look-ahead, lenient": works({"type": "string", "pattern": "^(?!x)a+$"}, lenient=True),
    "multipleOf": works({"type": "number", "multipleOf": 0.01}),
}
print(seen)
sys.exit([*seen.values()] != [False, False, True, False, True])
P
cat > memory.py <<'P'
import asyncio, os, sys, tempfile
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
SERVER = os.path.abspath("node_modules/.bin/mcp-server-memory")
async def told(name, arguments):
    place = StdioServerParameters(command=SERVER, cwd=tempfile.mkdtemp(dir="."))
    async with Client(stdio_client(place)) as client:
        return (await client.call_tool(name, arguments)).content[0].text
async def main():
    print("server-memory 2026.8.31, first process:", (await told("read_graph", {}))[:40].split())
    await told("create_entities", {"entities": [{"name": "ada", "entityType": "person", "observations": []}]})
    again = await told("read_graph", {})
    print("another process in another folder:", again.split())
    kept = [os.path.join(p, f) for p, _, files in os.walk("node_modules") for f in files if f.startswith("memory.json")]
    print("kept in", kept)
    return "ada" not in again or not kept
sys.exit(asyncio.run(main()))
P
venv/bin/python grammar.py
venv/bin/python memory.py
