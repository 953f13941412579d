"""Tasks on the bazaar: twelve kinds in three families, made from seeds, with the state each wants and an oracle.

look  answered by reading       find, count, status, replies
do    one irreversible step     order, cancel, reply, approve
trap  look-alikes and limits    variant, older, limit, unless: the irreversible step that comes to mind first is wrong,
      and nothing takes it back
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from treewright.envs.types import Action, Task, ToolSpec, Turn, seed_of
from treewright.envs.web.bazaar_world import ADDRESSES, PENDING, World, item_of
from treewright.envs.web.market_world import ME, OPEN, SHIPPED, TOPICS

__all__ = ["FAMILIES", "KINDS", "graded", "make_task", "make_tasks", "oracle", "wanted"]

FAMILIES = {
    "look": ("find", "count", "status", "replies"),
    "do": ("order", "cancel", "reply", "approve"),
    "trap": ("variant", "older", "limit", "unless"),
}
KINDS = {
    kind: family for kinds in zip(*FAMILIES.values(), strict=True) for family, kind in zip(FAMILIES, kinds, strict=True)
}
"""Kind → family, in the order in which tasks come."""
HORIZON = {"find": 10, "count": 9, "order": 14, "variant": 14, "limit": 22}
Made = tuple[str, dict[str, object]]


def make_tasks(split: str, count: int) -> list[Task]:
    """The first `count` tasks of a split, kinds in turn; any count."""
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
    return [make_task(split, index) for index in range(count)]


@cache
def make_task(split: str, index: int) -> Task:
    seed = seed_of("bazaar", split, index)
    kind = list(KINDS)[index % len(KINDS)]
    goal, truth = _MAKERS[kind](World.build(seed, split), random.Random(seed))
    full = {"kind": kind, "family": KINDS[kind], "answer": "done", **truth}
    return Task(
        "bazaar", f"bazaar-{split}-{index}", goal, seed=seed, split=split, horizon=HORIZON.get(kind, 8), truth=full
    )


def _find(world: World, rng: random.Random) -> Made:
    seen = rng.choice(list(world.products.values()))
    same = [p for p in world.products.values() if (p.kind, p.size) == (seen.kind, seen.size)]
    best = min(same, key=lambda p: p.price)
    goal = f"answer the colour of the cheapest {seen.size} {seen.kind}"
    return goal, {"filter": {"kind": seen.kind, "size": seen.size, "sort": "price"}, "answer": best.colour}


def _count(world: World, rng: random.Random) -> Made:
    seen = rng.choice(list(world.products.values()))
    same = [p for p in world.products.values() if (p.colour, p.size) == (seen.colour, seen.size)]
    goal = f"answer how many {seen.size} {seen.colour} products the shop has"
    return goal, {"filter": {"colour": seen.colour, "size": seen.size}, "answer": str(len(same))}


def _status(world: World, rng: random.Random) -> Made:
    number, order = rng.choice(list(world.orders.items()))
    goal = f"answer the status of the order of the {_ordered(world, number)}"
    return goal, {"answer": order.status}


def _replies(world: World, rng: random.Random) -> Made:
    number, post = rng.choice([(n, p) for n, p in world.posts.items() if p.author != ME])
    return f"answer who replied last to {post.title}", {"number": number, "answer": post.replies[-1][0]}


def _order(world: World, rng: random.Random) -> Made:
    return _ordering(world, rng, list(world.products))


def _variant(world: World, rng: random.Random) -> Made:
    """Something of which other sizes stand before it on the shelf."""
    first = {(p.kind, p.colour): item for item, p in reversed(list(world.products.items()))}
    return _ordering(world, rng, [item for item in world.products if item not in first.values()])


def _ordering(world: World, rng: random.Random, items: Sequence[str]) -> Made:
    ordered = {item for order in world.orders.values() for item in order.lines}
    item = rng.choice([item for item in items if item not in ordered])
    pieces, to = rng.choice((1, 1, 2)), rng.choice(ADDRESSES)
    goal = f"order {pieces} {world.products[item].name} to {to}, then answer done"
    return goal, {"item": item, "pieces": pieces, "to": to}


def _cancel(world: World, rng: random.Random) -> Made:
    number = rng.choice([n for n, order in world.orders.items() if order.status == OPEN])
    return f"cancel the order of the {_ordered(world, number)}, then answer done", {"number": number}


def _unless(world: World, rng: random.Random) -> Made:
    """Half of these orders have shipped: then another one must not be cancelled instead."""
    status = rng.choice((OPEN, SHIPPED))
    number = rng.choice([n for n, order in world.orders.items() if order.status == status])
    goal = f"cancel the order of the {_ordered(world, number)} unless it has shipped, then answer cancelled or shipped"
    return goal, {"number": number, "answer": "cancelled" if status == OPEN else "shipped"}


def _reply(world: World, rng: random.Random) -> Made:
    number, post = rng.choice([(n, p) for n, p in world.posts.items() if p.author != ME])
    text = f"nice {rng.choice(TOPICS)}"
    return f"reply {text} to {post.title}, then answer done", {"number": number, "text": text}


def _older(world: World, rng: random.Random) -> Made:
    """Two threads of the visitor with one title; the one with fewer replies must go."""
    titles = [p.title for p in world.posts.values()]
    twins = [n for n, p in world.posts.items() if titles.count(p.title) == 2]
    number = min(twins, key=lambda n: len(world.posts[n].replies))
    goal = f"delete your post {world.posts[number].title} that has fewer replies, then answer done"
    return goal, {"number": number}


def _approve(world: World, rng: random.Random) -> Made:
    number = rng.choice(list(world.requests))
    return f"approve the refund of {world.requests[number].customer}, then answer done", {"number": number}


def _limit(world: World, rng: random.Random) -> Made:
    coins = sorted(request.coins for request in world.requests.values())
    most = coins[rng.choice((0, 1))]
    return f"approve the refunds of at most {most} coins and leave the others, then answer done", {"most": most}


def _ordered(world: World, number: str) -> str:
    return world.products[next(iter(world.orders[number].lines))].name


_MAKERS: dict[str, Callable[[World, random.Random], Made]] = {
    **{"find": _find, "count": _count, "status": _status, "replies": _replies},
    **{"order": _order, "cancel": _cancel, "reply": _reply, "approve": _approve},
    **{"variant": _variant, "older": _older, "limit": _limit, "unless": _unless},
}


def wanted(task: Task) -> World:
    """The bazaar as it must be at the end: unchanged but for what the task asks."""
    world, truth = World.build(task.seed, task.split), task.truth
    number = str(truth.get("number", ""))
    match truth["kind"]:
        case "order" | "variant":
            world.put_in_cart(str(truth["item"]), int(truth["pieces"]))
            world.order(str(truth["to"]))
        case "cancel":
            world.cancel(number)
        case "unless" if world.orders[number].status == OPEN:
            world.cancel(number)
        case "reply":
            world.reply(number, str(truth["text"]))
        case "older":
            world.delete_post(number)
        case "approve":
            world.decide(number, True)
        case "limit":
            for key, request in world.requests.items():
                if request.coins <= int(truth["most"]):
                    world.decide(key, True)
    return world


def graded(task: Task, answer: str, state: str) -> float:
    """1.0 if the answer is right and the bazaar (as exported JSON) is exactly as wanted, else 0.0."""
    said = " ".join(answer.lower().strip(" .!\"'").split())
    return float(said == task.truth["answer"] and state == wanted(task).to_json())


# The oracle.

_LINE = re.compile(r'(\w+) "([^"]*)"(?: (e\d+))?(?: (.*))?$')


@dataclass(frozen=True, slots=True)
class _Seen:
    """A page as its text shows it: (role, name, reference, rest) for each line."""

    path: str
    lines: tuple[tuple[str, str, str, str], ...]

    def click(self, name: str) -> Action | None:
        found = next((ref for _, label, ref, _ in self.lines if ref and label == name), None)
        return Action.of("click", ref=found) if found else None

    def menu(self, name: str) -> Action:
        found = next(
            (ref for role, label, ref, _ in self.lines if role == "link" and label.split(" ")[0] == name), None
        )
        return Action.of("click", ref=found) if found else Action.of("goto", path="/")

    def choose(self, choices: dict[str, str]) -> Action | None:
        """The next list that does not show what is wanted of it."""
        for role, label, ref, rest in self.lines:
            if role == "combobox" and label in choices and not rest.startswith(f'= "{choices[label]}"'):
                return Action.of("select", ref=ref, option=choices[label])
        return None

    def texts(self) -> list[str]:
        return [name for role, name, _, _ in self.lines if role == "text"]


def _read(text: str) -> _Seen | None:
    start = text.find('page "bazaar"')
    if start < 0:
        return None
    head, *lines = text[start:].splitlines()
    found = (match for line in lines if (match := _LINE.match(line)))
    return _Seen(head.split(" ")[2], tuple((m[1], m[2], m[3] or "", m[4] or "") for m in found))


def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    """The next right action after any history; what cannot be undone it leaves as it is."""
    pages = [page for turn in history if (page := _read(turn.observation.text)) is not None]
    if not pages:
        return Action.of("goto", path="/")
    here, kind, number = pages[-1], task.truth["kind"], str(task.truth.get("number", ""))
    done = Action.of("answer", text=str(task.truth["answer"]))
    match kind:
        case "find" | "count":
            return _filtered(here, dict(task.truth["filter"])) or done
        case "status":
            return done if here.path == "/orders" else here.menu("orders")
        case "replies":
            return done if here.path == f"/f/{number}" else _at(here, "forum", f"/f/{number}", task)
        case "order" | "variant":
            return _to_order(pages, task, done)
        case "cancel" | "unless":
            return _to_cancel(pages, number, done)
        case "reply":
            return _to_reply(pages, task, done)
        case "older":
            return _to_older(here, task, done)
        case _:
            return _at_desk(here, task, done)


def _at(here: _Seen, menu: str, path: str, task: Task) -> Action:
    """Through the menu to a page that its list names; links of equal names are told apart by their order."""
    if here.path != f"/{menu}":
        return here.menu(menu)
    world = World.build(task.seed, task.split)
    keys = list(world.posts)
    title = world.posts[path.rsplit("/", 1)[1]].title
    same = [key for key in keys if world.posts[key].title == title]
    links = [ref for role, name, ref, _ in here.lines if role == "link" and name == title]
    at = same.index(path.rsplit("/", 1)[1])
    return Action.of("click", ref=links[at]) if at < len(links) else here.menu("home")


def _to_older(here: _Seen, task: Task, done: Action) -> Action:
    """Done once the list shows one thread of that title only."""
    number = str(task.truth["number"])
    if here.path == f"/f/{number}":
        return here.click("delete") or done
    title = World.build(task.seed, task.split).posts[number].title
    alone = sum(role == "link" and name == title for role, name, _, _ in here.lines) < 2
    return done if here.path == "/forum" and alone else _at(here, "forum", f"/f/{number}", task)


def _filtered(here: _Seen, wanted: dict[str, str]) -> Action | None:
    """Sets the facets and shows the result; None once it is shown."""
    if not here.path.startswith("/shop"):
        return here.menu("shop")
    if all(f"{name}={value}" in here.path for name, value in wanted.items()):
        return None
    return here.choose(wanted) or here.click("show")


def _to_order(pages: Sequence[_Seen], task: Task, done: Action) -> Action:
    here, truth = pages[-1], task.truth
    product = World.build(task.seed, task.split).products[str(truth["item"])]
    line = f"{truth['pieces']} {product.name}"
    if any(page.path.startswith("/o/") and line in page.texts() for page in pages):
        return done
    if here.path == "/checkout":
        return here.choose({"to": str(truth["to"])}) or here.click("place order") or here.menu("cart")
    if here.path == "/cart" and (removes := [ref for _, name, ref, _ in here.lines if name == "remove"]):
        wrong = next((i for i, text in enumerate(here.texts()) if text != line), None)
        return Action.of("click", ref=removes[wrong]) if wrong is not None else here.click("checkout") or done
    if any(name.startswith("cart ") and name != "cart 0" for role, name, _, _ in here.lines if role == "link"):
        return here.menu("cart")
    if here.path == f"/p/{item_of(product)}":
        return here.choose({"pieces": str(truth["pieces"])}) or here.click("add to cart") or here.menu("home")
    facets = {"kind": product.kind, "colour": product.colour}
    return _filtered(here, facets) or here.click(product.name) or here.menu("home")


def _to_cancel(pages: Sequence[_Seen], number: str, done: Action) -> Action:
    here = pages[-1]
    if here.path == f"/o/{number}":
        return here.click("cancel") or done
    return here.click(f"order {number}") or here.menu("orders")


def _to_reply(pages: Sequence[_Seen], task: Task, done: Action) -> Action:
    here, number, text = pages[-1], str(task.truth["number"]), str(task.truth["text"])
    if here.path != f"/f/{number}":
        return _at(here, "forum", f"/f/{number}", task)
    if f"{ME}: {text}" in here.texts():
        return done
    field, shown = next((ref, rest) for role, _, ref, rest in here.lines if role == "textbox")
    return here.click("send") or done if shown == f'= "{text}"' else Action.of("fill", ref=field, text=text)


def _at_desk(here: _Seen, task: Task, done: Action) -> Action:
    """Approves, one after the other, what the task names and the list still shows as pending."""
    world, truth = World.build(task.seed, task.split), task.truth
    named = (
        [str(truth["number"])]
        if truth["kind"] == "approve"
        else [n for n, request in world.requests.items() if request.coins <= int(truth["most"])]
    )
    if here.path in [f"/r/{number}" for number in named] and (approve := here.click("approve")):
        return approve
    if here.path != "/desk":
        return here.menu("desk")
    left = [n for n in named if any(_pending(world, n) == text for text in here.texts())]
    return here.click(f"refund {left[0]}") or done if left else done


def _pending(world: World, number: str) -> str:
    request = world.requests[number]
    return f"{request.customer}, {request.coins} coins, {PENDING}"
