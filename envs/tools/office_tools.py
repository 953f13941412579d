"""The tools of the suite `office`: pure functions from one office to the next, and the schemas of their arguments.

The MCP server and the session without a server call the same functions. A call that cannot be done raises Refused.
Every kind of value has a form of its own (k12 an order, #late a topic, notes.txt a file), and schemas say which form
an argument takes: so it shows in a text what could be an argument of what.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from treewright.envs.tools.office_world import COLUMNS, DAYS, STATUSES, Office, update
from treewright.envs.types import Effect, ToolSpec

__all__ = ["KINDS", "TOOLS", "OfficeTool", "Refused", "call_tool", "schema_of"]

KINDS: Mapping[str, Mapping[str, Any]] = {
    "person": {"type": "string", "pattern": "^[A-Z][a-z]+$"},
    "mail": {"type": "string", "pattern": "^[a-z0-9]+@corp\\.io$"},
    "team": {"type": "string", "pattern": "^team-[a-z]+$"},
    "file": {"type": "string", "pattern": "^[a-z]+\\.txt$"},
    "topic": {"type": "string", "pattern": "^#[a-z]+$"},
    "text": {"type": "string", "pattern": "^(#[a-z]+|[a-z]+-[0-9a-z]+|[A-Z][a-z]+)$"},
    "day": {"type": "string", "enum": list(DAYS)},
    "status": {"type": "string", "enum": list(STATUSES)},
    "event": {"type": "string", "pattern": "^e[0-9]{1,2}$"},
    "room": {"type": "string", "pattern": "^r[1-4]$"},
    "order": {"type": "string", "pattern": "^k[0-9]{2}$"},
    "invoice": {"type": "string", "pattern": "^i[0-9]{2}$"},
    "ticket": {"type": "string", "pattern": "^t[0-9]{2}$"},
    "message": {"type": "string", "pattern": "^m[0-9]$"},
    "project": {"type": "string", "pattern": "^p[0-9]{2}$"},
}
"""JSON schemas of the kinds of argument."""

Run = Callable[..., tuple[Office, str]]


class Refused(Exception):
    """A call that cannot be done; its text is the answer."""


@dataclass(frozen=True, slots=True)
class OfficeTool:
    """One tool: arguments by name with their kind, and (office, **arguments) → (office, answer)."""

    name: str
    description: str
    arguments: Mapping[str, str]
    effect: Effect
    run: Run

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(self.name, self.description, schema_of(self), self.effect)


TOOLS: dict[str, OfficeTool] = {}


def schema_of(tool: OfficeTool) -> dict[str, Any]:
    """JSON schema of the tool's arguments, all of them required."""
    properties = {name: dict(KINDS[kind]) for name, kind in tool.arguments.items()}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def call_tool(office: Office, name: str, arguments: Mapping[str, str]) -> tuple[Office, str, bool]:
    """The office after a call, the answer, and whether it was refused (then nothing changed)."""
    try:
        after, text = TOOLS[name].run(office, **arguments)
    except Refused as refused:
        return office, f"error: {refused}", True
    return after, text, False


def _tool(effect: Effect, **arguments: str) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        name = run.__name__.removesuffix("_")
        TOOLS[name] = OfficeTool(name, inspect.getdoc(run) or name, arguments, effect, run)
        return run

    return add


READ, CHANGE, FINAL = Effect.READ, Effect.REVERSIBLE, Effect.IRREVERSIBLE
_NOUNS = {
    "people": "person", "events": "event", "orders": "order", "invoices": "invoice", "tickets": "ticket",
    "messages": "message", "projects": "project",
}  # fmt: skip


def _row(office: Office, table: str, key: str) -> tuple[str, ...]:
    row = office.tables[table].get(key)
    if row is None:
        raise Refused(f"no {_NOUNS[table]} {key}")
    return row


def _set(office: Office, table: str, key: str, **values: str) -> Office:
    row = dict(zip(COLUMNS[table], _row(office, table, key), strict=True)) | values
    return update(office, table, key, tuple(row.values()))


def _line(office: Office, table: str, key: str) -> str:
    said = " ".join(f"{k} {v}" for k, v in zip(COLUMNS[table], _row(office, table, key), strict=True))
    return f"{_NOUNS[table]} {key}: {said}".replace("orders ", "order ")


def _where(office: Office, table: str, column: str, value: str) -> list[str]:
    at = COLUMNS[table].index(column)
    return sorted(key for key, row in office.tables[table].items() if row[at] == value)


def _file(office: Office, name: str) -> str:
    if name not in office.files:
        raise Refused(f"no file {name}")
    return office.files[name]


def _write(office: Office, name: str, text: str) -> Office:
    return replace(office, files={**office.files, name: text})


