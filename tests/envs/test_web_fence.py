"""What a page sends later is laid to the action that began it: it is stopped and told, and passes with no other one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from local_site import Visit, serve_pages

from treewright.envs import Effect
from treewright.envs.types import Action
from treewright.envs.web import fence
from treewright.envs.web.actions import POINTING

SEND = "fetch('/{to}', {{method: 'POST', body: 'x'}}).catch(() => 0)"
WAYS = {
    "timeout": "setTimeout(() => {}, {ms})",
    "twice": "setTimeout(() => setTimeout(() => {}, {ms} / 2), {ms} / 2)",
    "interval": "const at = setInterval(() => {{ clearInterval(at); {} }}, {ms})",
    "frames": "const end = performance.now() + {ms}, "
    "f = () => performance.now() > end ? {} : requestAnimationFrame(f); f()",
    "beacon": "setTimeout(() => navigator.sendBeacon('/late', 'x'), {ms})",
    "form": "setTimeout(() => document.forms[1].submit(), {ms})",
}


def code(way: str, ms: Any) -> str:
    """JavaScript that posts to /late after `ms` milliseconds."""
    text = WAYS[way].replace("{}", SEND.format(to="late")).replace("{ms}", str(ms))
    return text.replace("{{", "{").replace("}}", "}")


def page(way: str, ms: Any) -> str:
    send, late = SEND.format(to="now"), code(way, ms)
    return f"""<title>shop</title><button onclick="{late}">show more</button>
      <button onclick="document.title = 'seen'">show less</button>
      <button onclick="{send}">pay now</button><button onclick="setTimeout(() => {{ {send} }}, 450)">order now</button>
      <form method="get" action="/two"><button>search</button></form>
      <form method="post" action="/late"></form><a href="/two">two</a>"""


@pytest.fixture
async def visit(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Coroutine[Any, Any, Any]]]:
    monkeypatch.setattr(fence, "SOON", 0.5)
    made = []

    async def at(way: str, ms: Any, **settings: Any) -> Any:
        server = await serve_pages({"/": page(way, ms), "/two": "<title>two</title><a href='/'>one</a>"})
        made.append((server, Visit(f"{server.url}/", **settings)))
        server.visit = made[-1][1]
        await server.visit.at("/")
        return server

    yield at
    for server, visit in made:
        await visit.env.close()
        server.close()


def effect_of(server: Any) -> Any:
    return server.visit.result.effect


def posts(server: Any) -> list[Any]:
    return [entry for entry in server.asked if not entry.startswith("GET")]


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_sent_soon_after_a_click_makes_that_click_unknown(
    visit: Callable[..., Coroutine[Any, Any, Any]], way: str
) -> None:
    server = await visit(way, 250)
    await server.visit.do("click", "show more")
    assert effect_of(server) is Effect.UNKNOWN and posts(server) == []
    assert "POST" in server.visit.result.info["denied"][0] and "late" not in server.visit.result.info
    await server.visit.do("click", "show less")
    assert effect_of(server) is Effect.READ and "denied" not in server.visit.result.info


@pytest.mark.parametrize("way", WAYS)
async def test_what_comes_late_does_not_pass_with_an_approved_action_and_is_told(
    visit: Callable[..., Coroutine[Any, Any, Any]], way: str
) -> None:
    server = await visit(way, 1200)
    began = time.monotonic()
    await server.visit.do("click", "show more")
    assert server.visit.result.effect is Effect.READ
    assert await server.visit.env.effect(Action.of("click", ref=server.visit.ref("order now"))) is Effect.UNKNOWN
    await asyncio.sleep(max(0.0, began + 0.95 - time.monotonic()))
    text = await server.visit.do("click", "order now")  # its own post comes after the other one is due
    late = server.visit.result.info.get("late") or []
    for _ in range(20):
        if not late:
            await asyncio.sleep(0.1)
            text = await server.visit.do("click", "show less")
            late = server.visit.result.info.get("late") or []
            assert server.visit.result.effect is Effect.READ
    assert posts(server) == ["POST /now"], "what was approved was sent, and nothing else"
    assert late and late[0].endswith("/late") and "note what an earlier action began was stopped: POST" in text


async def test_waiting_sends_nothing_of_its_own(visit: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    server = await visit("timeout", 1200)
    server.visit.env.tools = (*server.visit.env.tools, POINTING[-1])
    await server.visit.do("click", "show more")
    await server.visit.do("wait", milliseconds=1300)
    assert server.visit.result.effect is Effect.READ and posts(server) == []
    assert server.visit.result.info["late"][0].startswith("POST ") and "denied" not in server.visit.result.info


async def test_what_changes_the_page_by_itself_still_does(visit: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    """Polls and animations of before are held back while an action runs, and are there before it is looked at."""
    server = await visit("timeout", 5000)
    tick = "setInterval(() => { if (window.asked && document.title != 'answered') document.title = 'answered' }, 10)"
    await server.visit.env._tab.cdp.send("Runtime.evaluate", {"expression": tick})
    ask = "document.querySelectorAll('button')[1].onclick = () => { window.asked = true }"
    await server.visit.env._tab.cdp.send("Runtime.evaluate", {"expression": ask})
    assert 'page "answered"' in await server.visit.do("click", "show less")
