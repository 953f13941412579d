"""Tools of the suite `office` for orders, invoices, tickets, mail and projects."""

from __future__ import annotations

from treewright.envs.tools.office_kit import (
    CHANGE,
    FINAL,
    READ,
    Refused,
    keys_where,
    line_of,
    office_tool,
    row_of,
    with_mail,
    with_values,
)
from treewright.envs.tools.office_world import Office, update

# -- orders and invoices --------------------------------------------------------------------------------------------


@office_tool(READ, order="order")
def find_order(office: Office, order: str) -> tuple[Office, str]:
    """buyer, item, status and agent of an order"""
    return office, line_of(office, "orders", order)


@office_tool(READ, name="person")
def orders_of(office: Office, name: str) -> tuple[Office, str]:
    """orders of a buyer"""
    return office, f"orders of {name}: {' '.join(keys_where(office, 'orders', 'buyer', name)) or 'none'}"


@office_tool(CHANGE, order="order", status="status")
def set_order_status(office: Office, order: str, status: str) -> tuple[Office, str]:
    """sets the status of an order by hand"""
    return with_values(office, "orders", order, status=status), f"order {order} is now {status}"


@office_tool(CHANGE, order="order", name="person")
def assign_order(office: Office, order: str, name: str) -> tuple[Office, str]:
    """gives an order to an agent"""
    row_of(office, "people", name)
    return with_values(office, "orders", order, agent=name), f"order {order} is now with {name}"


@office_tool(FINAL, order="order")
def ship_order(office: Office, order: str) -> tuple[Office, str]:
    """ships an order that is paid; cannot be taken back"""
    if row_of(office, "orders", order)[2] != "paid":
        raise Refused(f"order {order} is not paid")
    return with_values(office, "orders", order, status="sent"), f"shipped order {order}"


@office_tool(FINAL, order="order")
def refund_order(office: Office, order: str) -> tuple[Office, str]:
    """pays an order back that is paid; cannot be taken back"""
    if row_of(office, "orders", order)[2] != "paid":
        raise Refused(f"order {order} is not paid")
    return with_values(office, "orders", order, status="held"), f"refunded order {order}"


@office_tool(FINAL, order="order")
def cancel_order(office: Office, order: str) -> tuple[Office, str]:
    """deletes an order for good"""
    row_of(office, "orders", order)
    return update(office, "orders", order, None), f"cancelled order {order}"


@office_tool(READ, invoice="invoice")
def find_invoice(office: Office, invoice: str) -> tuple[Office, str]:
    """order, amount and state of an invoice"""
    return office, line_of(office, "invoices", invoice)


@office_tool(READ, order="order")
def invoice_of(office: Office, order: str) -> tuple[Office, str]:
    """the invoice of an order"""
    return office, f"invoice of order {order}: {' '.join(keys_where(office, 'invoices', 'orders', order)) or 'none'}"


@office_tool(FINAL, invoice="invoice")
def pay_invoice(office: Office, invoice: str) -> tuple[Office, str]:
    """pays an open invoice; its order is paid then; cannot be taken back"""
    order, _, state = row_of(office, "invoices", invoice)
    if state != "open":
        raise Refused(f"invoice {invoice} is {state}")
    paid = with_values(office, "invoices", invoice, state="paid")
    if order in paid.tables["orders"]:
        paid = with_values(paid, "orders", order, status="paid")
    return paid, f"paid invoice {invoice}"


@office_tool(CHANGE, invoice="invoice")
def dispute_invoice(office: Office, invoice: str) -> tuple[Office, str]:
    """disputes an open invoice"""
    if row_of(office, "invoices", invoice)[2] != "open":
        raise Refused(f"invoice {invoice} is not open")
    return with_values(office, "invoices", invoice, state="disputed"), f"disputed invoice {invoice}"


@office_tool(FINAL, invoice="invoice")
def remind(office: Office, invoice: str) -> tuple[Office, str]:
    """mails a reminder of an open invoice"""
    order, _, state = row_of(office, "invoices", invoice)
    if state != "open":
        raise Refused(f"invoice {invoice} is {state}")
    return with_mail(office, f"buyer-of-{order}", "#reminder"), f"reminded of invoice {invoice}"


# -- tickets --------------------------------------------------------------------------------------------------------