def _send(office: Office, to: str, topic: str) -> Office:
    key = f"{to} {topic}"
    times = int(office.tables["sent"].get(key, ("0",))[0]) + 1
    return update(office, "sent", key, (str(times),))


# -- people ---------------------------------------------------------------------------------------------------------


@_tool(READ, name="person")
def find_contact(office: Office, name: str) -> tuple[Office, str]:
    """mail, team and manager of a person"""
    return office, _line(office, "people", name)


@_tool(READ, team="team")
def list_team(office: Office, team: str) -> tuple[Office, str]:
    """people of a team"""
    return office, f"{team}: {' '.join(_where(office, 'people', 'team', team)) or 'nobody'}"


@_tool(READ, mail="mail")
def find_owner(office: Office, mail: str) -> tuple[Office, str]:
    """whose mail address it is"""
    return office, f"{mail}: {' '.join(_where(office, 'people', 'mail', mail)) or 'nobody here'}"


@_tool(CHANGE, name="person", team="team")
def set_team(office: Office, name: str, team: str) -> tuple[Office, str]:
    """puts a person into a team"""
    return _set(office, "people", name, team=team), f"{name} is now in {team}"


@_tool(CHANGE, name="person", manager="person")
def set_manager(office: Office, name: str, manager: str) -> tuple[Office, str]:
    """gives a person another manager"""
    _row(office, "people", manager)
    if name == manager:
        raise Refused("nobody manages themselves")
    return _set(office, "people", name, manager=manager), f"the manager of {name} is now {manager}"


# -- files ----------------------------------------------------------------------------------------------------------


@_tool(READ)
def list_files(office: Office) -> tuple[Office, str]:
    """names of all files"""
    return office, f"files: {' '.join(sorted(office.files)) or 'none'}"


@_tool(READ, name="file")
def read_file(office: Office, name: str) -> tuple[Office, str]:
    """text of a file"""
    return office, f"file {name}: {_file(office, name)}"


@_tool(READ, text="text")
def find_in_files(office: Office, text: str) -> tuple[Office, str]:
    """files that hold a text"""
    return office, f"{text} is in: {' '.join(sorted(n for n, t in office.files.items() if text in t)) or 'no file'}"


@_tool(CHANGE, name="file", text="text")
def write_file(office: Office, name: str, text: str) -> tuple[Office, str]:
    """makes or replaces a file"""
    return _write(office, name, text), f"wrote {name}"


@_tool(CHANGE, name="file", text="text")
def append_file(office: Office, name: str, text: str) -> tuple[Office, str]:
    """adds a line to a file"""
    return _write(office, name, f"{_file(office, name)}\n{text}"), f"appended to {name}"


@_tool(CHANGE, name="file", to="file")
def copy_file(office: Office, name: str, to: str) -> tuple[Office, str]:
    """copies a file to a new name"""
    if to in office.files:
        raise Refused(f"there is a file {to}")
    return _write(office, to, _file(office, name)), f"copied to {to}"


@_tool(CHANGE, name="file", to="file")
def rename_file(office: Office, name: str, to: str) -> tuple[Office, str]:
    """gives a file a new name"""
    if to in office.files:
        raise Refused(f"there is a file {to}")
    files = {k: v for k, v in office.files.items() if k != name}
    return replace(office, files={**files, to: _file(office, name)}), f"renamed to {to}"


@_tool(FINAL, name="file")
def delete_file(office: Office, name: str) -> tuple[Office, str]:
    """deletes a file for good"""
    _file(office, name)
    return replace(office, files={k: v for k, v in office.files.items() if k != name}), f"deleted {name}"


# -- calendar -------------------------------------------------------------------------------------------------------


@_tool(READ, name="person")
def list_events(office: Office, name: str) -> tuple[Office, str]:
    """events of a person"""
    found = [_line(office, "events", key) for key in _where(office, "events", "who", name)]
    return office, "; ".join(found) or f"no events of {name}"


@_tool(READ, event="event")
def show_event(office: Office, event: str) -> tuple[Office, str]:
    """who, topic, day, room and guests of an event"""
    return office, _line(office, "events", event)


@_tool(READ, day="day")
def list_rooms(office: Office, day: str) -> tuple[Office, str]:
    """rooms that are free on a day"""
    free = [room for room in ("r1", "r2", "r3", "r4") if not _taken(office, room, day)]
    return office, f"free on {day}: {' '.join(free) or 'none'}"


def _taken(office: Office, room: str, day: str) -> bool:
    return any(row[3] == room and row[2] == day for row in office.tables["events"].values())


