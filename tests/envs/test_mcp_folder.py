"""A server's folder: one path for every session, whoever may mount; modes and times come back with the contents."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from not_none import not_none
from raw_server import RAW
from small_policies import script_policy

from treewright.envs import Action, Restore, suite
from treewright.envs.tools import room
from treewright.envs.tools.folder import clear_folder, folder_digest, pack_folder, unpack_folder
from treewright.envs.types import Suite, Task
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.types import Budget, NodeStatus

# Tells whole paths, and refuses a path that is not within its own folder, as servers of files do.
FILES = (
    RAW
    + """
home = os.path.realpath(sys.argv[1])

def call(name, arguments):
    path = os.path.realpath(arguments.get("path", home))
    if name == "where":
        return f"home {home} cwd {os.getcwd()} arg {sys.argv[1]}"
    if not path.startswith(home + os.sep):
        return {"isError": True, "content": [{"type": "text", "text": f"{path} is outside {home}"}]}
    if name == "write":
        with open(path, "a") as file:
            file.write(arguments["text"])
        return f"wrote {path}"
    about = os.stat(path)
    return f"{path} holds {open(path).read()} mode {about.st_mode & 0o777:o} time {int(about.st_mtime)}"

path = {"type": "string"}
write = {"type": "object", "properties": {"path": path, "text": path}, "required": ["path", "text"]}
serve([{"name": "where", "inputSchema": {"type": "object", "properties": {}}, "description": f"tells of {home}"},
       {"name": "write", "inputSchema": write},
       {"name": "look", "inputSchema": {"type": "object", "properties": {"path": path}, "required": ["path"]}}], call)
"""
)


@pytest.fixture(params=["mounted", "rewritten"])
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The suite of a server over a folder with one old executable file."""
    if request.param == "rewritten":
        monkeypatch.setattr(room, "can_mount", lambda: False)
    (tmp_path / "files.py").write_text(FILES)
    (tmp_path / "start").mkdir()
    run = tmp_path / "start" / "run.sh"
    run.write_text("true")
    run.chmod(0o751)
    os.utime(run, (1_000_000, 1_000_000))
    text = f'command = "{sys.executable} {tmp_path}/files.py {{folder}}"\nfolder = "start"\ncwd = "{{folder}}"\n'
    text += 'sandboxed = true\n[effects]\nwhere = "read"\nlook = "read"\nwrite = "reversible"\n'
    (tmp_path / "server.toml").write_text(text)
    return suite(f"mcp:{tmp_path}/server.toml")


