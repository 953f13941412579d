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
import os
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mcp.client.stdio import StdioServerParameters

import treewright
from treewright.envs.errors import EnvFault, InvalidAction, TreewrightError
from treewright.envs.tools.mcp import DONE, MCPEnvironment, StateFolder
from treewright.envs.tools.office_tools import TOOLS, call_tool
from treewright.envs.tools.office_world import DAYS, STATUSES, TOPICS, Office, first_office, load, save
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

Plan = list[tuple[str, dict[str, str]]]
Job = tuple[str, Plan]  # goal, calls before `done`


# -- jobs -------------------------------------------------------------------------------------------------------------


class _Drawer:
    """Draws what a job is about. `fresh` values occur nowhere in the office."""

    def __init__(self, office: Office, rng: random.Random) -> None:
        self.office, self.rng = office, rng
        self.people = sorted(office.tables["people"])
        self.orders = list(office.tables["orders"])
        self.tickets = list(office.tables["tickets"])
        self.files = list(office.files)

    def key(self, table: str) -> str:
        return self.rng.choice(sorted(self.office.tables[table]))

    def get(self, table: str, key: str, column: int) -> str:
        return self.office.tables[table][key][column]

    def mail(self, name: str) -> str:
        return self.get("people", name, 0)

    def manager(self, name: str) -> str:
        return self.get("people", name, 2)

    def topic(self) -> str:
        return f"#{self.rng.choice(TOPICS)}"

    def host(self) -> tuple[str, str]:
        """An event and whose it is; nobody has two."""
        event = self.key("events")
        return event, self.get("events", event, 0)

    def other_day(self, event: str) -> str:
        return self.rng.choice([day for day in DAYS if day != self.get("events", event, 2)])

    def open_order(self) -> tuple[str, str]:
        """An open order and its invoice."""
        order = self.rng.choice(self.orders[:2])
        return order, self.invoice(order)

    def invoice(self, order: str) -> str:
        return next(key for key, row in self.office.tables["invoices"].items() if row[0] == order)

    def named(self, which: int) -> tuple[str, str]:
        """A file and the order it names: 0 an open one, 1 any."""
        return self.files[which], self.orders[0 if which == 0 else 3]

    def code_file(self) -> tuple[str, str]:
        file = self.rng.choice(self.files[2:4])
        return file, self.office.files[file].removeprefix("code ")

    def fresh_file(self) -> str:
        taken = set(self.office.files)
        return self.rng.choice([name for name in ("fresh.txt", "copy.txt", "new.txt", "next.txt") if name not in taken])


def _mail_person(d: _Drawer) -> Job:
    who, topic = d.rng.choice(d.people), d.topic()
    return f"send {who} a mail about {topic}", [_contact(who), _send(d, who, topic)]


def _status_by_file(d: _Drawer) -> Job:
    file, order = d.named(d.rng.randrange(2))
    status = d.rng.choice([s for s in STATUSES if s != d.get("orders", order, 2)])
    plan: Plan = [("read_file", {"name": file}), ("set_order_status", {"order": order, "status": status})]
    return f"set the order named in {file} to {status}", plan


def _move_event(d: _Drawer) -> Job:
    event, who = d.host()
    day = d.other_day(event)
    return f"move the event of {who} to {day}", [_events(who), ("move_event", {"event": event, "day": day})]


def _archive(d: _Drawer) -> Job:
    message = d.key("messages")
    plan: Plan = [("list_inbox", {}), ("archive", {"message": message})]
    return f"archive the message about {d.get('messages', message, 1)}", plan


def _assign_manager(d: _Drawer) -> Job:
    ticket = d.tickets[d.rng.randrange(2)]
    who = d.rng.choice(d.people)
    plan: Plan = [_contact(who), ("assign_ticket", {"ticket": ticket, "name": d.manager(who)})]
    return f"assign ticket {ticket} to the manager of {who}", plan


def _pay(d: _Drawer) -> Job:
    order, invoice = d.open_order()
    return f"pay the invoice of order {order}", [_invoice(order), ("pay_invoice", {"invoice": invoice})]


def _project_code(d: _Drawer) -> Job:
    project = d.key("projects")
    _, file, code = d.office.tables["projects"][project]
    plan: Plan = [("find_project", {"project": project}), ("append_file", {"name": file, "text": code})]
    return f"append the code of project {project} to its file", plan


def _book(d: _Drawer) -> Job:
    event, who = d.host()
    room = f"r{d.rng.randrange(1, 5)}"
    return f"book {room} for the event of {who}", [_events(who), ("book_room", {"event": event, "room": room})]


def _copy_code(d: _Drawer) -> Job:
    source, code = d.code_file()
    target = d.rng.choice([f for f in d.files if f != source])
    plan: Plan = [("read_file", {"name": source}), ("append_file", {"name": target, "text": code})]
    return f"append the code in {source} to {target}", plan


def _assign_close(d: _Drawer) -> Job:
    ticket, who = d.tickets[d.rng.randrange(2)], d.rng.choice(d.people)
    plan: Plan = [("assign_ticket", {"ticket": ticket, "name": who}), ("close_ticket", {"ticket": ticket})]
    return f"give ticket {ticket} to {who} and close it", plan


