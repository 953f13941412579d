"""The suite `workbench`: its jobs can be solved, mistakes count, and the server does what the model of it says."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none
from speed import patient

from treewright.envs import Action, InvalidAction, Restore, SessionDied, Task, Turn
from treewright.envs.tools.workbench import EFFECTS, KINDS, SUITE, open_workbench, oracle, tasks, wanted
from treewright.envs.tools.workbench_world import Office, apply, first_office, load, save
from treewright.envs.types import Environment

in_module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session() -> AsyncIterator[Environment]:
    """One session for the whole file: a server takes half a second to start, a reset two milliseconds."""
    env = await SUITE.open()
    yield env
    await env.close()


async def solve(env: Environment, task: Task, before: list[Any] | tuple[Any, ...] = ()) -> tuple[list[Turn], Any]:
    """The oracle's episode after the given first actions: history and last result."""
    history = [Turn(None, await env.reset(task, 0))]
    result = None
    while result is None or not result.terminated:
        taken = len(history) - 1
        action = before[taken] if taken < len(before) else oracle(task, history, await env.actions())
        result = await env.step(action, taken)
        history.append(Turn(action, result.observation))
    return history, result


def servers_of(folder: Path) -> list[int]:
    """Process ids of the servers that work in this folder, without the relays that stand for them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if str(folder) in line and line[0].endswith("workbench_server"):
                found.append(int(entry.name))
    return found


def folder_of(env: Any) -> Any:
    return not_none(env._state).path


@in_module_loop
async def test_oracle_solves_thirty_test_tasks_within_their_horizon_with_short_answers(session: Environment) -> None:
    for task in tasks("test", 30):
        history, result = await solve(session, task)
        assert result.reward == 1.0, task
        assert len(history) - 1 <= task.horizon - 2
        assert all(len(turn.observation.text) <= 200 for turn in history)


def test_splits_share_no_world_and_every_kind_is_in_both() -> None:
    train, test = tasks("train", 500), tasks("test", 300)
    worlds = [{first_office(task.seed).fingerprint for task in split} for split in (train, test)]
    assert len(worlds[0]) == 500 and len(worlds[1]) == 300 and not worlds[0] & worlds[1]
    assert not {task.id for task in train} & {task.id for task in test}
    for split in (train, test):
        assert {task.data["kind"] for task in split} == set(KINDS)
    assert tasks("test", 20) == tasks("test", 300)[:20]


def test_an_unsolved_job_leaves_something_to_do() -> None:
    for task in tasks("train", 200):
        assert task.truth["answer"] is not None or wanted(task) != first_office(task.seed)


def test_asking_for_too_many_tasks_or_another_split_says_so() -> None:
    with pytest.raises(Exception, match="1000 test tasks"):
        tasks("test", 1001)
    with pytest.raises(Exception, match="no split 'dev'"):
        tasks("dev", 1)


def random_call(office: Office, rng: random.Random) -> Action:
    """Some call, often one that the server refuses."""
    who = rng.choice([*office.contacts, "nobody"])
    event, order = rng.choice([*office.events, "e9"]), rng.choice([*office.orders, "k1"])
    file, text = rng.choice([*office.files, "fresh", "../up"]), rng.choice(["one", "two\nlines", "", "ü\r\n"])
    day = rng.choice(["mon", "fri"])
    return rng.choice(
        [
            Action.of("write_file", name=file, text=text),
            Action.of("append_file", name=file, text=text),
            Action.of("delete_file", name=file),
            Action.of("create_event", who=who, title="demo", day=day),
            Action.of("move_event", id=event, day=day),
            Action.of("cancel_event", id=event),
            Action.of("update_order", id=order, status="held"),
            Action.of("send_mail", to=rng.choice([f"{who}@corp.io", "nowhere"]), subject="late"),
            Action.of("find_contact", name=who),
            Action.of("find_order", id=order),
            Action.of("list_events", who=who),
            Action.of("read_file", name=file),
            Action.of("list_files"),
        ]
    )


@in_module_loop
async def test_the_server_does_what_the_pure_model_says_on_random_walks(session: Environment) -> None:
    for index, task in enumerate(tasks("train", 4)):
        rng, office = random.Random(index), first_office(task.seed)
        shown = await session.reset(task, 0)
        for step in range(40):
            assert shown.fingerprint == office.fingerprint
            action = random_call(office, rng)
            after = apply(office, action.name, action.arguments)
            result = await session.step(action, step)
            shown = result.observation
            if shown.provenance == "error":
                assert after == office, action
            assert result.effect is EFFECTS[action.name]
            assert len(shown.text) <= 200
            office = after
        assert load(folder_of(session)) == office


def test_saving_and_loading_an_office_changes_nothing(tmp_path: Path) -> None:
    office = first_office(3)
    save(office, tmp_path)
    assert load(tmp_path) == office


def test_oracle_finds_back_from_any_mistake_that_can_be_undone() -> None:
    for index, task in enumerate(tasks("train", 140)):
        rng, office, history = random.Random(index), first_office(task.seed), []
        for _ in range(rng.randrange(4)):
            action = random_call(office, rng)
            if action.name != "send_mail":
                office = apply(office, action.name, action.arguments)
                history.append(Turn(action, None))  # type: ignore[arg-type]
        for _ in range(20):
            action = oracle(task, history, ())
            if action.name == "done":
                break
            office = apply(office, action.name, action.arguments)
            history.append(Turn(action, None))  # type: ignore[arg-type]
        assert action.name == "done" and office == wanted(task), (task, history)


@in_module_loop
async def test_a_wrong_mail_fails_the_task_for_good_and_a_wrong_answer_too(session: Environment) -> None:
    mail = next(task for task in tasks("train", 20) if task.data["kind"] == "mail")
    _, result = await solve(session, mail, before=[Action.of("send_mail", to="all@corp.io", subject="oops")])
    assert result.reward == 0.0
    question = next(task for task in tasks("train", 20) if task.data["kind"] == "answer")
    _, result = await solve(session, question, before=[Action.of("done", answer="purple")])
    assert result.terminated and result.reward == 0.0


@in_module_loop
async def test_doing_nothing_earns_no_reward_and_no_step_follows_done(session: Environment) -> None:
    task = next(task for task in tasks("train", 20) if task.data["kind"] == "status")
    _, result = await solve(session, task, before=[Action.of("done", answer="ok")])
    assert result.reward == 0.0
    with pytest.raises(InvalidAction, match="has ended"):
        await session.step(Action.of("list_files"), 9)


@in_module_loop
async def test_bad_arguments_are_explained_and_change_nothing(session: Environment) -> None:
    task = tasks("train", 1)[0]
    before = await session.reset(task, 0)
    for action, message in [
        (Action.of("find_contat", name="x"), "did you mean 'find_contact'"),
        (Action.of("find_contact", nam="x"), "did you mean 'name'"),
        (Action.of("find_contact"), "'name' is a required property"),
        (Action.of("move_event", id="e1", day="someday"), "'someday' is not one of"),
        (Action.of("read_file", name="\ud800"), "not plain JSON"),
        (Action(()), "no call given"),
        (Action((*Action.of("list_files").calls, *Action.of("done", answer="x").calls)), "called alone"),
    ]:
        with pytest.raises(InvalidAction, match=message):
            await session.step(action, 0)
    assert (await session.snapshot()).fingerprint == before.fingerprint


@in_module_loop
async def test_a_reset_keeps_the_server_process(session: Environment) -> None:
    first, second = tasks("train", 2)
    await session.reset(first, 0)
    before = servers_of(folder_of(session))
    await session.reset(second, 0)
    assert len(before) == 1 and servers_of(folder_of(session)) == before


@in_module_loop
async def test_a_killed_server_is_session_died_and_the_snapshot_comes_back(session: Environment) -> None:
    task = next(task for task in tasks("train", 20) if task.data["kind"] == "copy")
    await session.reset(task, 0)
    shown = (await session.step(Action.of("write_file", name="fresh", text="x"), 0)).observation
    snapshot = await session.snapshot()
    os.kill(servers_of(folder_of(session))[0], signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(SessionDied):
            await session.step(Action.of("list_files"), 1)
    assert await session.restore(snapshot) == shown
    assert "fresh" in (await session.step(Action.of("list_files"), 1)).observation.text
    other = await SUITE.open()
    try:
        assert await other.restore(snapshot) == shown
    finally:
        await other.close()


@in_module_loop
async def test_close_ends_the_server_and_removes_the_folder_even_twice_or_unused() -> None:
    env = await open_workbench()
    await env.reset(tasks("train", 1)[0], 0)
    folder = folder_of(env)
    assert servers_of(folder) and folder.exists()
    await env.close()
    await env.close()
    assert not servers_of(folder) and not folder.exists()
    unused = await open_workbench()
    await unused.close()
    assert not folder_of(unused).exists()


def test_a_killed_parent_leaves_neither_server_nor_folder() -> None:
    script = (
        "import asyncio, sys\n"
        "from treewright.envs.tools.workbench import SUITE\n"
        "async def main():\n"
        "    env = await SUITE.open()\n"
        "    await env.reset(SUITE.tasks('train', 1)[0], 0)\n"
        "    print(env._state.path, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    folder = Path(not_none(parent.stdout).readline().strip())
    assert servers_of(folder)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + patient(30)
    while (servers_of(folder) or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not servers_of(folder) and not folder.exists()


@in_module_loop
async def test_a_snapshot_is_small_and_holds_the_end_of_the_episode(session: Environment) -> None:
    task = tasks("train", 1)[0]
    _, result = await solve(session, task)
    snapshot = await session.snapshot()
    assert snapshot.kind is Restore.STATE and isinstance(snapshot.data, bytes) and snapshot.size < 20_000
    assert await session.reset(task, 0) != result.observation
    assert await session.restore(snapshot) == result.observation
    with pytest.raises(InvalidAction):
        await session.step(Action.of("list_files"), 0)


def test_goals_name_no_answer_that_has_to_be_looked_up() -> None:
    for task in tasks("train", 100):
        assert isinstance(task, Task) and "@" not in task.goal
        assert task.truth["answer"] is None or task.truth["answer"] not in task.goal.split()
