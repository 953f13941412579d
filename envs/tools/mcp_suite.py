"""Any MCP server as a suite, by one line: its command, its URL, or a TOML file that says more.

    --suites "mcp:uvx mcp-server-time"
    --suites "mcp:--trust-hints --sandboxed npx -y @modelcontextprotocol/server-everything"
    --suites mcp:http://127.0.0.1:8000/mcp
    --suites mcp:shop.toml

A TOML file has the fields of `ServerFile`; paths in it are relative to the file. Without tasks the suite holds one
task, to find out what the tools can do, whose reward is unknown (NaN).
"""

from __future__ import annotations

import asyncio
import difflib
import fnmatch
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

from mcp.client.stdio import StdioServerParameters
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treewright.envs.custom import custom_suite, load_named
from treewright.envs.errors import TreewrightError
from treewright.envs.secrecy import in_settings, in_url, keep_secret, named_secret
from treewright.envs.toml_text import toml_value
from treewright.envs.tools.asked import Answers
from treewright.envs.tools.fresh import Freshness
from treewright.envs.tools.mcp import MCPEnvironment, StateFolder
from treewright.envs.tools.room import new_place
from treewright.envs.tools.world import read_effects
from treewright.envs.types import Suite, Task, digest

__all__ = ["FOLDER", "ServerFile", "mcp_suite", "read_server"]

FOLDER = "{folder}"
FLAGS = {"--trust-hints": "trust_hints", "--sandboxed": "sandboxed"}
NODE = "it comes with Node.js: install the package nodejs (and npm) of your system"
NEEDED = {
    "uvx": "it comes with uv, type: pip install uv", "uv": "type: pip install uv", "pipx": "type: pip install pipx",
    "npx": NODE, "npm": NODE, "node": NODE, "bunx": "it comes with Bun: install bun", "bun": "install Bun",
    "deno": "install Deno", "docker": "install Docker, and let this user run it", "podman": "install Podman",
    "java": "install a Java runtime", "go": "install Go", "dotnet": "install .NET",
}  # fmt: skip
EXPLORE = "find out what the tools of this server do, then end the task with a summary"


class ServerFile(BaseModel):
    """How to reach a server and what to believe of it.

    command      starts it over stdio;  env  variables added for it.  url  of one that speaks streamable HTTP instead
    effects      what each tool does: read, reversible, irreversible; others are unknown
    trust_hints  believe the server's annotations about its tools
    sandboxed    your promise that a restart, or the folder, brings back everything that the tools touch
    fresh        a new connection finds the first state (true over stdio, false behind a URL)
    probe        check that by reading what the first start showed after writes and restarts; a server whose state
                 outlives a restart is refused
    folder       the first state of a folder; each session works on a copy, whose path replaces {folder} in command,
                 env and cwd, and which is put back to go back.  ignore  names in it that are no part of the state
    cwd          where the server runs
    tasks        a file of tasks, one JSON object a line;  reward  'module:function' of (task, history) -> float
    end          the name of the tool that ends a task
    deadline     seconds for the start and for each call;  sessions  how many servers run side by side
    elicit       values for the forms that the server may ask to have filled in, by field name; without them, and for a
                 form that needs another field, it is refused
    sampling     'module:function' of what the server wants written ({"messages", "systemPrompt", "maxTokens", …}) ->
                 text; without it such requests are refused
    max_tokens   enough for one action;  max_chars  longest answer that is shown whole
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str | None = None
    url: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    effects: dict[str, str] = Field(default_factory=dict)
    trust_hints: bool = False
    sandboxed: bool = False
    fresh: bool | None = None
    probe: bool = True
    folder: Path | None = None
    ignore: tuple[str, ...] = ()
    cwd: str | None = None
    tasks: Path | None = None
    reward: str | None = None
    elicit: dict[str, Any] = Field(default_factory=dict)
    sampling: str | None = None
    end: str = "done"
    deadline: float = Field(default=30.0, gt=0)
    sessions: int = Field(default=4, ge=1)
    max_tokens: int = Field(default=256, ge=1)
    max_chars: int = Field(default=20_000, ge=1)


def mcp_suite(spec: str) -> Suite:
    """The suite of one server; its name is 'mcp:' and the spec. Raises TreewrightError naming the field at fault."""
    server, name = read_server(spec), f"mcp:{spec}"
    keep_secret(*in_settings(server.env), *in_url(server.url or ""), *in_url(server.command or ""))
    keep_secret(*(value for key, value in server.env.items() if named_secret(key)))
    answers = _answers(server, name)
    probe = Freshness(name) if server.probe else False

    async def open_session() -> MCPEnvironment:
        return await _open(server, name, answers, probe)

    if server.tasks is not None and server.reward is not None:
        made = custom_suite(name, server.tasks, open_session, server.reward, max_tokens=server.max_tokens)
        tasks = made.tasks
        open_world = made.open
    else:
        tasks = _explore(name)
        open_world = open_session
    _find_program(server, name)
    return Suite(
        name, tasks, open_world, description=f"the tools of {server.command or server.url}",
        max_tokens=server.max_tokens, sessions=server.sessions,
    )  # fmt: skip


def _find_program(server: ServerFile, name: str) -> None:
    """Raises TreewrightError where the command's program is not there, before any session is opened."""
    program = shlex.split(server.command)[0] if server.command is not None else FOLDER
    if FOLDER not in program and shutil.which(program, path=server.env.get("PATH")) is None:
        how = NEEDED.get(Path(program).name, "install it")
        raise TreewrightError(f"{name}: there is no program {program!r}; {how}, or give its whole path in 'command'")


