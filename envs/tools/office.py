"""The suite `office`: jobs of two to eight tool calls, worth planning, over a real MCP server.

48 tools over SQLite, files, a calendar and mail; many are distractors, some calls fail, and what is sent, paid,
shipped, cancelled or deleted stays so. Every task has its own office, computed from its seed. The reward is 1.0 when,
at `done`, the office is exactly what the job asked for; else 0.0.

`open_office` starts a server process with a folder of its own. `open_model` is the same office without a server: the
same tools on the same state in this process, with forks that cost nothing, for planning experiments.

Jobs come in 26 kinds; `UNSEEN` ones are in no training task.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from treewright.envs.errors import EnvFault, InvalidAction, TreewrightError
from treewright.envs.tools.forked import bundled_server
from treewright.envs.tools.mcp import DONE, MCPEnvironment, StateFolder
from treewright.envs.tools.office_jobs import JOBS, UNSEEN, Drawer, Job
from treewright.envs.tools.office_tools import TOOLS, call_tool
from treewright.envs.tools.office_world import Office, first_office, load, save
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
    seed_of,
)

__all__ = [
    "EFFECTS",
    "MODEL",
    "SIZES",
    "SPECS",
    "SUITE",
    "UNSEEN",
    "OfficeModel",
    "open_model",
    "open_office",
    "oracle",
    "tasks",
    "wanted",
]

SIZES = {"train": 2000, "test": 200}
SLACK = 2  # actions that an episode may take beyond the oracle's
EFFECTS: Mapping[str, Effect] = {name: tool.effect for name, tool in TOOLS.items()}
SPECS: tuple[ToolSpec, ...] = (*(tool.spec for tool in TOOLS.values()), DONE)


def tasks(split: str, count: int) -> Sequence[Task]:
    """The first `count` tasks of 'train' (2000) or 'test' (200); the kinds take turns."""
    if split not in SIZES:
        raise TreewrightError(f"office has no split {split!r}; known: {', '.join(SIZES)}")
    if count > SIZES[split]:
        raise ValueError(f"office has {SIZES[split]} {split} tasks; {count} were asked for")
    return [_task(split, index) for index in range(count)]


def _job(kind: str, seed: int) -> Job:
    """The first job of the kind, in the order of its seeds, of which every change changes something."""
    again = 0
    while True:
        goal, plan = JOBS[kind](Drawer(first_office(seed), random.Random(seed_of("job", seed, again))))
        offices = _milestones(seed, plan)
        if len({office.fingerprint for office in offices}) == len(offices):
            return goal, plan
        again += 1


def _task(split: str, index: int) -> Task:
    seed = seed_of("office", split, index)
    kinds = [kind for kind in JOBS if split == "test" or kind not in UNSEEN]
    kind = kinds[index % len(kinds)]
    goal, plan = _job(kind, seed)
    return Task(
        suite="office",
        id=f"{split}-{index:04d}",
        goal=goal,
        seed=seed,
        split=split,
        horizon=len(plan) + 1 + SLACK,
        data={"kind": kind},
        truth={"plan": [[name, arguments] for name, arguments in plan]},
    )


# -- truth ------------------------------------------------------------------------------------------------------------


def _milestones(seed: int, plan: Sequence[tuple[str, Mapping[str, str]]]) -> list[Office]:
    """The office at the start and after each state-changing call of the plan."""
    offices = [first_office(seed)]
    for name, arguments in plan:
        if EFFECTS[name] is not Effect.READ:
            offices.append(call_tool(offices[-1], name, arguments)[0])
    return offices


def wanted(task: Task) -> Office:
    """The office that the job asks for."""
    return _milestones(task.seed, task.truth["plan"])[-1]


def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    """The plan's next call. After a mistake that changed the office it gives up: much here cannot be taken back."""
    office, seen = first_office(task.seed), set()
    for turn in history:
        for call in turn.action.calls if turn.action is not None else ():
            if call.name in TOOLS and call.arguments.keys() == TOOLS[call.name].arguments.keys():
                office = call_tool(office, call.name, call.arguments)[0]
            seen.add(Action((call,)).key)
    milestones = _milestones(task.seed, task.truth["plan"])
    reached = [k for k, goal in enumerate(milestones) if goal == office]
    if not reached or reached[-1] == len(milestones) - 1:
        return Action.of("done", answer="ok")
    changes = 0
    for name, arguments in task.truth["plan"]:
        action = Action.of(name, **arguments)
        if EFFECTS[name] is Effect.READ:
            if changes >= reached[-1] and action.key not in seen:
                return action
        else:
            changes += 1
            if changes > reached[-1]:
                return action
    return Action.of("done", answer="ok")


