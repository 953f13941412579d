"""Harbor tasks in real containers, by buildah's chroot isolation: what holds there and what goes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harbor_tasks import GRADED, without_buildah, write_task
from speed import patient

from treewright.agent.policies.scripted import scripted_choice
from treewright.envs import Action, suite
from treewright.envs.errors import TreewrightError
from treewright.envs.harbor import check_tasks
from treewright.envs.harbor.called import BOXED
from treewright.envs.harbor.engine import Where, choose_engine
from treewright.envs.harbor.task import read_task
from treewright.envs.types import Suite, Task
from treewright.search import Budget, NodeStatus, Pool, Settings, best_first, search

if why := without_buildah():
    pytest.skip(why, allow_module_level=True)

SUM = {
    "goal": "write the sum of number and 4 to out.txt",
    "tests": GRADED.format(wanted=7),
    "solution": "#!/bin/sh\nexpr $(cat number) + 4 > out.txt\n",
}


def bash(command: str) -> Action:
    return Action.of("bash", command=command)


def containers() -> set[str]:
    line = ["buildah", "containers", "--noheading", "--format", "{{.ContainerName}}"]
    return {name for name in subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()}


def images() -> set[str]:
    line = ["buildah", "images", "--noheading", "--filter", "reference=localhost/treewright-*", "--format", "{{.Name}}"]
    found = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    return {name for name in found if not name.endswith("/treewright-harbor")}


def opened(folder: Path, options: str = "") -> Suite:
    return suite(f"harbor:{folder}?engine=buildah&deadline={patient(30)}{options}")


async def test_a_solution_gets_1_and_nothing_done_does_not(tmp_path: Path) -> None:
    write_task(tmp_path / "sum", **SUM)
    (one,) = await check_tasks(f"{tmp_path}?engine=buildah&deadline={patient(30)}")
    assert one.holds, one


async def test_commands_are_fenced_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command looks at everything: each line says what it found."""
    monkeypatch.setenv("TREEWRIGHT_KEY", "of-the-machine")
    write_task(tmp_path / "sum", **SUM)
    found = opened(tmp_path / "sum")
    env = await found.open()
    await env.reset(found.tasks("train", 1)[0], 0)
    look = (
        "ps | grep -c 'pytes[t]'; ip -o link | grep -vc ' lo:'; ls /dev | grep -c -e '^[vs]d[a-z]' -e kmsg;"
        f" ls {Path(__file__).parent} 2>/dev/null | wc -l; cat /proc/1/root/etc/hostname 2>/dev/null | wc -l;"
        " (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null || echo kept;"
        " cat /proc/*/environ 2>/dev/null | grep -c 'of-the-machin[e]';"
        " chroot / true 2>/dev/null || echo no chroot; (sleep 600 &) ; pwd; id -u"
    )
    seen = (await env.step(bash(look), 0)).observation.text.split("\n")
    assert seen == ["0", "0", "0", "0", "0", "kept", "0", "no chroot", "/app", "0"]
    left = (await env.step(bash("ps | grep -c '[s]leep 600'"), 0)).observation.text
    assert left.startswith("0"), "what a command leaves running ends with it"
    await env.close()
    assert found.close is not None
    await found.close()


async def test_a_search_goes_back_by_verified_replay(tmp_path: Path) -> None:
    write_task(tmp_path / "sum", **SUM)

    def moves(task: Task, turns: Sequence[Any], tools: Any) -> list[tuple[str, float]]:
        if turns:
            return [("submit {}", 1.0)]
        right, wrong = (f'bash {{"command": "ls -l; expr $(cat number) + {n} > out.txt"}}' for n in (4, 5))
        return [(right, 0.5), (wrong, 0.5)]

    found, before = opened(tmp_path / "sum"), containers()
    pool = Pool(found.open, 1, patient(60.0))
    tree = await search(
        found.tasks("train", 1)[0], pool, scripted_choice(moves), rule=best_first(eager=True),
        budget=Budget(expansions=3), settings=Settings(run="h"),
    )  # fmt: skip
    ends = [node.reward for node in tree if node.status is NodeStatus.TERMINAL]
    assert sorted(ends) == [0.0, 1.0], [(node.id, node.status, node.reward) for node in tree]
    assert not tree.lost
    assert found.close is not None
    await found.close()
    assert containers() <= before, "those that no session closed, too"