def _mail_buyer(d: _Drawer) -> Job:
    order, topic = d.key("orders"), d.topic()
    return f"send the buyer of order {order} a mail about {topic}", _to_buyer(d, order, topic)


def _lead_to_manager(d: _Drawer) -> Job:
    project = d.key("projects")
    lead = d.get("projects", project, 0)
    plan: Plan = [
        ("find_project", {"project": project}),
        _contact(lead),
        ("set_lead", {"project": project, "name": d.manager(lead)}),
    ]
    return f"make the manager of the lead of project {project} its lead", plan


def _pay_ship(d: _Drawer) -> Job:
    order, invoice = d.open_order()
    return f"pay the invoice of order {order} and ship it", _paid_and_shipped(order, invoice)


def _forward(d: _Drawer) -> Job:
    ticket, message = d.key("tickets"), d.key("messages")
    who = d.get("tickets", ticket, 0)
    plan: Plan = [_ticket(ticket), _contact(who), ("forward", {"message": message, "to": d.mail(who)})]
    return f"forward message {message} to the reporter of ticket {ticket}", plan


def _order_to_manager(d: _Drawer) -> Job:
    ticket = d.key("tickets")
    who, order = d.office.tables["tickets"][ticket][:2]
    plan: Plan = [_ticket(ticket), _contact(who), ("assign_order", {"order": order, "name": d.manager(who)})]
    return f"assign the order of ticket {ticket} to the manager of its reporter", plan


def _event_with(d: _Drawer) -> Job:
    order, topic, day = d.key("orders"), d.topic(), d.rng.choice(DAYS)
    buyer = d.get("orders", order, 0)
    guest = d.rng.choice([p for p in d.people if p != buyer])
    taken = d.office.tables["events"]
    event = next(f"e{i}" for i in range(1, len(taken) + 2) if f"e{i}" not in taken)
    plan: Plan = [
        _order(order),
        ("create_event", {"name": buyer, "topic": topic, "day": day}),
        ("invite", {"event": event, "name": guest}),
    ]
    return f"make an event about {topic} on {day} for the buyer of order {order} and invite {guest}", plan


def _replace_file(d: _Drawer) -> Job:
    project, fresh = d.key("projects"), d.fresh_file()
    file = d.get("projects", project, 1)
    plan: Plan = [
        ("find_project", {"project": project}),
        ("copy_file", {"name": file, "to": fresh}),
        ("delete_file", {"name": file}),
    ]
    return f"copy the file of project {project} to {fresh} and delete the old one", plan


def _mail_buyer_by_file(d: _Drawer) -> Job:
    file, order = d.named(d.rng.randrange(2))
    topic = d.topic()
    plan: Plan = [("read_file", {"name": file}), *_to_buyer(d, order, topic)]
    return f"send the buyer of the order named in {file} a mail about {topic}", plan


def _forward_delete(d: _Drawer) -> Job:
    message, who = d.key("messages"), d.rng.choice(d.people)
    plan: Plan = [
        ("list_inbox", {}),
        _contact(who),
        ("forward", {"message": message, "to": d.mail(who)}),
        ("delete_message", {"message": message}),
    ]
    return f"forward the message about {d.get('messages', message, 1)} to {who} and delete it", plan


def _move_and_book(d: _Drawer) -> Job:
    event, who = d.host()
    day, room = d.other_day(event), f"r{d.rng.randrange(1, 5)}"
    plan: Plan = [
        _events(who),
        ("move_event", {"event": event, "day": day}),
        ("book_room", {"event": event, "room": room}),
    ]
    return f"move the event of {who} to {day} and book {room} for it", plan


def _lead_and_code(d: _Drawer) -> Job:
    order, project = d.key("orders"), d.key("projects")
    buyer = d.get("orders", order, 0)
    _, file, code = d.office.tables["projects"][project]
    plan: Plan = [
        _order(order),
        _contact(buyer),
        ("set_lead", {"project": project, "name": d.manager(buyer)}),
        ("find_project", {"project": project}),
        ("append_file", {"name": file, "text": code}),
    ]
    return (
        f"make the manager of the buyer of order {order} the lead of project {project} and append its code to its file",
        plan,
    )


def _refund(d: _Drawer) -> Job:
    ticket, topic = d.tickets[0], d.topic()  # the first ticket is about the order that is paid
    who, order = d.office.tables["tickets"][ticket][:2]
    agent = d.rng.choice(d.people)
    plan: Plan = [
        _ticket(ticket),
        ("refund_order", {"order": order}),
        _contact(who),
        _send(d, who, topic),
        ("assign_ticket", {"ticket": ticket, "name": agent}),
        ("close_ticket", {"ticket": ticket}),
    ]
    return (
        f"refund the order of ticket {ticket}, mail its reporter about {topic}, give the ticket to {agent}, close it",
        plan,
    )


def _pay_ship_mail(d: _Drawer) -> Job:
    order, invoice = d.open_order()
    topic = d.topic()
    plan: Plan = [*_paid_and_shipped(order, invoice), *_to_buyer(d, order, topic)]
    return f"pay the invoice of order {order}, ship it and mail its buyer about {topic}", plan


