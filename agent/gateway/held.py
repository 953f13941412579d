"""A response that may come long after its request: as long as a search looks elsewhere.

Clients give up on a server that says nothing, and most ask again. So a client that waits is sent blanks, which neither
JSON nor server-sent events count; and whether it hung up before its answer is known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

__all__ = ["NOTICED", "STREAM", "Client", "Held"]

QUIET = 5.0
"""Seconds without an answer after which a client is sent a blank, and then again."""
NOTICED = 0.01  # seconds in which an end of the connection is seen that came while the event loop was busy
SOON = 1.0  # seconds, the limit of no client: what is answered by then need not look for such an end
STREAM = "text/event-stream"
BLANKS = {STREAM: b": waiting\n\n", "application/json": b" "}


@dataclass(slots=True, eq=False)
class Client:
    """Whoever sent a request.  gone  it hung up before its answer was sent."""

    gone: bool = False


class Held:
    """An ASGI application that sends the response which `work` makes, whenever it comes.

    Once blanks were sent, the status is 200 and the headers are `headers`, whatever `work` makes.
    """

    def __init__(
        self, work: Awaitable[Response], client: Client, headers: Mapping[str, str], *, stream: bool = False
    ) -> None:
        self.work, self.client = work, client
        self.media = STREAM if stream else "application/json"
        self.headers = {"content-type": self.media, **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, begun = time.monotonic(), False
        work, gone = asyncio.ensure_future(self.work), asyncio.ensure_future(_hung_up(receive, self.client))
        try:
            while not work.done() and not gone.done():
                await asyncio.wait({work, gone}, timeout=QUIET, return_when=asyncio.FIRST_COMPLETED)
                if not work.done() and not gone.done():
                    if not begun:
                        await send(self._start())
                    await send({"type": "http.response.body", "body": BLANKS[self.media], "more_body": True})
                    begun = True
            if time.monotonic() - began > SOON:
                await asyncio.sleep(NOTICED)
            if gone.done():
                return
        finally:
            work.cancel()
            gone.cancel()
        response = work.result()
        if not begun:
            await response(scope, receive, send)
            return
        pieces = getattr(response, "body_iterator", None)
        if pieces is None:
            await send({"type": "http.response.body", "body": response.body, "more_body": False})
            return
        async for piece in pieces:
            body = piece.encode() if isinstance(piece, str) else bytes(piece)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _start(self) -> dict[str, Any]:
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        return {"type": "http.response.start", "status": 200, "headers": headers}


async def _hung_up(receive: Receive, client: Client) -> None:
    """Returns once the client has closed the connection; its request was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    client.gone = True
