"""Any MCP server as a world: effects, errors, faults, verified replay."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mcp_scripts
import pytest
from mcp.client.stdio import StdioServerParameters
from not_none import not_none
from speed import patient

from treewright.envs import (
    Action,
    Divergence,
    Effect,
    InvalidAction,
    Restore,
    RestoreUnsupported,
    SessionDied,
    Snapshot,
)
from treewright.envs.errors import ActionTimeout, TreewrightError
from treewright.envs.tools.folder import clear_folder, pack_folder, unpack_folder
from treewright.envs.tools.mcp import MCPEnvironment, StateFolder
from treewright.envs.types import Task

SERVER = """
import asyncio, os, sys
from mcp.server.mcpserver import Image, MCPServer
from mcp_types import ToolAnnotations as Hints

server = MCPServer("counter", log_level="CRITICAL")
total = 0

def tool(**hints):
    return server.tool(annotations=Hints(**hints) if hints else None, structured_output=False)

@tool(read_only_hint=True)
def get() -> str:
    return f"total {total}"

@tool(destructive_hint=False)
def add(n: int) -> str:
    global total
    total += n
    return f"added {n}"

@tool(destructive_hint=True)
def wipe() -> str:
    global total
    total = 0
    return "wiped"

@tool()
def draw() -> str:
    return f"drew {os.getpid()}"

@tool()
async def boom() -> str:
    raise ValueError("boom")

@tool()
async def hang() -> str:
    await asyncio.sleep(60)
    return "late"

@tool()
def die() -> str:
    os._exit(3)

@tool()
def much() -> str:
    return "x" * 1000

@tool()
def picture() -> Image:
    return Image(data=b"png", format="png")

