"""Efficient tree search (ETS, arXiv 2502.13575): which leaves to keep, by an integer program.

    maximise   Σ O_i x_i − λc/T (Σ t_j y_j + Σ t_i x_i) + λs/K Σ c_k
    such that  y_j ≥ x_i for every ancestor j of leaf i,   c_k ≤ Σ x_i over cluster k,   1 ≤ Σ x_i ≤ width

x, y and c say which leaves are kept, which ancestors stay for them, and which of the K clusters of similar leaves are
covered; O_i = exp(h_i/τ) / Σ exp(h/τ) are REBASE's weights (arXiv 2408.00724) of the evaluator's estimates. The paper
counts nodes; here every node costs its tokens t, and T is their sum over all that could be kept, since tokens are what
a cache holds.

As in REBASE, the draws of a layer are shared out over the kept leaves: ceil(width·draws·softmax(h/τ)) each.

1/K pays a cluster of poor leaves as much as one of good ones, so that cheap poor leaves are kept in their place. With
`cover="weight"` a cluster counts for the weight of its leaves instead: λs Σ_k W_k c_k, W_k = Σ O_i over cluster k.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treewright.envs.custom import import_named
from treewright.envs.errors import TreewrightError
from treewright.search.frontier import ByLayer
from treewright.search.rules.base import Rule, estimate, fan_out, spell
from treewright.search.rules.choose import choose_by_score
from treewright.search.tree import Node, Tree

__all__ = ["Encode", "choose_leaves", "clusters", "ets", "ngram_vectors", "node_tokens", "shared_draws"]

Encode = Callable[[Sequence[str]], ArrayLike]
"""Texts → [n, d] vectors."""

BREAK_TIES = 1e-6  # per place in the order of creation; far above the solver's tolerance, far below any estimate


def node_tokens(tree: Tree, node: int) -> int:
    """Tokens that a node adds to a cache: its response and what the world answered."""
    return len(tree.ids[node]) + len(tree.delta[node])


def ngram_vectors(texts: Sequence[str], size: int = 3) -> NDArray[np.float64]:
    """[n, d] counts of the character n-grams that occur in any of the texts."""
    counts = [Counter(text[i : i + size] for i in range(max(len(text) - size + 1, 1))) for text in texts]
    place = {gram: i for i, gram in enumerate(dict.fromkeys(gram for count in counts for gram in count))}
    out = np.zeros((len(texts), len(place)))
    for row, count in enumerate(counts):
        for gram, number in count.items():
            out[row, place[gram]] = number
    return out


def clusters(vectors: ArrayLike, distance: float) -> NDArray[np.int64]:
    """[n] cluster of each vector, from 0: average linkage, cut at this cosine distance."""
    given = np.asarray(vectors, dtype=np.float64)
    if len(given) < 2:
        return np.zeros(len(given), dtype=np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage

    norms = np.linalg.norm(given, axis=1, keepdims=True)
    unit = given / np.where(norms > 0, norms, 1.0)
    apart = np.clip(1.0 - (unit @ unit.T)[np.triu_indices(len(given), 1)], 0.0, 2.0)
    found = fcluster(linkage(apart, "average"), distance, "distance")
    return np.asarray(found, dtype=np.int64) - 1


def choose_leaves(
    values: Sequence[float],
    paths: Sequence[Sequence[int]],
    tokens: dict[int, int],
    cluster: Sequence[int],
    width: int,
    cost_weight: float,
    cover_weight: float,
    cover: str = "count",
) -> list[int]:
    """Indices of the leaves to keep, in order of creation: the integer program above.

    values [n] weights ≥ 0, counted as shares;  paths  ids from below the root to each leaf, the leaf last;
    tokens  of every such id;  cluster [n] from 0;  width  most leaves;
    cover  what a covered cluster is worth: "count" 1/K, "weight" the shares of its leaves
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = len(values)
    leaves = [path[-1] for path in paths]
    above = sorted({j for path in paths for j in path[:-1]})
    groups = int(max(cluster)) + 1
    at = {j: n + i for i, j in enumerate(above)}
    whole = max(sum(tokens[j] for j in (*leaves, *above)), 1)
    share = np.asarray(values, dtype=np.float64)
    share = share / share.sum() if share.sum() > 0 else np.full(n, 1.0 / n)
    price = np.array([tokens[j] for j in (*leaves, *above)], dtype=np.float64) * cost_weight / whole
    gain = np.concatenate([share - BREAK_TIES * np.arange(n) / n, np.zeros(len(above)), np.full(groups, 1.0)])
    gain[: n + len(above)] -= price
    worth = np.bincount(np.asarray(cluster), share, groups) if cover == "weight" else np.full(groups, 1.0 / groups)
    gain[n + len(above) :] *= cover_weight * worth

    rows, low, high = [], [], []
    for i, path in enumerate(paths):
        for j in path[:-1]:
            row = np.zeros(len(gain))
            row[i], row[at[j]] = 1.0, -1.0
            rows.append(row)
            low.append(-np.inf)
            high.append(0.0)
    for k in range(groups):
        row = np.zeros(len(gain))
        row[:n][np.asarray(cluster) == k] = -1.0
        row[n + len(above) + k] = 1.0
        rows.append(row)
        low.append(-np.inf)
        high.append(0.0)
    count = np.zeros(len(gain))
    count[:n] = 1.0
    solved = milp(
        -gain,
        integrality=np.ones(len(gain)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.array([*rows, count]), [*low, 1.0], [*high, float(width)]),
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise TreewrightError(f"the integer program of ets over {n} leaves was not solved: {solved.message}")
    return [i for i in range(n) if solved.x[i] > 0.5]


def shared_draws(values: Sequence[float], total: int, temperature: float) -> list[int]:
    """[n] draws of each leaf, ceil(total · softmax(values / temperature)), so at least 1 (REBASE, arXiv 2408.00724)."""
    weights = np.exp((np.array(values) - max(values)) / temperature)
    return [math.ceil(share - 1e-9) or 1 for share in (total * weights / weights.sum()).tolist()] if len(values) else []


def ets(
    width: int = 4,
    draws: int = 2,
    root_draws: int = 4,
    cost_weight: float = 1.0,
    cover_weight: float = 1.5,
    temperature: float = 0.1,
    distance: float = 0.05,
    encode: Encode | str | None = None,
    prune: bool = True,
    eager: bool | None = None,
    cover: str = "count",
    rebase: bool = True,
) -> Rule:
    """A beam whose members the integer program above chooses: at most `width`, sharing ancestors, unlike each other.

    cost_weight, cover_weight, temperature  λc, λs and τ
    distance  cosine distance below which leaves are alike (average linkage)
    encode    texts → vectors, as a function or "module:function"; None counts character trigrams
    prune     False leaves the others open, to be closed for training
    cover     what a covered cluster is worth: "count", as published, or "weight"
    rebase    share width·draws out over the kept leaves, as published; False gives each `draws`

    Raises TreewrightError where scipy is missing.
    """
    if width < 1:
        raise TreewrightError(f"width = {width}; at least 1 leaf is kept")
    if temperature <= 0:
        raise TreewrightError(f"temperature = {temperature}; it is above 0")
    if cover not in ("count", "weight"):
        raise TreewrightError(f"cover = {cover!r}; it is 'count' or 'weight'")
    try:
        import_module("scipy.optimize")
    except ImportError:
        raise TreewrightError("the rule ets needs scipy; type: pip install 'treewright[ilp]'") from None
    vectors = _encoder(encode)

    def keep(tree: Tree, candidates: Sequence[int]) -> list[int]:
        paths = [tree.path(i)[1:] or [i] for i in candidates]
        tokens = {j: node_tokens(tree, j) for path in paths for j in path}
        group = clusters(vectors([_meaning(tree, i) for i in candidates]), distance)
        values = [estimate(Node(tree, i)) for i in candidates]
        weights = np.exp((np.array(values) - max(values)) / temperature).tolist()
        chosen = choose_leaves(weights, paths, tokens, group.tolist(), width, cost_weight, cover_weight, cover)
        return [candidates[i] for i in sorted(chosen, key=lambda i: (-values[i], i))]

    def allot(tree: Tree, kept: Sequence[int]) -> list[int]:
        if list(kept) == [0]:
            return [root_draws]
        return shared_draws([estimate(Node(tree, i)) for i in kept], width * draws, temperature)

    named = encode if isinstance(encode, str) or encode is None else getattr(encode, "__qualname__", repr(encode))
    name = spell(
        "ets", width=width, draws=draws, root_draws=root_draws, cost_weight=cost_weight, cover_weight=cover_weight,
        temperature=temperature, distance=distance, encode=named, prune=prune, eager=eager, cover=cover,
        rebase=rebase,
    )  # fmt: skip
    reason = "ets gave nodes up without a recorded keep probability" if prune else None
    return Rule(
        name=name,
        priority=estimate,
        draws=fan_out(root_draws, draws),
        eager=eager,
        frontier=lambda tree: ByLayer(tree, keep, allot if rebase else None),
        prunes=reason,
        choose=choose_by_score,
    )


def _meaning(tree: Tree, node: int) -> str:
    action = tree.action[node]
    return str(action) if action is not None else tree.text[node]


def _encoder(encode: Encode | str | None) -> Encode:
    if encode is None:
        return ngram_vectors
    if not isinstance(encode, str):
        return encode
    module, _, function = encode.partition(":")
    try:
        found = getattr(import_named(module), function, None)
    except ImportError as error:
        raise TreewrightError(f"encode = {encode!r}: {error}") from error
    if not callable(found):
        raise TreewrightError(f"encode = {encode!r} is no function; write module:function")
    return found  # type: ignore[no-any-return]
