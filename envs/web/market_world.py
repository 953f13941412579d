"""The state of a small shop with a forum, made from a seed: what the site shows, changes, exports and takes back."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, fields, replace
from typing import Any

from treewright.envs.types import digest, seed_of

__all__ = ["ME", "Order", "Post", "Product", "Refused", "World", "fields_of", "slug"]

ME = "you"
NOUNS = ("lamp", "chair", "cup", "coat", "book", "toy", "bag", "clock")
ADJECTIVES = (
    *("red", "blue", "green", "black", "white", "pink", "grey", "brown", "big", "small", "tall", "soft"),
    *("old", "new", "fine", "plain", "light", "dark", "round", "square", "warm", "cool", "loud", "calm"),
)
TOPICS = ("tea", "rain", "cats", "maps", "bread", "trains", "songs", "stars")
AUTHORS = ("anna", "ben", "cleo", "dan", "eva", "finn", "gus", "hana", "ivo", "june", "karl", "lena")
OPEN, SHIPPED, CANCELLED = "open", "shipped", "cancelled"


class Refused(Exception):
    """The shop does not do that; the message is shown on the page."""


@dataclass(frozen=True, slots=True)
class Product:
    """Price in coins, stock in pieces."""

    name: str
    category: str
    price: int
    stock: int


@dataclass(frozen=True, slots=True)
class Order:
    """lines: pieces per product slug; status: open, shipped or cancelled."""

    lines: dict[str, int]
    status: str


@dataclass(frozen=True, slots=True)
class Post:
    title: str
    author: str


@dataclass(slots=True)
class World:
    """One shop. Everything is keyed by what its pages call it: slugs, and numbers as text.

    products  by slug, in the order of the shelves
    orders    by number, all of them the visitor's
    posts     by number
    cart      pieces per product slug
    serial    the last number given to an order or post
    """

    products: dict[str, Product] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    posts: dict[str, Post] = field(default_factory=dict)
    cart: dict[str, int] = field(default_factory=dict)
    serial: int = 0

    @classmethod
    def build(cls, seed: int, split: str) -> World:
        """The shop of a seed: three categories of three or four products, three orders (one of them shipped), and
        four posts (one of them the visitor's). Names of products and posts in 'test' never occur in 'train'."""
        rng = random.Random(seed_of("market world", seed, split))
        world = cls()
        for noun in sorted(rng.sample(NOUNS, 3)):
            names = rng.sample(_own(ADJECTIVES, noun, split), rng.choice((3, 4)))
            for adjective, price in zip(names, rng.sample(range(3, 100), len(names)), strict=True):
                product = Product(f"{adjective} {noun}", f"{noun}s", price, rng.randint(3, 40))
                world.products[slug(product.name)] = product
        for status, item in zip(_shuffled(rng, OPEN, OPEN, SHIPPED), rng.sample(list(world.products), 3), strict=True):
            world.orders[world._number()] = Order({item: rng.randint(1, 3)}, status)
        for author in _shuffled(rng, ME, *rng.sample(AUTHORS, 3)):
            taken = {post.title for post in world.posts.values()}
            titles = [f"{a} {t}" for t in TOPICS for a in _own(ADJECTIVES, t, split) if f"{a} {t}" not in taken]
            world.posts[world._number()] = Post(rng.choice(titles), author)
        return world

    def categories(self) -> list[str]:
        return list(dict.fromkeys(product.category for product in self.products.values()))

    # What a visitor can change. Each raises Refused with the reason.

    def put_in_cart(self, item: str, pieces: int) -> None:
        product = self._product(item)
        if pieces < 1 or self.cart.get(item, 0) + pieces > product.stock:
            raise Refused("not enough in stock")
        self.cart[item] = self.cart.get(item, 0) + pieces

    def take_from_cart(self, item: str) -> None:
        if self.cart.pop(item, None) is None:
            raise Refused("not in the cart")

    def buy(self) -> str:
        """Turns the cart into an order and returns its number."""
        if not self.cart:
            raise Refused("the cart is empty")
        for item, pieces in self.cart.items():
            if pieces > self._product(item).stock:
                raise Refused("not enough in stock")
        for item, pieces in self.cart.items():
            product = self.products[item]
            self.products[item] = replace(product, stock=product.stock - pieces)
        number = self._number()
        self.orders[number] = Order(dict(self.cart), OPEN)
        self.cart.clear()
        return number

    def cancel(self, number: str) -> None:
        order = self.orders.get(number)
        if order is None or order.status != OPEN:
            raise Refused("only open orders can be cancelled")
        for item, pieces in order.lines.items():
            product = self.products[item]
            self.products[item] = replace(product, stock=product.stock + pieces)
        self.orders[number] = replace(order, status=CANCELLED)

    def write_post(self, title: str) -> str:
        title = " ".join(title.split())[:40]
        if not title:
            raise Refused("a post needs a title")
        number = self._number()
        self.posts[number] = Post(title, ME)
        return number

    def delete_post(self, number: str) -> None:
        post = self.posts.get(number)
        if post is None or post.author != ME:
            raise Refused("only your own posts can be deleted")
        del self.posts[number]

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
        kept = json.loads(text)
        return cls(
            {key: Product(**value) for key, value in kept["products"].items()},
            {key: Order(**value) for key, value in kept["orders"].items()},
            {key: Post(**value) for key, value in kept["posts"].items()},
            kept["cart"],
            kept["serial"],
        )

    def mark(self) -> str:
        return digest(self.to_json())


def fields_of(record: Any) -> dict[str, Any]:
    """What `asdict` gives at one level, without copies."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def slug(name: str) -> str:
    return name.replace(" ", "-")


def _own(adjectives: tuple[str, ...], word: str, split: str) -> list[str]:
    """The adjectives that this split may put before a word: a quarter of the pairs belong to 'test'."""
    words = (*NOUNS, *TOPICS)
    return [a for i, a in enumerate(adjectives) if ((i + words.index(word)) % 4 == 0) == (split == "test")]


def _shuffled(rng: random.Random, *items: str) -> list[str]:
    return rng.sample(items, len(items))
