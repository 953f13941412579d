"""The jobs of the suite `office`: what is asked for, and the calls that do it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from treewright.envs.tools.office_world import DAYS, STATUSES, TOPICS, Office

__all__ = ["JOBS", "UNSEEN", "Drawer", "Job", "Plan"]

Plan = list[tuple[str, dict[str, str]]]
Job = tuple[str, Plan]  # goal, calls before `done`


class Drawer:
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


def _mail_person(d: Drawer) -> Job:
    who, topic = d.rng.choice(d.people), d.topic()
    return f"send {who} a mail about {topic}", [_contact(who), _send(d, who, topic)]


def _status_by_file(d: Drawer) -> Job:
    file, order = d.named(d.rng.randrange(2))
    status = d.rng.choice([s for s in STATUSES if s != d.get("orders", order, 2)])
    plan: Plan = [("read_file", {"name": file}), ("set_order_status", {"order": order, "status": status})]
    return f"set the order named in {file} to {status}", plan


def _move_event(d: Drawer) -> Job:
    event, who = d.host()
    day = d.other_day(event)
    return f"move the event of {who} to {day}", [_events(who), ("move_event", {"event": event, "day": day})]


def _archive(d: Drawer) -> Job:
    message = d.key("messages")
    plan: Plan = [("list_inbox", {}), ("archive", {"message": message})]
    return f"archive the message about {d.get('messages', message, 1)}", plan


def _assign_manager(d: Drawer) -> Job:
    ticket = d.tickets[d.rng.randrange(2)]
    who = d.rng.choice(d.people)
    plan: Plan = [_contact(who), ("assign_ticket", {"ticket": ticket, "name": d.manager(who)})]
    return f"assign ticket {ticket} to the manager of {who}", plan


def _pay(d: Drawer) -> Job:
    order, invoice = d.open_order()
    return f"pay the invoice of order {order}", [_invoice(order), ("pay_invoice", {"invoice": invoice})]


def _project_code(d: Drawer) -> Job:
    project = d.key("projects")
    _, file, code = d.office.tables["projects"][project]
    plan: Plan = [("find_project", {"project": project}), ("append_file", {"name": file, "text": code})]
    return f"append the code of project {project} to its file", plan


def _book(d: Drawer) -> Job:
    event, who = d.host()
    room = f"r{d.rng.randrange(1, 5)}"
    return f"book {room} for the event of {who}", [_events(who), ("book_room", {"event": event, "room": room})]


def _copy_code(d: Drawer) -> Job:
    source, code = d.code_file()
    target = d.rng.choice([f for f in d.files if f != source])
    plan: Plan = [("read_file", {"name": source}), ("append_file", {"name": target, "text": code})]
    return f"append the code in {source} to {target}", plan


def _assign_close(d: Drawer) -> Job:
    ticket, who = d.tickets[d.rng.randrange(2)], d.rng.choice(d.people)
    plan: Plan = [("assign_ticket", {"ticket": ticket, "name": who}), ("close_ticket", {"ticket": ticket})]
    return f"give ticket {ticket} to {who} and close it", plan


def _mail_buyer(d: Drawer) -> Job:
    order, topic = d.key("orders"), d.topic()
    return f"send the buyer of order {order} a mail about {topic}", _to_buyer(d, order, topic)


def _lead_to_manager(d: Drawer) -> Job:
    project = d.key("projects")
    lead = d.get("projects", project, 0)
    plan: Plan = [
        ("find_project", {"project": project}),
        _contact(lead),
        ("set_lead", {"project": project, "name": d.manager(lead)}),
    ]
    return f"make the manager of the lead of project {project} its lead", plan


def _pay_ship(d: Drawer) -> Job:
    order, invoice = d.open_order()
    return f"pay the invoice of order {order} and ship it", _paid_and_shipped(order, invoice)


def _forward(d: Drawer) -> Job:
    ticket, message = d.key("tickets"), d.key("messages")
    who = d.get("tickets", ticket, 0)
    plan: Plan = [_ticket(ticket), _contact(who), ("forward", {"message": message, "to": d.mail(who)})]
    return f"forward message {message} to the reporter of ticket {ticket}", plan


def _order_to_manager(d: Drawer) -> Job:
    ticket = d.key("tickets")
    who, order = d.office.tables["tickets"][ticket][:2]
    plan: Plan = [_ticket(ticket), _contact(who), ("assign_order", {"order": order, "name": d.manager(who)})]
    return f"assign the order of ticket {ticket} to the manager of its reporter", plan


def _event_with(d: Drawer) -> Job:
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


def _replace_file(d: Drawer) -> Job:
    project, fresh = d.key("projects"), d.fresh_file()
    file = d.get("projects", project, 1)
    plan: Plan = [
        ("find_project", {"project": project}),
        ("copy_file", {"name": file, "to": fresh}),
        ("delete_file", {"name": file}),
    ]
    return f"copy the file of project {project} to {fresh} and delete the old one", plan


def _mail_buyer_by_file(d: Drawer) -> Job:
    file, order = d.named(d.rng.randrange(2))
    topic = d.topic()
    plan: Plan = [("read_file", {"name": file}), *_to_buyer(d, order, topic)]
    return f"send the buyer of the order named in {file} a mail about {topic}", plan


def _forward_delete(d: Drawer) -> Job:
    message, who = d.key("messages"), d.rng.choice(d.people)
    plan: Plan = [
        ("list_inbox", {}),
        _contact(who),
        ("forward", {"message": message, "to": d.mail(who)}),
        ("delete_message", {"message": message}),
    ]
    return f"forward the message about {d.get('messages', message, 1)} to {who} and delete it", plan


def _move_and_book(d: Drawer) -> Job:
    event, who = d.host()
    day, room = d.other_day(event), f"r{d.rng.randrange(1, 5)}"
    plan: Plan = [
        _events(who),
        ("move_event", {"event": event, "day": day}),
        ("book_room", {"event": event, "room": room}),
    ]
    return f"move the event of {who} to {day} and book {room} for it", plan


def _lead_and_code(d: Drawer) -> Job:
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


def _refund(d: Drawer) -> Job:
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


def _pay_ship_mail(d: Drawer) -> Job:
    order, invoice = d.open_order()
    topic = d.topic()
    plan: Plan = [*_paid_and_shipped(order, invoice), *_to_buyer(d, order, topic)]
    return f"pay the invoice of order {order}, ship it and mail its buyer about {topic}", plan


def _escalate(d: Drawer) -> Job:
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


def _file_pay_ship_mail(d: Drawer) -> Job:
    file, order = d.named(0)
    topic = d.topic()
    plan: Plan = [
        ("read_file", {"name": file}),
        *_paid_and_shipped(order, d.invoice(order)),
        *_to_buyer(d, order, topic),
    ]
    return f"pay the invoice of the order named in {file}, ship it and mail its buyer about {topic}", plan


def _file_pay_ship_boss(d: Drawer) -> Job:
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


def _send(d: Drawer, who: str, topic: str) -> tuple[str, dict[str, str]]:
    return "send_mail", {"to": d.mail(who), "topic": topic}


def _to_buyer(d: Drawer, order: str, topic: str) -> Plan:
    buyer = d.get("orders", order, 0)
    return [_order(order), _contact(buyer), _send(d, buyer, topic)]


def _paid_and_shipped(order: str, invoice: str) -> Plan:
    return [_invoice(order), ("pay_invoice", {"invoice": invoice}), ("ship_order", {"order": order})]


JOBS: Mapping[str, Callable[[Drawer], Job]] = {
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
