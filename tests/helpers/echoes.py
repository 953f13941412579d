"""Worlds, servers and agents that hand back every secret they were given, in many spellings: inputs of the canaries."""

from __future__ import annotations

import base64
import html
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

__all__ = ["AGENT", "MCP_SERVER", "WORLD", "found_in", "made", "servers", "spelled"]

NAMES = (
    "openai_key", "anthropic_key", "hub_token", "named_key", "odd_password", "proxy_password", "gateway_key",
    "store_password", "setting_key", "config_header", "site_header", "cookie_hidden", "cookie_open", "local_storage",
    "site_login", "mcp_token", "mcp_odd", "mcp_query", "agent_secret", "server_password",
)  # fmt: skip
ODD = {
    "odd_password": "\"q\\u/<&>'=+é%",
    "mcp_odd": '/p?a=b&c<d>"e\\f',
    "config_header": "==/+",
}  # signs that others escape


def made() -> dict[str, str]:
    """Twenty canaries by name: 24 random characters, some with signs that spellings change."""
    return {name: f"cnry{secrets.token_hex(10)}{ODD.get(name, '')}" for name in NAMES}


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda s: s,
    "url": lambda s: quote(s, safe=""),
    "form": quote_plus,
    "twice": lambda s: quote(quote(s, safe=""), safe=""),
    "json": lambda s: json.dumps({"said": s}),
    "json in json": lambda s: json.dumps({"said": json.dumps({"said": s}, ensure_ascii=False)}),
    "slashes": lambda s: json.dumps(s).replace("/", "\\/"),
    "html": lambda s: html.escape(s),
    "html in json": lambda s: re.sub("[<>&'=+]", lambda c: f"\\u{ord(c[0]):04x}", json.dumps(s)),
    "hex": lambda s: s.encode().hex(),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "basic": lambda s: "Basic " + base64.b64encode(f"me:{s}".encode()).decode(),
    "longer base64": lambda s: base64.urlsafe_b64encode(f"{{'ab': '{s}', 'more': 1}}".encode()).decode(),
}


def spelled(values: dict[str, str]) -> list[str]:
    """For each spelling, a text with all of them."""
    return [" ; ".join(f"{name}: {spell(value)}" for name, value in values.items()) for spell in SPELLINGS.values()]


def found_in(raw: bytes, values: dict[str, str]) -> set[str]:
    """Names of the canaries that stand in some bytes, as they are or under layers of encoding that are undone."""
    text = raw.decode("utf-8", "replace")
    layers, now = [text], text
    for _ in range(3):
        now = _plainer(now)
        layers.append(now)
    layers += [base64.b64decode(run + "=" * (-len(run) % 4), altchars=b"-_").decode("latin-1") for run in _base64(text)]
    layers += [bytes.fromhex(run).decode("latin-1") for run in re.findall(r"(?:[0-9a-fA-F]{2}){12,}", text)]
    # The random part is enough: what stands behind it may have been cut or spelled in yet another way.
    return {name for name, value in values.items() if any(value[:24] in layer for layer in layers)}


def _base64(text: str) -> Iterator[str]:
    """Runs of base64 from each of their first four characters on, in the alphabet of addresses."""
    for run in re.findall(r"[A-Za-z0-9+/_\-]{24,}", text):
        plain = run.replace("+", "-").replace("/", "_")
        for start in range(4):
            part = plain[start:]
            yield part[: len(part) - (len(part) % 4 == 1)]


def _plainer(text: str) -> str:
    text = html.unescape(unquote(text.replace("\\/", "/")))
    return re.sub(r"\\+u([0-9a-fA-F]{4})", lambda c: chr(int(c[1], 16)), text)


WORLD = """
import json, os
from pathlib import Path
from treewright.envs import BaseEnvironment, EnvFault, Observation, StepResult, ToolSpec
from treewright.envs.types import Effect, Restore

TOLD = json.loads(Path(os.environ["ECHOES"]).read_text())
SAY = {"type": "object", "properties": {"n": {"type": "integer"}, "said": {"type": "string"}}}

class World(BaseEnvironment):
    sandboxed = True
    tools = tuple(ToolSpec(name, name, SAY, Effect.READ) for name in ("tell", "fail", "crash", "stop"))
    restore_ways = frozenset({Restore.REPLAY})

    async def reset(self, task, key):
        self.seen = [TOLD[0]]
        return Observation(self.seen[-1], str(len(self.seen)))

    async def step(self, action, key):
        n = action.arguments.get("n", 0)
        told = TOLD[n % len(TOLD)]
        if action.name == "fail":
            raise EnvFault("the line is dead: " + told)
        if action.name == "crash":
            raise RuntimeError(told)
        self.seen.append(told + action.arguments.get("said", ""))
        seen = Observation(self.seen[-1], f"{n} {len(self.seen)}")
        return StepResult(seen, reward=1.0, terminated=action.name == "stop")

def walker(task, turns, tools, rng):
    n = rng.randrange(len(TOLD))
    name = rng.choice(["tell", "tell", "tell", "fail", "crash", "stop"])
    return TOLD[n] + "\\n\\n" + name + " " + json.dumps({"n": n, "said": TOLD[(n + 1) % len(TOLD)]})

def talker(task, turns, tools, rng):
    n = rng.randrange(len(TOLD))
    return TOLD[n] + "\\n\\n" + rng.choice(["tell", "stop"]) + " " + json.dumps({"n": n, "said": TOLD[n]})

def breaks(task, turns, tools, rng):
    raise RuntimeError("a bug of a policy that holds " + " ".join(TOLD))
"""

MCP_SERVER = """
import json, os, sys
from mcp.server import MCPServer

server = MCPServer("echo")

@server.tool()
def environment() -> str:
    "What this server was started with."
    return json.dumps(dict(os.environ)) + json.dumps(sys.argv)

@server.tool()
def broken() -> str:
    "Fails with what it knows."
    raise RuntimeError(str(dict(os.environ)))

server.run()
"""

AGENT = """
import json, os, sys, urllib.request
said = [{"role": "user", "content": json.dumps(dict(os.environ))}]
print(said, file=sys.stderr)
for _ in range(2):
    body = json.dumps({"model": "m", "messages": said}).encode()
    head = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, head)) as got:
        said.append(json.load(got)["choices"][0]["message"])
    said.append({"role": "user", "content": "heads: " + str(head)})
"""


class _Echo(BaseHTTPRequestHandler):
    """A site whose pages show the request's headers, and a model server whose answers do."""

    def log_message(self, *args: object) -> None:
        pass

    def _told(self) -> str:
        return f"{self.path} {json.dumps(dict(self.headers))}"

    def _reply(self, status: int, kind: str, body: str) -> None:
        raw = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        page = (
            f"<title>echo</title><h1>{html.escape(self._told())}</h1><label>word<input name=word></label>"
            "<button onclick=\"document.title = document.querySelector('input').value\">go</button><p id=p></p><script>"
            "document.cookie = 'basket=' + 'x'.repeat(3);"
            "p.textContent = document.cookie + ' ' + JSON.stringify({...localStorage})</script>"
        )
        self._reply(200, "text/html", page)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if "sulk" in self.path:
            return self._reply(
                400, "application/json", json.dumps({"error": {"message": f"no: {self._told()} {body}"}})
            )
        said = f"tell {json.dumps({'n': 1, 'said': self._told()})}"
        answer = {
            "id": "1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }  # fmt: skip
        self._reply(200, "application/json", json.dumps(answer))


@contextmanager
def servers() -> Iterator[str]:
    """host:port of an echo server on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path
