"""The network trace of a session, as its gate sees it: what was asked and answered, in the form of a HAR file.

The gate closes each connection after one answer, so an exchange is a request and all bytes that came back. Headers that
hold a login (cookies, authorization) are left out of requests, and values of cookies out of answers. Bodies are kept as
far as evaluators read them: what was posted, and answers in JSON. Not covered: what goes through a TLS tunnel, which
the gate cannot read.
"""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException, HTTPResponse
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

__all__ = ["LIMIT", "Requested", "Sink", "Tee", "Trace"]

LIMIT = 1 << 20  # bytes of a body that are kept
_SECRET = frozenset({"cookie", "authorization", "proxy-authorization"})


class Sink(Protocol):
    """Where bytes are written to."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...


class Tee:
    """Passes bytes on, and keeps the first of them."""

    def __init__(self, sink: Sink, kept: bytearray) -> None:
        self._sink, self._kept = sink, kept

    def write(self, data: bytes) -> None:
        self._kept += data[: max(0, LIMIT - len(self._kept))]
        self._sink.write(data)

    async def drain(self) -> None:
        await self._sink.drain()


class Requested:
    """One request and what came back of its answer so far."""

    def __init__(self, method: str, url: str, headers: bytes) -> None:
        self.method, self.url = method, url
        self.headers = _pairs(headers)
        self.began, self.wall = time.monotonic(), datetime.now(UTC)
        self.sent, self.answer = bytearray(), bytearray()

    def entry(self) -> dict[str, Any]:
        """As an entry of a HAR file; an answer that did not come has status 0."""
        kind = dict((name.lower(), value) for name, value in self.headers).get("content-type", "")
        shown = [{"name": name, "value": value} for name, value in self.headers if name.lower() not in _SECRET]
        asked = parse_qsl(urlsplit(self.url).query, keep_blank_values=True)
        request: dict[str, Any] = {
            "method": self.method,
            "url": self.url,
            "httpVersion": "HTTP/1.1",
            "headers": shown,
            "queryString": [{"name": name, "value": value} for name, value in asked],
            "cookies": [],
        }
        if self.sent:
            request["postData"] = {"mimeType": kind, "text": self.sent.decode("utf-8", "replace")}
        return {
            "startedDateTime": self.wall.isoformat(),
            "time": round(1000 * (time.monotonic() - self.began), 3),
            "request": request,
            "response": _response(bytes(self.answer), self.method),
        }


class Trace:
    """What a session's pages asked for, in the order in which they asked; `entries` is put back with a node."""

    def __init__(self) -> None:
        self._before: list[dict[str, Any]] = []
        self._new: list[Requested] = []

    def begin(self, method: str, url: str, headers: bytes) -> Requested:
        self._new.append(Requested(method, url, headers))
        return self._new[-1]

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [*self._before, *(exchange.entry() for exchange in self._new)]

    @entries.setter
    def entries(self, entries: list[dict[str, Any]]) -> None:
        self._before, self._new = list(entries), []


def _pairs(headers: bytes) -> list[tuple[str, str]]:
    """Header fields in their order; a first line without a colon, as of an answer, is none."""
    fields = (line.decode("latin-1").partition(":") for line in headers.split(b"\r\n"))
    return [(name.strip(), value.strip()) for name, colon, value in fields if colon]


class _Bytes:
    """Bytes as what http.client reads answers from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def _response(raw: bytes, method: str) -> dict[str, Any]:
    answer = HTTPResponse(_Bytes(raw), method=method)  # type: ignore[arg-type]  # it only asks for a file
    body = b""
    try:
        answer.begin()
        with suppress(HTTPException, ValueError):  # an answer that is under way, or was too long to be kept
            body = answer.read()
    except (HTTPException, OSError, ValueError):
        return {"status": 0, "statusText": "", "httpVersion": "HTTP/1.1", "headers": [], "cookies": [],
                "content": {"size": 0, "mimeType": "", "text": ""}, "redirectURL": ""}  # fmt: skip
    fields = answer.getheaders()
    named = {name.lower(): value for name, value in fields}
    kind = named.get("content-type", "")
    content: dict[str, Any] = {"size": len(body), "mimeType": kind, "text": ""}
    if "json" in kind:
        content["text"] = _plain(body, named).decode("utf-8", "replace")
    return {
        "status": answer.status,
        "statusText": answer.reason,
        "httpVersion": "HTTP/1.1",
        "headers": [{"name": name, "value": value} for name, value in fields if name.lower() != "set-cookie"],
        "cookies": [_cookie(value) for name, value in fields if name.lower() == "set-cookie"],
        "content": content,
        "redirectURL": named.get("location", ""),
    }


def _plain(body: bytes, named: Mapping[str, str]) -> bytes:
    """A body as it was before it was packed; browsers are told of gzip and deflate alone while they are traced."""
    if named.get("content-encoding", "").lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        return zlib.decompressobj(wbits=47).decompress(body, LIMIT)
    except zlib.error:
        return b""


def _cookie(value: str) -> dict[str, str]:
    """The name alone: its value may be a login."""
    return {"name": value.partition(";")[0].partition("=")[0].strip(), "value": ""}
