"""Servers whose state outlives a restart are found by a probe and not called fresh; others are not disturbed."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import mcp_scripts
import pytest
from mcp.client.stdio import StdioServerParameters
from not_none import not_none
from raw_server import RAW
from small_policies import script_policy

from treewright.envs import Action, Effect, Task, TreewrightError, suite
from treewright.envs.tools.fresh import DOUBTS, Doubt, Freshness
from treewright.envs.tools.mcp import MCPEnvironment
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus

# A graph that is kept in a file, in memory, or beside things that change by themselves. Counts its calls.
GRAPH = (
    RAW
    + """
kept, mode = sys.argv[1], sys.argv[2]
graph, asked = [], 0

def load():
    return open(kept).read().split() if mode != "memory" and os.path.exists(kept) else graph

def call(name, arguments):
    global asked
    asked += 1
    print(name, file=open(kept + ".calls", "a"), flush=True)
    if name == "create":
        if mode == "memory":
            graph.append(arguments["name"])
        else:
            print(arguments["name"], file=open(kept, "a"), flush=True)
        return "created"
    if name == "open_node":
        return str(arguments["name"] in load())
    return f"{load()} {dict(pid=os.getpid(), count=asked, still='').get(sys.argv[3])}"

one = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
hints = {"readOnlyHint": True}
serve([{"name": "create", "inputSchema": one, "annotations": {"readOnlyHint": False, "destructiveHint": False}},
       {"name": "read_graph", "inputSchema": {"type": "object"}, "annotations": hints},
       {"name": "open_node", "inputSchema": one, "annotations": hints}][: 3 if sys.argv[4:] != ["noread"] else 1] + (
      [{"name": "open_node", "inputSchema": one, "annotations": hints}] if sys.argv[4:] == ["noread"] else []), call)
"""
)
REFUSED = r"is not fresh: what was written outlives a restart. %s answered .* Give the server a folder"
CREATE = Action.of("create", name="a")
TASK = Task("graph", "t", "go")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "graph.py").write_text(GRAPH)

    def of(*words: Any) -> str:
        return shlex.join(mcp_scripts.command(tmp_path / "graph.py", tmp_path / "kept", *words))

    return of


def writer(task: Task, turns: Any, tools: Any, rng: Random) -> str:
    if len(turns) == 2:
        return 'done {"answer": ""}'
    return str(Action.of("create", name=f"n{rng.randrange(10**9)}")) if not turns else "read_graph {}"


async def explored(spec: str, sessions: int = 1) -> Tree:
    found = suite(spec)
    pool = Pool(found.open, sessions)
    try:
        return await search(
            found.tasks("train", 1)[0], pool, script_policy(writer), rule=best_first(2, 4), budget=Budget(expansions=6),
            settings=Settings(max_tokens=200, in_flight=sessions),
        )  # fmt: skip
    finally:
        await pool.close()


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("flags", ["--trust-hints --sandboxed", "--sandboxed"])
async def test_a_graph_in_a_file_is_refused_before_one_branch_sees_another_again(
    flags: str, sessions: int, command: Callable[..., Any]
) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(TreewrightError, match=REFUSED % "read_graph"):
        await explored(f"mcp:{flags} {command('file', 'still')}", sessions)
    assert asyncio.all_tasks() == before, "every session has ended with the search"


@pytest.mark.parametrize("under_way", [False, True])
async def test_a_change_by_another_session_meanwhile_is_no_sign_of_a_clock(under_way: bool) -> None:
    """One session reads after its restart, another writes, the first reads again: the state still outlives restarts."""
    kept, probe, read = list[str](), Freshness("graph"), Action.of("read_graph")

    async def ask(_: Action) -> str:
        return str(kept)

    def write(name: str) -> None:
        with probe.writing(for_good=False):
            kept.append(name)

    assert await probe.started(ask, [read]) is None
    write("a")
    with probe.writing(for_good=False) if under_way else nullcontext():
        doubt = not_none(await probe.started(ask, [read]))
        if under_way:
            kept.append("b")
        else:
            write("b")
        await probe.judge(ask, doubt)
    doubt = not_none(await probe.started(ask, [read]))  # is still asked at the next start
    with pytest.raises(TreewrightError, match=REFUSED % "read_graph"):
        await probe.judge(ask, doubt)


@pytest.mark.parametrize("busy", [False, True])
async def test_what_changes_with_every_restart_is_not_asked_for_ever(busy: bool) -> None:
    starts, probe = 0, Freshness("clock")

    async def ask(_: Action) -> str:
        return str(starts)

    async def start() -> Doubt | None:
        nonlocal starts
        starts += 1
        return await probe.started(ask, [Action.of("time")])

    assert await start() is None
    judged = 0
    with probe.writing(for_good=False):
        pass
    while (doubt := await start()) is not None:
        starts, judged = starts + 1, judged + 1
        if busy:
            with probe.writing(for_good=False):
                pass
        await probe.judge(ask, doubt)
    assert judged == (DOUBTS if busy else 1)


@pytest.mark.parametrize("changing", ["still", "pid", "count"])
async def test_a_graph_in_memory_is_explored_and_what_changes_by_itself_is_no_evidence(
    changing: str, command: Callable[..., Any]
) -> None:
    tree = await explored(f"mcp:--trust-hints --sandboxed {command('memory', changing)}", 2)
    assert len(tree) > 6 and not {NodeStatus.FAULT, NodeStatus.UNREACHABLE} & set(tree.status)
    for i in range(1, len(tree)):
        if not_none(tree.action[i]).name == "read_graph":
            above = [
                not_none(tree.action[j]).arguments["name"]
                for j in tree.path(i)[1:]
                if not_none(tree.action[j]).name == "create"
            ]
            assert not_none(tree.observation[i]).text.startswith(str(above))


async def test_readings_that_change_by_themselves_prove_nothing_about_a_file(command: Callable[..., Any]) -> None:
    """The probe cannot see through it: a server that lies so well needs the owner's word."""
    tree = await explored(f"mcp:--trust-hints --sandboxed {command('file', 'pid')}")
    assert len(tree) > 3


