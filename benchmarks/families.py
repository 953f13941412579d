"""The token trees that every measurement runs on, as segments scaled to a wanted number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from treewright.kernels.tree_plan import TreePlan

__all__ = ["FAMILIES", "Family", "trajectories"]

Segments = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Family:
    """A shape of tree: ``build(rng)`` gives parent segments and lengths at its natural size."""

    name: str
    build: Callable[[np.random.Generator], Segments]

    def plan(self, tokens: int, seed: int = 0) -> TreePlan:
        """A fresh tree of this shape with `tokens` tokens: natural lengths scaled, the last segment making up."""
        parent, natural = self.build(np.random.default_rng(seed))
        lengths = np.maximum(1, np.asarray(natural) * tokens // sum(natural))
        lengths[-1] = max(1, lengths[-1] + tokens - lengths.sum())
        return TreePlan.from_segments(parent, lengths)


def trajectories(plan: TreePlan) -> list[np.ndarray]:
    """Key coordinates of each root-to-leaf path, int64: what training without a tree would have as rows."""
    parent = plan.parent.cpu().numpy()
    index = np.arange(len(parent))
    run_start = np.maximum.accumulate(np.where(parent == index - 1, 0, index))
    inner = np.zeros(len(parent), dtype=bool)
    inner[parent[parent >= 0]] = True
    rows = []
    for leaf in np.flatnonzero(~inner):
        stretches, token = [], int(leaf)
        while token >= 0:
            stretches.append(np.arange(run_start[token], token + 1))
            token = int(parent[run_start[token]])
        rows.append(np.concatenate(stretches[::-1]))
    return rows


def _flat(prefix: int, count: int, length: int) -> Callable[[np.random.Generator], Segments]:
    return lambda rng: ([-1] + [0] * count, [prefix] + [length] * count)


def _random(depth: int, low: int, high: int, widest: int) -> Callable[[np.random.Generator], Segments]:
    """Every inner segment has 1 to `widest` children, every segment low to high tokens."""

    def build(rng: np.random.Generator) -> Segments:
        parent: list[int] = []
        lengths: list[int] = []

        def grow(up: int, level: int) -> None:
            here = len(parent)
            parent.append(up)
            lengths.append(int(rng.integers(low, high + 1)))
            for _ in range(int(rng.integers(1, widest + 1)) if level < depth else 0):
                grow(here, level + 1)

        grow(-1, 1)
        return parent, lengths

    return build


def _binary(depth: int, length: int) -> Callable[[np.random.Generator], Segments]:
    def build(rng: np.random.Generator) -> Segments:
        parent: list[int] = []

        def grow(up: int, level: int) -> None:
            here = len(parent)
            parent.append(up)
            for _ in range(2 if level < depth else 0):
                grow(here, level + 1)

        grow(-1, 1)
        return parent, [length] * len(parent)

    return build


def _comb(teeth: int, spine: int, tooth: int) -> Callable[[np.random.Generator], Segments]:
    """A chain of spine segments, each with a tooth; a tooth comes before the next spine segment."""

    def build(rng: np.random.Generator) -> Segments:
        parent: list[int] = []
        for i in range(teeth):
            parent += [2 * (i - 1) if i else -1, 2 * i]
        return parent, [spine, tooth] * teeth

    return build


FAMILIES = (
    Family("flat 2k + 16 x 1k", _flat(2048, 16, 1024)),
    Family("flat 32k + 64 x 512", _flat(32768, 64, 512)),
    Family("binary depth 6 x 512", _binary(6, 512)),
    Family("binary depth 6 x 32, forest", lambda rng: _forest(_binary(6, 32), 8, rng)),
    Family("random depth 5, 50-2k", _random(5, 50, 2000, 3)),
    Family("random depth 6, 30-800", _random(6, 30, 800, 3)),
    Family("comb 32 x (512 + 512)", _comb(32, 512, 512)),
    Family("comb 64 x (300 + 200)", _comb(64, 300, 200)),
    Family("pure causal", lambda rng: ([-1], [16384])),
    Family("packed documents", lambda rng: ([-1] * 16, [int(n) for n in rng.integers(200, 2000, 16)])),
)


def _forest(build: Callable[[np.random.Generator], Segments], trees: int, rng: np.random.Generator) -> Segments:
    parent: list[int] = []
    lengths: list[int] = []
    for _ in range(trees):
        more, sizes = build(rng)
        parent += [p + len(lengths) if p >= 0 else -1 for p in more]
        lengths += sizes
    return parent, lengths
