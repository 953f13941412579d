"""The suite `office`: frozen tasks, solvable jobs, and a server that does what the model of it does."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none

from treewright.envs import Action, Effect, InvalidAction, Restore, Turn
from treewright.envs.check import check_env
from treewright.envs.tools.office import (
    EFFECTS,
    MODEL,
    SIZES,
    SPECS,
    SUITE,
    UNSEEN,
    open_model,
    oracle,
    tasks,
    wanted,
)
from treewright.envs.tools.office_tools import KINDS, TOOLS, call_tool
from treewright.envs.tools.office_world import Office, first_office, load, save, write_changes
from treewright.envs.types import Environment, Task, digest

FROZEN = {"test": "8abfb33e1004cc3a5fcbffe5f442813c", "train": "423948dd12795f13ced7abc0f0935447"}

in_module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("split", list(FROZEN))
def test_the_tasks_are_those_that_were_frozen_before_anything_was_measured(split: Any) -> None:
    rows = (json.dumps(asdict(task), sort_keys=True) for task in tasks(split, SIZES[split]))
    assert digest(*rows) == FROZEN[split]


def test_there_are_more_than_forty_tools_of_every_effect() -> None:
    assert len(TOOLS) >= 40
    assert {Effect.READ, Effect.REVERSIBLE, Effect.IRREVERSIBLE} == set(EFFECTS.values())
    assert EFFECTS["send_mail"] is EFFECTS["delete_file"] is Effect.IRREVERSIBLE
    assert {kind for tool in TOOLS.values() for kind in tool.arguments.values()} <= set(KINDS)


def test_jobs_take_two_to_eight_calls_and_some_kinds_are_never_trained_on() -> None:
    lengths = Counter(len(task.truth["plan"]) for task in tasks("test", 200))
    assert min(lengths) == 2 and max(lengths) == 8 and len(lengths) >= 6
    kinds = {split: {task.data["kind"] for task in tasks(split, 200)} for split in SIZES}
    assert kinds["test"] - kinds["train"] == set(UNSEEN)


async def solve(env: Any, task: Task) -> tuple[list[Turn], Any]:
    history, result = [Turn(None, await env.reset(task, 0))], None
    while result is None or not result.terminated:
        action = oracle(task, history, SPECS)
        result = await env.step(action, len(history))
        history.append(Turn(action, result.observation))
    return history, result


async def test_the_oracle_solves_every_test_task_by_its_plan() -> None:
    env = await open_model()
    for task in tasks("test", 200):
        history, result = await solve(env, task)
        assert result.reward == 1.0, task
        assert len(history) - 2 == len(task.truth["plan"]) <= task.horizon - 3
        assert all(turn.observation.provenance != "error" for turn in history)


async def test_every_argument_of_a_plan_was_shown_before_it_is_needed() -> None:
    env = await open_model()
    for task in tasks("test", 104):
        history, _ = await solve(env, task)
        for i, turn in enumerate(history[1:], 1):
            shown = " ".join([task.goal, *(t.observation.text for t in history[:i])])
            for name, value in not_none(turn.action).arguments.items():
                assert not_none(turn.action).name == "done" or value in shown, (task.goal, turn.action, name)


def test_doing_nothing_solves_no_job() -> None:
    assert all(wanted(task) != first_office(task.seed) for task in tasks("train", 300))


def some_value(kind: str, office: Office, rng: random.Random) -> Any:
    schema = KINDS[kind]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    tables = {"person": "people", "event": "events", "order": "orders", "invoice": "invoices", "ticket": "tickets",
              "message": "messages", "project": "projects"}  # fmt: skip
    if kind in tables:
        return rng.choice([*sorted(office.tables[tables[kind]]), {"person": "Nobody"}.get(kind, "k99")[:3]])
    some = {"mail": ["ada1@corp.io"], "team": ["team-red"], "file": [*sorted(office.files), "fresh.txt"],
            "topic": ["#late"], "text": ["#late", "amber-42"], "room": ["r1", "r2"]}  # fmt: skip
    return rng.choice(some[kind])


def some_call(office: Office, rng: random.Random) -> Action:
    tool = TOOLS[rng.choice(sorted(TOOLS))]
    return Action.of(tool.name, **{name: some_value(kind, office, rng) for name, kind in tool.arguments.items()})


def test_a_folder_that_follows_the_changes_holds_the_same_office(tmp_path: Path) -> None:
    rng, office = random.Random(1), first_office(5)
    save(office, tmp_path)
    refused = 0
    for _ in range(300):
        action = some_call(office, rng)
        after, _, failed = call_tool(office, action.name, action.arguments)
        write_changes(office, after, tmp_path)
        office, refused = after, refused + failed
        assert not failed or after == office
    assert load(tmp_path) == office and 0 < refused < 300


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Environment]:
    env = await SUITE.open()
    yield env
    await env.close()


@in_module_loop
async def test_the_server_and_the_model_show_the_same_on_random_walks(server: Environment) -> None:
    model = await open_model()
    for index, task in enumerate(tasks("train", 2)):
        rng = random.Random(index)
        assert (await server.reset(task, 0)).fingerprint == (await model.reset(task, 0)).fingerprint
        for step in range(60):
            action = some_call(model._office, rng)
            try:
                here = await model.step(action, step)
            except InvalidAction:
                with pytest.raises(InvalidAction):
                    await server.step(action, step)
                continue
            there = await server.step(action, step)
            assert (there.observation.text, there.observation.fingerprint) == (
                here.observation.text, here.observation.fingerprint,
            )  # fmt: skip
            assert (there.effect, there.observation.provenance) == (here.effect, here.observation.provenance)


@in_module_loop
async def test_the_server_declares_the_same_tools_as_the_model(server: Environment) -> None:
    await server.reset(tasks("train", 1)[0], 0)
    for tool, spec in zip(await server.actions(), SPECS, strict=True):
        assert (tool.name, tool.effect, tool.terminal) == (spec.name, spec.effect, spec.terminal)
        for name, schema in spec.parameters["properties"].items():
            given = tool.parameters["properties"][name]
            assert all(given.get(key) == value for key, value in schema.items()), (tool.name, name)


@in_module_loop
async def test_the_oracle_solves_jobs_on_the_server(server: Environment) -> None:
    for task in tasks("test", 26)[::5]:
        _, result = await solve(server, task)
        assert result.reward == 1.0


async def test_the_model_keeps_the_contract_of_environments() -> None:
    report = await check_env(open_model, tasks("train", 1), oracle=oracle)
    report.raise_if_failed()


async def test_a_fork_costs_nothing_and_is_not_touched_by_what_follows() -> None:
    env, task = await open_model(), tasks("train", 1)[0]
    seen = await env.reset(task, 0)
    fork = await env.snapshot()
    assert fork.kind is Restore.FORK and fork.data[1] is first_office(task.seed)
    await env.step(Action.of("delete_file", name=sorted(first_office(task.seed).files)[0]), 1)
    other = await open_model()
    assert (await other.restore(fork)) == seen
    assert "done" in [tool.name for tool in await other.actions()]


async def test_a_mail_too_many_fails_the_job_for_good() -> None:
    env, task = await open_model(), tasks("test", 1)[0]
    await env.reset(task, 0)
    await env.step(Action.of("send_mail", to="all@corp.io", topic="#late"), 0)
    for name, arguments in task.truth["plan"]:
        await env.step(Action.of(name, **arguments), 1)
    assert (await env.step(Action.of("done", answer="ok"), 2)).reward == 0.0


def test_asking_for_too_many_tasks_or_another_split_says_so() -> None:
    with pytest.raises(ValueError, match="200 test tasks"):
        tasks("test", 201)
    with pytest.raises(Exception, match="no split 'dev'"):
        tasks("dev", 1)
    assert MODEL.tasks("test", 3) == SUITE.tasks("test", 3)
