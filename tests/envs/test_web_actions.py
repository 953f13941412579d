"""Frames, shadow trees, windows, questions, and every action beyond clicking and filling, on pages of our own."""

from __future__ import annotations

# ruff: noqa: E501
import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none

from treewright.envs.types import Observation, StepResult

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs import Action, Effect, InvalidAction, Task
from treewright.envs.web import gestures
from treewright.envs.web.actions import ALL_TOOLS, POINTING
from treewright.envs.web.browser import close_browser, find_chromium
from treewright.envs.web.environment import FullWebEnvironment, WebEnvironment
from treewright.envs.web.view import TIMES

if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")
TASK = Task("web", "t", "look around")
PAGES = {
    "/": "<title>start</title><a href=/forms>forms</a>",
    "/forms": """<title>forms</title><input type=checkbox aria-label=gift onchange="out.textContent = this.checked">
        <input type=radio name=r aria-label=one><button disabled>off</button><input aria-label=name>
        <form action=/sent><input name=q aria-label=query></form>
        <form action=/sent method=post><input name=q aria-label=words></form>
        <button onclick="out.textContent = 'saved'">save</button><p id=out></p>""",
    "/keys": """<title>keys</title><textarea aria-label=note onkeydown="out.textContent += event.key + ' '"></textarea><p id=out></p>""",
    "/hover": """<title>hover</title><button onmouseover="out.textContent = 'seen'">menu</button><p id=out></p>""",
    "/long": """<title>long</title><div style="height:3000px">top</div><button>end</button>
        <div role=list style="height:60px;overflow:auto"><button>inner</button><div style="height:500px"></div></div>""",
    "/short": "<title>short</title><p>nothing to scroll</p>",
    "/drag": """<title>drag</title><style>button { position: absolute; width: 60px; height: 40px }</style>
        <button draggable=true style="left:10px;top:10px" ondragstart="event.dataTransfer.setData('text', 'x')">card</button>
        <button style="left:200px;top:100px" ondragover="event.preventDefault()" ondrop="event.preventDefault(); out.textContent = 'dropped'">box</button>
        <button style="left:10px;top:200px" onmousedown="document.onmousemove = e => this.style.left = e.clientX + 'px'" onmouseup="document.onmousemove = null; out.textContent = 'moved'">knob</button>
        <p id=out style="margin-top:300px"></p>""",
    "/upload": """<title>upload</title><input type=file aria-label=file onchange="out.textContent = this.files[0].name + ' ' + this.files[0].size"><button>other</button><p id=out></p>""",
    "/windows": """<title>windows</title><a href=/short target=_blank>open</a><button onclick="window.open('/forms')">script</button>""",
    "/ask": """<title>ask</title><button onclick="out.textContent = 'got ' + prompt('how many?', '1')">show</button>
        <button onclick="out.textContent = confirm('sure?')">next</button><p id=out></p>""",
    "/frames": """<title>frames</title><button>before</button><iframe title=inner src=/inside></iframe><iframe src=/hover></iframe><button>after</button>""",
    "/inside": """<h1>inside</h1><div style="height:400px"></div><button onclick="out.textContent = 'pressed'">deep</button>
        <input aria-label=field><iframe title=nested srcdoc="<button onclick='this.textContent = `twice`'>nested</button>"></iframe><p id=out></p>""",
    "/shadow": """<title>shadow</title><div id=host></div><div id=shut></div><script>
        host.attachShadow({mode: 'open'}).innerHTML = '<button onclick="this.textContent = `open pressed`">open</button>';
        shut.attachShadow({mode: 'closed'}).innerHTML = '<input aria-label=secret><slot></slot>';</script>""",
    "/sent": "<title>sent</title>",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Any]:
    asked = []

    async def serve(reader: Any, writer: Any) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path = head.split(" ")[:2]
        asked.append(f"{method} {path}")
        body = PAGES.get(path.partition("?")[0], "").encode()
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        writer.close()

    server: Any = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.url, server.asked = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    yield server
    server.close()
    await close_browser()


