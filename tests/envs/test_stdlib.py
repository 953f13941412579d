"""Questions about the running Python: true by other introspection than the builder's, solvable, and split cleanly."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from not_none import not_none

from treewright.envs import Action, Environment, InvalidAction, Turn, suite
from treewright.envs.retrieval.answers import exact_match, normalise
from treewright.envs.retrieval.stdlib import SUITE, StdlibWorld, library, oracle
from treewright.envs.types import Task, digest


async def play(task: Task, first: list[Action] | tuple[Any, ...] = ()) -> tuple[float, list[Turn]]:
    """One episode of the oracle after some given actions; reward and history."""
    env = await SUITE.open()
    history = [Turn(None, await env.reset(task, 0))]
    for step in range(task.horizon):
        action = first[step] if step < len(first) else oracle(task, history, await env.actions())
        result = await env.step(action, step)
        history.append(Turn(action, result.observation))
        if result.terminated:
            return result.reward, history
    return 0.0, history


def follow(name: str, relation: Any) -> Any:
    """The fact behind one hop, from the object itself. Names are looked up by pydoc, not by the library's pages."""
    thing: Any = pydoc.locate(name)
    assert thing is not None, name
    if relation == "base":
        (base,) = thing.__bases__
        return base
    if relation == "owner":
        return pydoc.locate(name.rpartition(".")[0])
    if relation == "module":
        home = name.rpartition(".")[0] or "builtins"
        assert getattr(importlib.import_module(home), name.rpartition(".")[2]) is thing
        return importlib.import_module(home)
    if relation == "package":
        return importlib.import_module(name.rpartition(".")[0])
    parameters = list(inspect.signature(thing).parameters)
    method = "." in name and inspect.isclass(pydoc.locate(name.rpartition(".")[0]))
    return parameters[1 if method else 0]


def test_the_registered_suite_stdlib_is_the_one_under_test() -> None:
    assert suite("stdlib") is SUITE


def test_the_library_is_built_once() -> None:
    assert library() is library()


def test_there_are_enough_tasks_and_the_first_ones_mix_all_lengths() -> None:
    assert len(library().tasks["train"]) >= 800 and len(library().tasks["test"]) >= 250
    for split in ("train", "test"):
        hops = [len(task.data["relations"]) for task in SUITE.tasks(split, 100)]
        assert all(hops.count(n) >= 15 for n in (1, 2, 3, 4))


def test_asking_for_more_tasks_than_there_are_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match=str(len(library().tasks["test"]))):
        SUITE.tasks("test", 10**6)
    with pytest.raises(ValueError, match="split"):
        SUITE.tasks("dev", 1)


def test_no_object_starts_a_question_in_both_splits() -> None:
    starts = {
        split: {task.id.split("-")[1] for task in library().tasks[split]} | {t.data["start"] for t in tasks}
        for split, tasks in library().tasks.items()
    }
    assert not starts["train"] & starts["test"]
    ids = [task.id for split in ("train", "test") for task in library().tasks[split]]
    assert len(set(ids)) == len(ids)


def test_every_test_answer_is_true_by_following_the_goal_through_the_objects_themselves() -> None:
    for task in library().tasks["test"]:
        verb, start, chain = not_none(re.fullmatch(r"(take|find) (\S+), then (.*)\. what is it \?", task.goal)).groups()
        name = task.id.split("-")[1]
        assert name == start if verb == "take" else name.endswith(f".{start}")
        for relation in chain.split(", then "):
            found = follow(name, relation)
            if isinstance(found, str):
                name = found
            else:  # the next name must be one by which the object can be found
                name = next(n for n in names_of(found) if n in library().entries)
        assert exact_match(name, task.truth["answers"]), task


def names_of(thing: Any) -> list[str]:
    """The names that the library may use for an object, by asking the object and the modules it is public in."""
    if inspect.ismodule(thing):
        return [n for n, m in sys.modules.items() if m is thing]
    public = [n for n in library().entries if n.rpartition(".")[2] == thing.__qualname__ and pydoc.locate(n) is thing]
    assert len(public) == 1, (thing, public)
    return public


