"""Recordings: the calls of one session as a tree in a store.

A node is one answer, as in every tree. What the agent asked next is its observation, with the messages beside the text.
How a request follows from what was said before is its link:

    continues   its prompt begins with the prompt and tokens of an earlier answer; the rest is new
    rewrites    it begins like an earlier request (tools and first message), and shows the past otherwise: compaction
    spawns      it has another beginning: a sub-agent, or a new conversation

A request hangs on the answer that it continues; else on the newest answer that nothing followed yet. Asking the same
again draws again at the same node. Going on from one answer in two ways makes a second node of the same draw.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from treewright.agent.gateway.asked import Answer, Asked, Spoken, keys_of, shown, to_action
from treewright.agent.gateway.prompts import Said, Shown, kept, request_json
from treewright.agent.gateway.replies import spoken_action
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Effect, Observation, Task, ToolSpec, digest, seed_of
from treewright.search.header import TreeHeader
from treewright.search.screen import merge_identical
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Draft, Expansion, NodeStatus, Outcome, Spent

__all__ = ["LINKS", "Recording", "request_of"]

LINKS = ("continues", "rewrites", "spawns")
SUITE = "gateway"


def request_of(seen: Observation | None) -> dict[str, Any] | None:
    """What a node keeps of the request that it was asked with: see `prompts.request_json`; None without one."""
    parts = seen.parts if seen is not None else ()
    return next((dict(part) for part in parts if part.get("type") == "request"), None)


@dataclass(slots=True)
class Recording:
    """One session. It is also what the prompts of its next requests know."""

    name: str
    run: str
    version: str
    store: TreeStore | None
    attempt: int = 0
    tree: Tree | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0
    _ends: dict[str, int] = field(default_factory=dict)  # key of a beginning that ends with an answer: its node
    _asks: dict[str, int] = field(default_factory=dict)  # key of a whole request: the node it was drawn at
    _said: dict[str, int] = field(default_factory=dict)  # content of an answer: the newest node that said it
    _openings: set[str] = field(default_factory=set)

    # -- what is known ------------------------------------------------------------------------------------------

    def whole(self, key: str) -> tuple[int, ...] | None:
        """Prompt and tokens of the answer that a beginning ends with."""
        node = self._ends.get(key)
        return None if node is None or self.tree is None else _whole(self.tree, node)

    def answer(self, spoken: Spoken) -> Said | None:
        """The newest answer of this content."""
        node = self._said.get(spoken.canonical())
        return None if node is None or self.tree is None else Said(self.tree.text[node], self.tree.ids[node])

    # -- recording ----------------------------------------------------------------------------------------------

    async def add(self, asked: Asked, shown_as: Shown, seeds: Sequence[int], answers: Sequence[Answer]) -> None:
        """Adds one call with its answers; returns once it is committed. Raises StoreError where it cannot be."""
        async with self.lock:
            node, outcome = self._place(asked, shown_as)
            if self.tree is None:
                await self._begin(asked, outcome)
            elif node > 0 and outcome is not None and self.tree.observation[node] is not None:
                node = await self._twin(node)
            tree = self._grown()
            await self._apply(self._expansion(tree, node, outcome if node else None, seeds, answers))
            self._note(asked, shown_as.keys, node, answers)

    def _place(self, asked: Asked, shown_as: Shown) -> tuple[int, Outcome | None]:
        """The node that the draws are made at, and what the request shows there if it was not shown yet."""
        tree, keys = self.tree, shown_as.keys
        if tree is None:
            return 0, _outcome(asked, shown_as, 0, "spawns", ())
        if (again := self._asks.get(keys[-1])) is not None:
            return again, None
        if shown_as.covered:
            of = self._ends[keys[shown_as.covered]]
            node = self._after_detours(tree, of)
            return node, _outcome(asked, shown_as, shown_as.covered, "continues", _whole(tree, node), tree.depth[of])
        node = next((i for i in range(len(tree) - 1, 0, -1) if tree.observation[i] is None), len(tree) - 1)
        link = "rewrites" if keys[1] in self._openings else "spawns"
        return node, _outcome(asked, shown_as, 0, link, _whole(tree, node))

    def _after_detours(self, tree: Tree, node: int) -> int:
        """`node`, or, where only other conversations followed it, the newest answer of theirs."""
        while (seen := tree.observation[node]) is not None and tree.children[node]:
            request = request_of(seen)
            if request is None or request["link"] == "continues":
                return node
            node = tree.children[node][-1]
        return node

    def _grown(self) -> Tree:
        if self.tree is None:
            raise TreewrightError("a recording without its first request")
        return self.tree

    async def _begin(self, asked: Asked, root: Outcome | None) -> None:
        assert root is not None
        goal = next((one.text for one in asked.said if one.role == "user"), asked.said[0].text)
        header = TreeHeader(
            run=self.run, task=Task(SUITE, self.name, goal[:2000]), attempt=self.attempt,
            seed=seed_of("recorded", self.run, self.name, self.attempt), policy_version=self.version,
            settings={"rule": "recorded", "model": asked.model}, root=root,
        )  # fmt: skip
        self.tree = Tree.start(header)
        if self.store is not None:
            await self.store.create(header)

    async def _twin(self, node: int) -> int:
        """The same draw once more beside `node`, for what follows it the second time."""
        tree = self._grown()
        above, draft = tree.parent[node], tree.draft(node)
        twin = Draft(
            after=0, slot=tree.drawn[above], mult=1, share=1.0, seed=seed_of(draft.seed, "twin", len(tree)),
            completion=draft.completion, action=draft.action, effect=Effect.READ,
        )  # fmt: skip
        made = Expansion(
            seq=len(tree.pops), node=above, closing=False, drawn=1, outcome=None, drafts=(twin,), spent=Spent()
        )
        await self._apply(made)
        return len(tree) - 1

    def _expansion(
        self, tree: Tree, node: int, outcome: Outcome | None, seeds: Sequence[int], answers: Sequence[Answer]
    ) -> Expansion:
        first, count = tree.drawn[node], len(answers)
        drafts = tuple(
            Draft(
                after=0, slot=first + slot, mult=mult, share=mult / count, seed=seeds[slot], completion=done,
                action=to_action(answers[slot]), effect=Effect.READ,
            )
            for slot, mult, done in merge_identical([one.completion for one in answers])
        )  # fmt: skip
        tokens = sum(one.completion.tokens for one in answers)
        cost = Spent(expansions=1, policy_tokens=tokens, env_steps=0 if outcome is None else 1)
        return Expansion(
            seq=len(tree.pops), node=node, closing=False, drawn=count, outcome=outcome, drafts=drafts, spent=cost
        )

    async def _apply(self, expansion: Expansion) -> None:
        tree = self._grown()
        new = tree.apply(expansion)
        if self.store is not None:
            await self.store.append(tree.tree_id, expansion, new.start)

    def _note(self, asked: Asked, keys: Sequence[str], node: int, answers: Sequence[Answer]) -> None:
        tree = self._grown()
        self.calls += 1
        self._asks[keys[-1]] = node
        self._openings.add(keys[1])
        by_slot = {tree.slot[child]: child for child in tree.children[node]}
        newest = sorted(by_slot)[-len({(a.completion.token_ids or a.completion.text) for a in answers}) :]
        for slot in newest:
            child = by_slot[slot]
            action = tree.action[child]
            if action is not None:
                self._remember(keys[-1], spoken_action(action, "").spoken, child)

    def _remember(self, key: str, spoken: Spoken, node: int) -> None:
        said = spoken.canonical()
        self._ends[digest(key, said)] = node
        self._said[said] = node

    # -- ends and beginnings ------------------------------------------------------------------------------------

    async def end(self, reward: float | None) -> str:
        """Finishes the recording: its newest answer ends the episode, with this reward. Returns the tree's id."""
        async with self.lock:
            tree = self.tree
            if tree is None:
                raise TreewrightError(f"session {self.name!r} has no call yet")
            last = next((i for i in range(len(tree) - 1, 0, -1) if tree.observation[i] is None), len(tree) - 1)
            over = Outcome(
                observation=Observation("", digest(self.name, "end"), provenance="agent"), status=NodeStatus.TERMINAL,
                reward=math.nan if reward is None else reward, steps=1,
            )  # fmt: skip
            await self._apply(
                Expansion(seq=len(tree.pops), node=last, closing=False, drawn=0, outcome=over, drafts=(), spent=Spent())
            )
            tree.chosen = last
            if reward is None:
                tree.inexact("recorded without a reward")
            tree.reveal()
            if self.store is not None:
                await self.store.finish(tree)
            return tree.tree_id

    @classmethod
    def resumed(cls, name: str, run: str, version: str, store: TreeStore, attempt: int = 0) -> Recording:
        """A session as the store has it: new, to be gone on with, or, where it was ended, its next attempt."""
        while True:
            one = cls(name, run, version, store, attempt)
            tree_id = digest(run, f"{SUITE}/{name}", str(attempt))
            status = store.status(tree_id)
            if status is None:
                return one
            if status != "done":
                one.tree = store.load(tree_id)
                one._read_back()
                return one
            attempt += 1

    def _read_back(self) -> None:
        """What is known, from the tree alone."""
        tree = self._grown()
        said: dict[int, tuple[Spoken, ...]] = {}
        for node in range(len(tree)):
            request = request_of(tree.observation[node])
            if request is None:
                continue
            before: tuple[Spoken, ...] = ()
            if request["start"]:
                of = tree.path(node)[request["of"]]
                if (action := tree.action[of]) is not None:
                    before = (*said[tree.parent[of]], spoken_action(action, "").spoken)
            said[node] = (*before, *map(Spoken.from_json, request["messages"]))
            tools = tuple(ToolSpec(t["name"], t["description"], t["parameters"]) for t in json.loads(request["tools"]))
            asked = Asked(api=request["api"], model=request["model"], said=said[node], tools=tools)
            keys = keys_of(asked)
            self._asks.setdefault(keys[-1], node)
            self._openings.add(keys[1])
            for child in tree.children[node]:
                if (action := tree.action[child]) is not None:
                    self._remember(keys[-1], spoken_action(action, "").spoken, child)
        self.calls = len(tree.pops)


def _whole(tree: Tree, node: int) -> tuple[int, ...]:
    """Prompt and tokens of an answer; () for the root and for policies without token ids."""
    if node <= 0:
        return ()
    above = tree.context_ids(tree.parent[node])
    return above + tree.ids[node] if above else ()


def _outcome(asked: Asked, shown_as: Shown, start: int, link: str, base: tuple[int, ...], of: int = 0) -> Outcome:
    part = {**request_json(asked, start, link), "of": of}
    keep, delta = kept(base, shown_as.context.ids)
    seen = Observation(
        shown(asked.said[start:]), digest("request", shown_as.keys[-1]), provenance="agent", parts=(part,)
    )
    return Outcome(observation=seen, status=NodeStatus.OPEN, keep=keep, delta=delta, steps=0)