class Pointing(FullWebEnvironment):
    tools = (*ALL_TOOLS, *POINTING)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def env(site: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pointing]:
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "list.txt").write_text("hello")
    (folder.parent / "secret.txt").write_text("no")
    session = Pointing(f"{site.url}/", uploads=folder, reuse=True, shapes="#drawn")
    yield session
    await session.close()


async def at(env: Pointing, path: str) -> Observation:
    for window in env._tab.windows[1:] if env._tab else ():
        await not_none(env._tab).close_window(window)
    await env.reset(TASK, 0)
    return (await env.step(Action.of("goto", path=path), 0)).observation


def ref(env: Pointing, name: str) -> str:
    return next(element.ref for element in env._view.elements.values() if element.name == name)


async def do(env: Pointing, tool: str, **given: Any) -> StepResult:
    return await env.step(Action.of(tool, **given), 0)


async def names(env: Pointing) -> set[Any]:
    return {tool.name for tool in await env.actions()}


async def test_boxes_are_turned_on_and_off_and_stay_as_they_are_wanted(env: Pointing) -> None:
    await at(env, "/forms")
    for on, shown in ((True, "true"), (True, "true"), (False, "false")):
        seen = (await do(env, "check", ref=ref(env, "gift"), on=on)).observation
        assert f'text "{shown}"' in seen.text
    assert "checked" in (await do(env, "check", ref=ref(env, "one"), on=True)).observation.text


@pytest.mark.parametrize(
    ("tool", "given", "message"),
    [
        (
            "click",
            {"ref": "saev"},
            "no element 'saev' on this page; references here go from e1 to e7; the nearest is e7, the button \"save\"",
        ),
        ("click", {"ref": "e70"}, 'the nearest is e7, the button "save"'),
        ("check", {"ref": "save", "on": True}, "is a button; only boxes and switches can be checked"),
        ("check", {"ref": "one", "on": False}, "it goes off when another one is chosen"),
        ("check", {"ref": "gift", "on": "yes"}, "on must be of type boolean"),
        ("hover", {"ref": "off"}, "is disabled"),
        ("press", {"ref": "", "key": "Foo"}, "no key 'Foo'; keys are named Enter, Tab"),
        (
            "scroll",
            {"ref": "", "direction": "sideways"},
            "direction must be one of up, down, left, right, not 'sideways'",
        ),
        ("scroll", {"ref": "", "direction": "down"}, "cannot scroll down: this is the end"),
        ("drag", {"ref": "gift", "to": "e99"}, "no element 'e99'"),
        ("upload", {"ref": "save", "file": "../secret.txt"}, "no file '../secret.txt' to upload; there are: list.txt"),
        ("upload", {"ref": "save", "file": "list.txt"}, "is a button; it takes no files"),
        ("tab", {"number": 2}, "no window 2; there are 1"),
        ("close_tab", {"number": 1}, "the only window cannot be closed"),
        ("accept", {"text": ""}, "the page asks nothing now"),
        ("click_at", {"x": 5000, "y": 1}, "x must be from 0 to 1023"),
        ("wait", {"milliseconds": 0}, "milliseconds must be from 1 to 60000"),
    ],
)
async def test_what_cannot_be_done_is_explained_before_anything_is_done(
    env: Pointing, site: Any, tool: str, given: dict[str, Any], message: str
) -> None:
    seen = await at(env, "/forms")
    if given.get("ref", "") not in ("", "saev", "e70"):
        given = {**given, "ref": ref(env, given["ref"])}
    asked = len(site.asked)
    with pytest.raises(InvalidAction, match=re.escape(message)):
        await do(env, tool, **given)
    assert len(site.asked) == asked and (await env._look()) == seen