@_tool(CHANGE, name="person", topic="topic", day="day")
def create_event(office: Office, name: str, topic: str, day: str) -> tuple[Office, str]:
    """makes an event"""
    _row(office, "people", name)
    events = office.tables["events"]
    # The lowest free id, so that cancelling and making again gives the same state.
    new = next(f"e{i}" for i in range(1, len(events) + 2) if f"e{i}" not in events)
    return update(office, "events", new, (name, topic, day, "none", "none")), f"created event {new}"


@_tool(CHANGE, event="event", day="day")
def move_event(office: Office, event: str, day: str) -> tuple[Office, str]:
    """moves an event to another day; its room is given back"""
    return _set(office, "events", event, day=day, room="none"), f"moved event {event} to {day}"


@_tool(CHANGE, event="event", room="room")
def book_room(office: Office, event: str, room: str) -> tuple[Office, str]:
    """books a room for an event"""
    if _taken(office, room, _row(office, "events", event)[2]):
        raise Refused(f"room {room} is taken on that day")
    return _set(office, "events", event, room=room), f"booked {room} for event {event}"


@_tool(CHANGE, event="event", name="person")
def invite(office: Office, event: str, name: str) -> tuple[Office, str]:
    """invites a person to an event"""
    _row(office, "people", name)
    guests = set(_row(office, "events", event)[4].split()) - {"none"}
    if name in guests:
        raise Refused(f"{name} is invited already")
    return _set(office, "events", event, guests=" ".join(sorted(guests | {name}))), f"invited {name} to event {event}"


@_tool(FINAL, event="event")
def cancel_event(office: Office, event: str) -> tuple[Office, str]:
    """takes an event out and tells everybody"""
    _row(office, "events", event)
    return update(office, "events", event, None), f"cancelled event {event}"


# -- orders and invoices --------------------------------------------------------------------------------------------


@_tool(READ, order="order")
def find_order(office: Office, order: str) -> tuple[Office, str]:
    """buyer, item, status and agent of an order"""
    return office, _line(office, "orders", order)


@_tool(READ, name="person")
def orders_of(office: Office, name: str) -> tuple[Office, str]:
    """orders of a buyer"""
    return office, f"orders of {name}: {' '.join(_where(office, 'orders', 'buyer', name)) or 'none'}"


@_tool(CHANGE, order="order", status="status")
def set_order_status(office: Office, order: str, status: str) -> tuple[Office, str]:
    """sets the status of an order by hand"""
    return _set(office, "orders", order, status=status), f"order {order} is now {status}"


@_tool(CHANGE, order="order", name="person")
def assign_order(office: Office, order: str, name: str) -> tuple[Office, str]:
    """gives an order to an agent"""
    _row(office, "people", name)
    return _set(office, "orders", order, agent=name), f"order {order} is now with {name}"


@_tool(FINAL, order="order")
def ship_order(office: Office, order: str) -> tuple[Office, str]:
    """ships an order that is paid; cannot be taken back"""
    if _row(office, "orders", order)[2] != "paid":
        raise Refused(f"order {order} is not paid")
    return _set(office, "orders", order, status="sent"), f"shipped order {order}"


@_tool(FINAL, order="order")
def refund_order(office: Office, order: str) -> tuple[Office, str]:
    """pays an order back that is paid; cannot be taken back"""
    if _row(office, "orders", order)[2] != "paid":
        raise Refused(f"order {order} is not paid")
    return _set(office, "orders", order, status="held"), f"refunded order {order}"


@_tool(FINAL, order="order")
def cancel_order(office: Office, order: str) -> tuple[Office, str]:
    """deletes an order for good"""
    _row(office, "orders", order)
    return update(office, "orders", order, None), f"cancelled order {order}"


@_tool(READ, invoice="invoice")
def find_invoice(office: Office, invoice: str) -> tuple[Office, str]:
    """order, amount and state of an invoice"""
    return office, _line(office, "invoices", invoice)


@_tool(READ, order="order")
def invoice_of(office: Office, order: str) -> tuple[Office, str]:
    """the invoice of an order"""
    return office, f"invoice of order {order}: {' '.join(_where(office, 'invoices', 'orders', order)) or 'none'}"


@_tool(FINAL, invoice="invoice")
def pay_invoice(office: Office, invoice: str) -> tuple[Office, str]:
    """pays an open invoice; its order is paid then; cannot be taken back"""
    order, _, state = _row(office, "invoices", invoice)
    if state != "open":
        raise Refused(f"invoice {invoice} is {state}")
    paid = _set(office, "invoices", invoice, state="paid")
    if order in paid.tables["orders"]:
        paid = _set(paid, "orders", order, status="paid")
    return paid, f"paid invoice {invoice}"


@_tool(CHANGE, invoice="invoice")
def dispute_invoice(office: Office, invoice: str) -> tuple[Office, str]:
    """disputes an open invoice"""
    if _row(office, "invoices", invoice)[2] != "open":
        raise Refused(f"invoice {invoice} is not open")
    return _set(office, "invoices", invoice, state="disputed"), f"disputed invoice {invoice}"


