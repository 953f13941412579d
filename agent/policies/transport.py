"""Requests to a model server: one client for each event loop, the key, what is retried, and when that is told."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from treewright.envs.errors import TreewrightError
from treewright.envs.secrecy import hidden_url, in_url, keep_secret
from treewright.envs.waiting import seconds_until

__all__ = ["Outage", "Transport", "Untrusted", "passing", "retry_after"]

log = logging.getLogger(__name__)

PASSING = frozenset({408, 409, 425, 429})
LOCAL = ("localhost", "127.0.0.1", "::1")
TOLD_AFTER = 2.0  # seconds without an answer before that is told, and between two tellings
TOLD_AGAIN = 30.0
CONNECT = 10.0


def passing(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in PASSING or status >= 500


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server wants to be left alone, at most an hour; nonsense counts as 0."""
    return seconds_until(headers.get("retry-after"), headers.get("date"))


class Untrusted(Exception):
    """What answered there does not show that it is the server: asking again will not change that."""


@dataclass(slots=True)
class Outage:
    """Since when a server has given no answer, and when that was told last (0: not yet)."""

    since: float = 0.0
    told: float = 0.0

    def due(self, began: float, wait: float) -> bool:
        """Notes that an attempt that began then failed; whether to tell it now, before the next one in `wait` s."""
        self.since = min(self.since or began, began)
        after = self.told + TOLD_AGAIN if self.told else self.since + TOLD_AFTER
        if time.monotonic() + wait < after:
            return False
        self.told = time.monotonic()
        return True

    def over(self) -> None:
        self.since = self.told = 0.0


class Transport:
    """Sends JSON to the server at `base_url`, a query in it (?api-version=…) included.

    key_env     environment variable with the key; no header is sent when it is not set
    key_header  where the key goes: Authorization as a bearer token, any other header as it is
    timeout     seconds for one request, its whole answer included;  connections  most at once
    """

    def __init__(
        self, name: str, base_url: str, *, key_env: str, key_header: str, timeout: float, connections: int
    ) -> None:
        self.name, self.base_url = name, _url(base_url)
        keep_secret(os.environ.get(key_env), *in_url(str(self.base_url)))
        self.key_env, self.key_header, self.timeout, self.connections = key_env, key_header, timeout, connections
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slow = 0.0

    def url(self, path: str) -> httpx.URL:
        """A place under the base URL; a path that begins with / counts from the server's root."""
        base, query = self.base_url.path.rstrip("/"), self.base_url.query
        path, _, own = path.partition("?")
        where = path if path.startswith("/") else f"{base}/{path}"
        return self.base_url.copy_with(path=where, query=own.encode() or query or None)

    async def post(self, path: str, body: Any = None, timeout: float | None = None) -> httpx.Response:
        """Raises httpx.RequestError where no whole answer comes, Untrusted where the server cannot be trusted."""
        return await self._request("POST", path, body, timeout)

    async def get(self, path: str, timeout: float | None = None) -> httpx.Response:
        """As `post`, of what is there to read."""
        return await self._request("GET", path, None, timeout)

    async def _request(self, method: str, path: str, body: Any, timeout: float | None) -> httpx.Response:
        # Half surrogates are refused as UTF-8 by httpx, and as JSON by most servers.
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json", **self._headers()}
        patience, where = self.timeout if timeout is None else timeout, hidden_url(str(self.base_url))
        loop = asyncio.get_running_loop()
        slow = loop.call_later(TOLD_AGAIN, self._tell, f"still waiting for {where}; a request may take", patience)
        far = loop.call_later(TOLD_AFTER, self._tell, f"no connection to {where} yet; an attempt may take",
                              min(patience, CONNECT))  # fmt: skip

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if "send_request_headers" in event:
                far.cancel()

        request = self._session().build_request(
            method, self.url(path), content=content, headers=headers, timeout=self._patience(patience),
            extensions={"trace": trace},
        )  # fmt: skip
        try:
            # Over all: httpx's own time-outs begin anew with every byte that comes.
            async with asyncio.timeout(patience):
                return await self._session().send(request)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no whole answer within {patience:g} s", request=request) from None
        except httpx.ConnectError as error:
            if (why := _untrusted(error)) is not None:
                raise Untrusted(f"{where}: {why}") from error
            raise
        finally:
            slow.cancel()
            far.cancel()

    def _tell(self, what: str, seconds: float) -> None:
        """Warns of a request that is under way, once in a while however many there are."""
        if time.monotonic() - self._slow >= TOLD_AGAIN or not self._slow:
            self._slow = time.monotonic()
            log.warning("%s: %s %g s", self.name, what, seconds)

    @staticmethod
    def _patience(seconds: float) -> httpx.Timeout:
        return httpx.Timeout(seconds, pool=None, connect=min(seconds, CONNECT))

    def explain(self, status: int, reason: str) -> str:
        """Status and the server's words, the key blotted out wherever it is quoted."""
        if key := os.environ.get(self.key_env):
            reason = reason.replace(key, "***")
        hint = f"; set {self.key_env} to a key that it takes" if status in (401, 403) else ""
        return f"HTTP {status}: {reason.strip() or 'nothing more was said'}{hint}"

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.key_env)
        if not key:
            return {}
        return {self.key_header: f"Bearer {key}" if self.key_header.lower() == "authorization" else key}

    def _session(self) -> httpx.AsyncClient:
        """The client of this event loop; connections do not outlive the loop they were made in."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client = httpx.AsyncClient(
                limits=httpx.Limits(max_connections=self.connections),
                trust_env=self.base_url.host not in LOCAL,  # no proxy between
                verify=_trusted(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
            )
            self._loop = loop
        return self._client

    async def close(self) -> None:
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        self._client = None


@functools.lru_cache(maxsize=4)
def _trusted(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Who is trusted, as these variables say it to httpx; reading it takes as long as many requests."""
    return httpx.create_ssl_context()


def _untrusted(error: BaseException) -> str | None:
    """Why TLS with a server cannot be had, and what to do; None where the connection failed otherwise."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, ssl.SSLError):
        inner = inner.__cause__ or inner.__context__
    if isinstance(inner, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({inner.verify_message}); for a server of your own name the file of who "
            "signed it: export SSL_CERT_FILE=CA.pem"
        )
    if inner is not None and inner.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS; write its address with http://"
    return None


def _url(text: str) -> httpx.URL:
    """Raises TreewrightError for what is no address of a server."""
    try:
        url = httpx.URL(text)
        good = url.scheme in ("http", "https") and bool(url.host) and 0 < (url.port or 80) < 65_536
        why = "it names no host, or a port that cannot be"
    except httpx.InvalidURL as error:
        good, why = False, str(error)
    if not good:
        raise TreewrightError(f"{text!r} is no address of a server: {why}; write http://HOST:PORT/v1")
    return url