async def test_keys_reach_an_element_and_then_what_has_the_focus(env: Pointing) -> None:
    await at(env, "/keys")
    await do(env, "press", ref=ref(env, "note"), key="a")
    await do(env, "press", ref="", key="Escape")
    seen = (await do(env, "type", text="bc")).observation
    assert '= "abc"' in seen.text and 'text "a Escape b c"' in seen.text


async def test_of_a_long_line_the_rest_is_typed_at_once_and_all_of_it_arrives(
    env: Pointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gestures, "KEYS", 2)
    await at(env, "/keys")
    await do(env, "press", ref=ref(env, "note"), key="a")
    seen = (await do(env, "type", text="bcdefg")).observation
    assert '= "abcdefg"' in seen.text and 'text "a b c"' in seen.text


async def test_enter_in_a_field_counts_as_sending_its_form(env: Pointing) -> None:
    await at(env, "/forms")
    for name, effect in (("query", Effect.READ), ("words", Effect.IRREVERSIBLE), ("name", Effect.UNKNOWN)):
        assert await env.effect(Action.of("press", ref=ref(env, name), key="Enter")) is effect
        assert await env.effect(Action.of("press", ref=ref(env, name), key="x")) is Effect.REVERSIBLE
    assert await env.effect(Action.of("type", text="x")) is Effect.REVERSIBLE
    assert await env.effect(Action.of("type", text="x\n")) is Effect.UNKNOWN
    assert (await do(env, "press", ref=ref(env, "query"), key="Enter")).observation.text.startswith(
        'page "sent" /sent?q='
    )


async def test_pointing_without_clicking_shows_what_hides_behind_it(env: Pointing) -> None:
    await at(env, "/hover")
    assert 'text "seen"' in (await do(env, "hover", ref=ref(env, "menu"))).observation.text


async def test_scrolling_ends_where_the_page_or_a_box_ends(env: Pointing) -> None:
    await at(env, "/long")
    moved = 0
    with pytest.raises(InvalidAction, match="cannot scroll down"):
        for _ in range(20):
            await do(env, "scroll", ref="", direction="down")
            moved += 1
    assert 3 <= moved < 10
    await do(env, "scroll", ref=ref(env, "inner"), direction="down")
    await do(env, "scroll", ref="", direction="up")


async def test_dragging_works_by_html_events_and_by_the_mouse(env: Pointing) -> None:
    await at(env, "/drag")
    assert 'text "dropped"' in (await do(env, "drag", ref=ref(env, "card"), to=ref(env, "box"))).observation.text
    assert 'text "moved"' in (await do(env, "drag_at", x=40, y=220, to_x=150, to_y=220)).observation.text


async def test_a_file_is_uploaded_from_the_open_folder(env: Pointing) -> None:
    await at(env, "/upload")
    field = next(e.ref for e in env._view.elements.values() if e.name.startswith("file"))
    assert 'text "list.txt 5"' in (await do(env, "upload", ref=field, file="list.txt")).observation.text


async def test_windows_are_listed_turned_to_and_closed(env: Pointing) -> None:
    await at(env, "/windows")
    assert not {"tab", "close_tab"} & await names(env)
    seen = (await do(env, "click", ref=ref(env, "open"))).observation
    assert seen.text.startswith('page "short" /short\nwindows 1 /windows, 2 /short shown')
    assert {"tab", "close_tab"} <= await names(env) and "back" not in await names(env)
    seen = (await do(env, "tab", number=1)).observation
    assert "windows 1 /windows shown, 2 /short" in seen.text
    seen = (await do(env, "click", ref=ref(env, "script"))).observation
    assert seen.text.startswith('page "forms" /forms\nwindows 1 /windows, 2 /short, 3 /forms shown')
    await do(env, "close_tab", number=3)
    seen = (await do(env, "close_tab", number=2)).observation
    assert seen.text.startswith('page "windows"') and "windows 1" not in seen.text