def server(command: Any) -> StdioServerParameters:
    program, *words = shlex.split(command)
    return StdioServerParameters(command=program, args=words)


async def test_the_policys_own_reading_of_the_first_state_is_evidence_where_no_tool_reads_without_arguments(
    command: Callable[..., Any],
) -> None:
    effects = {"open_node": Effect.READ}
    env = MCPEnvironment(server(command("file", "still", "noread")), effects=effects, sandboxed=True)
    await env.reset(TASK, 0)
    start = await env.snapshot()
    assert (await env.step(Action.of("open_node", name="a"), 1)).observation.text == "False"
    await env.step(CREATE, 2)
    with pytest.raises(TreewrightError, match=REFUSED % "open_node"):
        await env.restore(start)
    await env.close()


async def test_reset_is_a_restart_too_and_a_believed_server_is_not_asked_again(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    refused = MCPEnvironment(server(command("file", "still")), trust_hints=True, sandboxed=True)
    await refused.reset(TASK, 0)
    await refused.step(CREATE, 1)
    with pytest.raises(TreewrightError, match=REFUSED % "read_graph"):
        await refused.reset(TASK, 0)
    await refused.close()
    (tmp_path / "kept.calls").unlink()
    fine = MCPEnvironment(server(command("memory", "still")), trust_hints=True, sandboxed=True)
    for _ in range(6):
        await fine.reset(TASK, 0)
        await fine.step(CREATE, 1)
    await fine.close()
    calls = (tmp_path / "kept.calls").read_text().split()
    assert calls.count("read_graph") == 2 + 3  # twice at the first start, once at each of three restarts


async def test_the_owners_word_goes_before_the_probe(command: Callable[..., Any], tmp_path: Path) -> None:
    for line in ("probe = false", "fresh = false"):
        (tmp_path / "server.toml").write_text(
            f"command = {command('file', 'still')!r}\nsandboxed = true\ntrust_hints = true\n{line}\n"
        )
        env = await suite(f"mcp:{tmp_path}/server.toml").open()
        await env.reset(TASK, 0)
        await env.step(CREATE, 1)
        await env.reset(TASK, 0)
        assert "a" in (await env.step(Action.of("read_graph"), 2)).observation.text
        await env.close()


NODE = Path(os.environ.get("TREEWRIGHT_SERVERS", Path(__file__).parents[2] / ".venv-servers")) / "node_modules" / ".bin"


@pytest.mark.skipif(
    not (NODE / "mcp-server-memory").exists(),
    reason=f"no MCP servers of npm in {NODE}; type: make .venv-servers/.ready",
)
async def test_server_memory_of_npm_is_refused_as_it_is_and_explored_over_a_folder(tmp_path: Path) -> None:
    entity = [{"name": "ada", "entityType": "person", "observations": []}]
    create, read = Action.of("create_entities", entities=entity), Action.of("read_graph")
    memory = f"MEMORY_FILE_PATH={tmp_path}/graph.jsonl {NODE}/mcp-server-memory"
    env = await suite(f"mcp:--trust-hints --sandboxed env {memory}").open()
    await env.reset(TASK, 0)
    await env.step(create, 1)
    with pytest.raises(TreewrightError, match=REFUSED % "read_graph"):
        await env.reset(TASK, 0)
    await env.close()
    (tmp_path / "start").mkdir()
    (tmp_path / "server.toml").write_text(
        f'command = "{NODE}/mcp-server-memory"\nfolder = "start"\nsandboxed = true\ntrust_hints = true\n'
        '[env]\nMEMORY_FILE_PATH = "{folder}/graph.jsonl"\n'
    )
    env = await suite(f"mcp:{tmp_path}/server.toml").open()
    await env.reset(TASK, 0)
    start = await env.snapshot()
    await env.step(create, 1)
    assert "ada" in (await env.step(read, 2)).observation.text
    await env.restore(start)
    assert "ada" not in (await env.step(read, 3)).observation.text
    await env.close()
