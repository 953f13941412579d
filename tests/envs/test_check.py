"""The conformance kit passes a good world, and fails exactly the clause that a bad one breaks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from treewright.envs import Action, Effect, EnvFault, InvalidAction, Observation, Restore, Snapshot, StepResult, Task
from treewright.envs.check import CLAUSES, CheckFailed, check_env, kit, sample_arguments
from treewright.envs.check.report import Report
from treewright.envs.errors import TreewrightError
from treewright.envs.tools import workbench
from treewright.envs.tools.schema import check_action
from treewright.envs.types import BaseEnvironment, ToolSpec, Turn, digest


def number(name: str, effect: Effect) -> ToolSpec:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    return ToolSpec(name, parameters=schema, effect=effect)


class Shelf(BaseEnvironment):
    """A good world: numbers are put on a shelf, and looked at, which moves the attention."""

    name = "shelf"
    sandboxed = True  # or `done`, of which nothing is declared, would wait for a commit
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    tools = (number("put", Effect.REVERSIBLE), number("look", Effect.READ), ToolSpec("done", terminal=True))
    open_sessions: set[Any] = set()
    opened = 0

    def __init__(self) -> None:
        Shelf.opened += 1
        self.id, self.last, self.resets, self.steps = Shelf.opened, "", 0, 0
        self.open_sessions.add(self.id)

    async def reset(self, task: Task, key: int) -> Observation:
        self.resets += 1
        self.shelf: list[Any]
        self.shelf, self.at, self.ended = [], 0, False
        return self.show("ready")

    async def step(self, action: Action, key: int) -> StepResult:
        if self.ended:
            raise InvalidAction("over")
        check_action(action, self.tools)
        if len(action.calls) > 1:
            raise InvalidAction("one call at a time")
        self.last, self.steps = action.name, self.steps + 1
        if action.name == "done":
            self.ended = True
            return StepResult(self.show("done"), 1.0, terminated=True)
        if action.name == "put":
            self.shelf.append(action.arguments["n"])
            return StepResult(self.show(f"shelf {self.shelf}"), effect=Effect.REVERSIBLE)
        self.at = action.arguments["n"]
        return StepResult(self.show(f"looking at {self.at}"))

    async def snapshot(self) -> Snapshot:
        data = json.dumps([self.shelf, self.at, self.ended, self.shown.text, self.shown.fingerprint, self.id]).encode()
        return Snapshot(Restore.STATE, data, self.shown.fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.shelf, self.at, self.ended, text, _, self.maker = json.loads(snapshot.data)
        return self.show(text)

    async def close(self) -> None:
        self.open_sessions.discard(self.id)

    def show(self, text: str) -> Observation:
        self.shown = Observation(text, digest(json.dumps([self.shelf, self.at, self.ended])), provenance="tool")
        return self.shown

    def reword(self, result: StepResult, text: str) -> StepResult:
        """The result with a text that should not be there."""
        return StepResult(
            self.show(text), result.reward, result.terminated, truncated=result.truncated, effect=result.effect
        )


class NoneAmongWays(Shelf):
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY, Restore.NONE})


class OnlyForks(Shelf):
    restore_ways = frozenset({Restore.FORK})

    async def snapshot(self) -> Snapshot:
        kept = await super().snapshot()
        return Snapshot(Restore.FORK, kept.data, kept.fingerprint)


class StochasticReplay(Shelf):
    stochastic = True


class NoProvenance(Shelf):
    def show(self, text: str) -> Observation:
        self.shown = Observation(text, super().show(text).fingerprint, provenance="")
        return self.shown


class InfiniteReward(Shelf):
    async def step(self, action: Action, key: int) -> StepResult:
        result = await super().step(action, key)
        return StepResult(result.observation, result.reward * float("inf") if result.reward else 0.0, result.terminated)


class BrokenSchema(Shelf):
    async def actions(self) -> Sequence[ToolSpec]:
        return (*self.tools, ToolSpec("odd", parameters={"type": "object", "required": "n"}))


class Sleeper(Shelf):
    slept = False

    async def reset(self, task: Task, key: int) -> Observation:
        if not Sleeper.slept:
            Sleeper.slept = True
            time.sleep(0.2)  # noqa: ASYNC251
        return await super().reset(task, key)


class CountedReset(Shelf):
    async def reset(self, task: Task, key: int) -> Observation:
        await super().reset(task, key)
        return self.show(f"ready {self.id} {self.resets}")


class TiredAfterReset(Shelf):
    async def step(self, action: Action, key: int) -> StepResult:
        result = await super().step(action, key)
        return self.reword(result, "tired") if self.resets > 1 else result


class NoSnapshots(Shelf):
    restore_ways = frozenset({Restore.REPLAY})

    async def snapshot(self) -> Snapshot:
        return await BaseEnvironment.snapshot(self)


class ReplaysOnlyWhenAsked(NoSnapshots):
    """Right in a session in which anything but reset and valid steps was asked, wrong else."""

    sandboxed = False
    asked = False

    async def effect(self, action: Action) -> Effect:
        self.asked = True
        return await super().effect(action)

    async def step(self, action: Action, key: int) -> StepResult:
        try:
            result = await super().step(action, key)
        except InvalidAction:
            self.asked = True
            raise
        return result if self.asked else self.reword(result, "another world")


class WrongFingerprint(Shelf):
    async def snapshot(self) -> Snapshot:
        kept = await super().snapshot()
        return Snapshot(kept.kind, kept.data, "0" * 32, size=kept.size)


class TextSnapshot(Shelf):
    async def snapshot(self) -> Snapshot:
        kept = await super().snapshot()
        return Snapshot(kept.kind, kept.data.decode(), kept.fingerprint, size=kept.size)


class ForgetsAfter(Shelf):
    forgets = ""

    async def restore(self, snapshot: Snapshot) -> Observation:
        shown = await super().restore(snapshot)
        return self.show(f"{shown.text}?") if self.last == self.forgets else shown


class ForgetsAfterPut(ForgetsAfter):
    forgets = "put"


class ForgetsAfterLook(ForgetsAfter):
    forgets = "look"


class ShakenByRestore(Shelf):
    shaken = False

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.shaken = self.last == "done"
        return await super().restore(snapshot)

    async def step(self, action: Action, key: int) -> StepResult:
        result = await super().step(action, key)
        return self.reword(result, "shaken") if self.shaken else result


class KnowsItsMaker(Shelf):
    async def restore(self, snapshot: Snapshot) -> Observation:
        shown = await super().restore(snapshot)
        return self.show("not mine") if self.maker != self.id and self.maker in self.open_sessions else shown


class NeedsItsMaker(Shelf):
    async def restore(self, snapshot: Snapshot) -> Observation:
        shown = await super().restore(snapshot)
        if self.maker not in self.open_sessions:
            raise EnvFault("the session that made it is closed")
        return shown


class Marked(Shelf):
    """A step after a mark shows it."""

    marked = False

    async def step(self, action: Action, key: int) -> StepResult:
        result = await super().step(action, key)
        return self.reword(result, "marked") if self.marked else result


class EffectMarks(Marked):
    async def effect(self, action: Action) -> Effect:
        self.marked = self.marked or action == kit.UNKNOWN_TOOL
        return await super().effect(action)


class AnswersNonsense(Shelf):
    async def step(self, action: Action, key: int) -> StepResult:
        if action == kit.UNKNOWN_TOOL:
            return StepResult(self.show("what?"))
        return await super().step(action, key)


class InvalidMarks(Marked):
    async def step(self, action: Action, key: int) -> StepResult:
        try:
            return await super().step(action, key)
        except InvalidAction:
            self.marked = True
            raise


class LeaksErrors(Shelf):
    async def step(self, action: Action, key: int) -> StepResult:
        if action.name == "put" and "n" not in action.arguments:
            raise KeyError("n")
        return await super().step(action, key)


class SharedShelf(NoSnapshots):
    putting: set[Any] = set()

    async def step(self, action: Action, key: int) -> StepResult:
        result = await super().step(action, key)
        self.putting.add(self.id)
        return result if self.putting == {self.id} else self.reword(result, f"{len(self.putting)} at the shelf")

    async def close(self) -> None:
        self.putting.discard(self.id)


class NeverOver(Shelf):
    async def step(self, action: Action, key: int) -> StepResult:
        self.ended = False
        return await super().step(action, key)


class ClosesOnce(Shelf):
    async def close(self) -> None:
        self.open_sessions.remove(self.id)


PLANTED = {
    "declared_ways": NoneAmongWays,
    "fork_is_durable": OnlyForks,
    "stochastic_without_replay": StochasticReplay,
    "observations": NoProvenance,
    "rewards": InfiniteReward,
    "schemas": BrokenSchema,
    "event_loop": Sleeper,
    "reset_deterministic": CountedReset,
    "step_deterministic": TiredAfterReset,
    "replay": ReplaysOnlyWhenAsked,
    "snapshot_declared": WrongFingerprint,
    "state_is_bytes": TextSnapshot,
    "restore_exact": ForgetsAfterPut,
    "read_only": ForgetsAfterLook,
    "restore_continues": ShakenByRestore,
    "restore_elsewhere": KnowsItsMaker,
    "state_round_trip": NeedsItsMaker,
    "effect_harmless": EffectMarks,
    "invalid_raises": AnswersNonsense,
    "invalid_harmless": InvalidMarks,
    "only_our_errors": LeaksErrors,
    "sandboxed": SharedShelf,
    "ended": NeverOver,
    "close_twice": ClosesOnce,
    "horizon": Shelf,
}
PLAN = (Action.of("put", n=1), Action.of("look", n=7), Action.of("put", n=2), Action.of("done"))
TASK = Task("shelf", "t0", "put 1 and 2", horizon=4)


def oracle(task: Task, history: Sequence[Turn], tools: Any) -> Action:
    return PLAN[len(history) - 1]


async def check(world: Any, task: Task = TASK, **options: Any) -> Report:
    async def opened() -> Any:
        return world()

    return await check_env(opened, [task], steps=4, **({"oracle": oracle} | options))


async def test_a_good_world_passes_with_and_without_an_oracle() -> None:
    report = await check(Shelf)
    assert report.ok, str(report)
    assert {result.name for result in report.results if result.held is None} == {"fork_is_durable"}
    report = await check(Shelf, oracle=None)
    assert report.ok, str(report)
    report.raise_if_failed()


def test_every_clause_has_a_planted_violation() -> None:
    assert set(PLANTED) == set(CLAUSES)


@pytest.mark.parametrize("clause", PLANTED)
async def test_a_planted_violation_fails_exactly_its_clause(clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if clause == "event_loop":
        monkeypatch.setattr(kit, "BLOCK_LIMIT", 0.15)
    task = Task("shelf", "t0", "put 1 and 2", horizon=3 if clause == "horizon" else 4)
    report = await check(PLANTED[clause], task)
    assert report.failed == (clause,), str(report)
    with pytest.raises(CheckFailed, match=f"FAILED  {clause}"):
        report.raise_if_failed()


async def test_the_worst_task_decides_and_is_named() -> None:
    async def opened() -> Shelf:
        return Shelf()

    tasks = [TASK, Task("shelf", "short", "too short", horizon=1)]
    report = await check_env(opened, tasks, steps=4, oracle=oracle)
    assert report.failed == ("horizon",) and "short: no end after 1" in str(report)


async def test_a_world_that_cannot_start_is_one_failed_clause() -> None:
    class Broken(Shelf):
        async def reset(self, task: Task, key: int) -> Observation:
            raise KeyError("seed")

    report = await check(Broken)
    assert report.failed == ("playable",) and "KeyError" in str(report)


async def test_a_live_world_is_not_made_to_do_what_needs_a_commit() -> None:
    class Live(Shelf):
        sandboxed = False
        tools = (number("put", Effect.IRREVERSIBLE), number("look", Effect.READ), ToolSpec("done", terminal=True))
        puts = 0

        async def step(self, action: Action, key: int) -> StepResult:
            Live.puts += "put" in action.name
            return await super().step(action, key)

    assert (await check(Live, oracle=None)).ok and Live.puts == 0
    assert (await check(Live, live=True)).failed == () and Live.puts > 0


async def test_wrong_questions_are_refused() -> None:
    with pytest.raises(TreewrightError, match="at least one task"):
        await check_env(Shelf, [])  # type: ignore[arg-type]
    with pytest.raises(TreewrightError, match="no clause named 'replays'"):
        await check(Shelf, clauses=["replays"])
    assert len((await check(Shelf, clauses=["replay"])).results) == 1


def test_sampled_arguments_satisfy_their_schema() -> None:
    import random

    from jsonschema import Draft202012Validator

    schema = {
        "type": "object",
        "required": ["a", "b", "c", "d", "e", "f"],
        "properties": {
            "a": {"enum": ["x", "y"]},
            "b": {"type": "integer", "minimum": 3, "maximum": 4},
            "c": {"type": "array", "items": {"type": "boolean"}},
            "d": {"anyOf": [{"type": "null"}, {"type": "number"}]},
            "e": {"const": 5},
            "f": {"type": "string"},
            "g": {"type": "object", "properties": {"h": {"type": "string"}}},
        },
    }
    for seed in range(50):
        Draft202012Validator(schema).validate(sample_arguments(schema, random.Random(seed)))


class Recycled:
    """A session that goes back to the shelf when it is closed, since a server takes half a second to start."""

    idle: list[Any] = []

    def __init__(self, env: Any) -> None:
        self.env, self.closed = env, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    async def close(self) -> None:
        if not self.closed:
            self.idle.append(self.env)
        self.closed = True


async def test_the_workbench_passes_the_conformance_kit() -> None:
    suite = workbench.SUITE

    async def opened() -> Recycled:
        return Recycled(Recycled.idle.pop() if Recycled.idle else await suite.open())

    task = next(task for task in suite.tasks("train", 10) if task.data["kind"] == "status")
    report = await check_env(opened, [task], oracle=suite.oracle)
    while Recycled.idle:
        await Recycled.idle.pop().close()
    assert report.ok, str(report)
    assert sum(result.held is True for result in report.results) == len(CLAUSES) - 1
