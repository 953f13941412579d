"""Exploring a site without tasks: what is tried, what is never done, what is verified, and tasks that come of it."""

# ruff: noqa: E501

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import forked
import pytest
import pytest_asyncio
from not_none import not_none

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.agent.runs.explore import choices, explore, wander
from treewright.envs import Action
from treewright.envs.types import Effect, Observation, Restore, Snapshot, StepResult, Task, ToolSpec
from treewright.envs.web.actions import TOOLS
from treewright.envs.web.browser import close_browser, find_chromium
from treewright.envs.web.own_site import web_suite
from treewright.search.restore import Pool

needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)
pytestmark = pytest.mark.asyncio(loop_scope="module")
NAV = "<nav><a href=/>home</a><a href=/lamps>lamps</a><a href=/help>help</a></nav>"
LAMPS = "".join(f"<a href=/lamp/{n}>lamp {n}</a>" for n in range(4))
PAGES = {
    "/": f"<title>home</title>{NAV}<h1>Welcome</h1>",
    "/lamps": f"<title>lamps</title>{NAV}<h1>Lamps</h1>{LAMPS}<select aria-label=sort><option>price<option>name</select>",
    "/help": f"<title>help</title>{NAV}<h1>Help</h1><form method=post action=/ask><button>Send</button></form>",
    **{f"/lamp/{n}": f"<title>lamp</title>{NAV}<h1>Lamp {n}</h1><button onclick=\"fetch('/buy', {{method: 'POST'}})\">Buy</button>"
       for n in range(4)},
}  # fmt: skip


async def test_what_can_be_tried_is_read_off_the_page() -> None:
    text = "\n".join([
        'page "t" /', 'link "a" e1', 'button "b" e2 disabled', 'checkbox "c" e3 checked', 'text "link \\"x\\" e9"',
        'combobox "d" e4 = "1" from "1", "2", "3"', 'textbox "q" e5 = "a"', 'link "ad" a1', 'slider "s" e6 = "3"',
    ])  # fmt: skip
    assert choices(text, ["click", "check", "select", "fill"]) == [
        Action.of("click", ref="e1"),
        Action.of("check", ref="e3", on=False),
        Action.of("select", ref="e4", option="2"),
        Action.of("select", ref="e4", option="3"),
        Action.of("fill", ref="e5", text="red"),
        Action.of("fill", ref="e5", text="1"),
    ]
    assert choices(text, ["click"]) == [Action.of("click", ref="e1")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shop() -> AsyncIterator[Any]:
    from local_site import serve_pages

    server = await serve_pages(PAGES)
    yield server
    server.close()
    await close_browser()


@needs_browser
async def test_a_site_is_seen_whole_nothing_is_sent_and_every_task_is_solved_by_its_path(
    shop: Any, tmp_path: Path
) -> None:
    suite = web_suite(f"{shop.url}/")
    (task,) = suite.tasks("test", 1)
    pool = Pool(suite.open, 2)
    seen = await explore(task, pool, 22, explorers=2)
    paths = {
        not_none(re.match(r'page "\w+" (\S+)', not_none(seen.tree.observation[node]).text))[1] for node in seen.states
    }
    assert paths == set(PAGES) and len(seen.states) >= 8  # every page, and the sorted list as a state of its own
    assert not [line for line in shop.asked if line.startswith("POST")]
    assert seen.verified == seen.states and seen.tree.spent.env_steps <= 22
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(made) + "\n" for made in seen.tasks))
    made = web_suite(f"{shop.url}/", {"tasks": tmp_path / "tasks.jsonl"})
    found = {one.id: one for split in ("train", "test") for one in made.tasks(split, 99)}
    assert len(found) == len(seen.tasks) >= 6
    env = await made.open()
    for one in found.values():
        await env.reset(one, 0)
        for node in seen.tree.path(int(one.id[1:]))[1:]:
            await env.step(not_none(seen.tree.action[node]), 0)
        assert (await env.step(Action.of("answer", text=""), 0)).reward == 1.0, one.goal
        await env.reset(one, 0)
        assert (await env.step(Action.of("answer", text=""), 0)).reward == 0.0, one.goal
    await env.close()
    assert await wander(task, pool, 12, seed=1) <= len(seen.states)
    await pool.close()


@needs_browser
async def test_the_command_writes_tasks_and_the_line_that_it_prints_runs(shop: Any, tmp_path: Path) -> None:
    given = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120"}

    async def call(*words: str) -> str:
        done = await asyncio.to_thread(forked.treewright, words, tmp_path, given)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    out = await call("explore", f"{shop.url}/", "--steps", "12", "--name", "my shop")
    assert re.search(r"\d+ states, \d+ kinds of pages in \d+ steps; \d+ reached again by replay; \d+ tasks in", out)
    line = shlex.split(out.split("next: treewright ")[1])
    policy = ["--policy", "scripted:treewright.agent.policies.uniform:uniform_answers", "--tasks", "1"]
    assert "stored in" in await call(*line, *policy, "--set", "search.expansions=1")


class Shelves:
    """Pages with three links that lead to the same places everywhere, and a button that shows one more thing."""

    name, sandboxed, stochastic = "shelves", True, False
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})

    def __init__(self) -> None:
        self.at, self.things = "/", 0

    def seen(self) -> Observation:
        nav = "\n".join(f'link "{name}" e{i + 1}' for i, name in enumerate(("home", "help", "terms")))
        text = f'page "s" {self.at}\n{nav}\nbutton "one more" e4\ntext "{self.things} things"'
        return Observation(text, fingerprint=text)

    async def reset(self, task: Task, key: int) -> Observation:
        self.at, self.things = "/", 0
        return self.seen()

    async def actions(self) -> list[ToolSpec]:
        return [tool for tool in TOOLS if tool.name == "click"]

    async def effect(self, action: Action) -> Effect:
        return Effect.READ

    async def step(self, action: Action, key: int) -> StepResult:
        number = int(str(action.arguments["ref"])[1:])
        if number == 4:
            self.things += 1
        else:
            self.at, self.things = ("/", "/help", "/terms")[number - 1], 0
        return StepResult(self.seen())

    async def snapshot(self) -> Snapshot:
        data = json.dumps([self.at, self.things]).encode()
        return Snapshot(Restore.STATE, data, self.seen().fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.at, self.things = json.loads(snapshot.data)
        return self.seen()

    async def close(self) -> None:
        pass


async def test_what_led_to_something_new_is_done_again_and_what_leads_to_what_is_known_is_not() -> None:
    async def opened() -> Any:
        return Shelves()

    pool, task = Pool(opened, 2), Task("shelves", "t", "look around", horizon=30)
    seen = await explore(task, pool, 40, explorers=2)
    walked = await wander(task, pool, 40)
    await pool.close()
    assert len(seen.states) >= 32 and len(seen.states) >= 2 * walked
    assert seen.addresses == {"/", "/help", "/terms"} and seen.verified == seen.states
    asked = [(made["reward"]["url"], *made["reward"].get("text", ())) for made in seen.tasks]
    assert len(asked) == len(set(asked)) >= 30 and ("/help", "1 things") in asked