@_tool(FINAL, invoice="invoice")
def remind(office: Office, invoice: str) -> tuple[Office, str]:
    """mails a reminder of an open invoice"""
    order, _, state = _row(office, "invoices", invoice)
    if state != "open":
        raise Refused(f"invoice {invoice} is {state}")
    return _send(office, f"buyer-of-{order}", "#reminder"), f"reminded of invoice {invoice}"


# -- tickets --------------------------------------------------------------------------------------------------------


@_tool(READ, ticket="ticket")
def find_ticket(office: Office, ticket: str) -> tuple[Office, str]:
    """reporter, order, state, agent and note of a ticket"""
    return office, _line(office, "tickets", ticket)


@_tool(READ, name="person")
def tickets_of(office: Office, name: str) -> tuple[Office, str]:
    """tickets that a person reported"""
    return office, f"tickets of {name}: {' '.join(_where(office, 'tickets', 'reporter', name)) or 'none'}"


@_tool(CHANGE, ticket="ticket", name="person")
def assign_ticket(office: Office, ticket: str, name: str) -> tuple[Office, str]:
    """gives a ticket to an agent"""
    _row(office, "people", name)
    return _set(office, "tickets", ticket, agent=name), f"ticket {ticket} is now with {name}"


@_tool(CHANGE, ticket="ticket")
def close_ticket(office: Office, ticket: str) -> tuple[Office, str]:
    """closes a ticket that has an agent"""
    _, _, state, agent, _ = _row(office, "tickets", ticket)
    if state == "closed" or agent == "none":
        raise Refused(f"ticket {ticket} is closed" if state == "closed" else f"ticket {ticket} has no agent")
    return _set(office, "tickets", ticket, state="closed"), f"closed ticket {ticket}"


@_tool(CHANGE, ticket="ticket")
def reopen_ticket(office: Office, ticket: str) -> tuple[Office, str]:
    """opens a closed ticket again"""
    if _row(office, "tickets", ticket)[2] != "closed":
        raise Refused(f"ticket {ticket} is not closed")
    return _set(office, "tickets", ticket, state="open"), f"opened ticket {ticket} again"


@_tool(CHANGE, ticket="ticket", text="text")
def comment_ticket(office: Office, ticket: str, text: str) -> tuple[Office, str]:
    """sets the note of a ticket"""
    return _set(office, "tickets", ticket, note=text), f"noted on ticket {ticket}"


# -- mail -----------------------------------------------------------------------------------------------------------


@_tool(READ)
def list_inbox(office: Office) -> tuple[Office, str]:
    """messages in the inbox"""
    found = [f"{key} {row[1]}" for key, row in sorted(office.tables["messages"].items()) if row[2] == "inbox"]
    return office, f"inbox: {', '.join(found) or 'empty'}"


@_tool(READ, message="message")
def read_message(office: Office, message: str) -> tuple[Office, str]:
    """sender and topic of a message"""
    return office, _line(office, "messages", message)


@_tool(FINAL, to="mail", topic="topic")
def send_mail(office: Office, to: str, topic: str) -> tuple[Office, str]:
    """sends a mail; cannot be taken back"""
    return _send(office, to, topic), f"sent to {to}"


@_tool(FINAL, message="message", topic="topic")
def reply(office: Office, message: str, topic: str) -> tuple[Office, str]:
    """answers a message; cannot be taken back"""
    sender = _row(office, "messages", message)[0]
    return _send(office, sender, topic), f"answered message {message}"


@_tool(FINAL, message="message", to="mail")
def forward(office: Office, message: str, to: str) -> tuple[Office, str]:
    """sends a message on; cannot be taken back"""
    return _send(office, to, f"fwd {message}"), f"forwarded message {message}"


@_tool(CHANGE, message="message")
def archive(office: Office, message: str) -> tuple[Office, str]:
    """moves a message to the archive"""
    return _set(office, "messages", message, folder="archive"), f"archived message {message}"


@_tool(FINAL, message="message")
def delete_message(office: Office, message: str) -> tuple[Office, str]:
    """deletes a message for good"""
    _row(office, "messages", message)
    return update(office, "messages", message, None), f"deleted message {message}"


# -- projects -------------------------------------------------------------------------------------------------------


@_tool(READ, project="project")
def find_project(office: Office, project: str) -> tuple[Office, str]:
    """lead, file and code of a project"""
    return office, _line(office, "projects", project)


@_tool(CHANGE, project="project", name="person")
def set_lead(office: Office, project: str, name: str) -> tuple[Office, str]:
    """gives a project another lead"""
    _row(office, "people", name)
    return _set(office, "projects", project, lead=name), f"project {project} is now led by {name}"
