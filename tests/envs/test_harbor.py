"""Harbor task folders: what is read, what is refused by name, and a task from its first command to its reward."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from docker_stand_in import recorded, stand_in
from forked import treewright
from harbor_tasks import GRADED, TOML, write_task
from speed import patient

from treewright.envs import Action, Effect, InvalidAction, TreewrightError, suite
from treewright.envs.check import check_env
from treewright.envs.errors import ActionTimeout, EnvFault, SessionDied
from treewright.envs.harbor.called import Bounded, call
from treewright.envs.harbor.engine import fresh_name
from treewright.envs.harbor.suite import Options, main, solution_of
from treewright.envs.harbor.task import read_task, resolved
from treewright.envs.harbor.world import normal, reward_of
from treewright.envs.types import Environment, Suite


def bash(command: str) -> Action:
    return Action.of("bash", command=command)


async def opened(found: Suite, index: int = 0) -> Environment:
    env = await found.open()
    await env.reset(found.tasks("train", index + 1)[index], 0)
    return env


# -- task folders ---------------------------------------------------------------------------------------------------


def test_a_task_is_read_with_the_fields_of_older_versions(tmp_path: Path) -> None:
    toml = 'version = "1.0"\n[environment]\nallow_internet = false\nmemory = "2G"\n[verifier]\ntimeout_sec = 5\n'
    task = read_task(write_task(tmp_path / "old", toml=toml))
    env = task.file.environment
    assert (task.id, task.goal, task.network, task.builds) == ("old", "write hello to out.txt", False, True)
    assert (env.memory_mb, task.file.schema_version, task.file.verifier.timeout_sec) == (2048, "1.0", 5.0)
    assert read_task(write_task(tmp_path / "new", toml="")).network, "the format's default is a public network"


@pytest.mark.parametrize(
    ("toml", "needs"),
    [
        ('[[steps]]\nname = "first"\n', "several steps"),
        ('[environment]\nos = "Windows"\n', "Windows"),
        ("[environment]\ngpus = 1\n", "a GPU"),
        ('[environment.tpu]\ntype = "v6e"\ntopology = "2x2"\n', "a TPU"),
        ('[[environment.mcp_servers]]\nname = "a"\nurl = "http://a"\n', "MCP servers"),
        ('[verifier]\nenvironment_mode = "separate"\n', "a container of its own for the verifier"),
        ("[verifier.environment]\ncpus = 1\n", "a container of its own for the verifier"),
        ('[[verifier.collect]]\ncommand = "true"\n', "between agent and verifier"),
        ('[environment]\nnetwork_mode = "allowlist"\nallowed_hosts = ["a.b"]\n', "network=none"),
        ('[verifier]\nnetwork_mode = "no-network"\n', "agent or verifier alone"),
        ('[verifier.env]\nKEY = "${TREEWRIGHT_NOT_SET}"\n', "TREEWRIGHT_NOT_SET is not set"),
    ],
)
def test_what_a_task_needs_and_cannot_have_is_refused_by_name(tmp_path: Path, toml: str, needs: str) -> None:
    with pytest.raises(TreewrightError, match=f"^odd needs .*{needs}.*not supported"):
        read_task(write_task(tmp_path / "odd", toml=toml))


def test_files_that_ask_for_more_are_refused_by_name_too(tmp_path: Path) -> None:
    task = write_task(tmp_path / "odd")
    (task / "environment" / "docker-compose.yaml").write_text("services: {}\n")
    (task / "trajectory.json").write_text("{}")
    (task / "tests" / ".harborignore").write_text("*.txt\n")
    (task / "solution" / "secret").symlink_to("/etc/hostname")
    with pytest.raises(TreewrightError, match=r"several containers .*trajectory.*harborignore.*solution/secret"):
        read_task(task)


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('schema_version = "2.0"\n', "schema_version '2.0'"),
        ('[verifier]\ntimeout_sec = "long"\n', r"task.toml: verifier.timeout_sec"),
        ('[environment]\nmemory = "2 GB"\n', "is no size"),
        ("[environment\n", "task.toml"),
    ],
)
def test_a_wrong_file_is_told_with_its_field(tmp_path: Path, toml: str, says: str) -> None:
    with pytest.raises(TreewrightError, match=says):
        read_task(write_task(tmp_path / "wrong", toml=toml))


def test_what_is_odd_about_a_file_is_noted(tmp_path: Path) -> None:
    toml = '[agent]\ntimeout_secs = 5\n[environment.env]\nURL = "http://${HOST}/"\n'
    notes = read_task(write_task(tmp_path / "odd", toml=toml)).notes
    assert "agent.timeout_secs" in notes[0] and "did you mean timeout_sec?" in notes[0]
    assert "URL is taken literally" in notes[1]


def test_templates_are_whole_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREEWRIGHT_A", "one")
    given = {"a": "${TREEWRIGHT_A}", "b": "${TREEWRIGHT_B:-two}", "c": "x${TREEWRIGHT_A}"}
    assert resolved(given) == {"a": "one", "b": "two", "c": "x${TREEWRIGHT_A}"}


def test_a_solution_is_one_command(tmp_path: Path) -> None:
    toml = '[solution.env]\nWORD = "a b"\n'
    plain = write_task(tmp_path / "plain", toml=toml, solution="#!/bin/bash\nset -e\necho hello > out.txt\n")
    assert solution_of(read_task(plain)) == "export WORD='a b'\nset -e\necho hello > out.txt"
    files = write_task(tmp_path / "files", solution="#!/usr/bin/env python3\nprint(1)\n")
    assert "base64 -d > /solution/solve.sh" in solution_of(read_task(files))


# -- suites ---------------------------------------------------------------------------------------------------------


def test_without_an_engine_every_task_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path / "tasks" / "one")
    write_task(tmp_path / "tasks" / "two")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TreewrightError, match=r"\(one, two\): no container engine .*install docker or podman"):
        suite(f"harbor:{tmp_path / 'tasks'}")


def test_splits_options_and_tasks_that_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(tmp_path, monkeypatch)
    for name in "abcdef":
        write_task(tmp_path / "tasks" / name, toml="[environment]\ngpus = 2\n" if name == "b" else TOML)
    found = suite(f"harbor:{tmp_path / 'tasks'}?engine=docker&horizon=3")
    ids = {split: [task.id for task in found.tasks(split, 9)] for split in ("train", "test")}
    assert ids == {"train": ["a", "d", "e"], "test": ["c", "f"]}
    assert "b needs a GPU" in caplog.text and found.tasks("test", 1)[0].horizon == 3
    assert len(suite(f"harbor:{tmp_path / 'tasks'}?split=test").tasks("test", 9)) == 5
    for name in ("train", "test"):
        write_task(tmp_path / "halves" / name / f"in-{name}")
    halves = suite(f"harbor:{tmp_path / 'halves'}")
    assert [halves.tasks(name, 9)[0].id for name in ("train", "test")] == ["in-train", "in-test"]
    with pytest.raises(TreewrightError, match="did you mean 'engine'"):
        suite(f"harbor:{tmp_path / 'tasks'}?engin=docker")
    with pytest.raises(TreewrightError, match="deadline: Input should be greater than 0"):
        suite(f"harbor:{tmp_path / 'tasks'}?deadline=0")
    with pytest.raises(TreewrightError, match=r"has a task\.toml"):
        suite(f"harbor:{tmp_path / 'stand-in'}")


def test_a_world_with_a_network_is_live_unless_it_is_declared_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    write_task(tmp_path / "tasks" / "closed")
    write_task(tmp_path / "tasks" / "open", toml="")

    async def seen(options: str) -> tuple[bool, list[Effect]]:
        found = suite(f"harbor:{tmp_path / 'tasks'}{options}")
        env, effects = await found.open(), []
        for task in found.tasks("train", 2):
            await env.reset(task, 0)
            effects.append(await env.effect(bash("ls")))
        await env.close()
        return env.sandboxed, effects

    assert asyncio.run(seen("")) == (False, [Effect.REVERSIBLE, Effect.UNKNOWN])
    assert asyncio.run(seen("?network=none")) == (True, [Effect.REVERSIBLE] * 2)
    assert asyncio.run(seen("?sandboxed=true")) == (True, [Effect.REVERSIBLE] * 2)


# -- a task, over the stand-in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["docker", "podman"])
async def test_an_episode_by_the_lines_of_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    place = stand_in(tmp_path, monkeypatch, engine)
    toml = (
        'schema_version = "1.4"\n[environment]\nnetwork_mode = "no-network"\ncpus = 2\nmemory_mb = 512\n'
        'workdir = "/app"\n[environment.env]\nWHO = "hello"\n[agent]\nuser = "agent"\n[verifier.env]\nKEY = "secret"\n'
        '[environment.healthcheck]\ncommand = "test -f number"\ninterval_sec = 0.01\n'
    )
    write_task(tmp_path / "tasks" / "hello", toml=toml)
    found = suite(f"harbor:{tmp_path / 'tasks'}?engine={engine}")
    env = await opened(found)
    seen = [(await env.step(bash(one), 0)).observation.text for one in ("cat number", "echo $WHO >out.txt", "exit 3")]
    assert seen == ["3", "[no output]", "[exit code 3]"]
    end = await env.step(Action.of("submit"), 0)
    assert (end.reward, end.terminated, end.info["rewards"]) == (1.0, True, {"reward": 1.0})
    with pytest.raises(InvalidAction, match="has ended"):
        await env.step(bash("ls"), 0)
    await env.close()
    assert found.close is not None
    await found.close()
    lines = recorded(place)
    assert [line[0] for line in lines].count("rm") == 1 and not [*(place / "containers").iterdir()]
    started = next(line for line in lines if line[0] == "run")
    name = started[started.index("--name") + 1]
    assert started[6:12] == ["--network", "none", "--cpus", "2", "--memory", "512m"]
    assert started[-3:] == ["sh", "-c", "sleep infinity"]
    executed = [line for line in lines if line[0] == "exec"]
    acted = next(line for line in executed if line[-1] == "cat number")
    assert acted[1 : acted.index(name)] == ["-u", "agent", "-w", "/app", "-e", "WHO"]
    tested = next(line for line in executed if "/tests/test.sh" in line[-1])
    assert tested[1 : tested.index(name)] == ["-w", "/app", "-e", "WHO", "-e", "KEY"], "values are not on the line"


async def test_going_back_by_replay_and_by_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand_in(tmp_path, monkeypatch)
    write_task(tmp_path / "tasks" / "hello")
    found = suite(f"harbor:{tmp_path / 'tasks'}?engine=docker&snapshots=true")
    report = await check_env(found.open, found.tasks("train", 1), steps=2, oracle=found.oracle, limit=patient(120.0))
    report.raise_if_failed()
    assert found.close is not None
    await found.close()
    assert not [*(place / "containers").iterdir()] and len([*(place / "images").iterdir()]) == 1, "only the task's own"


async def test_an_episode_that_runs_out_of_turns_is_judged_by_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    write_task(tmp_path / "tasks" / "hello")
    env = await opened(suite(f"harbor:{tmp_path / 'tasks'}?horizon=2"))
    first, last = await env.step(bash("echo hello > out.txt"), 0), await env.step(bash("ls"), 0)
    assert (first.truncated, last.truncated, last.terminated, last.reward) == (False, True, False, 1.0)
    await env.close()


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        ("#!/bin/sh\necho no tool; exit 127\n", EnvFault, "died with 127: no tool"),
        ("#!/bin/sh\necho 0 > /logs/verifier/reward.txt; kill -9 $$\n", EnvFault, "died with 137"),
        ("#!/bin/sh\ntrue\n", EnvFault, "left no reward file: they said nothing"),
        ("#!/bin/sh\necho soon > /logs/verifier/reward.txt\n", EnvFault, "reward.txt holds no reward: 'soon"),
        ("#!/bin/sh\necho nan > /logs/verifier/reward.txt\n", EnvFault, "no finite number"),
        ('#!/bin/sh\necho \'{"a": 1, "b": 0}\' > /logs/verifier/reward.json\n', EnvFault, r"named a, b; .*reward=NAME"),
        ("#!/bin/sh\nsleep 60\n", ActionTimeout, "were not done after 0.5 s"),
    ],
)
async def test_a_verifier_that_gives_no_reward_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: Any, says: str
) -> None:
    stand_in(tmp_path, monkeypatch)
    seconds = 0.5 if error is ActionTimeout else 60
    write_task(tmp_path / "tasks" / "hello", toml=f"{TOML}[verifier]\ntimeout_sec = {seconds}\n", tests=script)
    env = await opened(suite(f"harbor:{tmp_path / 'tasks'}"))
    await env.step(bash("echo 1 > /logs/verifier/reward.txt"), 0)  # one's own reward does not count
    with pytest.raises(error, match=says):
        await env.step(Action.of("submit"), 0)
    await env.close()


async def test_a_failing_test_with_a_reward_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    script = '#!/bin/sh\necho \'{"speed": 2, "right": 0.25}\' > /logs/verifier/reward.json\nexit 1\n'
    write_task(tmp_path / "tasks" / "hello", tests=script)
    env = await opened(suite(f"harbor:{tmp_path / 'tasks'}?reward=right"))
    assert (await env.step(Action.of("submit"), 0)).reward == 0.25
    await env.close()


async def test_a_command_is_ended_and_bounded_and_a_lost_container_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = stand_in(tmp_path, monkeypatch)
    write_task(tmp_path / "tasks" / "hello")
    env = await opened(suite(f"harbor:{tmp_path / 'tasks'}?deadline={patient(1.0)}&output=400"))
    late = await env.step(bash("echo begun; sleep 600"), 0)
    assert late.observation.text.startswith("begun\n[killed after") and recorded(place)[-1][0] == "restart"
    long = (await env.step(bash("seq 1 9999"), 0)).observation.text
    assert long.startswith("1\n2\n") and long.endswith("9998\n9999") and "bytes left out" in long and len(long) < 1000
    shot = (await env.step(bash("kill -9 $PPID"), 0)).observation.text
    assert "exit code" in shot
    shutil.rmtree(place / "containers")
    (place / "containers").mkdir()
    with pytest.raises(SessionDied, match="No such container"):
        await env.step(bash("ls"), 0)
    await env.close()


async def test_containers_of_killed_processes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand_in(tmp_path, monkeypatch)
    own = fresh_name()
    ended = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await ended.wait()
    gone = own.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    for name in (own, gone, gone.replace("treewright-", "treewright-0"), "theirs"):
        (place / "containers" / name).mkdir()
    write_task(tmp_path / "tasks" / "hello")
    await (await opened(suite(f"harbor:{tmp_path / 'tasks'}"))).close()
    left = {path.name for path in (place / "containers").iterdir()}
    assert left == {own, gone.replace("treewright-", "treewright-0"), "theirs"}


def lines_of_the_page() -> list[list[str]]:
    page = (Path(__file__).parents[2] / "docs" / "harbor.md").read_text()
    blocks = re.findall(r"<!-- run by tests/envs/test_harbor.py -->\n```bash\n(.*?)```", page, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.strip().splitlines()]


def test_collect_eval_and_run_by_the_lines_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand_in(tmp_path, monkeypatch)
    for name in ("one", "two", "zero"):
        write_task(tmp_path / "tasks" / name)
    (tmp_path / "mine.py").write_text(
        "def act(task, turns, tools, rng):\n"
        "    return 'submit {}' if turns else 'bash {\"command\": \"echo hello > out.txt\"}'\n"
    )
    told = []
    for words in lines_of_the_page():
        if words[0] == "treewright":
            done = treewright(words[1:], tmp_path, os.environ)
            assert done.returncode == 0, done.stdout + done.stderr
            told.append(done.stdout)
    assert "stored in" in told[0] and "1/1" in told[1] and "echo hello" in told[2]
    assert not [*(place / "containers").iterdir()]


def test_in_a_live_world_each_commit_goes_on_from_the_files_that_the_last_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = stand_in(tmp_path, monkeypatch)
    write_task(tmp_path / "tasks" / "open", toml="", tests=GRADED.format(wanted="xx"))
    (tmp_path / "mine.py").write_text(
        'def act(task, turns, tools, rng):\n    return \'bash {"command": "printf x >> out.txt"}\'\n\n'
        "def yes(task, action):\n    return True\n"
    )
    words = ["run", "harbor:tasks/open?horizon=2", "--policy", "scripted:mine:act", "--expansions", "1"]
    refused = treewright(words, tmp_path, os.environ)
    acted = [line for line in recorded(place) if "printf x" in line[-1]]
    assert refused.returncode == 0 and not acted, "nothing is executed without an approval"
    done = treewright([*words, "--approve", "mine:yes", "--set", "seed=1"], tmp_path, os.environ)
    acted = [line for line in recorded(place) if "printf x" in line[-1]]
    assert done.returncode == 0 and len(acted) == 2, done.stdout + done.stderr
    assert "reward 1" in done.stdout, done.stdout + done.stderr
    assert len([*(place / "images").iterdir()]) == 1 and not [*(place / "containers").iterdir()]


def test_a_folder_is_checked_by_the_line_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_task(Path("tasks/right"))
    (words,) = [words for words in lines_of_the_page() if words[0] == "python"]
    assert words[:3] == ["python", "-m", "treewright.envs.harbor"]
    assert main(words[3]) == 0
    write_task(Path("tasks/wrong"), solution="#!/bin/sh\ntrue\n")
    assert main(words[3]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "holds  right: solution 1, nothing done 0" and said[2].startswith("FAILS  wrong: solution 0")


def test_the_page_names_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "harbor.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(Options.model_fields)


# -- small parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("-rw-r--r-- 1 root 5 Nov 30 09:03 a", "-rw-r--r-- 1 root 5 Dec  1 19:13 a", True),
        ("3 passed in 0.12s", "3 passed in 1.70s", True),
        ("Mon Nov 30 09:02:52 UTC 2026", "Tue Dec  1 00:00:01 UTC 2026", True),
        ("3 passed in 0.12s", "2 passed in 0.12s", False),
        ("-rw-r--r-- 1 root 5 Nov 30 09:03 a", "-rw-r--r-- 1 root 6 Nov 30 09:03 a", False),
        ("[1] 4242", "[1] 17", True),
        ("version 1.2.3", "version 1.2.4", False),
    ],
)
def test_what_nobody_prints_twice_alike_does_not_count(one: str, other: str, same: bool) -> None:
    assert (normal(one) == normal(other)) is same


@pytest.mark.parametrize(("given", "reward"), [({"reward": 1}, 1.0), ({"score": 0.5}, 0.5), ({"reward": True}, 1.0)])
def test_the_reward_of_a_file(given: Any, reward: float) -> None:
    assert reward_of(given, "reward") == reward


@pytest.mark.parametrize("given", [0.25, {"reward": "1"}, [1], {}, {"reward": float("inf")}])
def test_what_is_no_reward_is_a_fault(given: Any) -> None:
    with pytest.raises(EnvFault):
        reward_of(given, "reward")


@pytest.mark.parametrize("size", [0, 3, 10, 11, 25])
def test_an_output_keeps_its_ends(size: int) -> None:
    text, out = bytes(range(65, 65 + size)), Bounded(5)
    for i in range(0, size, 3):
        out.add(text[i : i + 3])
    assert out.size == size and out.end == text[-5:] and (out.text() == text.decode()) == (size <= 10)
    assert out.text().startswith(text[:5].decode())


async def test_a_call_ends_with_all_that_it_started(tmp_path: Path) -> None:
    done = await call(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/pid; sleep 600"], deadline=patient(0.5))
    assert done.late and done.code is None
    started = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline")
    async with asyncio.timeout(patient(10)):
        while started.exists() and started.read_bytes():  # noqa: ASYNC110, ASYNC240 one that has ended shows no command line
            await asyncio.sleep(0.01)
