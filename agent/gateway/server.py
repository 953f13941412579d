"""The HTTP server: one application for the three APIs, in front of whatever answers.

Every request needs the key. Bodies are read up to a limit. Keys and prompts are never logged: the server's own log
holds no line for a request, and errors name fields, not their contents.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from treewright.agent.gateway import chat_api, messages_api, responses_api
from treewright.agent.gateway.asked import Answered, Asked, Spoken
from treewright.agent.gateway.errors import ApiError, HalfPair, body_of
from treewright.agent.gateway.held import STREAM, Client, Held
from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value, whole_text

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["BODY_LIMIT", "Answering", "bind", "make_app", "running", "server_of"]

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
BODY_LIMIT = 8 << 20
MOST_REMEMBERED = 1024  # responses that can be gone on from by their id
NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


class Answering(Protocol):
    """What stands behind the server: a policy (draws.py) or agents that run (post.py)."""

    holds: bool
    """Whether an answer may come long after its request, see `Held`."""

    @property
    def models(self) -> Sequence[str]:
        """Names for GET /v1/models."""

    async def answer(self, session: str | None, asked: Asked, client: Client | None = None) -> Answered:
        """The answers to a request. Raises ApiError."""

    async def count(self, session: str | None, asked: Asked) -> int:
        """Tokens of the request's prompt."""

    async def end(self, session: str, reward: float | None) -> str:
        """Finishes a session; the id of its tree."""

    def refused(self, session: str | None, what: str, error: ApiError) -> None:
        """Hears of each request that was not answered: its method and path, and the error that its client got."""


@dataclass(frozen=True, slots=True)
class _Api:
    parse: Callable[[Mapping[str, Any]], Asked]
    whole: Callable[[Asked, Answered], dict[str, Any]]
    stream: Callable[[Asked, Answered], Iterator[str]]


APIS = {
    "chat": _Api(chat_api.parse, chat_api.json_of, chat_api.stream_of),
    "responses": _Api(responses_api.parse, responses_api.json_of, responses_api.stream_of),
    "messages": _Api(messages_api.parse, messages_api.json_of, messages_api.stream_of),
}


