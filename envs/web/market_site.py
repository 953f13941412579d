"""The market's web site: Starlette on loopback in a thread of this process, with real state behind its pages.

Which shop a request sees is decided by a token in a request header that the browser sends and pages cannot read.
The control side (opening shops, export and import, the ledger) is no page: it is the `Site` object, in this process.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import parse_qsl, quote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from treewright.envs.errors import EnvFault
from treewright.envs.web.market_world import ME, OPEN, Refused, World

__all__ = ["TOKEN_HEADER", "Change", "LedgerEntry", "Page", "Site", "site_routes"]

TOKEN_HEADER = "x-market-session"
_PAGE = """<!doctype html><html lang="en"><title>market</title><body><nav><a href="/">home</a> \
<a href="/cart">cart {cart}</a> <a href="/orders">orders</a> <a href="/forum">forum</a></nav>{body}</body></html>"""
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A state-changing request that was carried out. `shop` is 'live:…' for a shared one."""

    shop: str
    action: str
    detail: str


@dataclass(slots=True)
class _Visit:
    """A session at the site: the shop it sees and, in a shared shop, the cart of its own."""

    shop: str
    world: Any
    cart: dict[str, int]


class Site:
    """The server and its control side. Methods may be called from any thread.

    ledger  every state-changing request that was carried out, in order
    routes  makes the pages and changes of a site; the market's own by default
    read    makes a world from its exported JSON
    A world is any object with a `cart` (pieces by product) and `to_json()`.
    """

    def __init__(
        self, routes: Callable[[Site], list[Route]] | None = None, read: Callable[[str], Any] = World.from_json
    ) -> None:
        self._routes, self._read = routes or _routes, read
        self.ledger: list[LedgerEntry] = []
        self._lock = threading.RLock()
        self._visits: dict[str, _Visit] = {}
        self._shared: dict[str, Any] = {}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    # Starting and stopping.

    async def start(self) -> None:
        """Serves on a free loopback port; does nothing if it is already serving."""
        with self._lock:
            if self._thread is None:
                self._listen()
        for _ in range(1000):
            if self._server is not None and self._server.started:
                return
            await asyncio.sleep(0.01)
        raise EnvFault("the market's server did not start within 10 s")

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = listener.getsockname()[1]
        app = self.app()
        config = uvicorn.Config(
            app, lifespan="off", ws="none", loop="asyncio", http="h11", access_log=False, log_config=None
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="market", daemon=True
        )
        self._thread.start()

    def app(self) -> Any:
        """The site as an ASGI application, for whom a server would be in the way."""
        return Starlette(routes=self._routes(self))

    async def stop(self) -> None:
        """Ends the server and forgets every shop; the ledger stays."""
        with self._lock:
            server, thread, self._server, self._thread = self._server, self._thread, None, None
            self._visits.clear()
            self._shared.clear()
        if server is not None and thread is not None:
            server.should_exit = True
            await asyncio.to_thread(thread.join, 10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    # The control side.

    def enter(self, token: str, world: Any, shared: str = "") -> None:
        """Puts a session into a shop: its own, or the shared one of that name (built by the first who enters)."""
        with self._lock:
            if shared:
                world = self._shared.setdefault(shared, world)
            self._visits[token] = _Visit(f"live:{shared}" if shared else token[:8], world, {} if shared else world.cart)

    def leave(self, token: str) -> None:
        with self._lock:
            self._visits.pop(token, None)

    def forget_shared(self) -> None:
        """Closes every shared shop: the next session that enters one finds it new."""
        with self._lock:
            self._shared.clear()

    @contextmanager
    def shop(self, token: str) -> Iterator[Any]:
        """A session's shop with that session's cart in it, to itself until the block ends. Raises EnvFault."""
        with self._lock:
            if token not in self._visits:
                raise EnvFault("the market does not know this session")
            visit = self._visits[token]
            visit.world.cart = visit.cart
            yield visit.world

    def state(self, token: str) -> str:
        """The state of a session's shop, exported as JSON."""
        with self.shop(token) as world:
            return str(world.to_json())

    def load(self, token: str, text: str) -> None:
        """Puts back an exported state: all of it in a shop of one's own, the cart alone in a shared one."""
        kept = self._read(text)
        with self.shop(token):
            visit = self._visits[token]
            visit.cart = kept.cart
            if not visit.shop.startswith("live:"):
                visit.world = kept

    def change(self, token: str, action: str, detail: str, do: Callable[[Any], str]) -> str:
        """Carries out a change and enters it in the ledger. Raises Refused, which changes nothing."""
        with self.shop(token) as world:
            result = do(world)
            self.ledger.append(LedgerEntry(self._visits[token].shop, action, detail))
            return result


# Pages. Each is a function of the shop; names are short, since small models read them.


def _home(world: World, request: Request) -> str:
    search = '<form action="/search"><input name="q" aria-label="search"><button>find</button></form>'
    return search + _list(f'<a href="/c/{category}">{category}</a>' for category in world.categories())


def _category(world: World, request: Request) -> str | None:
    name = request.path_params["name"]
    items = [item for item, product in world.products.items() if product.category == name]
    return f"<h1>{escape(name)}</h1>{_shelf(world, items)}" if items else None


def _search(world: World, request: Request) -> str:
    words = request.query_params.get("q", "").lower().split()
    items = [item for item, product in world.products.items() if all(word in product.name for word in words)][:8]
    return f"<h1>found {len(items)}</h1>{_shelf(world, items)}"


def _product(world: World, request: Request) -> str | None:
    item = request.path_params["name"]
    product = world.products.get(item)
    if product is None:
        return None
    pieces = "".join(f"<option>{n}</option>" for n in (1, 2, 3))
    return (
        f"<h1>{product.name}</h1><p>price {product.price}</p><p>stock {product.stock}</p>"
        f'<form method="post" action="/cart/add"><input type="hidden" name="item" value="{item}">'
        f'<select name="pieces" aria-label="pieces">{pieces}</select><button>add to cart</button></form>'
    )


def _cart(world: World, request: Request) -> str:
    if not world.cart:
        return "<h1>cart</h1><p>empty</p>"
    lines = _list(
        f"{_pieces(world, {item: n})} {_button('/cart/remove', 'remove', item=item)}" for item, n in world.cart.items()
    )
    return f"<h1>cart</h1>{lines}{_button('/buy', 'buy')}"


def _orders(world: World, request: Request) -> str:
    lines = (
        f'<a href="/o/{n}">order {n}</a> {_pieces(world, order.lines)}, {order.status}'
        for n, order in world.orders.items()
    )
    return f"<h1>orders</h1>{_list(lines)}"


def _order(world: World, request: Request) -> str | None:
    number = request.path_params["name"]
    order = world.orders.get(number)
    if order is None:
        return None
    button = _button(f"/o/{number}/cancel", "cancel") if order.status == OPEN else ""
    return f"<h1>order {number}</h1><p>{_pieces(world, order.lines)}</p><p>{order.status}</p>{button}"


def _forum(world: World, request: Request) -> str:
    posts = _list(f'<a href="/f/{n}">{escape(post.title)}</a>' for n, post in world.posts.items())
    form = '<form method="post" action="/forum"><input name="title" aria-label="title"><button>post</button></form>'
    return f"<h1>forum</h1>{posts}{form}"


def _post(world: World, request: Request) -> str | None:
    number = request.path_params["name"]
    post = world.posts.get(number)
    if post is None:
        return None
    button = _button(f"/f/{number}/delete", "delete") if post.author == ME else ""
    return f"<h1>{escape(post.title)}</h1><p>by {post.author}</p>{button}"


def _list(items: Any) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _shelf(world: World, items: list[str]) -> str:
    return _list(f'<a href="/p/{i}">{world.products[i].name}</a> price {world.products[i].price}' for i in items)


def _pieces(world: World, lines: dict[str, int]) -> str:
    return ", ".join(f"{pieces} {world.products[item].name}" for item, pieces in lines.items())


def _button(action: str, name: str, **hidden: str) -> str:
    fields = "".join(f'<input type="hidden" name="{key}" value="{value}">' for key, value in hidden.items())
    return f'<form method="post" action="{action}">{fields}<button>{name}</button></form>'


# Changes: each answers where to go next.


def _add(world: World, form: dict[str, str], number: str) -> str:
    world.put_in_cart(form.get("item", ""), int(form.get("pieces", "1")))
    return "/cart"


def _remove(world: World, form: dict[str, str], number: str) -> str:
    world.take_from_cart(form.get("item", ""))
    return "/cart"


def _buy(world: World, form: dict[str, str], number: str) -> str:
    return f"/o/{world.buy()}"


def _cancel(world: World, form: dict[str, str], number: str) -> str:
    world.cancel(number)
    return f"/o/{number}"


def _write(world: World, form: dict[str, str], number: str) -> str:
    world.write_post(form.get("title", ""))
    return "/forum"


def _delete(world: World, form: dict[str, str], number: str) -> str:
    world.delete_post(number)
    return "/forum"


Page = Callable[[Any, Request], str | None]
Change = Callable[[Any, dict[str, str], str], str]


def _routes(site: Site) -> list[Route]:
    pages: dict[str, Page] = {
        **{"/": _home, "/search": _search, "/c/{name}": _category, "/p/{name}": _product, "/cart": _cart},
        **{"/orders": _orders, "/o/{name}": _order, "/forum": _forum, "/f/{name}": _post},
    }
    changes: dict[str, tuple[str, Change]] = {
        "/cart/add": ("add", _add),
        "/cart/remove": ("remove", _remove),
        "/buy": ("buy", _buy),
        "/o/{name}/cancel": ("cancel", _cancel),
        "/forum": ("post", _write),
        "/f/{name}/delete": ("delete", _delete),
    }
    return site_routes(site, _PAGE, pages, changes)


def site_routes(
    site: Site, frame: str, pages: dict[str, Page], changes: dict[str, tuple[str, Change]], refused: str = ""
) -> list[Route]:
    """Routes of pages (GET) and named changes (POST), by path; `frame` is the HTML around {cart} and {body}.

    refused  the page that a change which was refused leads to, with the reason as `?why=`: a page with an address
             can be come back to. Without it the answer to the POST says why.
    """
    shown = [Route(path, _show(site, frame, page), methods=["GET"]) for path, page in pages.items()]
    done = [
        Route(path, _do(site, frame, refused, name, change), methods=["POST"])
        for path, (name, change) in changes.items()
    ]
    return shown + done


def _answer(world: Any, frame: str, body: str, status: int = 200) -> Response:
    text = frame.format(cart=sum(world.cart.values()), body=body)
    return HTMLResponse(text, status, headers=_HEADERS)


def _show(site: Site, frame: str, page: Page) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        try:
            with site.shop(request.headers.get(TOKEN_HEADER, "")) as world:
                body = page(world, request)
                return (
                    _answer(world, frame, "<p>no such page</p>", 404) if body is None else _answer(world, frame, body)
                )
        except EnvFault as fault:
            return HTMLResponse(escape(str(fault)), 403, headers=_HEADERS)

    return handle


def _do(site: Site, frame: str, refused: str, name: str, change: Change) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        token = request.headers.get(TOKEN_HEADER, "")
        form = dict(parse_qsl((await request.body()).decode()))
        number = str(request.path_params.get("name", ""))
        detail = number or form.get("item") or form.get("title", "")
        try:
            there = site.change(token, name, detail, lambda world: change(world, form, number))
        except EnvFault as fault:
            return HTMLResponse(escape(str(fault)), 403, headers=_HEADERS)
        except (Refused, ValueError) as reason:
            if refused:
                return RedirectResponse(f"{refused}?why={quote(str(reason))}", 303)
            with site.shop(token) as world:
                return _answer(world, frame, f"<p>{escape(str(reason))}</p>", 409)
        return RedirectResponse(there, 303)

    return handle
