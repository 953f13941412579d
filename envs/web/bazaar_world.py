"""The state of a larger shop, made from a seed: catalogue, orders, forum, and a desk that decides on refunds."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any

from treewright.envs.types import seed_of
from treewright.envs.web.market_world import AUTHORS, CANCELLED, ME, NOUNS, OPEN, SHIPPED, TOPICS, Refused, fields_of

__all__ = ["ADDRESSES", "COLOURS", "PENDING", "SIZES", "World", "item_of"]

COLOURS = ("red", "blue", "green", "black", "white")
SIZES = ("small", "medium", "large")
ADDRESSES = ("home", "office", "parents")
PENDING, APPROVED, REJECTED = "pending", "approved", "rejected"


@dataclass(frozen=True, slots=True)
class Product:
    """Price in coins, stock in pieces; products of one colour and kind differ in size and price."""

    kind: str
    colour: str
    size: str
    price: int
    stock: int

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.kind}"


@dataclass(frozen=True, slots=True)
class Order:
    """lines: pieces per product; status: open, shipped or cancelled; to: where it goes."""

    lines: dict[str, int]
    status: str
    to: str


@dataclass(frozen=True, slots=True)
class Post:
    """A thread: its replies as (author, text), in order."""

    title: str
    author: str
    replies: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A refund that a customer asks for; status: pending, approved or rejected."""

    customer: str
    coins: int
    status: str = PENDING


@dataclass(slots=True)
class World:
    """One bazaar. Everything is keyed by what its pages call it: items as 'red-lamp-small', and numbers as text."""

    products: dict[str, Product] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    posts: dict[str, Post] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    cart: dict[str, int] = field(default_factory=dict)
    serial: int = 0

    @classmethod
    def build(cls, seed: int, split: str) -> World:
        """Three kinds in five colours and two or three sizes; five orders, two of them shipped; six threads, three of
        them the visitor's, two of these with the same title; five refunds to decide on."""
        rng = random.Random(seed_of("bazaar world", seed, split))
        world = cls()
        prices = rng.sample(range(5, 200), 60)
        for kind in sorted(rng.sample(NOUNS, 3)):
            for colour in COLOURS:
                for size in sorted(rng.sample(SIZES, rng.choice((2, 3))), key=SIZES.index):
                    product = Product(kind, colour, size, prices.pop(), rng.randint(4, 30))
                    world.products[item_of(product)] = product
        items = rng.sample(list(world.products), 5)
        for item, status in zip(items, rng.sample((OPEN, OPEN, OPEN, SHIPPED, SHIPPED), 5), strict=True):
            world.orders[world._number()] = Order({item: rng.randint(1, 3)}, status, rng.choice(ADDRESSES))
        titles = [f"{word} {topic}" for word, topic in zip(rng.sample(COLOURS, 5), rng.sample(TOPICS, 5), strict=True)]
        mine = [(titles[0], ME), (titles[0], ME), (titles[1], ME)]
        others = list(zip(titles[2:], rng.sample(AUTHORS, 3), strict=True))
        replies = rng.sample(range(1, 6), 2)
        for title, author in rng.sample(mine + others, 6):
            count = replies.pop() if title == titles[0] else rng.randint(1, 3)
            said = tuple((rng.choice(AUTHORS), rng.choice(TOPICS)) for _ in range(count))
            world.posts[world._number()] = Post(title, author, said)
        for customer, coins in zip(rng.sample(AUTHORS, 5), rng.sample(range(10, 100), 5), strict=True):
            world.requests[world._number()] = Request(customer, coins)
        return world

    def kinds(self) -> list[str]:
        return list(dict.fromkeys(product.kind for product in self.products.values()))

    # What a visitor can change. Each raises Refused with the reason.

    def put_in_cart(self, item: str, pieces: int) -> None:
        product = self._product(item)
        if pieces < 1 or self.cart.get(item, 0) + pieces > product.stock:
            raise Refused("not enough in stock")
        self.cart[item] = self.cart.get(item, 0) + pieces

    def take_from_cart(self, item: str) -> None:
        if self.cart.pop(item, None) is None:
            raise Refused("not in the cart")

    def order(self, to: str) -> str:
        """Turns the cart into an order and returns its number."""
        if not self.cart:
            raise Refused("the cart is empty")
        if to not in ADDRESSES:
            raise Refused("choose an address")
        for item, pieces in self.cart.items():
            if pieces > self._product(item).stock:
                raise Refused("not enough in stock")
        for item, pieces in self.cart.items():
            self.products[item] = replace(self.products[item], stock=self.products[item].stock - pieces)
        number = self._number()
        self.orders[number] = Order(dict(self.cart), OPEN, to)
        self.cart.clear()
        return number

    def cancel(self, number: str) -> None:
        order = self.orders.get(number)
        if order is None or order.status != OPEN:
            raise Refused("only open orders can be cancelled")
        for item, pieces in order.lines.items():
            self.products[item] = replace(self.products[item], stock=self.products[item].stock + pieces)
        self.orders[number] = replace(order, status=CANCELLED)

    def write_post(self, title: str) -> str:
        number = self._number()
        self.posts[number] = Post(_words(title), ME)
        return number

    def reply(self, number: str, text: str) -> None:
        post = self.posts.get(number)
        if post is None:
            raise Refused("no such post")
        self.posts[number] = replace(post, replies=(*post.replies, (ME, _words(text))))

    def delete_post(self, number: str) -> None:
        post = self.posts.get(number)
        if post is None or post.author != ME:
            raise Refused("only your own posts can be deleted")
        del self.posts[number]

    def decide(self, number: str, approve: bool) -> None:
        request = self.requests.get(number)
        if request is None or request.status != PENDING:
            raise Refused("only pending refunds can be decided")
        self.requests[number] = replace(request, status=APPROVED if approve else REJECTED)

    def _product(self, item: str) -> Product:
        if item not in self.products:
            raise Refused("no such product")
        return self.products[item]

    def _number(self) -> str:
        self.serial += 1
        return str(self.serial)

    # Export and import.

    def to_json(self) -> str:
        """Equal for equal states; the order in which things are shown is part of the state."""
        return json.dumps(self, default=fields_of, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> World:
        kept: dict[str, Any] = json.loads(text)
        posts = {key: (post["title"], post["author"], post["replies"]) for key, post in kept["posts"].items()}
        return cls(
            {key: Product(**value) for key, value in kept["products"].items()},
            {key: Order(**value) for key, value in kept["orders"].items()},
            {
                key: Post(title, by, tuple((who, what) for who, what in said))
                for key, (title, by, said) in posts.items()
            },
            {key: Request(**value) for key, value in kept["requests"].items()},
            kept["cart"],
            kept["serial"],
        )


def item_of(product: Product) -> str:
    return f"{product.colour}-{product.kind}-{product.size}"


def _words(text: str) -> str:
    words = " ".join(text.split())[:60]
    if not words:
        raise Refused("write something first")
    return words