def _escalate(d: _Drawer) -> Job:
    ticket, topic = d.tickets[d.rng.randrange(2)], d.topic()
    who = d.get("tickets", ticket, 0)
    boss = d.manager(who)
    plan: Plan = [
        _ticket(ticket),
        _contact(who),
        ("assign_ticket", {"ticket": ticket, "name": boss}),
        ("close_ticket", {"ticket": ticket}),
        _contact(boss),
        _send(d, boss, topic),
    ]
    return f"give ticket {ticket} to the manager of its reporter, close it and mail the manager about {topic}", plan


def _file_pay_ship_mail(d: _Drawer) -> Job:
    file, order = d.named(0)
    topic = d.topic()
    plan: Plan = [
        ("read_file", {"name": file}),
        *_paid_and_shipped(order, d.invoice(order)),
        *_to_buyer(d, order, topic),
    ]
    return f"pay the invoice of the order named in {file}, ship it and mail its buyer about {topic}", plan


def _file_pay_ship_boss(d: _Drawer) -> Job:
    file, order = d.named(0)
    topic = d.topic()
    buyer = d.get("orders", order, 0)
    boss = d.manager(buyer)
    plan: Plan = [
        ("read_file", {"name": file}),
        *_paid_and_shipped(order, d.invoice(order)),
        _order(order),
        _contact(buyer),
        _contact(boss),
        _send(d, boss, topic),
    ]
    return (
        f"pay the invoice of the order named in {file}, ship it and mail the manager of its buyer about {topic}",
        plan,
    )


def _contact(who: str) -> tuple[str, dict[str, str]]:
    return "find_contact", {"name": who}


def _events(who: str) -> tuple[str, dict[str, str]]:
    return "list_events", {"name": who}


def _order(order: str) -> tuple[str, dict[str, str]]:
    return "find_order", {"order": order}


def _invoice(order: str) -> tuple[str, dict[str, str]]:
    return "invoice_of", {"order": order}


def _ticket(ticket: str) -> tuple[str, dict[str, str]]:
    return "find_ticket", {"ticket": ticket}


def _send(d: _Drawer, who: str, topic: str) -> tuple[str, dict[str, str]]:
    return "send_mail", {"to": d.mail(who), "topic": topic}


def _to_buyer(d: _Drawer, order: str, topic: str) -> Plan:
    buyer = d.get("orders", order, 0)
    return [_order(order), _contact(buyer), _send(d, buyer, topic)]


def _paid_and_shipped(order: str, invoice: str) -> Plan:
    return [_invoice(order), ("pay_invoice", {"invoice": invoice}), ("ship_order", {"order": order})]


JOBS: Mapping[str, Callable[[_Drawer], Job]] = {
    "mail_person": _mail_person,
    "status_by_file": _status_by_file,
    "move_event": _move_event,
    "archive": _archive,
    "assign_manager": _assign_manager,
    "pay": _pay,
    "project_code": _project_code,
    "book": _book,
    "copy_code": _copy_code,
    "assign_close": _assign_close,
    "mail_buyer": _mail_buyer,
    "lead_to_manager": _lead_to_manager,
    "pay_ship": _pay_ship,
    "forward": _forward,
    "order_to_manager": _order_to_manager,
    "event_with": _event_with,
    "replace_file": _replace_file,
    "mail_buyer_by_file": _mail_buyer_by_file,
    "forward_delete": _forward_delete,
    "move_and_book": _move_and_book,
    "lead_and_code": _lead_and_code,
    "refund": _refund,
    "pay_ship_mail": _pay_ship_mail,
    "escalate": _escalate,
    "file_pay_ship_mail": _file_pay_ship_mail,
    "file_pay_ship_boss": _file_pay_ship_boss,
}
UNSEEN = ("order_to_manager", "move_and_book", "lead_and_code", "pay_ship_mail")
"""Kinds of test tasks that no training task has."""


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
        goal, plan = JOBS[kind](_Drawer(first_office(seed), random.Random(seed_of("job", seed, again))))
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
    """A new session: its own server process (about half a second) and its own folder, removed at close."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="treewright-office-"))
    package = str(Path(treewright.__file__).parent.parent)
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "treewright.envs.tools.office_server", "--root", str(folder), "--scratch"],
        env={
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",
        },
    )
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
        self._shown = Observation("\n".join(lines), mark, "error" if all(failed) else "tool")
        return StepResult(self._shown, effect=effect)

    async def effect(self, action: Action) -> Effect:
        known = [EFFECTS.get(c.name, DONE.effect if c.name == DONE.name else Effect.UNKNOWN) for c in action.calls]
        return max(known, key=lambda e: e.severity, default=Effect.UNKNOWN)

    async def snapshot(self) -> Snapshot:
        data = (self._task, self._office, self._shown, self._ended)
        return Snapshot(Restore.FORK, data, self._shown.fingerprint, 1024)

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
MODEL = Suite("office", tasks, open_model, oracle, "the suite office without a server, for planning experiments", 48)
