"""Exploring a site without tasks: a tree grown by novelty, its paths verified by replay, and tasks made of them.

Every usable element of a page is a draft. What is popped next is what most likely leads to a state that was not seen
yet; a state that was seen before is remembered for the whole tree and not gone on from. In a live world only reads and
what can be undone is executed, as in any search. A path becomes a task if a fresh session gets to its end by replay.
"""

from __future__ import annotations

import heapq
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from treewright.agent.policies.scripted import END, ScriptedPolicy, Situation
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Observation, Task, ToolSpec, seed_of
from treewright.envs.web.sameness import SiteMemory
from treewright.search.engine import Keeper, Settings, search
from treewright.search.restore import Pool, Snapshots, Waypoint
from treewright.search.rules import Rule
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Context, Exchange, NodeStatus

__all__ = ["Explored", "Explorer", "choices", "explore", "novelty", "wander"]

_LINE = re.compile(r'^([\w-]+) ("(?:[^"\\]|\\.)*") (e\d+) ?(.*)$')
_HEAD = re.compile(r'^page ("(?:[^"\\]|\\.)*") (\S+)')
_SWITCHES = frozenset({"checkbox", "switch", "menuitemcheckbox"})
_FIELDS = frozenset({"textbox", "searchbox"})
_OPTIONS = 3  # of one list that are tried
_WORDS = ("a", "red", "1")  # what is written into fields
MOST = 24  # drafts of a page
_TELLING = 2  # texts that the last step brought, which a task asks for
SHOWN = frozenset({NodeStatus.OPEN, NodeStatus.EXPANDED, NodeStatus.TRUNCATED})


# -- what can be done -----------------------------------------------------------------------------------------------


def choices(text: str, tools: Sequence[str]) -> list[Action]:
    """What a person might try on a page, in reading order; at most MOST things."""
    found: list[Action] = []
    for line in text.splitlines():
        if (match := _LINE.match(line)) is None or " disabled" in f" {match[4]}":
            continue
        role, ref, rest = match[1], match[3], match[4]
        if role in _SWITCHES:
            found.append(Action.of("check", ref=ref, on="checked" not in rest))
        elif " from " in f" {rest}":
            held, _, offered = rest.partition("from ")
            options = [option for option in json.loads(f"[{offered}]") if json.dumps(option) not in held]
            found += [Action.of("select", ref=ref, option=option) for option in options[:_OPTIONS]]
        elif role in _FIELDS:
            found += [Action.of("fill", ref=ref, text=word) for word in _WORDS if f"= {json.dumps(word)}" not in rest]
        elif role not in ("scrollable", "editor", "slider", "spinbutton", "droppable", "draggable"):
            found.append(Action.of("click", ref=ref))
    return [action for action in found if action.name in tools][:MOST]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page(Situation):
    """A situation with the page that is acted on."""

    text: str


