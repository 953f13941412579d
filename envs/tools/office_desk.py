"""Tools of the suite `office` for people, files and the calendar."""

from __future__ import annotations

from dataclasses import replace

from treewright.envs.tools.office_kit import (
    CHANGE,
    FINAL,
    READ,
    Refused,
    file_of,
    keys_where,
    line_of,
    office_tool,
    row_of,
    with_file,
    with_values,
)
from treewright.envs.tools.office_world import Office, update

# -- people ---------------------------------------------------------------------------------------------------------


@office_tool(READ, name="person")
def find_contact(office: Office, name: str) -> tuple[Office, str]:
    """mail, team and manager of a person"""
    return office, line_of(office, "people", name)


@office_tool(READ, team="team")
def list_team(office: Office, team: str) -> tuple[Office, str]:
    """people of a team"""
    return office, f"{team}: {' '.join(keys_where(office, 'people', 'team', team)) or 'nobody'}"


@office_tool(READ, mail="mail")
def find_owner(office: Office, mail: str) -> tuple[Office, str]:
    """whose mail address it is"""
    return office, f"{mail}: {' '.join(keys_where(office, 'people', 'mail', mail)) or 'nobody here'}"


@office_tool(CHANGE, name="person", team="team")
def set_team(office: Office, name: str, team: str) -> tuple[Office, str]:
    """puts a person into a team"""
    return with_values(office, "people", name, team=team), f"{name} is now in {team}"


@office_tool(CHANGE, name="person", manager="person")
def set_manager(office: Office, name: str, manager: str) -> tuple[Office, str]:
    """gives a person another manager"""
    row_of(office, "people", manager)
    if name == manager:
        raise Refused("nobody manages themselves")
    return with_values(office, "people", name, manager=manager), f"the manager of {name} is now {manager}"


# -- files ----------------------------------------------------------------------------------------------------------


@office_tool(READ)
def list_files(office: Office) -> tuple[Office, str]:
    """names of all files"""
    return office, f"files: {' '.join(sorted(office.files)) or 'none'}"


@office_tool(READ, name="file")
def read_file(office: Office, name: str) -> tuple[Office, str]:
    """text of a file"""
    return office, f"file {name}: {file_of(office, name)}"


@office_tool(READ, text="text")
def find_in_files(office: Office, text: str) -> tuple[Office, str]:
    """files that hold a text"""
    return office, f"{text} is in: {' '.join(sorted(n for n, t in office.files.items() if text in t)) or 'no file'}"


@office_tool(CHANGE, name="file", text="text")
def write_file(office: Office, name: str, text: str) -> tuple[Office, str]:
    """makes or replaces a file"""
    return with_file(office, name, text), f"wrote {name}"


@office_tool(CHANGE, name="file", text="text")
def append_file(office: Office, name: str, text: str) -> tuple[Office, str]:
    """adds a line to a file"""
    return with_file(office, name, f"{file_of(office, name)}\n{text}"), f"appended to {name}"


@office_tool(CHANGE, name="file", to="file")
def copy_file(office: Office, name: str, to: str) -> tuple[Office, str]:
    """copies a file to a new name"""
    if to in office.files:
        raise Refused(f"there is a file {to}")
    return with_file(office, to, file_of(office, name)), f"copied to {to}"


@office_tool(CHANGE, name="file", to="file")
def rename_file(office: Office, name: str, to: str) -> tuple[Office, str]:
    """gives a file a new name"""
    if to in office.files:
        raise Refused(f"there is a file {to}")
    files = {k: v for k, v in office.files.items() if k != name}
    return replace(office, files={**files, to: file_of(office, name)}), f"renamed to {to}"


@office_tool(FINAL, name="file")
def delete_file(office: Office, name: str) -> tuple[Office, str]:
    """deletes a file for good"""
    file_of(office, name)
    return replace(office, files={k: v for k, v in office.files.items() if k != name}), f"deleted {name}"


# -- calendar -------------------------------------------------------------------------------------------------------


@office_tool(READ, name="person")
def list_events(office: Office, name: str) -> tuple[Office, str]:
    """events of a person"""
    found = [line_of(office, "events", key) for key in keys_where(office, "events", "who", name)]
    return office, "; ".join(found) or f"no events of {name}"


@office_tool(READ, event="event")
def show_event(office: Office, event: str) -> tuple[Office, str]:
    """who, topic, day, room and guests of an event"""
    return office, line_of(office, "events", event)


@office_tool(READ, day="day")
def list_rooms(office: Office, day: str) -> tuple[Office, str]:
    """rooms that are free on a day"""
    free = [room for room in ("r1", "r2", "r3", "r4") if not _taken(office, room, day)]
    return office, f"free on {day}: {' '.join(free) or 'none'}"


def _taken(office: Office, room: str, day: str) -> bool:
    return any(row[3] == room and row[2] == day for row in office.tables["events"].values())


@office_tool(CHANGE, name="person", topic="topic", day="day")
def create_event(office: Office, name: str, topic: str, day: str) -> tuple[Office, str]:
    """makes an event"""
    row_of(office, "people", name)
    events = office.tables["events"]
    # The lowest free id, so that cancelling and making again gives the same state.
    new = next(f"e{i}" for i in range(1, len(events) + 2) if f"e{i}" not in events)
    return update(office, "events", new, (name, topic, day, "none", "none")), f"created event {new}"


@office_tool(CHANGE, event="event", day="day")
def move_event(office: Office, event: str, day: str) -> tuple[Office, str]:
    """moves an event to another day; its room is given back"""
    return with_values(office, "events", event, day=day, room="none"), f"moved event {event} to {day}"


@office_tool(CHANGE, event="event", room="room")
def book_room(office: Office, event: str, room: str) -> tuple[Office, str]:
    """books a room for an event"""
    if _taken(office, room, row_of(office, "events", event)[2]):
        raise Refused(f"room {room} is taken on that day")
    return with_values(office, "events", event, room=room), f"booked {room} for event {event}"


@office_tool(CHANGE, event="event", name="person")
def invite(office: Office, event: str, name: str) -> tuple[Office, str]:
    """invites a person to an event"""
    row_of(office, "people", name)
    guests = set(row_of(office, "events", event)[4].split()) - {"none"}
    if name in guests:
        raise Refused(f"{name} is invited already")
    return with_values(
        office, "events", event, guests=" ".join(sorted(guests | {name}))
    ), f"invited {name} to event {event}"


@office_tool(FINAL, event="event")
def cancel_event(office: Office, event: str) -> tuple[Office, str]:
    """takes an event out and tells everybody"""
    row_of(office, "events", event)
    return update(office, "events", event, None), f"cancelled event {event}"
