# ruff: noqa: E501
"""Local pages with restless parts, and pages that look alike and are not the same: what `same_page` is measured on.

A page is one of eight bodies (an item, a list, an article, a forum, a cart, an account, an order, a search) with two to
three of sixteen restless parts. `Site.turn(number, name)` makes page `number` another one at the same address, as a
server would: another item, an emptied cart, a visitor who is logged out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from urllib.parse import urlsplit

__all__ = ["BODIES", "COUNT", "PARTS", "TURNS", "Site"]

COUNT = 40
Chance = random.Random
GOODS = ("lamp", "vase", "chair", "desk", "rug", "clock", "kettle", "mirror", "shelf", "basket", "candle", "tray")
COLOURS = ("red", "blue", "green", "white", "black", "grey")


def _nav(user: str = "Ann", cart: int = 2) -> str:
    inside = f"<span>Hello {user}</span> <a href='#out'>Log out</a>" if user else "<a href='#in'>Log in</a>"
    return f"<nav aria-label=Main><a href='/'>Home</a> <a href='/help'>Help</a> {inside} <a href='#cart'>Cart ({cart})</a></nav>"


def _filler(seed: int, lines: int = 12) -> str:
    """Text that a page always has: what restless parts are few against."""
    fixed = Chance(seed)
    words = [" ".join(fixed.choice(GOODS) for _ in range(9)) for _ in range(lines)]
    return "".join(f"<p>{line.capitalize()}.</p>" for line in words)


def _item(seed: int, turn: str) -> str:
    fixed = Chance(seed if turn != "another item" else seed + 1000)
    name = f"{fixed.choice(COLOURS).capitalize()} {fixed.choice(GOODS)}"
    button = "<button disabled>Sold out</button>" if turn == "sold out" else "<button>Add to cart</button>"
    user = "" if turn == "logged out" else "Bob" if turn == "another user" else "Ann"
    return (
        f"{_nav(user)}<main><h1>{name}</h1><p>Price: {fixed.randint(10, 90)} coins</p>{button}"
        f"<a href='DETAILS'>Details</a>{_filler(seed)}</main>"
    )


def _list(seed: int, turn: str) -> str:
    fixed = Chance(seed if turn != "another page" else seed + 1000)
    names = [f"{fixed.choice(COLOURS)} {fixed.choice(GOODS)}" for _ in range(8)]
    if turn == "another order":
        names.reverse()
    rows = "".join(f"<li><a href='/i/{name.replace(' ', '-')}'>{name}</a> in stock</li>" for name in names)
    user = "" if turn == "logged out" else "Ann"
    return f"{_nav(user)}<main><h1>Catalogue</h1><ul>{rows}</ul><a href='DETAILS'>Details</a>{_filler(seed, 6)}</main>"


def _article(seed: int, turn: str) -> str:
    fixed = Chance(seed if turn != "another article" else seed + 1000)
    title = f"How to choose a {fixed.choice(COLOURS)} {fixed.choice(GOODS)}"
    note = (
        ""
        if turn == "a comment is gone"
        else "<section aria-label=Comments><h2>Comments</h2><p>Bob: I like it.</p></section>"
    )
    return f"{_nav()}<main><h1>{title}</h1>{_filler(seed, 20)}<a href='DETAILS'>Details</a>{note}</main>"


def _forum(seed: int, turn: str) -> str:
    fixed = Chance(seed)
    topics = [f"{fixed.choice(GOODS)} or {fixed.choice(GOODS)}?" for _ in range(6)]
    if turn == "a topic is gone":
        del topics[2]
    if turn == "another topic":
        topics[3] = "moved by the moderator"
    rows = "".join(f"<tr><td><a href='/t/{n}'>{topic}</a></td><td>by dan</td></tr>" for n, topic in enumerate(topics))
    return f"{_nav('' if turn == 'logged out' else 'Ann')}<main><h1>Forum</h1><table>{rows}</table><a href='DETAILS'>Details</a></main>"


def _cart(seed: int, turn: str) -> str:
    fixed = Chance(seed)
    goods = [fixed.choice(GOODS) for _ in range(1 if turn == "one is gone" else 3)]
    rows = "".join(f"<li>{name} <button>Remove {name}</button></li>" for name in goods)
    body = "<p>Your cart is empty</p>" if turn == "emptied" else f"<ul>{rows}</ul><button>Check out</button>"
    return f"{_nav(cart=0 if turn == 'emptied' else 3)}<main><h1>Cart</h1>{body}<a href='DETAILS'>Details</a>{_filler(seed, 8)}</main>"


def _account(seed: int, turn: str) -> str:
    name = {"another user": "Bob", "logged out": ""}.get(turn, "Ann")
    fields = f"<label>Name <input value='{name}'></label><label><input type=checkbox{' checked' * (turn != 'turned off')}> News</label>"
    body = fields + "<button>Save</button>" if name else "<p>Please log in to see this</p>"
    return f"{_nav(name)}<main><h1>Account</h1>{body}<a href='DETAILS'>Details</a>{_filler(seed, 10)}</main>"


def _order(seed: int, turn: str) -> str:
    state, act = ("Cancelled", "") if turn == "cancelled" else ("On its way", "<button>Cancel order</button>")
    if turn == "delivered":
        state, act = "Delivered", "<button>Return</button>"
    number = 1009 if turn == "another order" else 1008
    return f"{_nav()}<main><h1>Order {number}</h1><p>{state}</p>{act}<a href='DETAILS'>Details</a>{_filler(seed, 14)}</main>"


def _search(seed: int, turn: str) -> str:
    fixed = Chance(seed)
    word = fixed.choice(GOODS)
    found = (
        [] if turn == "nothing found" else [f"{colour} {word}" for colour in COLOURS[: 3 if turn == "filtered" else 5]]
    )
    rows = "".join(
        f"<article><h2>{name}</h2><a href='/i/{name.replace(' ', '-')}'>Open {name}</a></article>" for name in found
    )
    return (
        f"{_nav()}<main><h1>Search</h1><label>Words <input value='{word}'></label><p>Found for you</p>{rows}"
        f"<a href='DETAILS'>Details</a>{_filler(seed, 5)}</main>"
    )


BODIES: dict[str, Callable[[int, str], str]] = {
    "item": _item, "list": _list, "article": _article, "forum": _forum, "cart": _cart, "account": _account,
    "order": _order, "search": _search,
}  # fmt: skip
TURNS = {
    "item": ("another item", "sold out", "logged out", "another user"),
    "list": ("another page", "another order", "logged out", "another page"),
    "article": ("another article", "a comment is gone", "another article", "a comment is gone"),
    "forum": ("a topic is gone", "another topic", "logged out", "another topic"),
    "cart": ("emptied", "one is gone", "emptied", "one is gone"),
    "account": ("another user", "logged out", "turned off", "another user"),
    "order": ("cancelled", "delivered", "another order", "cancelled"),
    "search": ("nothing found", "filtered", "nothing found", "filtered"),
}
"""What each kind of page can become, by the number of the page."""


# Restless parts: (chance, visits so far) → HTML.


def _shuffled(chance: Chance, visit: int) -> str:
    goods = chance.sample(GOODS, 5)
    rows = "".join(f"<li><a href='/i/{name}'>{name}</a></li>" for name in goods)
    return f"<section class=also><h2>Our choice of today</h2><ul>{rows}</ul></section>"


def _recent(chance: Chance, visit: int) -> str:
    rows = "".join(f"<li><a href='/i/{name}'>{name}</a></li>" for name in GOODS[: min(visit, 6)])
    return f"<div class=history><h2>Recently viewed</h2><ul>{rows}</ul></div>" if visit else ""


def _skeleton(chance: Chance, visit: int) -> str:
    wait = chance.randint(0, 250)
    return (
        "<div id=late class=skeleton>Loading</div><script>setTimeout(() => { late.className = ''; "
        f"late.innerHTML = '<p>Delivered by our own van</p><a href=\"/van\">About the van</a>' }}, {wait})</script>"
    )


PARTS: dict[str, Callable[[Chance, int], str]] = {
    "counter": lambda c, v: f"<p>{37 + v} people looked at this shop</p>",
    "span counter": lambda c, v: f"<div>Visits: <b class=visits>{100 + v}</b> so far</div>",
    "advertisement": lambda c, v: f"<aside class=ad><a href='/ad/{c.randint(0, 9**6)}'>Buy {c.choice(GOODS)}s at {c.choice('ABCDEF')}</a></aside>",
    "frame of an advertisement": lambda c, v: f"<iframe class=ad title=offer srcdoc=\"<a href='/ad'>{c.choice(GOODS)} {c.randint(0, 999)}</a>\"></iframe>",
    "banner that comes and goes": lambda c, v: f"<div class=promo><a href='/sale'>Sale {c.randint(2, 9)}0 %</a></div>" if c.random() < 0.5 else "",
    "rotating banner": lambda c, v: f"<div class=rotate><strong>{c.choice(('Free shipping', 'New in store', 'Summer is here'))}</strong></div>",
    "shuffled recommendations": _shuffled,
    "recently viewed": _recent,
    "time": lambda c, v: f"<p>Now it is {c.randint(10, 23)}:{c.randint(10, 59)}:{c.randint(10, 59)}</p>",
    "ages": lambda c, v: f"<p>Last order {c.randint(2, 50)} minutes ago</p>",
    "ticker": lambda c, v: "<table class=ticker>" + "".join(f"<tr><td>{n}</td><td>{c.randint(100, 999)}</td></tr>" for n in ("OAK", "ELM", "ASH")) + "</table>",
    "quote": lambda c, v: f"<blockquote>{' '.join(c.sample(GOODS, 4))}</blockquote>",
    "token in links": lambda c, v: f"<p class=share>Share <a href='/s?t={c.randint(0, 9**9)}'>this page</a></p>",
    "made names": lambda c, v: f"<div id='w{c.randint(10**5, 10**6)}' class=widget><button>Chat</button><span>{c.randint(1, 9)} waiting</span></div>",
    "skeleton": _skeleton,
    "visitors": lambda c, v: f"<ul class=now><li>{c.choice(('Bo', 'Cy', 'Di', 'Ed'))} from {c.choice(('Oslo', 'Rome', 'Bonn'))} is here</li></ul>",
}  # fmt: skip


class Site:
    """The pages on loopback: `/forum/3` is page 3, `/forum/3/details` one step from it. Visits of each page are counted.

    turned  pages that are another one now: number → what became of them
    """

    def __init__(self, seed: int = 0) -> None:
        self.url, self.seed = "", seed
        self.turned: dict[int, str] = {}
        self._visits: dict[str, int] = {}
        self._chance = Chance(seed)
        self._server: asyncio.Server | None = None

    async def start(self) -> Site:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    @staticmethod
    def kind(number: int) -> str:
        return tuple(BODIES)[number % len(BODIES)]

    @classmethod
    def address(cls, number: int) -> str:
        return f"/{cls.kind(number)}/{number}"

    @staticmethod
    def parts(number: int) -> list[str]:
        names = tuple(PARTS)
        return [names[(number * 3 + step) % len(names)] for step in (0, 5, 10)[: 2 + number % 2]]

    def turn(self, number: int) -> str:
        """Makes a page the one that looks alike."""
        choice = TURNS[self.kind(number)][number // len(BODIES) % 4]
        self.turned[number] = choice
        return choice

    def page(self, path: str) -> str:
        number = int(path.split("/")[2])
        visit = self._visits[path] = self._visits.get(path, -1) + 1
        restless = [PARTS[name](self._chance, visit) for name in self.parts(number)]
        if path.endswith("/details"):
            body = f"{_nav()}<main><h1>Details of {number}</h1><button>Close</button>{_filler(number, 9)}</main>"
        else:
            body = BODIES[self.kind(number)](number, self.turned.get(number, "")).replace(
                "DETAILS", f"{self.address(number)}/details"
            )
        # One part stands in front of the page, the others behind it.
        return f"<!doctype html><title>Shop</title><header>{restless[0]}</header>{body}<footer>{''.join(restless[1:])}</footer>"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = urlsplit(head.split(" ")[1]).path
            steps = path.strip("/").split("/")
            body = self.page(path) if steps[0] in BODIES else "<title>Shop</title>"
            raw = body.encode()
            top = (
                f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(top.encode() + raw)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
