"""Random trees with every feature of the representation, for the tests of credit."""

from __future__ import annotations

from typing import Any

import numpy as np

from treewright.training.credit import TreeArrays


def random_tree(seed: int, *, nodes: int = 40, exact: bool = True, group: int = 0, plain: bool = False) -> TreeArrays:
    """One random tree. Not `exact` adds faults, open ends, unknown rewards; `plain` has neither roulette nor aux."""
    rng = np.random.default_rng(seed)
    parent, mult, k = [-1], [1], [0]
    share, aux = [1.0], [False]
    queue = [0]
    while queue and len(parent) < nodes:
        p = queue.pop(int(rng.integers(len(queue))))
        draws = int(rng.choice([1, 1, 2, 3, 4, 6]))
        k[p] = draws
        first, left, reserve = len(parent), draws, 1.0
        uneven = rng.random() < 0.2
        while left:
            m = int(rng.integers(1, left + 1)) if rng.random() < 0.3 else 1
            left -= m
            part = reserve if not left else reserve * rng.uniform(0.2, 0.6)
            reserve -= part
            parent.append(p)
            mult.append(m)
            k.append(0)
            aux.append(False)
            share.append(part if uneven else m / draws)
        queue += [c for c in range(first, len(parent)) if rng.random() < 0.7]
        if not plain and rng.random() < 0.2:
            parent.append(p)
            mult.append(1)
            k.append(0)
            aux.append(True)
            share.append(0.0)
    n = len(parent)
    is_aux, up = np.array(aux), np.array(parent)
    leaf = np.bincount(up[1:], minlength=n) == 0
    only_aux = np.zeros(n, bool)
    only_aux[up[is_aux]] = True
    coin = (rng.random(n) < 0.3) & ~is_aux & (up >= 0) & (not plain)
    keep = np.where(coin, rng.uniform(0.2, 0.9, n), 1.0)
    kept = rng.random(n) < keep
    truncated = leaf & kept & (rng.random(n) < 0.2)
    columns = dict(
        mult=mult, k=k, share=share, aux=aux, keep_prob=keep, kept=kept, truncated=truncated,
        control=np.where(coin, rng.normal(size=n), 0.0),
        reward=np.where(leaf | (rng.random(n) < 0.3), rng.normal(size=n), 0.0),
        terminal=leaf & kept & ~truncated, n_tokens=rng.integers(1, 9, n) * (up >= 0), group=np.full(n, group),
        state_key=rng.integers(0, max(2, n // 2), n), call_ok=rng.random(n) < 0.8,
    )  # fmt: skip
    if not exact:
        columns["fault"] = (rng.random(n) < 0.1) & (up >= 0)
        columns["executed"] = (rng.random(n) > 0.1) | (up < 0)
        columns["reward"] = np.where(rng.random(n) < 0.1, np.nan, columns["reward"])
        columns["terminal"] = columns["terminal"] & (rng.random(n) > 0.1)
    return TreeArrays.of(up, **columns)


def random_batch(seed: int, trees: int = 4, groups: int = 2, **options: Any) -> TreeArrays:
    batch = [random_tree(seed * 100 + t, group=t % groups, **options) for t in range(trees)]
    return TreeArrays.concatenate(batch)


def permuted(tree: TreeArrays, seed: int) -> tuple[TreeArrays, np.ndarray]:
    """(the same tree with its siblings in another order, `order`: new node i was order[i])."""
    rng = np.random.default_rng(seed)
    depth = np.zeros(len(tree), int)
    for i, p in enumerate(tree.parent):
        depth[i] = depth[p] + 1 if p >= 0 else 0
    order = np.lexsort((rng.random(len(tree)), depth))
    new = np.empty(len(tree), int)
    new[order] = np.arange(len(tree))
    parent = np.where(tree.parent[order] < 0, -1, new[tree.parent[order]])
    columns = {
        n: getattr(tree, n)[order] for n in TreeArrays.__dataclass_fields__ if n not in ("parent", "reasons", "more")
    }
    return TreeArrays.of(parent, **columns), order
