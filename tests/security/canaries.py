"""Twenty canaries, given to every door that takes a secret and handed back by every world, and where they turn up.

    python -P tests/security/canaries.py [--quick] [--json FILE]

The canaries come in by the environment, settings on the line and in a file, passwords of addresses and proxies, headers
and cookies of a site, a login, variables of MCP servers and of agents, and the gateway's key. The worlds, model servers
and agents of `tests/helpers/echoes.py` answer with all of them, plain and in twelve spellings, as observations,
answers, faults, errors and crashes. Looked through: every file of the runs (stores row by row), what commands print,
what the viewer and the gateway answer, exports in every format, and the command lines of all processes meanwhile. Files
that must hold canaries, as a site's login does, are the input and lie outside.

Without --quick also a loop that trains, PostgreSQL and both halves of the spellings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import forked
from echoes import AGENT, MCP_SERVER, WORLD, found_in, made, servers, spelled, write

from treewright.agent.runs.figures import write_figures
from treewright.search.store import TreeRow, TreeStore

__all__ = ["Look", "look_through", "main", "sweep"]

PATIENCE = 240.0
MASK = b"[redacted]"
SMALL = ("--set", "search.expansions=4", "--set", "search.retries=0", "--set", "search.max_tokens=4000")
COMMAND = [sys.executable, "-P", "-m", "treewright"]


@dataclass(slots=True)
class Look:
    """Where what was found: {sink: names}. Every sink that was looked at has an entry, also an empty one."""

    values: Mapping[str, str]
    sinks: dict[str, set[str]] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # of what was expected to hold something, and held nothing

    def at(self, sink: str, raw: bytes | str, where: str = "") -> None:
        found = found_in(raw.encode("utf-8", "replace") if isinstance(raw, str) else raw, dict(self.values))
        self.sinks.setdefault(sink, set()).update(found)
        if found:
            self.where.append(f"{sink} {where}: {', '.join(sorted(found))}")

    @property
    def hits(self) -> int:
        return sum(len(found) for found in self.sinks.values())


def look_through(look: Look, folder: Path) -> None:
    """Every file of a folder; databases row by row, packed bytes unpacked."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sink = {"run.toml": "run.toml", "metrics.jsonl": "metrics"}.get(path.name, _sink(path, folder))
        raw = path.read_bytes()
        look.at(sink, str(path.relative_to(folder)), "a file's name")
        look.at(sink, raw, str(path.relative_to(folder)))
        if raw.startswith(b"SQLite format 3"):
            _rows(look, path)
        elif path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            look.at(sink, json.dumps(parquet.read_table(path).to_pylist(), default=str), path.name)


def _sink(path: Path, folder: Path) -> str:
    top = path.relative_to(folder).parts[0]
    return top if top in ("exports", "pages") else "store" if "sqlite" in path.name else "other files"


def read_trees(path: Path) -> Sequence[TreeRow]:
    with TreeStore.open(path, read_only=True) as store:
        return store.trees()


def _rows(look: Look, path: Path) -> None:
    for table, cells in cells_of(path):
        look.at("store", b"\n".join(cells), f"{path.name} {table}")


