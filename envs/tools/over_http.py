"""What an MCP server behind a URL answers over HTTP where that is no answer of the protocol.

The client of the `mcp` package turns a balancer's 503, a 429 or an HTML page into an error answer of the call, as if
the server had refused it. That is the network's doing and not the policy's: it is noted here, and the call
becomes a fault.
"""

from __future__ import annotations

import json
from typing import Any

from mcp.shared._httpx_utils import create_mcp_http_client

from treewright.envs.waiting import seconds_until

__all__ = ["OverHttp"]

_WORDS = 200  # characters of a foreign answer that are quoted
_BACK_LATER = (429, 503)  # the request was not taken and may be sent again


class OverHttp:
    """Listens to the answers to one connection's requests.

    trouble  why the last request has no answer of the protocol; empty while it has
    wait     seconds after which the same request may be sent again; None where nobody knows whether it was taken
    """

    def __init__(self) -> None:
        self.trouble = ""
        self.wait: float | None = None

    def forget(self) -> None:
        self.trouble, self.wait = "", None

    def client(self) -> Any:
        """An HTTP client whose answers are listened to."""
        made = create_mcp_http_client()
        made.event_hooks = {"response": [self._came]}
        return made

    async def _came(self, response: Any) -> None:
        asked = _read(response.request.content) if response.request.method == "POST" else None
        if not isinstance(asked, dict) or "id" not in asked or "method" not in asked:
            return  # a notification, or the stream of what the server says by itself
        self.forget()
        code, kind = response.status_code, response.headers.get("content-type", "").lower()
        if code == 200 and kind.startswith("text/event-stream"):
            return
        body = await response.aread()
        found = _read(body)
        if isinstance(found, dict) and ("error" in found or "result" in found) and "jsonrpc" in found:
            return  # the server's own words, however they come
        if code == 200 and kind.startswith("application/json") and isinstance(found, dict) and found:
            return  # of the protocol or not: mended, or told as an error answer
        words = body.decode("utf-8", "replace").strip()[:_WORDS]
        self.trouble = f"it answered HTTP {code}" + (f" with {kind.partition(';')[0]}" if code == 200 else "")
        if location := response.headers.get("location"):
            self.trouble += f": it is at {location}; give that address"
        elif words:
            self.trouble += f": {words}"
        if code == 429 or (code in _BACK_LATER and "retry-after" in response.headers):
            self.wait = seconds_until(response.headers.get("retry-after"), response.headers.get("date"))


def _read(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