def path_of(text: str) -> Any:
    return text.split("home ")[1].split(" ")[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mount namespaces are Linux's")
def test_a_folder_can_be_mounted_where_the_tests_run() -> None:
    """So that the cases below which say 'mounted' are."""
    assert room.can_mount()


async def test_every_session_and_every_run_sees_one_path(files: Suite) -> None:
    told = []
    for _ in range(3):
        env = await files.open()
        await env.reset(files.tasks("train", 1)[0], 0)
        told.append(((await env.step(Action.of("where"), 1)).observation.text, (await env.actions())[0].description))
        await env.close()
    assert len(set(told)) == 1
    words = told[0][0].split()
    assert len({words[1], words[3], words[5]}) == 1 and told[0][1] == f"tells of {words[1]}"


async def test_a_path_that_was_read_in_one_session_is_good_in_all_others(files: Suite) -> None:
    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        if not turns:
            return "where {}"
        name = f"{path_of(turns[0].observation.text)}/{rng.choice('abcd')}.txt"
        if len(turns) < 3:
            return str(Action.of("write", path=name, text="x"))
        return str(Action.of("look", path=turns[2].observation.text.removeprefix("wrote ")))

    pool = Pool(files.open, 3)
    tree = await search(
        files.tasks("train", 1)[0], pool, script_policy(script), rule=best_first(3, 3), budget=Budget(expansions=14),
        settings=Settings(max_tokens=400, in_flight=3),
    )  # fmt: skip
    await pool.close()
    assert len(tree) > 14 and not {NodeStatus.FAULT, NodeStatus.UNREACHABLE} & set(tree.status)
    texts = [not_none(tree.observation[i]).text for i in range(1, len(tree))]
    assert not [text for text in texts if "outside" in text]
    wrote = {os.path.dirname(text.removeprefix("wrote ")) for text in texts if text.startswith("wrote ")}
    assert {path_of(text) for text in texts if text.startswith("home")} == wrote and len(wrote) == 1


async def test_a_restored_folder_has_its_modes_and_times(files: Suite) -> None:
    env = await files.open()
    await env.reset(files.tasks("train", 1)[0], 0)
    home = path_of((await env.step(Action.of("where"), 1)).observation.text)
    look = Action.of("look", path=f"{home}/run.sh")
    before = (await env.step(look, 2)).observation.text
    assert before == f"{home}/run.sh holds true mode 751 time 1000000"
    kept = await env.snapshot()
    await env.step(Action.of("write", path=f"{home}/run.sh", text=" or not"), 3)
    assert (await env.step(look, 4)).observation.text != before
    await env.restore(kept)
    assert (await env.step(look, 5)).observation.text == before
    other = await files.open()
    await other.restore(kept)
    assert (await other.step(look, 6)).observation.text == before
    await env.close()
    await other.close()


async def test_outside_the_server_nothing_is_mounted_and_nothing_is_left(files: Suite) -> None:
    env: Any = await files.open()
    assert env.restore_ways == {Restore.STATE, Restore.REPLAY}
    await env.reset(files.tasks("train", 1)[0], 0)
    real = env._state.path
    await env.step(Action.of("write", path=f"{env._place.shown}/new.txt", text="x"), 1)
    assert (real / "new.txt").read_text() == "x"
    assert not env._place.shown.exists() or not list(env._place.shown.iterdir())
    await env.close()
    assert not real.exists()


NODE = Path(os.environ.get("TREEWRIGHT_SERVERS", Path(__file__).parents[2] / ".venv-servers")) / "node_modules" / ".bin"


@pytest.mark.skipif(
    not (NODE / "mcp-server-filesystem").exists(),
    reason=f"no MCP servers of npm in {NODE}; type: make .venv-servers/.ready",
)
@pytest.mark.parametrize("mounted", [True, False])
async def test_server_filesystem_of_npm_refuses_no_path_that_another_session_told(
    mounted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mounted:
        monkeypatch.setattr(room, "can_mount", lambda: False)
    (tmp_path / "start").mkdir()
    text = f'command = "{NODE}/mcp-server-filesystem {{folder}}"\nfolder = "start"\nsandboxed = true\n'
    text += 'trust_hints = true\n[effects]\nwrite_file = "reversible"\n'
    (tmp_path / "server.toml").write_text(text)

    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        if not turns:
            return "list_allowed_directories {}"
        home = turns[0].observation.text.split()[-1]
        if len(turns) == 1:
            return str(Action.of("write_file", path=f"{home}/{rng.randrange(10**9)}.txt", content="x"))
        return str(Action.of("list_directory", path=home)) if len(turns) == 2 else 'done {"answer": ""}'

    found = suite(f"mcp:{tmp_path}/server.toml")
    pool = Pool(found.open, 2)
    tree = await search(
        found.tasks("train", 1)[0], pool, script_policy(script), rule=best_first(2, 3), budget=Budget(expansions=8),
        settings=Settings(max_tokens=400, in_flight=2),
    )  # fmt: skip
    await pool.close()
    assert len(tree) > 6 and not {NodeStatus.FAULT, NodeStatus.UNREACHABLE} & set(tree.status)
    assert "error" not in {not_none(tree.observation[i]).provenance for i in range(1, len(tree))}


def test_a_folder_survives_packing_with_modes_and_times_read_only_parts_included(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "locked" / "empty").mkdir(parents=True)
    (source / "locked" / "tool").write_text("#!/bin/sh")
    for path, mode, when in [
        (source / "locked" / "tool", 0o555, 10), (source / "locked" / "empty", 0o700, 20),
        (source / "locked", 0o555, 30), (source, 0o755, 40),
    ]:  # fmt: skip
        path.chmod(mode)
        os.utime(path, (when, when))
    packed = pack_folder(source)
    for _ in range(2):  # into an empty folder, and over what lies there
        unpack_folder(packed, target)
        assert pack_folder(target) == packed
    assert stat.S_IMODE((target / "locked" / "tool").stat().st_mode) == 0o555 and target.stat().st_mtime == 40
    os.utime(target / "locked", (99, 99))
    assert folder_digest(target) == folder_digest(source), "times do not tell states apart"
    clear_folder(target)
    assert not list(target.iterdir())
