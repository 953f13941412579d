"""The local server: 127.0.0.1 only, a secret in the address, and no answer to a page that came by another name.

The store is opened read-only; a search that writes it goes on undisturbed. What is asked for is read in a thread.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treewright.agent.view.page import policy_of, render_page
from treewright.agent.view.payload import (
    Decode,
    advantage_json,
    columns_json,
    dump,
    facets_json,
    find_decoder,
    list_json,
    turns_json,
)
from treewright.agent.view.reading import Filters, Reader
from treewright.envs.errors import TreewrightError
from treewright.search.store import TreeStore

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

__all__ = ["make_app", "serve"]

HOST = "127.0.0.1"
PATIENCE = 1.5  # seconds for which texts are read before a search answers with what it knows; the page asks again
NAMES = ("text", "suite", "split", "run", "policy_version", "status", "task_id")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


def make_app(store: TreeStore, token: str, decode: Decode | None = None) -> Starlette:
    """The viewer of a store as an ASGI application under /TOKEN/.

    Requests with a Host other than a loopback name get 421 (a foreign name that resolves to this machine must not
    read the store), requests without the token 404. Errors made for people come as {"error": …} with status 400.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import Response
    from starlette.routing import Mount, Route

    reader = Reader(store)

    def answer(work: Callable[[Request], Any]) -> Any:
        async def endpoint(request: Request) -> Response:
            try:
                body, status = await asyncio.to_thread(work, request), 200
            except (TreewrightError, ValueError) as error:
                body, status = {"error": str(error)}, 400
            return Response(await asyncio.to_thread(dump, body), status, media_type="application/json")

        return endpoint

    async def index(request: Request) -> Response:
        page = render_page(f"trees of {store.title}")
        own = {"content-security-policy": policy_of(True) + "; frame-ancestors 'none'"}
        return Response(page, media_type="text/html", headers=own)

    def plots(request: Request) -> Any:
        from treewright.agent.view.plots import plots_json

        return plots_json(store, _filters(request))

    def curves(_: Request) -> Any:
        from treewright.agent.view.curves import curves_json

        return curves_json(store)

    def pulse(request: Request) -> Any:
        from treewright.agent.view.curves import curves_size

        return {**reader.pulse(request.query_params.getlist("tree")), "updates": curves_size(store)}

    routes = [
        Route("/", index),
        Route("/api/list", answer(lambda r: _list(reader, r))),
        Route("/api/facets", answer(lambda r: facets_json(reader.facets(), reader.weights()))),
        Route("/api/pulse", answer(pulse)),
        Route("/api/tree/{id}", answer(lambda r: columns_json(reader.columns(r.path_params["id"]), reader.weights()))),
        Route("/api/advantage/{id}", answer(lambda r: advantage_json(reader, r.path_params["id"]))),
        Route("/api/path/{id}/{node:int}", answer(lambda r: _path(reader, r, decode))),
        Route("/api/plots", answer(plots)),
        Route("/api/curves", answer(curves)),
        Route("/api/store", answer(lambda r: {"store": _place(store.name)})),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        reader.close()

    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[Middleware(_Guard)], lifespan=lifespan)


class _Guard:
    """Loopback names only, and the headers that keep other pages out."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        port = (scope.get("server") or (HOST, None))[1]
        if hosts not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            refusal = PlainTextResponse("open the address that treewright view printed", 421, HEADERS)
            await refusal(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self.app(scope, receive, guarded)


def _place(name: str) -> str:
    """The store as code that runs elsewhere finds it; a URL comes without its password."""
    return name if "://" in name else str(Path(name).resolve())


def _list(reader: Reader, request: Request) -> dict[str, Any]:
    sort, offset = request.query_params.get("sort", ""), _whole(request, "offset", 0)
    return list_json(reader.listing(_filters(request), _limit(request), offset, sort, PATIENCE), reader.weights())


def _filters(request: Request) -> Filters:
    asked = request.query_params
    success = {"yes": True, "no": False}.get(asked.get("success", ""))
    return Filters(success=success, **{name: asked[name] for name in NAMES if asked.get(name)})


def _whole(request: Request, name: str, default: int) -> int:
    return max(0, int(request.query_params.get(name, default)))


def _limit(request: Request) -> int:
    return min(500, _whole(request, "limit", 100))


def _path(reader: Reader, request: Request, decode: Decode | None) -> list[dict[str, Any]]:
    turns = reader.path(request.path_params["id"], request.path_params["node"])
    return turns_json(turns, find_decoder(turns, decode))


def serve(
    path: str | Path,
    port: int = 0,
    decode: Decode | None = None,
    browse: bool = False,
    note: Callable[[str], None] = print,
) -> None:
    """Serves the viewer of a store until Ctrl-C; `note` is told the address once it answers.

    port  0 takes a free one. Raises TreewrightError if the store cannot be read, the port is taken or a package is
    missing.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise TreewrightError("the viewer needs a server; type: pip install 'treewright[web]'") from error

    store = TreeStore.open(path, read_only=True)
    try:
        token, sock = secrets.token_urlsafe(24), socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise TreewrightError(
                f"port {port} is taken ({error.strerror}); leave --port out for a free one"
            ) from error
        address = f"http://{HOST}:{sock.getsockname()[1]}/{token}/"
        app = make_app(store, token, decode)
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=1)
        sock.listen()  # from now on whoever opens the address is answered, if a moment later
        note(address)
        if browse:
            webbrowser.open(address)
        uvicorn.Server(config).run(sockets=[sock])
    finally:
        store.close()
