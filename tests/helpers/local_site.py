"""A site of fixed pages on loopback, and a session on it, for tests of what pages do to those who use them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from treewright.envs import Action, Task
from treewright.envs.web.environment import FullWebEnvironment

TASK = Task("web", "t", "look around")


async def serve_pages(pages: dict[str, str], answer: Callable[[Any, Any, Any], Any] | None = None) -> Any:
    """Serves {path: html}; `answer(method, path, headers)` may give another body, with its headers, or None,
    or raise ConnectionError to hang up."""
    asked = []

    async def serve(reader: Any, writer: Any) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        method, path = head.split(" ")[:2]
        asked.append(f"{method} {path}")
        try:
            given = answer(method, path, head) if answer else None
        except ConnectionError:
            writer.close()
            return
        body, extra = given if given is not None else (pages.get(path.partition("?")[0], ""), "")
        raw = body if isinstance(body, bytes) else body.encode()
        kind = "" if "Content-Type" in extra else "Content-Type: text/html; charset=utf-8\r\n"
        top = f"HTTP/1.1 200 OK\r\n{kind}{extra}Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
        writer.write(top.encode() + raw)
        await writer.drain()
        writer.close()

    server: Any = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.url, server.asked = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    return server


class Visit:
    """A session with what it has seen last; elements are named, not referred to."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.env = FullWebEnvironment(url, part=9000, **settings)
        self.seen: Any = None
        self.result: Any = None

    async def at(self, path: str) -> str:
        await self.env.reset(TASK, 0)
        return await self.do("goto", path=path)

    def ref(self, name: str) -> str:
        return next(element.ref for element in self.env._view.elements.values() if element.name == name)

    async def do(self, tool: Any, name: str = "", /, to: str = "", **given: Any) -> str:
        if name:
            given["ref"] = self.ref(name)
        if to:
            given["to"] = self.ref(to)
        self.result = await self.env.step(Action.of(tool, **given), 0)
        self.seen = self.result.observation
        return str(self.seen.text)

    @property
    def lines(self) -> list[Any]:
        return [re.sub(r" [ea]\d+", "", line) for line in self.seen.text.splitlines()]
