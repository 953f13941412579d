"""A website as a world: a real browser, pages as text, and nothing sent that was not approved.

    python examples/website.py
    treewright run website:pages/first --tasks-file website.jsonl --reward website:reward \\
        --policy scripted:website:visitor

The site here is a server on this machine. With your own, put its address into `pages`; the browser reaches its host
alone, and those that you list (`hosts=`). It needs a Chromium (apt install chromium-headless-shell).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import treewright
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import Task
from treewright.envs.custom import JudgedEnvironment
from treewright.envs.types import Observation, ToolSpec, Turn
from treewright.envs.web.browser import close_browser
from treewright.envs.web.checkpoint import CheckpointEnvironment
from treewright.search import Budget, Settings, rule
from treewright.search.types import Exchange

PAGES = {
    "/": "<h1>Garden shop</h1><a href=/roses>roses</a> <a href=/tools>tools</a>",
    "/roses": "<h1>Roses</h1><p>A rose is 4 coins.</p><a href=/>home</a>",
    "/tools": "<h1>Tools</h1><p>A spade is 9 coins.</p><a href=/>home</a>"
    "<form method=post action=/buy><button>buy</button></form>",
}


class Shop(BaseHTTPRequestHandler):
    """Three pages; buying cannot be undone."""

    bought = 0

    def do_GET(self) -> None:
        body = PAGES.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write((body or "nothing here").encode())

    def do_POST(self) -> None:
        Shop.bought += 1
        self.do_GET()

    def log_message(self, *args: object) -> None:
        pass


@cache
def address() -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def pages() -> CheckpointEnvironment:
    """Opens a session. What undoes an action is judged by what it would send: links are read, the button waits."""
    return CheckpointEnvironment(address())


def visitor(
    task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random, first: Observation
) -> str:
    """Stands for a model: follows any link or button, and answers when it has seen the price."""
    seen = turns[-1].observation.text if turns else first.text
    price = re.search(rf"{task.data['thing']} is (\d+) coins", seen)
    if price:
        return "answer " + json.dumps({"text": price[1]})
    shown = re.findall(r'(?:link|button) "[^"]*" (e\d+)', seen)
    return "click " + json.dumps({"ref": rng.choice(shown)}) if shown else "back {}"


def reward(task: Task, history: Sequence[Turn]) -> float:
    """1 for the right price."""
    last = history[-1].action
    return float(last is not None and last.name == "answer" and last.arguments.get("text") == task.truth["price"])


async def main() -> None:
    task = Task("garden", "first", "what does a spade cost?", data={"thing": "spade"}, truth={"price": "9"})
    env = JudgedEnvironment(pages(), reward, "garden")
    try:
        tree = await treewright.search(
            task,
            env,
            ScriptedPolicy(visitor),
            rule=rule("breadth_first", draws=3),
            budget=Budget(expansions=8),
            settings=Settings(max_tokens=200),
        )
    finally:
        await env.close()
        await close_browser()
    best = max(tree.leaves(), key=tree.outcome_of)
    print(f"{len(tree)} nodes; best end: {tree.action[best]}, reward {tree.outcome_of(best):.0f}; bought {Shop.bought}")


if __name__ == "__main__":
    asyncio.run(main())
