"""Python objects as worlds: schemas from signatures, forks that share nothing, fingerprints that tell states apart."""

from __future__ import annotations

import asyncio
import enum
import json
import random
import statistics
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pytest
from pydantic import BaseModel, Field

from treewright.envs import Action, Effect, InvalidAction, Restore, RestoreUnsupported, Snapshot, Task, TreewrightError
from treewright.envs.check import check_env
from treewright.envs.tools.signature import Tool, tool_of
from treewright.envs.tools.state import copy_state, state_digest, state_size
from treewright.envs.tools.world import ToolWorld
from treewright.envs.types import ToolSpec, Turn


class Shelf:
    """A stateful class as function-calling benchmarks have them: folders, files, a working directory."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {"notes": {"todo.txt": "milk"}, "old": {}}
        self.here: list[Any] = []

    def _folder(self) -> dict[str, Any]:
        found = self.tree
        for name in self.here:
            found = found[name]
        return found

    def ls(self) -> list[str]:
        """Names in the working directory."""
        return sorted(self._folder())

    def cd(self, folder: str) -> dict[str, str]:
        """Goes into a folder, or up with '..'."""
        if folder == "..":
            self.here = self.here[:-1]
        elif isinstance(self._folder().get(folder), dict):
            self.here = [*self.here, folder]
        else:
            return {"error": f"cd: {folder}: no such folder"}
        return {"now": "/".join(self.here)}

    def write(self, file: str, text: str, append: bool = False) -> None:
        """Writes a file."""
        self._folder()[file] = (self._folder().get(file, "") if append else "") + text

    def rm(self, file: str) -> str:
        """Removes a file."""
        del self._folder()[file]
        return f"removed {file}"


def at_top(end: Any) -> Any:
    return end.object.tree["notes"].get("todo.txt") == "milk, bread"


EFFECTS = {"ls": "read", "cd": "reversible", "write": "reversible"}
TASKS = [
    Task("shelf", "bread", "append ', bread' to todo.txt in notes"),
    Task("shelf", "b2", "again", seed=1, split="test"),
]
PLAN = [
    Action.of("cd", folder="notes"),
    Action.of("write", file="todo.txt", text=", bread", append=True),
    Action.of("done", answer=""),
]


def shelf(**options: Any) -> ToolWorld:
    return ToolWorld.of(Shelf(), effects=EFFECTS, **{"judge": at_top, **options})


def oracle(task: Task, history: Sequence[Turn], tools: Any) -> Action:
    return PLAN[min(sum(t.action is not None for t in history), 2)]


async def test_a_stateful_class_is_a_world_in_one_line_and_keeps_the_contract() -> None:
    suite = shelf().suite(TASKS, oracle=oracle)
    report = await check_env(suite.open, suite.tasks("train", 1), oracle=suite.oracle)
    report.raise_if_failed()
    assert suite.tasks("test", 5) == TASKS[1:]


async def test_the_schema_comes_from_the_signature_and_arguments_are_checked_before_the_object_sees_them() -> None:
    world = shelf()
    await world.reset(TASKS[0], 0)
    specs = {spec.name: spec for spec in await world.actions()}
    assert list(specs) == ["cd", "ls", "rm", "write", "done"]
    assert specs["write"].parameters["required"] == ["file", "text"]
    assert specs["write"].description == "Writes a file."
    assert [specs[n].effect for n in ("ls", "cd", "rm")] == [Effect.READ, Effect.REVERSIBLE, Effect.UNKNOWN]
    for action, message in [
        (Action.of("wirte", file="a", text="b"), "did you mean 'write'"),
        (Action.of("write", fle="a", text="b"), "no argument 'fle'; did you mean 'file'"),
        (Action.of("write", file=1, text="b"), "write file: 1 is not of type 'string'"),
        (Action.of("done"), "'answer' is a required property"),
    ]:
        before = state_digest(world._object)
        with pytest.raises(InvalidAction, match=message):
            await world.step(action, 0)
        assert state_digest(world._object) == before


async def test_the_first_object_is_never_changed_and_sessions_do_not_see_each_other() -> None:
    mine = Shelf()
    world = ToolWorld.of(mine, effects=EFFECTS)
    other = await world.open()
    for session in (world, other):
        await session.reset(TASKS[0], 0)
    start = (await other.step(Action.of("ls"), 0)).observation
    changed = await world.step(Action.of("rm", file="old"), 0)
    assert changed.observation.text == "removed old" and mine.ls() == ["notes", "old"]
    assert changed.observation.fingerprint != start.fingerprint
    assert json.loads((await other.step(Action.of("ls"), 0)).observation.text) == ["notes", "old"]


async def test_a_snapshot_can_be_gone_back_to_many_times_and_a_fork_lives_on_alone() -> None:
    world = shelf()
    await world.reset(TASKS[0], 0)
    await world.step(PLAN[0], 0)
    snapshot = await world.snapshot()
    twin = await world.fork()
    for text in ("a", "b"):
        await world.step(Action.of("write", file="todo.txt", text=text), 0)
        assert (await world.restore(snapshot)).fingerprint == snapshot.fingerprint
        assert (await world.step(Action.of("ls"), 0)).observation.fingerprint == snapshot.fingerprint
    await twin.step(PLAN[1], 0)
    assert (await twin.step(PLAN[2], 0)).reward == 1.0
    assert (await world.step(PLAN[2], 0)).reward == 0.0
    with pytest.raises(InvalidAction, match="has ended"):
        await world.step(PLAN[0], 0)
    with pytest.raises(RestoreUnsupported):
        await world.restore(Snapshot(Restore.STATE, b"", ""))


async def test_what_a_tool_raises_is_shown_as_an_error_and_the_episode_goes_on() -> None:
    world = shelf()
    await world.reset(TASKS[0], 0)
    result = await world.step(Action.of("rm", file="none"), 0)
    assert (result.observation.text, result.observation.provenance) == ("error: KeyError: 'none'", "error")
    both = await world.step(Action((*Action.of("rm", file="none").calls, *Action.of("ls").calls)), 0)
    assert both.observation.provenance == "tool" and both.effect is Effect.UNKNOWN
    assert [row["error"] for row in both.info["calls"]] == [True, False]


class Counting:
    """Comes back by its own snapshot; holds something that cannot be copied."""

    def __init__(self, start: int = 0) -> None:
        self.total, self.lock = start, threading.Lock()

    def add(self, n: int, rng: random.Random) -> str:
        """Adds n and some luck."""
        self.total += n + rng.randrange(1000)
        return str(self.total)

    def snapshot(self) -> bytes:
        return str(self.total).encode()

    def restore(self, kept: bytes) -> None:
        self.total = int(kept)


def luck_oracle(task: Task, history: Sequence[Turn], tools: Any) -> Action:
    return Action.of("add", n=1) if len(history) < 3 else Action.of("done", answer="")


@pytest.mark.parametrize("stochastic", [False, True])
async def test_an_object_with_its_own_snapshot_needs_no_copy_and_its_state_outlives_the_process(
    stochastic: bool,
) -> None:
    world = ToolWorld.of(Counting, effects={"add": "reversible"}, stochastic=stochastic, judge=lambda end: 1.0)
    ways = {Restore.STATE} if stochastic else {Restore.STATE, Restore.REPLAY}
    assert world.restore_ways == ways
    report = await check_env(world.open, [Task("count", "t", "add")], oracle=luck_oracle)
    report.raise_if_failed()


async def test_random_numbers_of_a_tool_come_from_the_key_of_the_step() -> None:
    world = ToolWorld.of(Counting)
    texts = []
    for key in (1, 1, 2):
        await world.reset(TASKS[0], 0)
        texts.append((await world.step(Action.of("add", n=0), key)).observation.text)
    assert texts[0] == texts[1] != texts[2]
    assert "rng" not in (await world.actions())[0].parameters["properties"]


def made(task: Task) -> Shelf:
    found = Shelf()
    found.tree = dict(task.data["tree"])
    return found


async def test_a_function_of_the_task_makes_the_object_and_tools_may_be_functions_or_given_whole() -> None:
    def count(shelf: Shelf) -> int:
        """How many names there are."""
        return len(shelf.tree)

    async def wipe(shelf: Shelf, arguments: Any, rng: random.Random) -> None:
        await asyncio.sleep(0)
        shelf.tree.clear()

    whole = Tool(ToolSpec("wipe", "empties everything", {"type": "object", "properties": {}}), wipe)
    world = ToolWorld.of(
        made, ["ls", count, whole], {"wipe": "irreversible", "ls": "read"}, first=lambda s: str(s.ls())
    )
    seen = await world.reset(Task("shelf", "t", "go", data={"tree": {"a": "1", "b": "2"}}), 0)
    assert seen.text == "['a', 'b']"
    assert [s.name for s in await world.actions()] == ["ls", "count", "wipe", "done"]
    assert (await world.step(Action.of("count"), 0)).observation.text == "2"
    result = await world.step(Action.of("wipe"), 0)
    assert result.effect is Effect.IRREVERSIBLE and result.observation.text == "ok"
    assert (await world.step(Action.of("count"), 0)).observation.text == "0"


async def test_blocking_tools_leave_the_event_loop_free() -> None:
    class Slow:
        def wait(self) -> str:
            time.sleep(0.2)
            return "waited"

    world = ToolWorld.of(Slow(), blocking=True)
    await world.reset(TASKS[0], 0)
    ticks = 0
    job = asyncio.create_task(world.step(Action.of("wait"), 0))
    while not job.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert (await job).observation.text == "waited" and ticks > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": ["list"]}, "tools names 'list', but Shelf has no such method"),
        ({"tools": ["writ"]}, "did you mean 'write'"),
        ({"effects": {"writ": "read"}}, "effects names 'writ'; did you mean 'write'"),
        ({"effects": {"write": "reed"}}, "effects.write = 'reed' is no effect; did you mean 'read'"),
        ({"end": "rm"}, "has a tool 'rm', which ends the task here"),
        ({"tools": ["ls", "ls"]}, "two tools are named 'ls'"),
        ({"stochastic": True}, r"snapshot\(\) -> bytes and restore\(bytes\); Shelf lacks them"),
        ({"tools": [lambda: 0]}, "has no parameter for the object"),
    ],
)
def test_mistakes_in_the_description_of_a_world_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TreewrightError, match=message):
        ToolWorld.of(Shelf(), **options)


def test_parameters_that_no_schema_describes_are_named() -> None:
    def anything(shelf: Shelf, *things: Any) -> None:
        pass

    def lock(shelf: Shelf, lock: threading.Lock) -> None:
        pass

    def missing(shelf: Shelf, x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    for function, message in [(anything, "parameter \\*things"), (lock, "no JSON schema"), (missing, "Nowhere")]:
        with pytest.raises(TreewrightError, match=message):
            tool_of(function)


class Colour(enum.Enum):
    RED = "red"


async def test_arguments_are_converted_to_the_types_of_the_signature() -> None:
    def paint(obj: list[Any], colour: Colour, when: date, model_config: int, /, *, times: int = 2) -> str:
        return f"{colour!r} {when!r} {model_config} {times}"

    run = tool_of(paint).run
    text = run([], {"colour": "red", "when": "2026-01-02", "model_config": 5}, random.Random(0))
    assert text == "<Colour.RED: 'red'> datetime.date(2026, 1, 2) 5 2"
    with pytest.raises(InvalidAction, match="paint when: Input should be a valid date"):
        run([], {"colour": "red", "when": "soon", "model_config": 5}, random.Random(0))


# -- state ------------------------------------------------------------------------------------------------------------


class Item(BaseModel):
    name: str
    tags: set[str] = Field(default_factory=set)
    more: dict[str, list[int]] = Field(default_factory=dict)
    _secret: int = 0


@dataclass
class Node:
    value: object
    next: Node | None = None
    rows: list[Any] = field(default_factory=list)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: int, b: list[Any]) -> None:
        self.a, self.b = a, b


def samples() -> list[Any]:
    loop = Node(1)
    loop.next = loop
    item = Item(name="x", tags={"b", "a"}, more={"k": [1, 2]})
    return [
        1, "a", None, (1, 2), [1, 2], {1: [2], "x": None}, {1, 2}, frozenset({3}), deque([1, 2]), Counter("aab"),
        OrderedDict(a=1), item, [item, item], Node([1]), loop, Slotted(1, [2]), random.Random(3), date(2026, 1, 1),
        b"x", 1.5, bytearray(b"x"), Item, len,
    ]  # fmt: skip


def test_equal_states_hash_equal_and_different_ones_differ() -> None:
    first, second = [state_digest(x) for x in samples()], [state_digest(x) for x in samples()]
    assert first == second
    assert len(set(first)) == len(first)
    assert state_digest({"a": 1, "b": 2}) == state_digest({"b": 2, "a": 1})
    assert state_digest({1}) != state_digest([1]) and state_digest(1) != state_digest(True) != state_digest(1.0)


def test_every_change_deep_inside_changes_the_hash() -> None:
    def of(change: Callable[[Any], Any]) -> str:
        held = [Item(name="x", more={"k": [1, 2]}), Node([1], Node(2)), Slotted(1, [2]), deque([1])]
        change(held)
        return state_digest(held)

    def secret(held: Any) -> None:
        held[0]._secret = 1

    changes = [
        lambda h: None, secret, lambda h: h[0].more["k"].append(3), lambda h: h[0].tags.add("q"),
        lambda h: setattr(h[1].next, "value", 3), lambda h: h[2].b.append(0), lambda h: h[3].append(1),
    ]  # fmt: skip
    assert len({of(change) for change in changes}) == len(changes)


def test_a_copy_is_equal_shares_nothing_that_changes_and_keeps_sharing_inside() -> None:
    for original in samples():
        assert state_digest(copy_state(original)) == state_digest(original)
        assert state_size(original) > 0
    item = Item(name="x", more={"k": [1]})
    one, two = copy_state([item, item])
    assert one is two and one is not item and one.more["k"] is not item.more["k"]
    one._secret = 7
    assert item._secret == 0 and one == one.model_copy()
    loop = Node(1)
    loop.next = loop
    assert (again := copy_state(loop)).next is again


def test_state_that_cannot_be_copied_or_hashed_is_named_by_its_place() -> None:
    with pytest.raises(TreewrightError, match=r"state\['a'\]\[0\] holds a generator"):
        state_digest({"a": [(n for n in "ab")]})
    with pytest.raises(TreewrightError, match="cannot be copied"):
        copy_state([(n for n in "ab")])


# -- AgentDojo --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dojo() -> dict[str, Any]:
    pytest.importorskip("agentdojo", reason="agentdojo is not installed")
    from treewright.envs.tools.agentdojo import NAMES, agentdojo_suite

    return {name: agentdojo_suite(name) for name in NAMES}


async def test_agentdojos_ground_truth_solves_all_97_tasks_and_doing_nothing_does_not(dojo: dict[str, Any]) -> None:
    solved, lazy, forks = [], 0, []
    for suite in dojo.values():
        env = await suite.open()
        for task in suite.tasks("all", 99):
            history = [Turn(None, await env.reset(task, 0))]
            idle = await env.fork()
            while True:
                began = time.perf_counter()
                await env.fork()
                forks.append(time.perf_counter() - began)
                action = suite.oracle(task, history, ())
                result = await env.step(action, 0)
                history.append(Turn(action, result.observation))
                if result.terminated:
                    break
            solved.append(result.reward)
            lazy += (await idle.step(Action.of("done", answer=""), 0)).reward
    assert len(solved) == 97 and all(reward == 1.0 for reward in solved)
    assert lazy < 20
    assert statistics.median(forks) < 0.01  # the figure itself is measured by `treewright bench worlds`


@pytest.mark.parametrize("name", ["workspace", "travel", "banking", "slack"])
async def test_agentdojos_suites_keep_the_contract_and_their_splits_do_not_overlap(
    dojo: dict[str, Any], name: str
) -> None:
    suite = dojo[name]
    report = await check_env(suite.open, suite.tasks("train", 1), oracle=suite.oracle)
    report.raise_if_failed()
    train, test = suite.tasks("train", 99), suite.tasks("test", 99)
    assert {t.id for t in train} | {t.id for t in test} == {t.id for t in suite.tasks("all", 99)}
    assert not {t.id for t in train} & {t.id for t in test}
