"""The suite `workbench`: short office jobs over a real MCP server, an SQLite file and a folder.

Each session has its own server process and its own folder; a reset rewrites the folder and leaves the process
running. Every task has its own office, computed from its seed. The reward is 1.0 when, at `done`, database and
folder hold exactly what the job asked for and, where a question was put, the answer is right; else 0.0. A mail
that should not have been sent therefore fails the task.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from treewright.envs.errors import TreewrightError
from treewright.envs.tools.forked import bundled_server
from treewright.envs.tools.mcp import MCPEnvironment, StateFolder
from treewright.envs.tools.workbench_world import DAYS, STATUSES, Office, apply, first_office, load, save
from treewright.envs.types import Action, Effect, Suite, Task, ToolSpec, Turn, seed_of

__all__ = ["EFFECTS", "KINDS", "SIZES", "SUITE", "open_workbench", "oracle", "tasks", "wanted"]

EFFECTS: Mapping[str, Effect] = {
    "find_contact": Effect.READ,
    "list_files": Effect.READ,
    "read_file": Effect.READ,
    "list_events": Effect.READ,
    "find_order": Effect.READ,
    "write_file": Effect.REVERSIBLE,
    "append_file": Effect.REVERSIBLE,
    "create_event": Effect.REVERSIBLE,
    "move_event": Effect.REVERSIBLE,
    "cancel_event": Effect.REVERSIBLE,
    "update_order": Effect.REVERSIBLE,
    "send_mail": Effect.IRREVERSIBLE,
    "delete_file": Effect.IRREVERSIBLE,
}
SIZES = {"train": 4000, "test": 1000}
SUBJECTS = ["hello", "late", "thanks", "invoice", "update", "meeting", "welcome", "news"]
SLACK = 2  # actions that an episode may take beyond the oracle's

Plan = list[tuple[str, dict[str, str]]]
Job = tuple[str, Plan, str | None]  # goal, calls before `done`, answer where one is asked


def _mail(office: Office, rng: random.Random) -> Job:
    who, subject = rng.choice(sorted(office.contacts)), rng.choice(SUBJECTS)
    send = ("send_mail", {"to": office.contacts[who][0], "subject": subject})
    return f"send {who} a mail with subject {subject}", [("find_contact", {"name": who}), send], None


def _status(office: Office, rng: random.Random) -> Job:
    file, order = _order_file(office, rng)
    status = rng.choice([s for s in STATUSES if s != office.orders[order][2]])
    plan: Plan = [("read_file", {"name": file}), ("update_order", {"id": order, "status": status})]
    return f"set the order named in file {file} to {status}", plan, None


def _move(office: Office, rng: random.Random) -> Job:
    event = rng.choice(sorted(office.events))
    who, _, old = office.events[event]
    day = rng.choice([d for d in DAYS if d != old])
    return (
        f"move the event of {who} to {day}",
        [("list_events", {"who": who}), ("move_event", {"id": event, "day": day})],
        None,
    )


def _copy(office: Office, rng: random.Random) -> Job:
    source = rng.choice(sorted(name for name, text in office.files.items() if text.startswith("code ")))
    target = rng.choice(sorted(set(office.files) - {source}))
    code = office.files[source].removeprefix("code ")
    plan: Plan = [("read_file", {"name": source}), ("append_file", {"name": target, "text": code})]
    return f"append the code in file {source} to file {target}", plan, None


def _answer(office: Office, rng: random.Random) -> Job:
    order = rng.choice(sorted(office.orders))
    buyer = office.orders[order][0]
    plan: Plan = [("find_order", {"id": order}), ("find_contact", {"name": buyer})]
    return f"which team is the buyer of order {order} in", plan, office.contacts[buyer][1]


def _buyer(office: Office, rng: random.Random) -> Job:
    order, subject = rng.choice(sorted(office.orders)), rng.choice(SUBJECTS)
    plan = _mail_buyer(office, order, subject)
    return f"send the buyer of order {order} a mail with subject {subject}", plan, None


def _chain(office: Office, rng: random.Random) -> Job:
    file, order = _order_file(office, rng)
    subject = rng.choice(SUBJECTS)
    plan: Plan = [("read_file", {"name": file}), *_mail_buyer(office, order, subject)]
    return f"send the buyer of the order named in file {file} a mail with subject {subject}", plan, None


def _order_file(office: Office, rng: random.Random) -> tuple[str, str]:
    file = rng.choice(sorted(name for name, text in office.files.items() if "order " in text))
    return file, office.files[file].partition("order ")[2].split()[0]


def _mail_buyer(office: Office, order: str, subject: str) -> Plan:
    buyer = office.orders[order][0]
    send = ("send_mail", {"to": office.contacts[buyer][0], "subject": subject})
    return [("find_order", {"id": order}), ("find_contact", {"name": buyer}), send]


KINDS: Mapping[str, Callable[[Office, random.Random], Job]] = {
    "mail": _mail,
    "status": _status,
    "move": _move,
    "copy": _copy,
    "answer": _answer,
    "buyer": _buyer,
    "chain": _chain,
}


def tasks(split: str, count: int) -> Sequence[Task]:
    """The first `count` tasks of 'train' (4000) or 'test' (1000); the kinds take turns."""
    if split not in SIZES:
        raise TreewrightError(f"workbench has no split {split!r}; known: {', '.join(SIZES)}")
    if count > SIZES[split]:
        raise ValueError(f"workbench has {SIZES[split]} {split} tasks; {count} were asked for")
    return [_task(split, index) for index in range(count)]


def _task(split: str, index: int) -> Task:
    seed = seed_of("workbench", split, index)
    kind = list(KINDS)[index % len(KINDS)]
    goal, plan, answer = KINDS[kind](first_office(seed), random.Random(seed_of("job", seed)))
    return Task(
        suite="workbench",
        id=f"{split}-{index:04d}",
        goal=goal,
        seed=seed,
        split=split,
        horizon=len(plan) + 1 + SLACK,
        data={"kind": kind},
        truth={"plan": [[name, arguments] for name, arguments in plan], "answer": answer},
    )


def _milestones(task: Task) -> list[Office]:
    """The office at the start and after each state-changing call of the plan."""
    offices = [first_office(task.seed)]
    for name, arguments in task.truth["plan"]:
        if EFFECTS[name] is not Effect.READ:
            offices.append(apply(offices[-1], name, arguments))
    return offices


def wanted(task: Task) -> Office:
    """The office that the job asks for."""
    return _milestones(task)[-1]


def _judge(task: Task, answer: str, folder: Path | None) -> float:
    right = task.truth["answer"]
    if folder is None or (right is not None and answer.strip().lower() != right):
        return 0.0
    return float(load(folder).fingerprint == wanted(task).fingerprint)


def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    """The expert: the plan's next call, after undoing what a mistake changed; after a wrong mail it gives up."""
    office, seen = first_office(task.seed), set()
    for turn in history:
        for call in turn.action.calls if turn.action is not None else ():
            office = apply(office, call.name, call.arguments)
            seen.add(Action((call,)).key)
    milestones = _milestones(task)
    reachable = [k for k, goal in enumerate(milestones) if not Counter(office.mails) - Counter(goal.mails)]
    if not reachable:
        return Action.of("done", answer=task.truth["answer"] or "ok")
    at = min(reachable, key=lambda k: (len(_repairs(office, milestones[k])), -k))
    if repairs := _repairs(office, milestones[at]):
        return repairs[0]
    changes = 0
    for name, arguments in task.truth["plan"]:
        action = Action.of(name, **arguments)
        if EFFECTS[name] is not Effect.READ:
            changes += 1
            if changes > at:
                return action
        elif action.key not in seen and (at < len(milestones) - 1 or task.truth["answer"] is not None):
            return action
    return Action.of("done", answer=task.truth["answer"] or "ok")