async def test_a_snapshot_is_the_files_of_the_container(tmp_path: Path) -> None:
    write_task(tmp_path / "sum", **SUM)
    found, before = opened(tmp_path / "sum", "&snapshots=true"), images()
    env, other = await found.open(), await found.open()
    await env.reset(found.tasks("train", 1)[0], 0)
    there = (await env.step(bash("expr $(cat number) + 4 > out.txt; ln -s out.txt link"), 0)).observation
    held = await env.snapshot()
    assert len(images() - before) == 1
    await env.step(bash("rm out.txt"), 0)
    assert await other.restore(held) == there
    went_on = await other.step(bash("cat link; readlink link"), 0)
    assert went_on.observation.text == "7\nout.txt" and not went_on.truncated
    del held
    assert found.close is not None
    await found.close()
    assert images() <= before


async def test_a_box_ends_with_who_asked_for_it(tmp_path: Path) -> None:
    """A killed parent leaves nothing behind, not even what was detached."""
    script = tmp_path / "start.py"
    script.write_text(
        "import os, subprocess, sys\nr, w = os.pipe()\n"
        f"line = [sys.executable, '-I', '-S', {str(BOXED)!r}, str(r), 'none', 'sh', '-c',\n"
        f"        'setsid sleep 654321 & touch {tmp_path}/begun; sleep 654321']\n"
        "subprocess.Popen(line, pass_fds=(r,), start_new_session=True).wait()\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, str(script))
    await until((tmp_path / "begun").exists)
    process.send_signal(signal.SIGKILL)
    await process.wait()

    await until(lambda: not any(b"sleep\x00654321" in line for line in _lines()))


async def until(held: Callable[[], bool]) -> None:
    async with asyncio.timeout(patient(20)):
        while not held():  # noqa: ASYNC110 another process's doing, which tells nobody
            await asyncio.sleep(0.01)


def _lines() -> list[bytes]:
    out = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                out.append(Path(f"/proc/{name}/cmdline").read_bytes())
            except OSError:
                continue
    return out


def process_list() -> set[bytes]:
    found = set[bytes]()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.add(path.read_bytes())
    return found


async def test_values_of_variables_reach_a_command_and_stay_out_of_process_lists(tmp_path: Path) -> None:
    write_task(tmp_path / "sum", **SUM)
    engine, task = choose_engine("buildah"), read_task(tmp_path / "sum")
    container = await engine.start(await engine.image(task), task)
    value = 'it\'s a "key" $HOME\n`id` \\n end'
    where = Where(env={"TOLD": value, "EMPTY": ""})
    try:
        asked = ["sh", "-c", 'printf "%s|%s|%s" "$TOLD" "${EMPTY-unset}" "$(cat | wc -c)"; sleep 1']
        running = asyncio.create_task(engine.execute(container, asked, where, patient(30), 1 << 16, None))
        lines = set[bytes]()
        while not running.done():
            lines |= await asyncio.to_thread(process_list)
            await asyncio.sleep(0.05)
        assert any(b"wc -c" in line for line in lines) and not any(b"`id`" in line for line in lines)
        assert (await running).out.text() == f"{value}||0", "and nothing of them is left on stdin"
        with pytest.raises(TreewrightError, match=r"'a\.b' is no name that a shell takes"):
            await engine.execute(container, ["true"], Where(env={"a.b": "1"}), patient(30), 1, None)
    finally:
        await engine.remove(container)
