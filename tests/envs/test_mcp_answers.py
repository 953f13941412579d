"""Answers that do not keep to the protocol: what the server did is done, and the policy reads what it said."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mcp.client.stdio import StdioServerParameters
from raw_server import RAW
from speed import patient

from treewright.envs import Action, Effect, Task, TreewrightError, suite
from treewright.envs.tools.asked import Answers
from treewright.envs.tools.mcp import MCPEnvironment

# Answers `odd` with the line or result that the arguments hold, and counts its calls in a file outside the process.
ODD = (
    RAW
    + """
number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
anything = {"type": "object", "additionalProperties": True}

def call(name, arguments):
    print(name, file=open(sys.argv[1], "a"), flush=True)
    if "raw" in arguments:
        ask = LAST["ask"]
        print(arguments["raw"].replace('"ID"', json.dumps(ask["id"])), flush=True)
        raise Answered
    return arguments.get("result", "fine")

serve([{"name": "odd", "inputSchema": anything, "outputSchema": number if "strict" in sys.argv else None},
       {"name": "put", "inputSchema": anything}], call)
"""
)
LONG = hashlib.sha256(b"AAAA" * 1000).hexdigest()[:16]
ENVELOPE = '{"jsonrpc": "2.0", "id": "ID", "result": %s}'


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Callable[..., Coroutine[Any, Any, Any]]]:
    (tmp_path / "odd.py").write_text(ODD)
    opened = []

    async def start(*words: Any, **options: Any) -> MCPEnvironment:
        arguments = [str(tmp_path / "odd.py"), str(tmp_path / "calls"), *words]
        env = MCPEnvironment(
            StdioServerParameters(command=sys.executable, args=arguments), deadline=patient(20), **options
        )
        await env.reset(Task("odd", "t", "go"), 0)
        opened.append(env)
        return env

    yield start
    calls = (tmp_path / "calls").read_text().split() if (tmp_path / "calls").exists() else []
    assert calls.count("odd") == len(opened), "every call is made once"


async def odd(env: Any, **arguments: Any) -> tuple[Any, Any]:
    """What the odd answer is shown as; the session must live on."""
    shown = (await env.step(Action.of("odd", **arguments), 1)).observation
    assert (await env.step(Action.of("put"), 2)).observation.text == "fine"
    await env.close()
    return shown.provenance, shown.text


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}], **more}


@pytest.mark.parametrize(
    ("result", "provenance", "shown"),
    [
        (text("3 found", structuredContent={"n": 3}), "tool", '3 found\n{"n": 3}'),
        (text("3 found"), "tool", "3 found"),
        (
            text("found it", structuredContent={"n": "three"}),
            "error",
            "found it\nerror: odd was called and answered, but its content does not fit its output schema at n: "
            "'three' is not of type 'integer'",
        ),
        (
            {"structuredContent": {}},
            "error",
            "error: odd was called and answered, but its content does not fit its output schema: "
            "'n' is a required property\n{}",
        ),
        (text("no such page", isError=True, structuredContent={"code": 1}), "error", 'no such page\n{"code": 1}'),
    ],
)
async def test_content_that_does_not_fit_the_output_schema_is_an_error_shown_and_no_fault(
    session: Callable[..., Coroutine[Any, Any, Any]], result: dict[str, Any], provenance: str, shown: str
) -> None:
    assert await odd(await session("strict"), result=result) == (provenance, shown)


@pytest.mark.parametrize(
    ("line", "provenance", "shown"),
    [
        (
            ENVELOPE % '{"content": [{"type": "text", "text": "x"}], "structuredContent": {"score": [1, NaN]}}',
            "error",
            "x\nerror: odd was called and answered, but its content is no JSON: nan at score.1",
        ),
        (ENVELOPE % r'{"content": [{"type": "text", "text": "half \ud83d pair"}]}', "tool", "half ? pair"),
        (ENVELOPE % '{"content": [{"type": "text", "text": "cut"}]', "error", "error: its answer cannot be read"),
        (ENVELOPE % '["a", "b"]', "tool", "a\nb"),
        (ENVELOPE % '"said"', "tool", "said"),
        (ENVELOPE % '{"content": [{"type": "text", "text": 5}, {"type": "widget", "html": "<b>"}]}', "tool",
         '5\n{"type": "widget", "html": "<b>"}'),
        ('{"jsonrpc": "2.0", "id": "ID", "error": {"code": -32603}}', "error", "error: the server gave no reason"),
        ('{"jsonrpc": "2.0", "id": "ID", "error": {"code": -32000, "message": "Connection closed"}}', "error",
         "error: Connection closed"),
        ('DEBUG {"id": 1}\n{"level": "info", "id": 99}\n' + ENVELOPE % '{"content": []}', "tool", ""),
    ],
)  # fmt: skip
async def test_a_line_that_is_no_message_of_the_protocol_is_read_as_far_as_it_can_be(
    session: Callable[..., Coroutine[Any, Any, Any]], line: str, provenance: str, shown: str
) -> None:
    found = await odd(await session(), raw=line)
    assert found[0] == provenance and found[1].startswith(shown)


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        (
            {"type": "resource_link", "uri": "file:///srv/report.md", "name": "report.md", "description": "the report",
             "mimeType": "text/markdown", "size": 12},
            "[resource report.md <file:///srv/report.md> text/markdown 12 bytes: the report]",
        ),
        (
            {"type": "resource", "resource": {"uri": "file:///a.bin", "blob": "AAAA"}},
            "[resource <file:///a.bin> application/octet-stream 3 bytes base64 AAAA]",
        ),
        (
            {"type": "resource", "resource": {"uri": "file:///b.bin", "blob": "AAAA" * 1000}},
            f"[resource <file:///b.bin> application/octet-stream 3000 bytes sha256 {LONG} of the base64]",
        ),
        ({"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}, "[audio audio/wav 3 bytes base64 AAAA]"),
        ({"type": "resource", "resource": {"uri": "file:///t", "text": "inside"}}, "inside"),
    ],
)  # fmt: skip
async def test_links_and_blobs_stay_in_the_observation(
    session: Callable[..., Coroutine[Any, Any, Any]], block: dict[str, Any], shown: str
) -> None:
    assert await odd(await session(), result={"content": [block]}) == ("tool", shown)


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (text("1 row", structuredContent={"rows": [{"id": 7}]}), '1 row\n{"rows": [{"id": 7}]}'),
        (text("5", structuredContent={"result": 5}), "5"),
        (text("a\nb", structuredContent={"content": "a\nb"}), "a\nb"),
        (text('{"a": 1}', structuredContent={"a": 1}), '{"a": 1}'),
        (
            {"content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
             "structuredContent": {"result": ["x", "y"]}},
            "x\ny",
        ),
    ],
)  # fmt: skip
async def test_structured_content_is_shown_where_the_text_does_not_say_it(
    session: Callable[..., Coroutine[Any, Any, Any]], result: dict[str, Any], shown: str
) -> None:
    assert await odd(await session(), result=result) == ("tool", shown)


ASKING = (
    RAW
    + """
