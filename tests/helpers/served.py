"""A gateway on loopback in front of a script, for clients of all kinds; what they send can be kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

from treewright.agent.gateway.draws import Draws
from treewright.agent.gateway.server import make_app, running
from treewright.envs.types import Task
from treewright.search.store import TreeStore

KEY = "tw-test-key-0123456789"
FIND: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find", "description": "Finds a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}  # fmt: skip


def helper(task: Task, turns: Any, tools: Any, rng: Random) -> str:
    """Calls find for what is asked, then answers with what was found."""
    if "twice" in task.goal and not turns:
        call = '<tool_call>{{"name": "find", "arguments": {{"word": "{}"}}}}</tool_call>'
        return "Two.\n" + call.format("tea") + "\n" + call.format("milk")
    if tools and not turns:
        return 'find {"word": "tea"}'
    if turns:
        return f"It is {turns[-1].observation.text}."
    return f"You said: {task.goal}"


@contextlib.asynccontextmanager
async def served(
    policy: Any, store: TreeStore | None = None, sent: list[dict[str, Any]] | None = None, **options: Any
) -> AsyncIterator[str]:
    """The server's address. `sent` gets the path and body of each request."""
    app: Any = make_app(Draws(policy, store=store, **options), KEY, body_limit=100_000)

    async def tapped(scope: Any, receive: Any, send: Any) -> None:
        raw = bytearray()

        async def heard() -> Any:
            message = await receive()
            raw.extend(message.get("body", b""))
            return message

        await app(scope, heard, send)
        if sent is not None and raw:
            sent.append({"path": scope["path"].partition("/v1/")[2], "body": json.loads(raw)})

    seen: Any = app if sent is None else tapped
    async with running(seen) as at:
        yield at
