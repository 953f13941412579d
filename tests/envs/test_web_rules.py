"""Pages as text, effects by rule, and the guard, without a browser."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from treewright.envs.web.view import PageView

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from speed import patient

from treewright.envs import Effect
from treewright.envs.web.effects import DEFAULT_RULES, Target, after_traffic, judge
from treewright.envs.web.guard import AllowList, Gate
from treewright.envs.web.reading import FrameTree, read_tree


def node(
    number: int,
    role: str,
    name: str = "",
    children: list[Any] | tuple[Any, ...] = (),
    ignored: bool = False,
    value: str | None = None,
    parent: int | None = None,
    **properties: Any,
) -> dict[str, Any]:
    found = {
        "nodeId": str(number),
        "ignored": ignored,
        "role": {"value": role},
        "name": {"value": name},
        "childIds": [str(child) for child in children],
        "backendDOMNodeId": 100 + number,
        "properties": [{"name": key, "value": {"value": value}} for key, value in properties.items()],
    }
    if value is not None:
        found["value"] = {"value": value}
    if number > 1:
        found["parentId"] = str(parent or 1)
    return found


def page(*nodes: dict[str, Any], title: str = "t", url: str = "http://h/a?b=1") -> PageView:
    root = node(1, "RootWebArea", "t", [n["nodeId"] for n in nodes if n.get("parentId") == "1"])
    return read_tree([root, *nodes], title, url)


def test_page_is_one_line_per_element_with_references_after_names() -> None:
    view = page(
        node(2, "link", "red  lamp", url="http://h/x"),
        node(3, "heading", "Lamps"),
        node(4, "StaticText", "12 "),
        node(5, "none", "", [6], ignored=True),
        node(6, "StaticText", "coins", parent=5),
        node(7, "button", "buy", disabled=True),
        node(8, "checkbox", "gift", checked="true"),
        node(9, "textbox", "name", value="ann"),
        node(10, "combobox", "pieces", [11], value="1"),
        node(11, "MenuListPopup", "", [12, 13], parent=10),
        node(12, "option", "1", parent=11),
        node(13, "option", "2", parent=11),
    )
    assert view.parts(2000) == [
        'page "t" /a?b=1\nlink "red lamp" e1\nheading "Lamps"\ntext "12 coins"\nbutton "buy" e2 disabled\n'
        'checkbox "gift" e3 checked\ntextbox "name" e4 = "ann"\ncombobox "pieces" e5 = "1" from "1", "2"'
    ]
    assert view.elements["e1"].url == "http://h/x" and view.elements["e2"].disabled
    assert view.elements["e5"].options == ("1", "2") and view.elements["e5"].node == 110


def test_frames_of_two_processes_may_number_their_nodes_alike() -> None:
    """Both frame elements are node 102, one in the page and one inside of the frame that the page shows."""
    outer = [node(1, "RootWebArea", "", [2, 3]), node(2, "Iframe", "one"), node(3, "button", "end")]
    one = [node(1, "RootWebArea", "", [2]), node(2, "Iframe", "two")]
    two = [node(1, "RootWebArea", "", [2]), node(2, "button", "deep")]
    view = read_tree(outer, "t", "http://h/", [FrameTree(one, 102, 0), FrameTree(two, 102, 1)])
    assert [line[0] for line in view.lines] == ['iframe "one"', 'iframe "two"', 'button "deep"', 'button "end"']
    assert view.elements["e1"].frame == 2


def test_page_text_cannot_fake_a_line() -> None:
    view = page(node(2, "StaticText", 'x"\nbutton "pay" e1'))
    assert view.parts(2000)[0].splitlines()[1:] == ['text "x\\" button \\"pay\\" e1"']


def test_long_page_comes_in_parts_that_lose_nothing() -> None:
    view = page(*(node(n, "link", f"link number {n}") for n in range(2, 60)))
    parts = view.parts(300)
    assert len(parts) > 3 and all(len(part) <= 330 for part in parts)
    assert parts[0].splitlines()[0].endswith(f"part 1 of {len(parts)}")
    lines = [line for part in parts for line in part.splitlines()[1:]]
    assert lines == view.parts(10_000)[0].splitlines()[1:]


def test_fingerprint_ignores_references_and_sees_everything_else() -> None:
    plain = page(node(2, "button", "a"), node(3, "textbox", "b", value="x"))
    moved = page(node(2, "button", "a"), node(3, "textbox", "b", value="x"), node(4, "none", ignored=True))
    written = page(node(2, "button", "a"), node(3, "textbox", "b", value="y"))
    elsewhere = page(node(2, "button", "a"), node(3, "textbox", "b", value="x"), url="http://h/other")
    assert plain.fingerprint() == moved.fingerprint()
    assert len({plain.fingerprint(), written.fingerprint(), elsewhere.fingerprint(), plain.fingerprint("server")}) == 4


@pytest.mark.parametrize(
    ("target", "effect"),
    [
        (Target("click", "link", "red lamp", url="http://h/p/1"), Effect.READ),
        (Target("click", "link", "delete", url="http://h/p/1"), Effect.UNKNOWN),
        (Target("click", "link", "x", url="http://h/p/1/delete"), Effect.UNKNOWN),
        (Target("click", "button", "find", "GET", "http://h/search"), Effect.READ),
        (Target("click", "button", "search", "POST", "http://h/search"), Effect.IRREVERSIBLE),
        (Target("click", "button", "next"), Effect.READ),
        (Target("click", "button", "save"), Effect.UNKNOWN),
        (Target("click", "button", "show and delete"), Effect.UNKNOWN),
        (Target("click", "checkbox", "gift"), Effect.REVERSIBLE),
        (Target("fill", "textbox", "name"), Effect.REVERSIBLE),
        (Target("select", "combobox", "pieces"), Effect.REVERSIBLE),
        (Target("goto", url="http://h/"), Effect.READ),
        (Target("back"), Effect.READ),
    ],
)
def test_default_effect_rules_judge_common_requests(target: Target, effect: Effect) -> None:
    assert judge(target) is effect


def test_a_rule_in_front_decides_and_no_rule_means_unknown() -> None:
    def calm(target: Any) -> Effect | None:
        return Effect.READ if target.name == "save" else None

    assert judge(Target("click", "button", "save"), (calm, *DEFAULT_RULES)) is Effect.READ
    assert judge(Target("click", "button", "save"), ()) is Effect.UNKNOWN


def test_unexpected_writes_make_an_effect_unknown() -> None:
    assert after_traffic(Effect.READ, ["POST"], expected=False) is Effect.UNKNOWN
    assert after_traffic(Effect.REVERSIBLE, ["POST"], expected=True) is Effect.REVERSIBLE
    assert after_traffic(Effect.READ, [], expected=False) is Effect.READ


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://shop.example/x", True),
        ("https://SHOP.example:8443/", True),
        ("http://127.0.0.1:8080/", True),
        ("ws://127.0.0.1:8080/", True),
        ("http://127.0.0.1:8081/", False),
        ("http://127.0.0.1/", False),
        ("http://shop.example.evil/", False),
        ("http://sub.shop.example/", False),
        ("http://shop.example@evil/", False),
        ("http://evil@shop.example/", False),
        ("http://evil/#shop.example", False),
        ("http://[::ffff:127.0.0.1]:8080/", False),
        ("http://2130706433:8080/", False),
        ("data:text/html,x", False),
        ("file:///etc/passwd", False),
        ("javascript:alert(1)", False),
        ("http://[bad", False),
    ],
)
def test_allow_list_matches_whole_hosts_only(url: str, allowed: bool) -> None:
    listed = AllowList.of(["shop.example", "127.0.0.1:8080"])
    assert listed.allows_url(url) is allowed
    assert not AllowList.of([]).allows_url(url)


async def test_a_listed_name_that_resolves_to_a_private_address_is_denied() -> None:
    assert await AllowList.of(["localhost"]).resolve("localhost", 80) is None
    assert await AllowList.of(["127.0.0.1"]).resolve("127.0.0.1", 80) == "127.0.0.1"


async def test_gate_passes_listed_hosts_and_denies_the_rest() -> None:
    hits = []

    async def serve(reader: Any, writer: Any) -> None:
        hits.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    gate = Gate(AllowList.of([f"127.0.0.1:{port}"]))
    await gate.start()

    async def ask(head: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gate.url.rsplit(":", 1)[1]))
        writer.write(head.encode() + b"\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), patient(5))
        writer.close()
        return answer

    try:
        assert (await ask(f"GET http://127.0.0.1:{port}/a?b HTTP/1.1\r\nKeep-Alive: 5\r\nX: 1")).endswith(b"ok")
        assert hits[0].startswith("GET /a?b HTTP/1.1\r\nX: 1\r\nConnection: close\r\n")
        for head, start in (
            (f"GET http://localhost:{port}/ HTTP/1.1", b"HTTP/1.1 204"),
            ("GET http://127.0.0.1:1/ HTTP/1.1", b"HTTP/1.1 204"),
            ("CONNECT 127.0.0.1:1 HTTP/1.1", b"HTTP/1.1 403"),
            ("GET ftp://127.0.0.1/ HTTP/1.1", b"HTTP/1.1 204"),
            ("GET / HTTP/1.1", b"HTTP/1.1 204"),
            ("nonsense", b""),
        ):
            assert (await ask(head)).startswith(start), head
        assert len(hits) == 1 and f"localhost:{port}" in gate.denied
    finally:
        await gate.close()
        server.close()


async def test_gate_answers_502_when_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gate = Gate(AllowList.of(["127.0.0.1"]))
    await gate.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gate.url.rsplit(":", 1)[1]))
    writer.write(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n".encode())
    assert b"502" in await asyncio.wait_for(reader.read(), patient(5))
    writer.close()
    await gate.close()


def test_a_gate_counts_what_it_refused_beyond_what_it_remembers() -> None:
    gate = Gate(AllowList.of([]))
    for number in range(1200):
        gate.deny(f"POST h/{number}")
    assert (gate.refused, len(gate.denied), gate.denied[-1]) == (1200, 1000, "POST h/1199")