form = {"type": "object", "properties": {"ok": {"type": "boolean"}, "why": {"type": "string"}}, "required": ["ok"]}
asks = {"form": {"method": "elicitation/create", "params": {"message": "sure?", "requestedSchema": form}},
        "write": {"method": "sampling/createMessage", "params": {"maxTokens": 5, "messages": [
            {"role": "user", "content": {"type": "text", "text": "hi"}}]}}}

def call(name, arguments):
    print(json.dumps({"jsonrpc": "2.0", "id": "q", **asks[name]}), flush=True)
    reply = json.loads(sys.stdin.readline())
    said = reply.get("result") or reply["error"]
    return json.dumps({"told": LAST["capabilities"], "said": said})

serve([{"name": name, "inputSchema": {"type": "object"}} for name in asks], call)
"""
)


def brief(asked: Any) -> str:
    return f"{asked['messages'][0]['content']['text']} yourself"


def broken(asked: Any) -> None:
    raise KeyError("no model")


@pytest.mark.parametrize(
    ("answers", "tool", "told", "said"),
    [
        (None, "form", [], "not supported"),
        (None, "write", [], "not supported"),
        (Answers({"ok": True}), "form", ["elicitation"], '"content": {"ok": true}'),
        (Answers({"sure": True}), "form", ["elicitation"], '"action": "decline"'),
        (Answers(writer=brief), "write", ["sampling"], "hi yourself"),
        (Answers(writer=broken), "write", ["sampling"], "no model"),
    ],
)
async def test_a_server_that_asks_back_is_answered_as_declared_and_refused_otherwise(
    answers: Answers | None, tool: str, told: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "asking.py").write_text(ASKING)
    server = StdioServerParameters(command=sys.executable, args=[str(tmp_path / "asking.py")])
    env = MCPEnvironment(server, answers=answers, effects={"form": Effect.READ}, deadline=patient(20))
    await env.reset(Task("asking", "t", "go"), 0)
    shown = (await env.step(Action.of(tool), 1)).observation.text
    await env.close()
    assert sorted(json.loads(shown)["told"]) == told and said in shown


async def test_a_server_file_declares_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "asking.py").write_text(ASKING)
    (tmp_path / "writers_here.py").write_text("def write(asked):\n    return f'at most {asked[\"maxTokens\"]}'\n")
    command = f"command = {shlex.join([sys.executable, str(tmp_path / 'asking.py')])!r}\nsandboxed = true\n"
    (tmp_path / "s.toml").write_text(f'{command}elicit = {{ok = false}}\nsampling = "writers_here:write"\n')
    env = await suite(f"mcp:{tmp_path}/s.toml").open()
    await env.reset(Task("asking", "t", "go"), 0)
    assert '{"ok": false}' in (await env.step(Action.of("form"), 1)).observation.text
    assert "at most 5" in (await env.step(Action.of("write"), 1)).observation.text
    await env.close()
    (tmp_path / "s.toml").write_text(f'{command}sampling = "writers_here:wrote"\n')
    with pytest.raises(TreewrightError, match=r"field 'sampling' = 'writers_here:wrote'.* did you mean 'write'"):
        suite(f"mcp:{tmp_path}/s.toml")


class Over(BaseHTTPRequestHandler):
    """A server over HTTP that answers every call with `line`."""

    line = ""

    def do_POST(self) -> None:
        ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "id" not in ask:
            self.send_response(202)
            self.end_headers()
            return
        start = {"capabilities": {"tools": {}}, "serverInfo": {"name": "over", "version": "0"}}
        results = {
            "initialize": start | {"protocolVersion": "2025-06-18"},
            "tools/list": {"tools": [{"name": "odd", "inputSchema": {"required": None}, "outputSchema": NUMBER}]},
        }
        answer = {"jsonrpc": "2.0", "id": ask["id"]}
        if ask["method"] in results:
            text = json.dumps(answer | {"result": results[ask["method"]]})
        elif ask["method"] == "tools/call":
            text = self.line.replace('"ID"', json.dumps(ask["id"]))
        else:
            text = json.dumps(answer | {"error": {"code": -32601, "message": "no such method"}})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        self.send_response(405)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("result", "provenance", "shown"),
    [
        ('{"content": [{"type": "text", "text": "3"}]}', "tool", "3"),
        ('{"content": [{"type": "text", "text": "x"}], "structuredContent": {"n": "x"}}', "error", "x\nerror: odd was"),
        ('{"content": [{"type": "text", "text": "x"}], "structuredContent": {"n": NaN}}', "error", "x\nerror: odd was"),
        (r'{"content": [{"type": "text", "text": "half \ud83d pair"}]}', "error", "error: Failed to parse"),
    ],
)
async def test_declared_answers_are_checked_behind_a_url_too(result: str, provenance: str, shown: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Now", (Over,), {"line": ENVELOPE % result}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = MCPEnvironment(f"http://127.0.0.1:{server.server_port}/mcp", deadline=patient(20))
    try:
        await env.reset(Task("over", "t", "go"), 0)
        for key in (1, 2):
            found = (await env.step(Action.of("odd"), key)).observation
            assert found.provenance == provenance and found.text.startswith(shown)
    finally:
        await env.close()
        server.shutdown()
        server.server_close()