def read_server(spec: str) -> ServerFile:
    """What a spec says: see the module's docstring. Raises TreewrightError naming file and field."""
    spec = spec.strip()
    if spec.endswith(".toml"):
        return _read_file(Path(spec))
    if spec.startswith(("http://", "https://")):
        return ServerFile(url=spec)
    flags: dict[str, Any] = {}
    try:
        words = shlex.split(spec)
    except ValueError as error:
        raise TreewrightError(f"mcp:{spec}: {error}; write the command as in a shell") from error
    while words and words[0].startswith("--"):
        if words[0] not in FLAGS:
            near = difflib.get_close_matches(words[0], FLAGS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(FLAGS)}"
            raise TreewrightError(f"mcp:{spec}: no option {words[0]}; {hint} (more can be said in a .toml file)")
        flags[FLAGS[words.pop(0)]] = True
    if not words:
        raise TreewrightError(f"mcp:{spec} names no server; write mcp:COMMAND, mcp:http://… or mcp:FILE.toml")
    return ServerFile(command=shlex.join(words), **flags)


def _read_file(path: Path) -> ServerFile:
    try:
        data = toml_value(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TreewrightError(
            f"cannot read the server file {path}: {error}; name a TOML file with 'command' or 'url'"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise TreewrightError(
            f'{path} is not TOML: {error}; write lines such as command = "python server.py"'
        ) from error
    for name in data:
        if name not in ServerFile.model_fields:
            near = difflib.get_close_matches(name, ServerFile.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ServerFile.model_fields)}"
            raise TreewrightError(f"{path}: no field {name!r}; {hint}")
    try:
        server = ServerFile(**data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TreewrightError(
            f"{path}: field {where!r} = {first['input']!r:.200}: {first['msg']}; correct it there"
        ) from error
    _check(server, path)
    home = path.parent
    beside = {n: home / value for n in ("folder", "tasks") if (value := getattr(server, n)) is not None}
    return server.model_copy(update=beside)


def _check(server: ServerFile, path: Path) -> None:
    """What no single field can say."""
    if (server.command is None) == (server.url is None):
        raise TreewrightError(f"{path}: give either 'command' or 'url', and not both")
    try:
        read_effects(server.effects)
        words = shlex.split(server.command or "")
    except (TreewrightError, ValueError) as error:
        raise TreewrightError(f"{path}: {error}") from error
    if server.command is not None and not words:
        raise TreewrightError(f"{path}: field 'command' is empty; write how the server is started")
    if (server.tasks is None) != (server.reward is None):
        missing = "reward" if server.reward is None else "tasks"
        raise TreewrightError(f"{path}: field {missing!r} is missing; tasks and reward go together")
    if server.folder is not None:
        if not (path.parent / server.folder).is_dir():
            raise TreewrightError(
                f"{path}: field 'folder' = {str(server.folder)!r} is not a folder beside the file; make it there"
            )
        if not any(FOLDER in text for text in [server.command or "", server.cwd or "", *server.env.values()]):
            raise TreewrightError(
                f"{path}: field 'folder' is given, but {FOLDER} stands in none of command, env and cwd: "
                "put it where the server is told its folder"
            )


async def _open(server: ServerFile, name: str, answers: Answers, probe: Freshness | bool) -> MCPEnvironment:
    options: dict[str, Any] = {
        "name": name, "effects": read_effects(server.effects), "trust_hints": server.trust_hints, "end": server.end,
        "fresh": server.fresh, "sandboxed": server.sandboxed, "deadline": server.deadline,
        "max_chars": server.max_chars, "answers": answers, "probe": probe,
    }  # fmt: skip
    if server.url is not None:
        return MCPEnvironment(server.url, **options)
    place = await asyncio.to_thread(new_place, server.folder) if server.folder is not None else None
    told = place.told if place is not None else FOLDER
    words = [word.replace(FOLDER, told) for word in shlex.split(server.command or "")]
    env = {key: value.replace(FOLDER, told) for key, value in server.env.items()}
    cwd = server.cwd.replace(FOLDER, told) if server.cwd is not None else None
    parameters = StdioServerParameters(command=words[0], args=words[1:], env=env or None, cwd=cwd)
    if place is not None and server.folder is not None:
        options |= {"state": _state(server.folder, place.folder, server.ignore), "place": place}
    return MCPEnvironment(parameters, **options)


def _answers(server: ServerFile, name: str) -> Answers:
    writer = load_named(server.sampling, f"{name}: field 'sampling'") if server.sampling is not None else None
    return Answers(server.elicit, writer)


def _state(first: Path, folder: Path, ignore: tuple[str, ...]) -> StateFolder:
    def set_up(target: Path, task: Task, key: int) -> None:
        shutil.copytree(first, target, dirs_exist_ok=True)

    def fingerprint(target: Path) -> str:
        parts: list[str | bytes] = []
        for path in sorted(target.rglob("*")):
            name = path.relative_to(target).as_posix()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in ignore):
                parts += [name, path.read_bytes() if path.is_file() else b"/"]
        return digest(*parts)

    return StateFolder(folder, set_up, fingerprint, scratch=True)


def _explore(name: str) -> Any:
    def tasks(split: str, count: int) -> list[Task]:
        return [Task(name, f"{split}-explore", EXPLORE, seed=0, split=split, horizon=12)][:count]

    return tasks