class Explorer(ScriptedPolicy):
    """Draws what can be done on a page: each choice once, in an order that depends on the seed alone."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(lambda *_: "", name="explorer", version="explorer", trainable=False, newest_only=True)
        self.seed = seed

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        known = super().context(task, tools, first, turns, base)
        text = turns[-1].observation.text if turns else first.text
        return _Page(
            keep=known.keep,
            delta=known.delta,
            ids=known.ids,
            task=task,
            first=first,
            turns=tuple(turns),
            tools=tuple(tools),
            text=text,
        )

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        if not isinstance(context, _Page):
            raise TreewrightError(f"{self.name} was given a context it did not make")
        named = [tool.name for tool in context.tools]
        order = choices(context.text, named) or [Action.of("back")]
        random.Random(seed_of(self.seed, context.text)).shuffle(order)
        drawn = (order[i % len(order)] for i in range(len(seeds)))
        return [self._completion(action) for action in drawn]

    def _completion(self, action: Action) -> Completion:
        text = f"{action.name} {json.dumps(dict(action.arguments), ensure_ascii=False)}"
        ids = (*text.encode("utf-8", "replace"), END)
        return Completion(text, ids, (0.0,) * len(ids), policy_version=self.version, trainable=False)


# -- in which order -------------------------------------------------------------------------------------------------


class _Novel:
    """What most likely leads to a new state first; children of states that were seen before are dropped.

    What is done by the same name, numbers aside, leads as a rule to the same place, and what once led to something new
    (a facet, a further piece in the cart) often does so again. So drafts wait in groups by their labels; a group counts
    by the share of its tries that were new, which is 1 until it has been tried. Equal ones: tried least, then shallow.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.dropped: list[int] = []
        self._groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self._labels: dict[int, tuple[str, ...]] = {}
        self._tried: Counter[tuple[str, ...]] = Counter()
        self._new: Counter[tuple[str, ...]] = Counter()
        self._first: dict[str, int] = {}

    def offer(self, node: int) -> None:
        if self._seen_before(self.tree.parent[node]):
            self.dropped.append(node)
        else:
            heapq.heappush(self._groups.setdefault(self._label(node), []), (self.tree.depth[node], node))

    def peek(self) -> int | None:
        return self._groups[min(self._groups, key=self._key)][0][1] if self._groups else None

    def take(self) -> int:
        node = self.peek()
        if node is None:
            raise IndexError("nothing waits")
        label = self._label(node)
        heapq.heappop(self._groups[label])
        if not self._groups[label]:
            del self._groups[label]
        self._tried.update((label, label[1:]))
        return node

    def applied(self, node: int, new: range) -> None:
        for one in (node, *new):
            seen = self.tree.observation[one]
            if seen is None or self.tree.error[one] is not None or seen.fingerprint in self._first:
                continue
            self._first[seen.fingerprint] = one
            label = self._label(one)
            self._new.update((label, label[1:]))

    def _seen_before(self, node: int) -> bool:
        seen = self.tree.observation[node] if node >= 0 else None
        return seen is not None and self._first.get(seen.fingerprint, node) != node

    def _key(self, label: tuple[str, ...]) -> tuple[float, int, int, int, int]:
        """Smallest for what is popped next; a label says little at first, and so stands beside its name elsewhere."""
        tried, named = self._tried[label], self._tried[label[1:]]
        elsewhere = (self._new[label[1:]] + 1) / (named + 1)
        share = (self._new[label] + elsewhere) / (tried + 1)
        return -round(share, 1), named, tried, *self._groups[label][0]

    def _label(self, node: int) -> tuple[str, ...]:
        if node not in self._labels:
            self._labels[node] = _label(self.tree, node)
        return self._labels[node]


def _label(tree: Tree, node: int) -> tuple[str, ...]:
    """The kind of page, the kind of action and what it is done on, numbers aside."""
    parent, action = tree.parent[node], tree.action[node]
    seen = tree.observation[parent] if parent >= 0 else None
    if action is None or seen is None:
        return ("",)
    role, name = _named(seen.text, str(action.arguments.get("ref", "")))
    more = str(action.arguments.get("option", ""))
    return _kind(seen.text), action.name, role, re.sub(r"\d+", "#", name), more


def _kind(text: str) -> str:
    head = _HEAD.match(text)
    return SiteMemory.kind(f"http://site{head[2]}") if head else ""


def _named(text: str, ref: str) -> tuple[str, str]:
    """Role and name of an element by its reference."""
    for line in text.splitlines():
        if (match := _LINE.match(line)) is not None and match[3] == ref:
            return match[1], str(json.loads(match[2]))
    return "", ""


def novelty() -> Rule:
    """The order of exploration; see the module's docstring. Lazy: a draft is executed when its turn comes."""
    return Rule(
        name="novelty()",
        priority=lambda node: 0.0,
        draws=lambda node: MOST,
        eager=False,
        frontier=_Novel,
        prunes="states that were seen before",
        foresees=True,
    )


# -- exploring ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Explored:
    """What was found: the tree, one node for each state, those that a fresh session reached by replay, and tasks."""

    tree: Tree
    states: list[int]
    verified: list[int]
    tasks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def addresses(self) -> set[str]:
        """Where the states are, without the site's own address."""
        seen = (self.tree.observation[node] for node in self.states)
        return {head[2] for one in seen if one is not None and (head := _HEAD.match(one.text))}

    @property
    def kinds(self) -> set[str]:
        """Kinds of pages, by their addresses."""
        return {SiteMemory.kind(f"http://site{address}") for address in self.addresses}