def make_app(behind: Answering, key: str, *, body_limit: int = BODY_LIMIT) -> Starlette:
    """The ASGI application.

    key  what every request must bring, as a bearer token or x-api-key. KEY.NAME is the key with a session's name, for
         clients that can only be given a key; else the session is in the path: /s/NAME/v1/chat/completions
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    remembered: dict[tuple[str | None, str], tuple[Spoken, ...]] = {}

    def endpoint(api: str, work: Callable[[Request, str | None, str], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response | Held:
            label = secrets.token_hex(12)
            try:
                response: Response | Held = await work(request, _admitted(request, key), label)
            except Exception as error:
                response = refused(request, error, api, label)
            return response

        return answer

    def refused(request: Request, error: Exception, api: str, label: str) -> Response:
        from starlette.responses import JSONResponse

        told = error if isinstance(error, ApiError) else ApiError(500, "the server could not keep the call")
        behind.refused(_session(request, key), f"{request.method} {_path(request)}", told)
        if not isinstance(error, TreewrightError):
            raise error
        if told is not error:
            log.error("a request failed: %s", type(error).__name__)
        return JSONResponse(body_of(told, api, label), told.status)

    def calling(api: str) -> Callable[[Request, str | None, str], Any]:
        reads = APIS[api]

        async def work(request: Request, session: str | None, label: str) -> Response | Held:
            body = await _body(request, body_limit)
            asked = reads.parse(body)
            _whole(body)  # where a field is named that holds one, parsing has said so
            if asked.previous:
                asked = _continued(asked, session, remembered)
            headers, client = {"x-request-id": f"req_{label}", "request-id": f"req_{label}"}, Client()
            if not behind.holds:
                return await respond(session, asked, client, headers)

            async def held() -> Response:
                try:
                    return await respond(session, asked, client, headers)
                except Exception as error:
                    return refused(request, error, api, label)

            return Held(held(), client, headers, stream=asked.stream)

        async def respond(session: str | None, asked: Asked, client: Client, headers: Mapping[str, str]) -> Response:
            from starlette.responses import JSONResponse, StreamingResponse

            answered = await behind.answer(session, asked, client)
            if api == "responses":
                while len(remembered) >= MOST_REMEMBERED:
                    del remembered[next(iter(remembered))]
                remembered[session, f"resp_{answered.label}"] = (*asked.said, answered.answers[0].spoken)
            headers = {**headers, **answered.headers}
            if asked.stream:
                events = reads.stream(asked, answered)
                return StreamingResponse(_sent(events), media_type=STREAM, headers=headers)
            return JSONResponse(reads.whole(asked, answered), headers=headers)

        return work

    async def count(request: Request, session: str | None, label: str) -> Response:
        from starlette.responses import JSONResponse

        body = await _body(request, body_limit)
        asked = messages_api.parse(body, counting=True)
        _whole(body)
        return JSONResponse({"input_tokens": await behind.count(session, asked)})

    async def models(request: Request, session: str | None, label: str) -> Response:
        from starlette.responses import JSONResponse

        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "treewright"} for name in behind.models]
        return JSONResponse({"object": "list", "data": rows})

    async def end(request: Request, session: str | None, label: str) -> Response:
        from starlette.responses import JSONResponse

        if session is None:
            raise ApiError(404, "name the session: POST /s/NAME/end")
        body = await _body(request, body_limit, empty=True)
        reward = body.get("reward")
        known = isinstance(reward, int | float) and not isinstance(reward, bool)
        if reward is not None and not (known and abs(reward) <= sys.float_info.max):
            raise ApiError(400, "reward must be a number", "reward")
        return JSONResponse({"tree": await behind.end(session, None if reward is None else float(reward))})

    async def nothing(request: Request, session: str | None, label: str) -> Response:
        raise ApiError(404, "no such path; served are /v1/chat/completions, /v1/responses, /v1/messages, /v1/models")

    routes = []
    for start in ("", "/s/{session}"):
        routes += [
            Route(f"{start}/v1/chat/completions", endpoint("chat", calling("chat")), methods=["POST"]),
            Route(f"{start}/v1/responses", endpoint("responses", calling("responses")), methods=["POST"]),
            Route(f"{start}/v1/messages", endpoint("messages", calling("messages")), methods=["POST"]),
            Route(f"{start}/v1/messages/count_tokens", endpoint("messages", count), methods=["POST"]),
            Route(f"{start}/v1/models", endpoint("chat", models), methods=["GET"]),
        ]
    routes.append(Route("/s/{session}/end", endpoint("chat", end), methods=["POST"]))
    every = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"]
    for path in ("/s/{session}/{rest:path}", "/{rest:path}"):
        routes.append(Route(path, endpoint("chat", nothing), methods=every))
    return Starlette(routes=routes)


def _given(request: Request, key: str) -> tuple[str, str]:
    """The key that a request brings, and the session that it names behind it."""
    bearer = request.headers.get("authorization", "")
    given = request.headers.get("x-api-key") or (bearer[7:] if bearer[:7].lower() == "bearer " else "")
    if len(given) > len(key) and given[len(key)] == ".":
        return given[: len(key)], given[len(key) + 1 :]
    return given, ""


def _session(request: Request, key: str) -> str | None:
    return request.path_params.get("session") or _given(request, key)[1] or None


def _path(request: Request) -> str:
    """The path of a request, without its session."""
    path, session = request.url.path, request.path_params.get("session")
    return path.removeprefix(f"/s/{session}") if session else path


def _admitted(request: Request, key: str) -> str | None:
    """The session of the request. Raises ApiError without the key."""
    if not hmac.compare_digest(_given(request, key)[0].encode("utf-8", "replace"), key.encode()):
        raise ApiError(401, "the key is missing or wrong; send the one that treewright serve printed")
    session = _session(request, key)
    if session is not None and (len(session) > 128 or not NAME.issuperset(session)):
        raise ApiError(400, "a session's name has letters, digits, '-', '_' and '.', at most 128 of them")
    return session


async def _body(request: Request, limit: int, empty: bool = False) -> dict[str, Any]:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise ApiError(413, f"the body has {declared} bytes; at most {limit} are taken")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise ApiError(413, f"the body has more than {limit} bytes")
    if empty and not raw.strip():
        return {}
    try:
        body = json_value(bytes(raw), finite=True)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


def _whole(body: dict[str, Any]) -> None:
    """Raises ApiError for half a surrogate pair anywhere: what is given back, a model's name or a schema, is UTF-8."""
    if whole_text(body) != body:
        raise HalfPair(400, "the body holds half of a surrogate pair, which no text has")


def _continued(
    asked: Asked, session: str | None, remembered: Mapping[tuple[str | None, str], tuple[Spoken, ...]]
) -> Asked:
    before = remembered.get((session, asked.previous))
    if before is None:
        raise ApiError(404, "no response of this session has that id any more", "previous_response_id")
    fresh = [one for one in asked.said if one.role == "system"]
    if fresh:  # instructions are those of the newest request
        before = tuple(one for one in before if one.role != "system")
    return replace(asked, said=(*fresh, *before, *(one for one in asked.said if one.role != "system")))


async def _sent(events: Iterator[str]) -> AsyncIterator[str]:
    for one in events:
        yield one
        await asyncio.sleep(0)


def bind(host: str = HOST, port: int = 0) -> socket.socket:
    """A listening socket. Raises TreewrightError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, asyncio sends answers at once; else head and body wait for one another, 40 ms a call.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise TreewrightError(
            f"cannot listen on {host} port {port}: {error.strerror}; --port 0 takes a free one"
        ) from error
    made.listen()  # from now on whoever is told the address is answered, if a moment later
    return made


def server_of(app: Starlette) -> uvicorn.Server:
    """A server to be run with `serve(sockets=[bind()])`; it logs warnings alone and no requests.

    Raises TreewrightError where the package is missing.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise TreewrightError("serving needs a server; type: pip install 'treewright[serve]'") from error
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=75,
        lifespan="off",
    )
    return uvicorn.Server(config)


@contextlib.asynccontextmanager
async def running(app: Starlette, host: str = HOST, port: int = 0) -> AsyncIterator[str]:
    """The application served in this event loop; gives its address, such as http://127.0.0.1:4312."""
    sock, server = bind(host, port), server_of(app)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    bound = sock.getsockname()
    task = asyncio.create_task(server._serve(sockets=[sock]))
    try:
        while not server.started:
            if task.done():
                task.result()
                raise TreewrightError("the server ended before it began")
            await asyncio.sleep(0.005)
        yield f"http://{bound[0]}:{bound[1]}"
    finally:
        server.should_exit = True
        await task
        sock.close()