# -- sessions ---------------------------------------------------------------------------------------------------------


def _set_up(folder: Path, task: Task, key: int) -> None:
    save(first_office(task.seed), folder)


def _judge(task: Task, answer: str, folder: Path | None) -> float:
    return float(folder is not None and load(folder) == wanted(task))


def _fingerprint(folder: Path) -> str:
    return load(folder).fingerprint


async def open_office(*, deadline: float = 30.0) -> MCPEnvironment:
    """A new session: its own server process (half a second for the first) and its own folder, removed at close."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="treewright-office-"))
    words = ["--root", str(folder), "--scratch"]
    server = bundled_server("treewright.envs.tools.office_server", words)
    state = StateFolder(folder, _set_up, _fingerprint, scratch=True)
    return MCPEnvironment(
        server, name="office", effects=EFFECTS, state=state, sandboxed=True, judge=_judge, deadline=deadline
    )


class OfficeModel(BaseEnvironment):
    """The office without a server: a fork is a reference to a state that nobody changes."""

    name = "office"
    restore_ways = frozenset({Restore.FORK, Restore.REPLAY})
    sandboxed = True
    tools = SPECS

    def __init__(self) -> None:
        self._task: Task | None = None
        self._office = Office()
        self._shown = Observation("")
        self._ended = False

    async def reset(self, task: Task, key: int) -> Observation:
        self._task, self._office, self._ended = task, first_office(task.seed), False
        self._shown = Observation("ready", self._office.fingerprint)
        return self._shown

    async def step(self, action: Action, key: int) -> StepResult:
        if self._task is None:
            raise EnvFault("office: no task yet; call reset(task, key) first")
        if self._ended:
            raise InvalidAction("the task has ended; nothing more can be called")
        check_action(action, SPECS)
        effect = await self.effect(action)
        if action.name == DONE.name:
            self._ended = True
            mark = digest(self._shown.fingerprint, DONE.name, str(action.arguments["answer"]))
            self._shown = Observation("done", mark)
            return StepResult(self._shown, float(self._office == wanted(self._task)), terminated=True, effect=effect)
        lines, failed = [], []
        before = self._office
        for call in action.calls:
            self._office, text, refused = call_tool(self._office, call.name, call.arguments)
            lines.append(text.replace("\n", " / "))
            failed.append(refused)
        mark = self._shown.fingerprint if self._office is before else self._office.fingerprint
        self._shown = Observation("\n".join(lines), mark, provenance="error" if all(failed) else "tool")
        return StepResult(self._shown, effect=effect)

    async def effect(self, action: Action) -> Effect:
        known = [EFFECTS.get(c.name, DONE.effect if c.name == DONE.name else Effect.UNKNOWN) for c in action.calls]
        return max(known, key=lambda e: e.severity, default=Effect.UNKNOWN)

    async def snapshot(self) -> Snapshot:
        data = (self._task, self._office, self._shown, self._ended)
        return Snapshot(Restore.FORK, data, self._shown.fingerprint, size=1024)

    async def restore(self, snapshot: Snapshot) -> Observation:
        if snapshot.kind is not Restore.FORK:
            return await super().restore(snapshot)
        self._task, self._office, self._shown, self._ended = snapshot.data
        return self._shown


async def open_model() -> OfficeModel:
    """A session without a server."""
    return OfficeModel()


SUITE = Suite(
    name="office",
    tasks=tasks,
    open=open_office,
    oracle=oracle,
    sessions=4,
    description="office jobs of two to eight tool calls among 48 tools, over a real MCP server",
    max_tokens=48,
)
MODEL = Suite(
    "office",
    tasks,
    open_model,
    oracle=oracle,
    description="the suite office without a server, for planning experiments",
    max_tokens=48,
)
