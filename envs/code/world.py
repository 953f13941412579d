"""The suite `code`: write a function, read the public tests' failures, repair it, submit it to the hidden tests.

    write {"code": "def median(numbers): …"}   keeps the program and runs the public tests
    try {"call": "median([1, 2])"}             shows what the present program gives
    submit {}                                  ends the task: reward 1.0 if every test passes, hidden ones included

44 tasks of our own, two of three in 'train'. The state is the program's text, so going back costs nothing. Programs
run in a child process with limits; sandbox.py says what these cover.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

from treewright.envs.code.easy import EASY
from treewright.envs.code.hard import HARD
from treewright.envs.code.medium import MEDIUM
from treewright.envs.code.problem import Problem, equal, expected
from treewright.envs.code.sandbox import Limits, Run, run_calls
from treewright.envs.errors import InvalidAction, RestoreUnsupported, TreewrightError
from treewright.envs.tools.schema import check_action
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
    Turn,
    digest,
)

__all__ = ["PROBLEMS", "SUITE", "CodeEnvironment", "code_suite", "oracle", "share_passed"]

PROBLEMS: tuple[Problem, ...] = (*EASY, *MEDIUM, *HARD)
SHOWN = 3  # failures that an observation lists
MAX_CODE = 20_000


def _one(name: str, what: str, argument: str, effect: Effect) -> ToolSpec:
    text = {"type": "string", "maxLength": MAX_CODE}
    schema = {"type": "object", "properties": {argument: text}, "required": [argument], "additionalProperties": False}
    return ToolSpec(name, what, schema, effect)


TOOLS = (
    _one("write", "keeps this program and runs the public tests", "code", Effect.REVERSIBLE),
    _one("try", "shows what a call of the present program gives", "call", Effect.READ),
    ToolSpec(
        "submit",
        "hands the present program in",
        {"type": "object", "properties": {}},
        Effect.READ,
        terminal=True,
    ),
)


def share_passed(text: str) -> float | None:
    """The share of public tests that an observation reports as passed, or None where it reports none."""
    found = re.match(r"tests: (\d+) of (\d+) passed", text)
    return int(found[1]) / int(found[2]) if found else None


class CodeEnvironment(BaseEnvironment):
    """One session; `problems` by name of their function."""

    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    sandboxed = True  # the jail (or who switched it off, see sandbox.py) keeps what is run from everything outside
    tools = TOOLS

    def __init__(self, problems: Sequence[Problem], name: str = "code", limits: Limits | None = None) -> None:
        self.name, self.limits = name, limits or Limits()
        self._problems = {problem.name: problem for problem in problems}
        self._problem: Problem | None = None
        self._source, self._ended, self._shown = "", False, Observation("")

    async def reset(self, task: Task, key: int) -> Observation:
        name = str(task.data.get("problem"))
        if name not in self._problems:
            raise TreewrightError(f"task {task.id!r} has no problem {name!r}; data.problem names one of the suite's")
        self._problem, self._source, self._ended = self._problems[name], "", False
        return self._show("nothing is written yet", "environment")

    async def step(self, action: Action, key: int) -> StepResult:
        if self._problem is None:
            raise TreewrightError(f"{self.name}: step before reset; call reset(task, key) first")
        if self._ended:
            raise InvalidAction("the task has ended")
        check_action(action, TOOLS)
        if len(action.calls) != 1:
            raise InvalidAction("write, try or submit: one of them a turn")
        if action.name == "write":
            text = str(action.arguments["code"])
            run = await run_calls(text, tuple(self._problem.public), self.limits)
            self._source = text
            return StepResult(self._show(_report(self._problem, run), "tool"), effect=Effect.REVERSIBLE)
        if action.name == "try":
            run = await run_calls(self._source, [str(action.arguments["call"])], self.limits)
            return StepResult(self._show(_tried(run), "tool"))
        return await self._submit(self._problem)

    async def snapshot(self) -> Snapshot:
        if self._problem is None:
            raise TreewrightError(f"{self.name}: snapshot before reset; call reset(task, key) first")
        seen = self._shown
        state = [self._problem.name, self._source, self._ended, [seen.text, seen.fingerprint, seen.provenance]]
        data = json.dumps(state).encode()
        return Snapshot(Restore.STATE, data, seen.fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        if snapshot.kind is not Restore.STATE:
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot")
        name, self._source, self._ended, seen = json.loads(snapshot.data)
        text, fingerprint, provenance = seen
        self._problem = self._problems[name]
        self._shown = Observation(text, fingerprint, provenance=provenance)
        return self._shown

    async def _submit(self, problem: Problem) -> StepResult:
        calls = (*problem.public, *problem.hidden)
        wanted = (*problem.public.values(), *expected(problem))
        run = await run_calls(self._source, calls, self.limits)
        right = sum(_passes(answer, value) for answer, value in zip(run.calls, wanted, strict=False))
        self._ended = True
        info = {"passed": right, "tests": len(wanted)}
        return StepResult(
            self._show("submitted", "environment"),
            float(right == len(wanted)),
            True,
            info=info,
        )

    def _show(self, text: str, provenance: str) -> Observation:
        name = self._problem.name if self._problem else ""
        self._shown = Observation(text, digest(self.name, name, self._source, str(self._ended)), provenance=provenance)
        return self._shown


def _passes(answer: tuple[str, str], wanted: str) -> bool:
    return answer[0] == "value" and equal(answer[1], wanted)


def _report(problem: Problem, run: Run) -> str:
    """The first line counts; then what went wrong, test by test."""
    tests = list(problem.public.items())
    right = [_passes(answer, value) for answer, (_, value) in zip(run.calls, tests, strict=False)]
    lines = [f"tests: {sum(right)} of {len(tests)} passed"]
    if run.load is not None:
        lines.append(f"the program does not load: {run.load}")
    if run.killed is not None:
        lines.append(run.killed)
    for (call, value), (kind, text), passed in zip(tests, run.calls, right, strict=False):
        if not passed and len(lines) <= SHOWN:
            lines.append(f"{call} {'gave' if kind == 'value' else 'failed:'} {text[:200]}, expected {value}")
    return "\n".join(lines)


def _tried(run: Run) -> str:
    if run.load is not None or run.killed is not None:
        return f"error: {run.load or run.killed}"
    ((kind, text),) = run.calls
    return text[:1000] if kind == "value" else f"error: {text}"


def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    """Writes the reference, then submits it."""
    source = next(problem.source for problem in PROBLEMS if problem.name == task.data["problem"])
    written = [turn.action.arguments["code"] for turn in history if turn.action and turn.action.name == "write"]
    return Action.of("submit") if written[-1:] == [source] else Action.of("write", code=source)


def code_suite(problems: Sequence[Problem], name: str, limits: Limits | None = None, horizon: int = 6) -> Suite:
    """A suite over one's own problems; every third one is 'test', the others are 'train'."""
    if twice := [p.name for i, p in enumerate(problems) if p.name in {q.name for q in problems[:i]}]:
        raise TreewrightError(f"two problems are named {twice[0]!r}; names must differ")
    made = [
        Task(
            name,
            p.name,
            p.text,
            seed=i,
            split="test" if i % 3 == 2 else "train",
            horizon=horizon,
            data={"problem": p.name},
        )
        for i, p in enumerate(problems)
    ]

    async def open_session() -> CodeEnvironment:
        return CodeEnvironment(problems, name, limits)

    def tasks(split: str, count: int) -> Sequence[Task]:
        return [task for task in made if task.split == split][:count]

    return Suite(
        name,
        tasks,
        open_session,
        description="functions to write, with public and hidden tests",
        max_tokens=512,
        sessions=2,
    )


SUITE = dataclasses.replace(code_suite(PROBLEMS, "code"), oracle=oracle)