@office_tool(READ, ticket="ticket")
def find_ticket(office: Office, ticket: str) -> tuple[Office, str]:
    """reporter, order, state, agent and note of a ticket"""
    return office, line_of(office, "tickets", ticket)


@office_tool(READ, name="person")
def tickets_of(office: Office, name: str) -> tuple[Office, str]:
    """tickets that a person reported"""
    return office, f"tickets of {name}: {' '.join(keys_where(office, 'tickets', 'reporter', name)) or 'none'}"


@office_tool(CHANGE, ticket="ticket", name="person")
def assign_ticket(office: Office, ticket: str, name: str) -> tuple[Office, str]:
    """gives a ticket to an agent"""
    row_of(office, "people", name)
    return with_values(office, "tickets", ticket, agent=name), f"ticket {ticket} is now with {name}"


@office_tool(CHANGE, ticket="ticket")
def close_ticket(office: Office, ticket: str) -> tuple[Office, str]:
    """closes a ticket that has an agent"""
    _, _, state, agent, _ = row_of(office, "tickets", ticket)
    if state == "closed" or agent == "none":
        raise Refused(f"ticket {ticket} is closed" if state == "closed" else f"ticket {ticket} has no agent")
    return with_values(office, "tickets", ticket, state="closed"), f"closed ticket {ticket}"


@office_tool(CHANGE, ticket="ticket")
def reopen_ticket(office: Office, ticket: str) -> tuple[Office, str]:
    """opens a closed ticket again"""
    if row_of(office, "tickets", ticket)[2] != "closed":
        raise Refused(f"ticket {ticket} is not closed")
    return with_values(office, "tickets", ticket, state="open"), f"opened ticket {ticket} again"


@office_tool(CHANGE, ticket="ticket", text="text")
def comment_ticket(office: Office, ticket: str, text: str) -> tuple[Office, str]:
    """sets the note of a ticket"""
    return with_values(office, "tickets", ticket, note=text), f"noted on ticket {ticket}"


# -- mail -----------------------------------------------------------------------------------------------------------


@office_tool(READ)
def list_inbox(office: Office) -> tuple[Office, str]:
    """messages in the inbox"""
    found = [f"{key} {row[1]}" for key, row in sorted(office.tables["messages"].items()) if row[2] == "inbox"]
    return office, f"inbox: {', '.join(found) or 'empty'}"


@office_tool(READ, message="message")
def read_message(office: Office, message: str) -> tuple[Office, str]:
    """sender and topic of a message"""
    return office, line_of(office, "messages", message)


@office_tool(FINAL, to="mail", topic="topic")
def send_mail(office: Office, to: str, topic: str) -> tuple[Office, str]:
    """sends a mail; cannot be taken back"""
    return with_mail(office, to, topic), f"sent to {to}"


@office_tool(FINAL, message="message", topic="topic")
def reply(office: Office, message: str, topic: str) -> tuple[Office, str]:
    """answers a message; cannot be taken back"""
    sender = row_of(office, "messages", message)[0]
    return with_mail(office, sender, topic), f"answered message {message}"


@office_tool(FINAL, message="message", to="mail")
def forward(office: Office, message: str, to: str) -> tuple[Office, str]:
    """sends a message on; cannot be taken back"""
    return with_mail(office, to, f"fwd {message}"), f"forwarded message {message}"


@office_tool(CHANGE, message="message")
def archive(office: Office, message: str) -> tuple[Office, str]:
    """moves a message to the archive"""
    return with_values(office, "messages", message, folder="archive"), f"archived message {message}"


@office_tool(FINAL, message="message")
def delete_message(office: Office, message: str) -> tuple[Office, str]:
    """deletes a message for good"""
    row_of(office, "messages", message)
    return update(office, "messages", message, None), f"deleted message {message}"


# -- projects -------------------------------------------------------------------------------------------------------


@office_tool(READ, project="project")
def find_project(office: Office, project: str) -> tuple[Office, str]:
    """lead, file and code of a project"""
    return office, line_of(office, "projects", project)


@office_tool(CHANGE, project="project", name="person")
def set_lead(office: Office, project: str, name: str) -> tuple[Office, str]:
    """gives a project another lead"""
    row_of(office, "people", name)
    return with_values(office, "projects", project, lead=name), f"project {project} is now led by {name}"