def cells_of(path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Every row of every table, unpacked."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        store.text_factory = bytes
        tables = [row[0].decode() for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in store.execute(f'SELECT * FROM "{table}"'):
                cells = [cell if isinstance(cell, bytes) else str(cell).encode() for cell in row]
                yield table, [_unpacked(cell) for cell in cells]


def _unpacked(cell: bytes) -> bytes:
    with contextlib.suppress(zlib.error):
        return cell + b"\n" + zlib.decompress(cell)
    return cell


class Processes:
    """Looks at the command lines of this process's descendants until it is left."""

    def __init__(self, look: Look) -> None:
        self.look, self.seen, self.over = look, set[bytes](), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Processes:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.look.at("processes", b"\n".join(self.seen), "a command line")

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            above, lines = {}, {}
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    pid = int(stat.parent.name)
                    above[pid] = int(stat.read_text().rpartition(")")[2].split()[1])
                    lines[pid] = (stat.parent / "cmdline").read_bytes()
            mine = {os.getpid()}
            for _ in range(8):
                mine |= {pid for pid, up in above.items() if up in mine}
            self.seen |= {lines.get(pid, b"") for pid in mine - {os.getpid()}}


@dataclass(slots=True)
class Stage:
    """A folder for the runs, one for the inputs, the environment of commands, and what is looked at."""

    home: Path
    given: Path
    env: dict[str, str]
    look: Look
    echo: str  # host:port of the echo server
    ran: int = 0

    def treewright(self, *words: str, ok: Sequence[int] = (0,), **more: str) -> str:
        """One command line, forked, so that what is typed stands in no process list; its output is a sink."""
        began = time.monotonic()
        done = forked.treewright(words, self.home, self.env | more, PATIENCE)
        print(f"{time.monotonic() - began:6.1f} s, {done.returncode}  {' '.join(words[:5])}", file=sys.stderr)
        told = done.stdout + done.stderr
        self.look.at("crashes" if "Traceback" in told else "errors" if "error: " in told else "logs", told, words[0])
        if done.returncode not in ok:
            raise RuntimeError(f"{' '.join(words[:3])} ended with {done.returncode}:\n{told[-2000:]}")
        self.ran += 1
        return told

    def file(self, name: str, text: str) -> str:
        return str(write(self.given / name, text))

    def grown(self, name: str, told: bool = True) -> None:
        """Notes a run that shows nothing: without a step, or without a secret that came as far as its store."""
        path = self.home / "runs" / name / "trees.sqlite"
        steps = sum(row.nodes - 1 for row in read_trees(path)) if path.exists() else 0
        if not steps:
            self.look.empty.append(f"the run {name} took no step")
        elif told and not any(MASK in cell for _, cells in cells_of(path) for cell in cells):
            self.look.empty.append(f"nothing was left out of what the run {name} stored: no secret came there")


def line_of(stage: Stage, values: Mapping[str, str], *words: str) -> list[str]:
    """A line in the echoing world, with secrets in a file of settings and on the line."""
    header = json.dumps("Bearer " + values["config_header"])
    config = stage.file("cfg.toml", f"[worlds.web.headers]\nAuthorization = {header}\n")
    extra = f"worlds.web.extra={json.dumps({'api_key': values['setting_key']})}"
    return [*words, "--tasks-file", stage.file("tasks.jsonl", TASKS), *SMALL, "--config", config, "--set", extra]


def worlds(stage: Stage, values: Mapping[str, str]) -> None:
    """A world and a policy that say everything, with secrets in settings; all that is made of such a run."""
    line = line_of(stage, values, "collect", "--name", "said", "--suites", "echo_world:World")
    stage.treewright(*line, "--policy", "scripted:echo_world:walker")
    stage.grown("said")
    stage.treewright("show", "--name", "said")
    told = line_of(stage, values, "collect", "--name", "told", "--suites", "echo_world:World")
    stage.treewright(*told, "--policy", "scripted:echo_world:talker")
    stage.grown("told")
    for style in ("conversational", "text"):
        stage.treewright("export", f"exports/{style}", "--name", "told", "--formats", "sft,dpo,prm,prefix,atif,raw",
                         "--style", style, "--file-type", "jsonl", "--paths", "all")  # fmt: skip
    stage.treewright("view", "said", "--html", "pages/said.html")
    run = line_of(stage, values, "run", "echo_world:World/a")
    stage.treewright(*run, "--policy", "scripted:echo_world:walker", "--html", "pages/run.html", ok=(2,))  # no success
    stage.treewright(*run, "--policy", "scripted:echo_world:breaks", ok=(2,))
    stage.treewright("collect", "--name", "away", "--suites", "maze", "--tasks", "1",
                     "--set", f"store=postgresql://me:{values['store_password']}@127.0.0.1:9/t", ok=(2,))  # fmt: skip


TASKS = "".join(
    json.dumps({"id": name, "goal": f"go {name}", "split": "test" if name == "a" else "train"}) + "\n"
    for name in "abcd"
)


def models(stage: Stage, values: Mapping[str, str]) -> None:
    """A model server that quotes the request's headers in its answers and in its refusals."""
    for where, name, code in (("v1", "asked", 0), ("sulk/v1", "refused", 2)):
        spec = f"openai:m@http://me:{values['server_password']}@{stage.echo}/{where}"
        line = line_of(stage, values, "collect", "--name", name, "--suites", "echo_world:World", "--policy", spec)
        options = 'policy.options={"api_key_env": "SHOP_LOGIN", "deadline": 3}'
        stage.treewright(*line, "--set", options, SHOP_LOGIN=values["named_key"], ok=(code,))
    stage.grown("asked")


def tools(stage: Stage, values: Mapping[str, str]) -> None:
    """An MCP server that shows its environment; and one behind an address with a key in it, which is not there."""
    script = stage.file("server.py", MCP_SERVER)
    env = f"[env]\nAPI_TOKEN = {json.dumps(values['mcp_token'])}\nODD_SECRET = {json.dumps(values['mcp_odd'])}\n"
    head = f"command = {json.dumps(f'{sys.executable} -P {script}')}\n"
    head += "trust_hints = true\nsandboxed = true\nprobe = false\n"
    stage.file("shop.toml", head + env)
    stage.file("far.toml", f'url = "http://127.0.0.1:9/mcp?api_key={values["mcp_query"]}"\n')
    for name, code in (("shop", 0), ("far", 2)):
        stage.treewright("collect", "--name", name, "--suites", f"mcp:{stage.given / name}.toml", "--tasks", "1",
                         "--policy", "scripted:mcp_walker:walker", *SMALL, ok=(code,))  # fmt: skip
    stage.grown("shop")


def agents(stage: Stage, values: Mapping[str, str]) -> None:
    """An agent's program that sends its environment to the gateway."""
    script, tasks = stage.file("agent.py", AGENT), stage.file("tasks.jsonl", TASKS)
    env = json.dumps({"SHOP_SECRET": values["agent_secret"]})
    stage.treewright("collect", "--name", "agent", "--suites", f"agent:{sys.executable} -S {script}",
                     "--tasks-file", tasks, "--policy", "scripted:mcp_walker:says", *SMALL,
                     "--set", f"worlds.agent.env={env}",
                     "--set", "worlds.agent.sandboxed=true")  # fmt: skip
    stage.grown("agent")


MCP_WALKER = """
def walker(task, turns, tools, rng):
    return rng.choice(["environment {}", "broken {}", 'done {"answer": "x"}'])

def says(task, turns, tools, rng):
    return "all right"
"""


def gateway(stage: Stage, values: Mapping[str, str]) -> None:
    """A policy behind the gateway: right and wrong keys, canaries in what is asked."""
    served = subprocess.Popen(
        [*COMMAND, "serve", "--policy", "scripted:mcp_walker:says", "--store", "served.sqlite", "--port", "0"],
        cwd=stage.home, env=stage.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    told, base = "", ""
    assert served.stdout is not None
    try:
        for line in served.stdout:
            told += line
            if found := re.search(r"OPENAI_BASE_URL=(\S+)", line):
                base = found[1]
            if "session" in line or "error" in line:
                break
        said = " x ".join(spelled({k: v for k, v in values.items() if k in ENVIRONMENT}))
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": said}]})
        key = values["gateway_key"]
        for bearer, text, code in ((key, body, 200), ("x" + key, body, 401), (key, body[:-4], 400)):
            head = {"Authorization": f"Bearer {bearer}", "X-Odd": values["openai_key"]}
            with answered(f"{base}/chat/completions", text, head) as (status, raw):
                stage.look.at("gateway's answers", raw, str(status))
                if status != code:
                    stage.look.empty.append(f"the gateway answered {status} where {code} was due")
    finally:
        served.terminate()
        told += served.communicate(timeout=PATIENCE)[0]
    stage.look.at("logs", told, "serve")


@contextlib.contextmanager
def answered(url: str, body: str | None, headers: Mapping[str, str] | None = None) -> Iterator[tuple[int, bytes]]:
    request = urllib.request.Request(url, body.encode() if body is not None else None, dict(headers or {}))
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as got:
            yield got.status, got.read()
    except urllib.error.HTTPError as error:
        yield error.code, error.read()


def viewer(stage: Stage) -> None:
    """Everything that the viewer answers about the trees of the first run, over HTTP."""
    from treewright.agent.view.reading import Reader  # noqa: F401 - fails here where the extra is not installed

    shown = subprocess.Popen(
        [*COMMAND, "view", "said"], cwd=stage.home, env=stage.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert shown.stdout is not None
    try:
        base = ""
        for line in shown.stdout:
            if found := re.search(r"http://\S+/", line):
                base = found[0]
                break
        pages = ["", "api/list", "api/facets", "api/plots", "api/curves", "api/store", "api/list?find=said"]
        with answered(f"{base}api/list", None) as (_, raw):
            trees = [row["id"] for row in json.loads(raw)["rows"]]
        for tree in trees:
            pages += [f"api/tree/{tree}", f"api/advantage/{tree}", *(f"api/path/{tree}/{n}" for n in range(6))]
        if not trees:
            stage.look.empty.append("the viewer showed no tree")
        for page in [*pages, "api/tree/none", "api/path/none/1"]:
            with answered(base + urllib.request.quote(page, safe="/?=&"), None) as (_, raw):  # type: ignore[attr-defined]
                stage.look.at("viewer", raw, page)
    finally:
        shown.terminate()
        stage.look.at("logs", shown.communicate(timeout=PATIENCE)[0], "view")


def sites(stage: Stage, values: Mapping[str, str]) -> None:
    """Sites that show the headers and cookies of a request, and what a login typed."""
    origin = f"http://{stage.echo}"
    cookies = [{"name": "sid", "value": values["cookie_hidden"], "httpOnly": True},
               {"name": "who", "value": values["cookie_open"], "httpOnly": False}]  # fmt: skip
    rest: dict[str, Any] = {"domain": "127.0.0.1", "path": "/", "expires": -1, "secure": False, "sameSite": "Lax"}
    kept = [{"origin": origin, "localStorage": [{"name": "token", "value": values["local_storage"]}]}]
    stage.file("login.json", json.dumps({"cookies": [c | rest for c in cookies], "origins": kept}))
    head = f'url = "{origin}/"\n'
    stage.file(
        "kept.toml", f'{head}storage = "login.json"\n[headers]\nX-Shop-Session = {json.dumps(values["site_header"])}\n'
    )
    stage.file("typed.toml", head + '[[login]]\nfill = "word"\ntext = "$SITE_WORD"\n[[login]]\nclick = "go"\n')
    for name, more in (("kept", {}), ("typed", {"SITE_WORD": values["site_login"]})):
        stage.treewright("collect", "--name", name, "--suites", f"web:{stage.given / name}.toml", "--tasks", "1",
                         "--policy", f"scripted:site_walker:{name}", *SMALL, ok=(0,), **more)  # fmt: skip
        stage.grown(name)


SITE_WALKER = """
import os

def kept(task, turns, tools, rng):
    return rng.choice(['goto {"path": "/more"}', 'fill {"ref": "e1", "text": "x"}', 'click {"ref": "e2"}'])

def typed(task, turns, tools, rng):
    word = os.environ["SITE_WORD"]
    return rng.choice(['fill {"ref": "e1", "text": "%s"}' % word, 'click {"ref": "e2"}', 'goto {"path": "/?%s"}' % word,
                       'goto {"path": "http://elsewhere.invalid/?%s"}' % word])
"""


def loop(stage: Stage, values: Mapping[str, str]) -> None:
    """A loop that trains on what the world said: metrics, checkpoints and their cards."""
    line = line_of(stage, values, "loop", "--name", "loop", "--suites", "echo_world:World", "--policy", "seedling")
    stage.treewright(*line, "--set", "loop.iterations=1", "--set", "loop.tasks=2", "--set", "search.max_tokens=16",
                     "--set", "search.expansions=2")  # fmt: skip
    stage.grown("loop")


def environment(values: Mapping[str, str], given: Path) -> dict[str, str]:
    """What commands are started with: keys by their usual names, others by names of one's own."""
    path = os.pathsep.join([str(given), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **{k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")},
        "OPENAI_API_KEY": values["openai_key"], "ANTHROPIC_API_KEY": values["anthropic_key"],
        "HF_TOKEN": values["hub_token"], "DB_PASSWORD": values["odd_password"],
        "HTTPS_PROXY": f"http://me:{values['proxy_password']}@127.0.0.1:9", "TREEWRIGHT_KEY": values["gateway_key"],
        "ECHOES": str(given / "echoes.json"), "PYTHONPATH": path,
        "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost",
    }  # fmt: skip


ENVIRONMENT = ("openai_key", "anthropic_key", "hub_token", "odd_password", "proxy_password", "gateway_key")
"""What every command is told. Only what a process knows as a secret can be kept out."""

PARTS = {"worlds": worlds, "models": models, "tools": tools, "agents": agents, "gateway": gateway}


def sweep(parts: Sequence[str] = (), quick: bool = True, values: Mapping[str, str] | None = None) -> Look:
    """All of it, or the parts that are named; what was found where."""
    values = dict(values or made())
    look = Look(values)
    with tempfile.TemporaryDirectory(prefix="tw-canaries-") as name, servers() as echo, Processes(look):
        home, given = Path(name) / "home", Path(name) / "given"
        home.mkdir()
        for file, text in (("echo_world.py", WORLD), ("mcp_walker.py", MCP_WALKER), ("site_walker.py", SITE_WALKER)):
            write(given / file, text)
        known = {k: v for k, v in values.items() if k in (*ENVIRONMENT, "config_header", "setting_key")}
        write(given / "echoes.json", json.dumps(spelled(known)))
        stage = Stage(home, given, environment(values, given), look, echo)
        for part, work in PARTS.items():
            if not parts or part in parts:
                work(stage, values)
        if not parts or "worlds" in parts:
            viewer(stage)
        if not parts or "sites" in parts:
            from treewright.envs.web.browser import find_chromium

            if find_chromium() is None:
                look.empty.append("no Chromium: the sites were left out")
            else:
                sites(stage, values)
        if not quick:
            loop(stage, values)
        look_through(look, home)
        look.at("processes", "", "")
    return look


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the loop that trains")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="these parts alone")
    asked = parser.parse_args()
    began = time.monotonic()
    look = sweep(asked.only, asked.quick)
    for sink, found in sorted(look.sinks.items()):
        print(f"{sink:20} {len(found)} {', '.join(sorted(found))}")
    for line in [*look.where[:40], *(f"NOT LOOKED AT: {why}" for why in look.empty)]:
        print(line)
    print(
        f"{look.hits} of {len(look.values)} canaries × {len(look.sinks)} sinks found, {time.monotonic() - began:.0f} s"
    )
    if asked.json:
        figures = {"canaries": (float(len(look.values)), "secrets"),
                   "canaries_sinks": (float(len(look.sinks)), "sinks"),
                   "canaries_found": (float(look.hits), "hits")}  # fmt: skip
        write_figures(asked.json, figures, quick=asked.quick, sinks={k: sorted(v) for k, v in look.sinks.items()})
    return 1 if look.hits or look.empty else 0


if __name__ == "__main__":
    sys.exit(main())