if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run("stdio")
"""
TASK = Task("counter", "t0", "count")
EFFECTS = {"get": Effect.READ, "add": Effect.REVERSIBLE}


@pytest.fixture
def server(tmp_path: Path) -> StdioServerParameters:
    path = tmp_path / "counter.py"
    path.write_text(SERVER)
    program, *words = mcp_scripts.command(path)
    return StdioServerParameters(command=program, args=words)


@pytest.fixture
async def session(server: StdioServerParameters) -> AsyncIterator[MCPEnvironment]:
    env = MCPEnvironment(server, effects=EFFECTS, deadline=60.0, max_chars=100)
    await env.reset(TASK, 0)
    yield env
    await env.close()


def add(n: int) -> Action:
    return Action.of("add", n=n)


async def test_effects_are_unknown_unless_declared_and_the_table_beats_trusted_hints(
    server: StdioServerParameters,
) -> None:
    async def effects(**options: Any) -> dict[str, Effect]:
        env = MCPEnvironment(server, **options)
        found = {spec.name: spec.effect for spec in await env.actions()}
        await env.close()
        return found

    names = ("get", "add", "wipe", "boom")
    plain = await effects()
    assert {plain[name] for name in names} == {Effect.UNKNOWN}
    trusted = await effects(trust_hints=True, sandboxed=True)
    expected = [Effect.READ, Effect.REVERSIBLE, Effect.IRREVERSIBLE, Effect.UNKNOWN]
    assert [trusted[name] for name in names] == expected
    # In a live world nothing promises that "not destructive" can be undone.
    live = await effects(trust_hints=True, effects={"wipe": Effect.READ})
    assert [live[name] for name in names] == [Effect.READ, Effect.UNKNOWN, Effect.READ, Effect.UNKNOWN]
    with pytest.raises(TreewrightError, match="effects name 'addd'"):
        await effects(effects={"addd": Effect.READ})


async def test_answers_refusals_images_and_long_texts_become_observations(session: MCPEnvironment) -> None:
    result = await session.step(add(2), 0)
    assert (result.observation.text, result.observation.provenance) == ("added 2", "tool")
    assert result.effect is Effect.REVERSIBLE and not result.terminated
    failed = await session.step(Action.of("boom"), 0)
    assert failed.observation.provenance == "error" and failed.effect is Effect.UNKNOWN
    picture = await session.step(Action.of("picture"), 0)
    assert picture.observation.parts[0]["mime_type"] == "image/png"
    assert (await session.step(Action.of("much"), 0)).observation.text.endswith("… (900 more characters)")


async def test_a_composite_action_makes_its_calls_in_order_and_has_the_worst_effect(session: MCPEnvironment) -> None:
    result = await session.step(Action((*add(3).calls, *Action.of("get").calls, *Action.of("boom").calls)), 0)
    assert result.observation.text.startswith("added 3\ntotal 3\n")
    assert result.effect is Effect.UNKNOWN and result.observation.provenance == "tool"
    assert [row["error"] for row in result.info["calls"]] == [False, False, True]


async def test_bad_arguments_never_reach_the_server(session: MCPEnvironment) -> None:
    for action, message in [
        (Action.of("ad", n=1), "did you mean 'add'"),
        (Action.of("add", n="1"), "add n: '1' is not of type 'integer'"),
        (Action.of("add", n=float("nan")), "not plain JSON"),
    ]:
        with pytest.raises(InvalidAction, match=message):
            await session.step(action, 0)
    assert (await session.step(Action.of("get"), 0)).observation.text == "total 0"


async def test_done_ends_with_an_unknown_reward_or_the_judges(
    session: MCPEnvironment, server: StdioServerParameters
) -> None:
    result = await session.step(Action.of("done", answer="5"), 0)
    assert result.terminated and math.isnan(result.reward)
    env = MCPEnvironment(server, judge=lambda task, answer, folder: float(answer == "5"))
    await env.reset(TASK, 0)
    assert (await env.step(Action.of("done", answer="5"), 0)).reward == 1.0
    await env.close()


async def test_a_replay_may_leave_out_reads_and_shows_another_answer_as_another_state(session: MCPEnvironment) -> None:
    first = (await session.reset(TASK, 0)).fingerprint
    assert (await session.step(Action.of("get"), 0)).observation.fingerprint == first
    once = (await session.step(add(1), 1)).observation.fingerprint
    drawn = (await session.step(Action.of("draw"), 2)).observation.fingerprint
    assert (await session.reset(TASK, 0)).fingerprint == first
    assert (await session.step(add(1), 1)).observation.fingerprint == once != first
    assert (await session.step(Action.of("get"), 1)).observation.text == "total 1"
    assert (await session.step(Action.of("draw"), 2)).observation.fingerprint != drawn


async def test_without_a_folder_a_restore_repeats_the_state_changing_calls_only_and_as_few_as_possible(
    session: MCPEnvironment,
) -> None:
    assert session.restore_ways == {Restore.STATE, Restore.REPLAY}
    for action in (add(1), Action.of("get"), add(2)):
        shown = (await session.step(action, 0)).observation
    snapshot = await session.snapshot()
    # Reading moves nothing: the server already stands there.
    await session.step(Action.of("get"), 0)
    assert await session.restore(snapshot) == shown and (session.starts, session.repeated) == (1, 0)
    # Beyond the snapshot: a new server, the two additions, no reading.
    await session.step(add(4), 0)
    assert await session.restore(snapshot) == shown and (session.starts, session.repeated) == (2, 2)
    assert (await session.step(Action.of("get"), 0)).observation.text == "total 3"
    # Short of it: only what is missing.
    await session.reset(TASK, 0)
    await session.step(add(1), 0)
    await session.restore(snapshot)
    assert (session.starts, session.repeated) == (3, 3)


async def test_a_repeated_call_that_is_answered_otherwise_is_a_divergence(server: StdioServerParameters) -> None:
    # In a sandbox: elsewhere a call of unknown effect is not repeated at all.
    session = MCPEnvironment(server, effects=EFFECTS, sandboxed=True)
    await session.reset(TASK, 0)
    await session.step(Action.of("draw"), 0)
    snapshot = await session.snapshot()
    await session.step(add(1), 0)
    with pytest.raises(Divergence):
        await session.restore(snapshot)
    await session.close()


async def test_a_live_server_is_not_made_to_repeat_what_cannot_be_undone(
    session: MCPEnvironment, server: StdioServerParameters
) -> None:
    await session.step(add(2), 0)
    await session.step(Action.of("wipe"), 0)
    await session.step(add(1), 0)
    snapshot = await session.snapshot()
    # While the server that answered stands there, it is joined; nothing is called.
    other = MCPEnvironment(server, effects=EFFECTS)
    assert (await other.restore(snapshot)).fingerprint == snapshot.fingerprint
    assert (await other.step(Action.of("get"), 0)).observation.text == "total 1"
    assert (other.starts, other.repeated) == (0, 0)
    # It cannot be started again at this place, so what is done in it counts as final.
    assert await other.effect(add(1)) is Effect.IRREVERSIBLE
    await session.reset(TASK, 0)
    assert await session.effect(add(1)) is Effect.REVERSIBLE
    assert (await other.step(Action.of("get"), 0)).observation.text == "total 1"
    # Once it has moved, or is gone, there is no way back.
    await other.step(add(5), 0)
    with pytest.raises(RestoreUnsupported, match="its server has left since; what happened for real is never repeated"):
        await session.restore(snapshot)
    later = await other.snapshot()
    await other.close()
    for kept in (snapshot, later):
        with pytest.raises(RestoreUnsupported, match=r"again that has ended.*Declare sandboxed = true"):
            await session.restore(kept)
    assert session.repeated == 0


async def test_a_live_snapshot_of_a_server_of_another_process_is_refused_by_the_calls_in_it(
    session: MCPEnvironment,
) -> None:
    await session.step(Action.of("wipe"), 0)
    snapshot = await session.snapshot()
    head = json.loads(snapshot.data)
    head["server"] = ""
    with pytest.raises(RestoreUnsupported, match="would make wipe again"):
        await session.restore(replace(snapshot, data=json.dumps(head).encode() + b"\n"))


async def test_a_snapshot_of_the_journal_comes_back_in_another_session_and_a_foreign_one_is_refused(
    session: MCPEnvironment, server: StdioServerParameters
) -> None:
    await session.step(add(5), 0)
    snapshot = await session.snapshot()
    other = MCPEnvironment(server, effects=EFFECTS)
    assert (await other.restore(snapshot)).fingerprint == snapshot.fingerprint
    assert (await other.step(Action.of("get"), 0)).observation.text == "total 5"
    with pytest.raises(RestoreUnsupported):
        await other.restore(Snapshot(Restore.FORK, None, "x"))
    await other.close()


async def test_a_server_that_dies_is_session_died_until_the_next_reset(session: MCPEnvironment) -> None:
    for action in (Action.of("die"), Action.of("get")):
        with pytest.raises(SessionDied, match=r"counter\.py"):
            await session.step(action, 0)
    await session.reset(TASK, 0)
    assert (await session.step(Action.of("get"), 0)).observation.text == "total 0"


async def test_a_hang_is_an_action_timeout_and_the_session_is_replaced(server: StdioServerParameters) -> None:
    env = MCPEnvironment(server, deadline=60.0)
    await env.reset(TASK, 0)
    not_none(env._connection).deadline = 0.3
    started = time.monotonic()
    with pytest.raises(ActionTimeout, match="hang gave no answer within"):
        await env.step(Action.of("hang"), 0)
    assert time.monotonic() - started < patient(20)
    with pytest.raises(SessionDied):
        await env.step(Action.of("get"), 0)
    await env.reset(TASK, 0)
    assert (await env.step(Action.of("get"), 0)).observation.text == "total 0"
    await env.close()


async def test_a_cancelled_call_does_not_leave_its_answer_to_the_next(session: MCPEnvironment) -> None:
    call = asyncio.create_task(session.step(Action.of("hang"), 0))
    done, _ = await asyncio.wait([call], timeout=0.1)
    assert not done
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(SessionDied):
        await session.step(Action.of("get"), 0)


async def test_a_session_may_be_opened_used_and_closed_in_different_tasks(server: StdioServerParameters) -> None:
    env = MCPEnvironment(server, effects=EFFECTS)
    await asyncio.create_task(env.reset(TASK, 0))
    results = await asyncio.gather(*(asyncio.create_task(env.step(Action.of("get"), 0)) for _ in range(3)))
    assert {result.observation.text for result in results} == {"total 0"}
    await asyncio.create_task(env.close())
    await asyncio.create_task(env.close())


async def test_a_server_that_does_not_start_is_named_with_the_end_of_its_stderr(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no database given')")
    env = MCPEnvironment(StdioServerParameters(command=sys.executable, args=[str(broken)]))
    with pytest.raises(SessionDied, match="no database given"):
        await env.reset(TASK, 0)
    await env.close()
    missing = MCPEnvironment(StdioServerParameters(command="no-such-server"))
    with pytest.raises(SessionDied, match="no-such-server"):
        await missing.reset(TASK, 0)
    await missing.close()


async def test_a_server_behind_a_url_works_and_declares_no_way_back(server: StdioServerParameters) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, server.args[-1], str(port)]  # the server itself: behind a relay it outlives a kill
    process = await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(400):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                await asyncio.sleep(0.02)
        env = MCPEnvironment(f"http://127.0.0.1:{port}/mcp", effects=EFFECTS)
        await env.reset(TASK, 0)
        assert env.restore_ways == {Restore.NONE}
        with pytest.raises(RestoreUnsupported):
            await env.snapshot()
        assert (await env.step(add(4), 0)).observation.text == "added 4"
        assert (await env.step(Action.of("get"), 0)).observation.text == "total 4"
        process.kill()
        process.wait()
        with pytest.raises(SessionDied):
            await env.step(Action.of("get"), 0)
        await env.close()
    finally:
        process.kill()
        process.wait()


async def test_state_folder_snapshots_come_back_and_a_tampered_one_is_a_divergence(
    server: StdioServerParameters, tmp_path: Path
) -> None:
    def set_up(folder: Any, task: Task, key: int) -> None:
        (folder / "note").write_text(f"{task.id} {key}")

    env = MCPEnvironment(server, effects=EFFECTS, state=StateFolder(tmp_path / "state", set_up))
    first = await env.reset(TASK, 7)
    snapshot = await env.snapshot()
    (tmp_path / "state" / "note").write_text("changed")
    (tmp_path / "state" / "more").mkdir()
    assert await env.restore(snapshot) == first
    assert (tmp_path / "state" / "note").read_text() == "t0 7" and not (tmp_path / "state" / "more").exists()
    with pytest.raises(Divergence):
        await env.restore(Snapshot(Restore.STATE, snapshot.data[:-1] + b"8", snapshot.fingerprint))
    await env.close()
    assert (tmp_path / "state").exists()


async def test_an_owners_hook_that_fails_is_a_fault_not_a_crash(server: StdioServerParameters, tmp_path: Path) -> None:
    def set_up(folder: Any, task: Task, key: int) -> None:
        raise KeyError("seed")

    env = MCPEnvironment(server, state=StateFolder(tmp_path / "state", set_up))
    with pytest.raises(TreewrightError, match="setup: KeyError"):
        await env.reset(TASK, 0)
    await env.close()


def test_a_folder_survives_packing_with_empty_folders_and_odd_bytes_and_refuses_links(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "deep" / "empty").mkdir(parents=True)
    (source / "deep" / "bytes\n").write_bytes(bytes(range(256)))
    (source / "none").write_bytes(b"")
    unpack_folder(pack_folder(source), target)
    assert pack_folder(target) == pack_folder(source)
    clear_folder(target)
    assert not list(target.iterdir())
    (source / "link").symlink_to("/etc")
    with pytest.raises(RestoreUnsupported, match="'link'"):
        pack_folder(source)
