"""Stores to look at: trees with tokens, errors, faults, effects, late execution, closings and pictures."""

from __future__ import annotations

import asyncio
import math
import random
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from not_none import not_none

from treewright.envs.types import Action, Effect, Observation, Task
from treewright.search.store import TreeStore
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

DONE = NodeStatus.TERMINAL
PLACES = ["harbour", "mill", "old bridge", "library", "north gate", "tower", "market square", "orchard"]


def png(width: int = 96, height: int = 54, hue: int = 200) -> bytes:
    """A small picture: a gradient."""
    rows = b"".join(
        b"\0" + bytes(v for x in range(width) for v in (hue, 255 * x // width, 255 * y // height))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Growth:
    """One tree and the expansions that made it."""

    def __init__(
        self,
        goal: str = "Find the mill",
        task: str = "walk-1",
        run: str = "first",
        version: str = "walker-1",
        attempt: int = 0,
        text: Callable[..., Any] | None = None,
    ) -> None:
        self.text = text or (lambda kind, words: words)
        said = self.text("observation", f"You stand at the crossroads.\n{goal}\nWays: north, east, south.")
        root = Outcome(Observation(said, "f0"), NodeStatus.OPEN, delta=tuple(said.encode("utf-8", "replace")))
        header = TreeHeader(
            run=run,
            task=Task("walks", task, self.text("goal", goal), split="train"),
            attempt=attempt,
            seed=7,
            policy_version=version,
            settings={},
            root=root,
        )
        self.expansions: list[Any]
        self.tree, self.expansions = Tree.start(header), []
        self.rng = random.Random(f"{task} {run} {version} {attempt}")

    def apply(
        self,
        node: int,
        drafts: list[Any],
        closing: bool = False,
        outcome: Outcome | None = None,
        fault: str | None = None,
        drawn: int | None = None,
    ) -> range:
        base = len(self.tree.context_ids(node))
        drafts = [
            replace(d, outcome=replace(d.outcome, keep=base + len(d.completion.token_ids))) if d.outcome else d
            for d in drafts
        ]
        drawn = (1 if closing else sum(d.mult for d in drafts)) if drawn is None else drawn
        tokens = sum(len(d.completion.token_ids) * d.mult for d in drafts)
        spent = (
            Spent(closing_tokens=tokens)
            if closing
            else Spent(expansions=1, policy_tokens=tokens, env_steps=len(drafts), seconds=0.1)
        )
        seq = len(self.tree.pops)
        expansion = Expansion(
            seq=seq,
            node=node,
            closing=closing,
            drawn=drawn,
            outcome=outcome,
            drafts=tuple(drafts),
            spent=spent,
            fault=fault,
        )
        self.expansions.append((expansion, len(self.tree)))
        return self.tree.apply(expansion)

    def draft(
        self,
        words: str | None = None,
        outcome: Outcome | None = None,
        score: float = math.nan,
        effect: Effect = Effect.READ,
        error: str | None = None,
        share: float = 0.5,
        after: int = 0,
    ) -> Draft:
        rng = self.rng
        place = rng.choice(PLACES)
        words = self.text("text", words or f'go {{"to": "{place}"}}')
        ids = (*words.encode("utf-8", "replace"), 256)
        logprobs = tuple(round(-rng.expovariate(3.0), 4) for _ in ids)
        done = Completion(words, ids, logprobs, finish_reason="stop", policy_version=self.tree.header.policy_version)
        action = None if error else Action.of(self.text("action", "go"), to=self.text("argument", place))
        seed = rng.getrandbits(60)
        return Draft(
            after=after,
            slot=0,
            mult=1,
            share=share,
            seed=seed,
            completion=done,
            action=action,
            error=error,
            effect=effect,
            score=score,
            outcome=outcome,
        )

    def seen(
        self,
        depth: int,
        end: bool = False,
        reward: float = 0.0,
        effect: Effect = Effect.READ,
        error: Any = None,
        fault: str | None = None,
        parts: tuple[dict[str, Any], ...] = (),
    ) -> Outcome:
        place = self.rng.choice(PLACES)
        words = self.text(
            "observation", f"You are at the {place} after {depth} turns.\nWays: north, east, south, west."
        )
        status = DONE if end else NodeStatus.OPEN
        if fault:
            status = NodeStatus.FAULT
        seen = Observation(words, f"f{self.rng.random()}", provenance=self.text("provenance", "page"), parts=parts)
        delta = tuple(f"\n{words}\n".encode("utf-8", "replace"))
        return Outcome(
            seen,
            status,
            reward=math.nan if fault else reward,
            effect=effect,
            keep=0,
            delta=() if end else delta,
            error=error,
            fault=fault,
        )

    def grow(self, expansions: int = 12, draws: int = 3, horizon: int = 8) -> Growth:
        """Best-first by a noisy score; every draft is executed at birth."""
        rng, quality = self.rng, {0: 0.5}
        waiting = {0}
        for _ in range(expansions):
            if not waiting:
                break
            node = max(waiting, key=lambda i: (quality[i], -i))
            waiting.discard(node)
            depth, drafts, kept = self.tree.depth[node] + 1, [], []
            for _ in range(draws):
                good = min(0.98, max(0.02, quality[node] + rng.gauss(0.02, 0.13)))
                end = depth >= horizon or rng.random() < 0.12
                risky = (
                    Effect.IRREVERSIBLE
                    if end and rng.random() < 0.3
                    else rng.choice([Effect.READ] * 3 + [Effect.REVERSIBLE])
                )
                error = "no such way: choose one of north, east, south" if rng.random() < 0.05 else None
                parts = ({"type": "image", "png": png(hue=rng.randrange(255))},) if rng.random() < 0.2 else ()
                outcome = self.seen(
                    depth,
                    end,
                    float(end and rng.random() < good * good),
                    risky,
                    self.text("error", error) if error else None,
                    parts=parts,
                )
                drafts.append(self.draft(None, outcome, good, risky, outcome.error, 1 / draws))
                kept.append((good, end))
            for i, (good, end) in zip(self.apply(node, drafts), kept, strict=True):
                quality[i] = good
                if not end:
                    waiting.add(i)
        for node in sorted(waiting):
            self.apply(
                node,
                [self.draft(None, self.seen(horizon, True, float(rng.random() < quality[node] ** 3)), share=1.0)],
                closing=True,
            )
        leaves = self.tree.leaves()
        self.tree.chosen = max(leaves, key=lambda i: (quality.get(self.tree.parent[i], 0), -i))
        return self


def big(nodes: int = 10_000, **options: Any) -> Growth:
    """A tree of about so many nodes, bushy and uneven, with short texts."""
    grown = Growth(**options)
    rng, open_nodes = grown.rng, [0]
    while len(grown.tree) < nodes:
        node = open_nodes.pop(rng.randrange(max(0, len(open_nodes) - 40), len(open_nodes)))
        depth = grown.tree.depth[node] + 1
        drafts = []
        for _ in range(8):
            end = depth > 30 or rng.random() < 0.3
            drafts.append(
                grown.draft(
                    "go {}", grown.seen(depth, end, float(end and rng.random() < 0.2)), rng.random(), share=1 / 8
                )
            )
        for i, draft in zip(grown.apply(node, drafts), drafts, strict=True):
            if not_none(draft.outcome).status is NodeStatus.OPEN:
                open_nodes.append(i)
        open_nodes = open_nodes or [0]
    grown.tree.chosen = max(grown.tree.leaves(), key=lambda i: grown.tree.depth[i])
    return grown


async def keep(store: TreeStore, growth: Growth, finish: bool = True) -> None:
    await store.create(growth.tree.header)
    for expansion, first in growth.expansions:
        store.append(growth.tree.tree_id, expansion, first)
    await store.flush()
    if finish:
        await store.finish(growth.tree)


def write_store(path: Path | str, growths: list[Any], finish: bool = True) -> Any:
    """A new store with these trees."""

    async def work() -> None:
        with TreeStore.open(path) as store:
            for growth in growths:
                await keep(store, growth, finish)

    with ThreadPoolExecutor(1) as pool:  # also where a loop runs already
        pool.submit(lambda: asyncio.run(work())).result()
    return path


def walks(tasks: int = 6) -> list[Any]:
    """Trees of several tasks under two runs; the second policy is a little better."""
    goals = ["Find the mill", "Reach the tower before night", "Meet the miller's daughter at the old bridge"]
    return [
        Growth(goals[i % 3], f"walk-{i}", run, version).grow(6 + 4 * i + 6 * (run == "second"))
        for i in range(tasks)
        for run, version in (("first", "walker-1"), ("second", "walker-2"))
    ]