def test_no_other_page_is_accepted_as_an_answer() -> None:
    by_meaning: dict[str, Any] = {}
    for name in library().entries:
        for spelling in {name, name.rpartition(".")[2]}:
            by_meaning.setdefault(normalise(spelling), set()).add(name)
    for task in (task for tasks in library().tasks.values() for task in tasks):
        if task.data["relations"][-1] != "parameter":
            answer, *aliases = task.truth["answers"]
            assert {n for n in by_meaning[normalise(answer)] if normalise(n) == normalise(answer)} == {answer}
            assert all(by_meaning[normalise(alias)] == {answer} for alias in aliases)


def test_the_other_facts_of_the_start_are_no_answers() -> None:
    for task in library().tasks["test"]:
        start = library().entries[task.id.split("-")[1]]
        others = [value for relation, value in start.facts.items() if relation != task.data["relations"][0]]
        if len(task.data["relations"]) == 1:
            assert not any(exact_match(value, task.truth["answers"]) for value in (start.id, *others)), task


def test_a_short_name_to_find_means_one_object_only() -> None:
    meant = Counter(name.rpartition(".")[2] for name in library().entries)
    found = [task.data["start"] for tasks in library().tasks.values() for task in tasks if task.data["find"]]
    assert len(found) > 100 and all(meant[name] == 1 for name in found)


def test_no_answer_can_be_read_off_the_question_or_guessed_often() -> None:
    for tasks in library().tasks.values():
        answers = [task.truth["answers"][0] for task in tasks]
        assert max(answers.count(a) for a in set(answers)) <= 3 + len(answers) / 25
    for task in library().tasks["test"]:
        assert task.truth["answers"][0] not in task.goal.split(",")[0].split()


async def test_the_oracle_solves_sixty_test_tasks_with_two_actions_to_spare() -> None:
    for task in SUITE.tasks("test", 60):
        reward, history = await play(task)
        assert reward == 1.0, task
        assert len(history) - 1 == task.horizon - 2


async def test_the_oracle_recovers_from_irrelevant_reads_and_searches() -> None:
    off = [Action.of("search", query="mailbox"), Action.of("read", doc="OSError")]
    for task in SUITE.tasks("test", 20):
        assert (await play(task, off))[0] == 1.0


async def test_episodes_are_short_enough_for_a_small_context() -> None:
    for task in [*SUITE.tasks("test", 200), *SUITE.tasks("train", 200)]:
        _, history = await play(task)
        assert sum(len(str(t.action or "")) + len(t.observation.text) for t in history) <= 1200
        assert all(len(t.observation.text) <= 300 for t in history)


async def test_a_page_tells_its_facts_and_a_search_shows_at_most_three_ids() -> None:
    env = await SUITE.open()
    assert isinstance(env, Environment)
    await env.reset(SUITE.tasks("test", 1)[0], 0)
    found = (await env.step(Action.of("search", query="BadZipFile"), 0)).observation.text
    assert found.splitlines()[0] == "zipfile.BadZipFile" and len(found.splitlines()) <= 3
    page = (await env.step(Action.of("read", doc="zipfile.BadZipFile"), 0)).observation.text
    assert page == "zipfile.BadZipFile: exception. base Exception. module zipfile."
    with pytest.raises(InvalidAction, match=r"did you mean 'zipfile\.BadZipFile'"):
        await env.step(Action.of("read", doc="BadZipFile"), 0)
    with pytest.raises(InvalidAction, match="page"):
        await env.step(Action.of("read", doc="OSError", page=2), 0)


async def test_a_snapshot_restores_into_another_session() -> None:
    task = SUITE.tasks("train", 1)[0]
    env, other = StdlibWorld(library()), await SUITE.open()
    await env.reset(task, 0)
    seen = (await env.step(Action.of("read", doc="OSError"), 0)).observation
    assert await other.restore(await env.snapshot()) == seen
    answer = Action.of("answer", text=task.truth["answers"][0])
    assert await other.step(answer, 1) == await env.step(answer, 1)


FRESH = """
from treewright.envs.retrieval.stdlib import library
from treewright.envs.types import digest
print(digest(*[d.text for d in library().corpus.docs]), digest(*[t.goal for t in library().tasks["test"]]))
"""


def test_pages_and_tasks_do_not_depend_on_what_else_the_process_has_imported() -> None:
    fresh = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True).stdout.split()
    assert fresh == [
        digest(*[doc.text for doc in library().corpus.docs]),
        digest(*[task.goal for task in library().tasks["test"]]),
    ]