def _repairs(office: Office, goal: Office) -> list[Action]:
    """Calls that lead from one office to the other, in an order that works (events get the lowest free id)."""
    calls: list[Action] = []
    for key, event in office.events.items():
        if key not in goal.events or goal.events[key][:2] != event[:2]:
            calls.append(Action.of("cancel_event", id=key))
        elif goal.events[key] != event:
            calls.append(Action.of("move_event", id=key, day=goal.events[key][2]))
    for key, (who, title, day) in sorted(goal.events.items()):
        if office.events.get(key, ("", ""))[:2] != (who, title):
            calls.append(Action.of("create_event", who=who, title=title, day=day))
    for key, order in goal.orders.items():
        if office.orders[key] != order:
            calls.append(Action.of("update_order", id=key, status=order[2]))
    for name in sorted(set(office.files) - set(goal.files)):
        calls.append(Action.of("delete_file", name=name))
    for name, text in goal.files.items():
        if office.files.get(name) != text:
            calls.append(Action.of("write_file", name=name, text=text))
    for address, subject in (Counter(goal.mails) - Counter(office.mails)).elements():
        calls.append(Action.of("send_mail", to=address, subject=subject))
    return calls


def _set_up(folder: Path, task: Task, key: int) -> None:
    save(first_office(task.seed), folder)


async def open_workbench(*, deadline: float = 30.0, arguments: Sequence[str] = ()) -> MCPEnvironment:
    """A new session: its own server process (half a second for the first) and its own folder, removed at close."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="treewright-workbench-"))
    words = ["--root", str(folder), "--scratch", *arguments]
    server = bundled_server("treewright.envs.tools.workbench_server", words)
    state = StateFolder(folder, _set_up, _fingerprint, scratch=True)
    return MCPEnvironment(
        server, name="workbench", effects=EFFECTS, state=state, sandboxed=True, judge=_judge, deadline=deadline
    )


def _fingerprint(folder: Path) -> str:
    return load(folder).fingerprint


SUITE = Suite(
    name="workbench",
    tasks=tasks,
    open=open_workbench,
    oracle=oracle,
    sessions=4,
    description="office jobs of two to four tool calls over a real MCP server, an SQLite file and a folder",
    max_tokens=48,
)