async def explore(
    task: Task, pool: Pool, steps: int, *, explorers: int = 1, seed: int = 0, store: Keeper | None = None,
    run: str = "explore",
) -> Explored:  # fmt: skip
    """Grows the tree within `steps` steps of the world, and verifies every path to a new state by replay."""
    tree = await search(
        replace(task, horizon=max(task.horizon, 30)), pool, Explorer(seed), rule=novelty(),
        budget=Budget(env_steps=steps), settings=Settings(run=run, seed=seed, in_flight=explorers, max_tokens=512),
        store=store,
    )  # fmt: skip
    states = _states(tree)
    verified = [node for node in states if await _replays(tree, pool, node)]
    tasks = [made for node in verified if node and (made := _task(tree, node)) is not None]
    unique = {json.dumps(made["reward"], sort_keys=True): made for made in reversed(tasks)}
    return Explored(tree, states, verified, list(reversed(unique.values())))


def _states(tree: Tree) -> list[int]:
    """The first node of each state, invalid output aside."""
    first: dict[str, int] = {}
    for node in range(len(tree)):
        seen = tree.observation[node]
        if seen is not None and tree.error[node] is None and tree.status[node] in SHOWN:
            first.setdefault(seen.fingerprint, node)
    return list(first.values())


async def _replays(tree: Tree, pool: Pool, node: int) -> bool:
    """Whether a session that begins anew gets there."""
    path = []
    for i in tree.path(node):
        seen = tree.observation[i]
        assert seen is not None
        path.append(
            Waypoint(tree.seed[i], tree.key(i), tree.action[i] if i else None, seen.fingerprint, tree.effect[i])
        )
    async with pool.lease("verify") as session:
        session.lost()
        try:
            await pool.reach(session, f"verify {node}", tree.task, path, Snapshots(0))
        except TreewrightError:
            session.lost()
            return False
    return True


async def wander(task: Task, pool: Pool, steps: int, seed: int = 0, length: int = 15) -> int:
    """The states that a random walk sees in as many steps, begun anew every `length` of them."""
    chance, seen = random.Random(seed), set[str]()
    async with pool.lease("wander") as session:
        for step in range(steps):
            if step % length == 0:
                shown = await session.env.reset(task, step)
                seen.add(shown.fingerprint)
            tools = [tool.name for tool in await session.env.actions()]
            order = choices(shown.text, tools) or [Action.of("back")]
            action = chance.choice(order)
            try:
                if session.env.sandboxed or not (await session.env.effect(action)).needs_commit:
                    shown = (await session.env.step(action, step)).observation
                    seen.add(shown.fingerprint)
            except TreewrightError:
                continue
        session.lost()
    return len(seen)


# -- tasks ----------------------------------------------------------------------------------------------------------


def _task(tree: Tree, node: int) -> dict[str, Any] | None:
    """A task whose outcome can be checked: the address, and texts that the last step brought; None without either."""
    path = tree.path(node)
    seen, before = tree.observation[node], tree.observation[path[-2]]
    if seen is None or before is None or (head := _HEAD.match(seen.text)) is None:
        return None
    there = set(before.text.splitlines())
    new = [line for line in seen.text.splitlines()[1:] if line not in there and line.startswith(("heading ", "text "))]
    new.sort(key=lambda line: (not line.startswith("heading "), -min(len(line), 80)))
    words = [json.loads(line.partition(" ")[2]) for line in new[:_TELLING]]
    old = _HEAD.match(before.text)
    if not words and (old is None or old[2] == head[2]):
        return None
    reward = {"url": head[2], **({"text": words} if words else {})}
    goal = "; then ".join(_told(tree, step) for step in path[1:][-4:])
    return {"id": f"n{node}", "goal": goal, "reward": reward, "split": "test" if node % 5 == 0 else "train"}


def _told(tree: Tree, node: int) -> str:
    """One step in words, by a template."""
    action, seen = tree.action[node], tree.observation[tree.parent[node]]
    if action is None or seen is None:
        return ""
    role, name = _named(seen.text, str(action.arguments.get("ref", "")))
    given = action.arguments
    what = f'the {role} "{name}"' if name else f"the {role}"
    if action.name == "select":
        return f'choose "{given["option"]}" in {what}'
    if action.name == "fill":
        return f'write "{given["text"]}" into {what}'
    if action.name == "check":
        return f"turn {what} {'on' if given['on'] else 'off'}"
    return f"{'go back' if action.name == 'back' else f'open {what}'}"
