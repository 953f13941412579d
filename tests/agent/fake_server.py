"""A model server on loopback for tests: it answers with what is queued, or as a function of the request says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import Policy
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Context

if TYPE_CHECKING:
    from starlette.datastructures import State
    from starlette.requests import Request


if TYPE_CHECKING:
    from .test_policies_vllm_client import FakeVLLM


TASK = Task("kg", "1", "Who is ada's mother?")
TOOLS = (ToolSpec("search", "look up", {"properties": {"entity": {"type": "string"}}}),)
FIRST = Observation("start")


def said(*texts: str, **more: Any) -> dict[str, Any]:
    """A chat completion with one choice for each text."""
    choices = [{"index": i, "message": {"role": "assistant", "content": t}, **more} for i, t in enumerate(texts)]
    return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 2 * len(texts)}}


class Server:
    """Answers with what is queued (a body, a Response or a coroutine function of the request), then with `always`."""

    def __init__(self, always: Any = None) -> None:
        self.headers: list[Any]
        self.seen: list[Any]
        self.queue: deque[Any] = deque()
        self.always, self.seen, self.headers = always or said("look {}"), [], []

    async def answer(self, request: Request[State]) -> Response:
        body = await request.json()
        self.seen.append((request.url.path, body))
        self.headers.append(request.headers)
        reply = self.queue.popleft() if self.queue else self.always
        if callable(reply) and not isinstance(reply, Response):
            reply = reply(body)
            reply = await reply if asyncio.iscoroutine(reply) else reply
        return reply if isinstance(reply, Response) else JSONResponse(reply)


@contextlib.asynccontextmanager
async def serving(
    server: Server | FakeVLLM, control: Callable[[Any], Coroutine[Any, Any, Any]] | None = None
) -> AsyncIterator[str]:
    """`control` answers what goes to other places than the model's, vLLM's orders among them."""
    routes = [Route(path, server.answer, methods=["POST"]) for path in ("/v1/completions", "/v1/chat/completions")]
    if control is not None:
        routes.append(Route("/{rest:path}", control, methods=["POST"]))
    app = Starlette(routes=routes)
    sock = socket.create_server(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    web.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(web.serve(sockets=[sock]))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    finally:
        web.should_exit = True
        await task
        sock.close()


@contextlib.asynccontextmanager
async def opened(server: Server, model: str = "m", **options: Any) -> AsyncIterator[Policy]:
    async with serving(server) as url:
        policy = open_policy(f"openai:{model}@{url}", **{"backoff": 0.01, "deadline": 20.0, **options})
        try:
            yield policy
        finally:
            await policy.close()


def root(policy: Any) -> Context:
    context: Context = policy.context(TASK, TOOLS, FIRST, (), ())
    return context


@contextlib.contextmanager
def threaded(server: Server) -> Iterator[str]:
    """The same server in a thread with an event loop of its own, for what runs one itself: the command line."""
    ready, done = threading.Event(), threading.Event()
    where = []

    async def serve() -> None:
        async with serving(server) as url:
            where.append(url)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield where[0]
    finally:
        done.set()
        thread.join(30)