async def test_a_question_waits_for_its_answer_and_nothing_else_can_be_done(env: Pointing) -> None:
    await at(env, "/ask")
    result = await do(env, "click", ref=ref(env, "show"))
    assert 'dialog prompt "how many?"' in result.observation.text and result.info["dialogs"] == ["prompt how many?"]
    assert await names(env) == {"accept", "dismiss", "answer"}
    with pytest.raises(InvalidAction, match="the page asks 'how many\\?' first: accept or dismiss"):
        await do(env, "click", ref="e2")
    assert 'text "got 7"' in (await do(env, "accept", text="7")).observation.text
    await do(env, "click", ref=ref(env, "next"))
    assert await env.effect(Action.of("dismiss")) is Effect.READ
    assert await env.effect(Action.of("accept", text="")) is Effect.UNKNOWN
    assert 'text "false"' in (await do(env, "dismiss")).observation.text


async def test_frames_are_part_of_the_page_and_their_elements_are_used_like_others(env: Pointing) -> None:
    seen = await at(env, "/frames")
    roles = [line.split(" e")[0] for line in seen.text.splitlines()[1:]]
    assert roles[:4] == ['button "before"', 'iframe "inner"', 'heading "inside"', 'button "deep"']
    assert roles.index('button "nested"') < roles.index('button "menu"') < roles.index('button "after"')
    assert 'text "pressed"' in (await do(env, "click", ref=ref(env, "deep"))).observation.text
    assert '= "abc"' in (await do(env, "fill", ref=ref(env, "field"), text="abc")).observation.text
    assert 'button "twice"' in (await do(env, "click", ref=ref(env, "nested"))).observation.text
    assert 'text "seen"' in (await do(env, "hover", ref=ref(env, "menu"))).observation.text


async def test_shadow_trees_are_part_of_the_page_closed_ones_too(env: Pointing) -> None:
    await at(env, "/shadow")
    assert 'button "open pressed"' in (await do(env, "click", ref=ref(env, "open"))).observation.text
    assert 'textbox "secret" e2 = "x"' in (await do(env, "fill", ref=ref(env, "secret"), text="x")).observation.text


async def test_the_list_of_actions_follows_the_page(env: Pointing) -> None:
    await at(env, "/short")
    assert not {"click", "fill", "select", "check", "hover", "drag", "upload"} & await names(env)
    await at(env, "/upload")
    assert {"click", "hover", "upload"} <= await names(env) and "select" not in await names(env)


async def test_a_screenshot_comes_as_an_image_part(site: Any) -> None:
    env = WebEnvironment(f"{site.url}/", screenshot=True)
    try:
        (part,) = (await env.reset(TASK, 0)).parts
    finally:
        await env.close()
    assert part["type"] == "image" and part["png"].startswith(b"\x89PNG")


async def looks(env: Pointing, body: str) -> Any:
    await not_none(env._tab).page.set_content(body)
    return await not_none(env._tab).look()


async def test_advertisements_and_clocks_are_shown_but_not_part_of_the_state(env: Pointing) -> None:
    await at(env, "/short")
    page = "<aside aria-label='Advertisement'>{0}<a href=/x>buy {0}</a></aside><p>it is {1}</p><div role=timer>{0} s</div><button>go</button><p>{2} coins</p>"
    one = await looks(env, page.format(1, "12:30:01", 5))
    two = await looks(env, page.format("<a href=/y>more</a>", "9:05 am", 5))
    dearer = await looks(env, page.format(1, "12:30:01", 6))
    assert one.fingerprint(calm=TIMES) == two.fingerprint(calm=TIMES) != dearer.fingerprint(calm=TIMES)
    assert one.fingerprint() != two.fingerprint()
    assert one.elements["e1"].name == two.elements["e1"].name == "go" and one.elements["a1"].name == "buy 1"
    assert 'link "buy 1" a1' in one.parts(2000)[0]
