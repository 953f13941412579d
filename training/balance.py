"""Sharing a forest out over ranks: what a part costs, and packs of equal cost for every step in lockstep.

With sharded weights all ranks walk through the layers together, so a step of one pack each lasts as long as its
dearest pack. Bins are therefore filled to equal cost over all steps and ranks, and bins that are alike go side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Costs", "Part", "costs_of", "fitted", "idle_share", "share_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a forest costs: `token` for each unique token, `pair` for each visible (query, key), `pack` for each pack.

    Any unit of time or work: only ratios count in sharing out.
    """

    token: float
    pair: float
    pack: float = 0.0

    def of(self, tokens: float, pairs: float) -> float:
        return self.token * tokens + self.pair * pairs


@dataclass(frozen=True, slots=True)
class Part:
    """What is never cut: unique tokens and visible pairs of one tree."""

    tokens: int
    pairs: int


def costs_of(config: Any) -> Costs:
    """Floating-point operations of forward and backward, from a transformers configuration of a decoder.

    A token passes the linear layers: 6 operations for each weight that it meets, of a mixture those of the experts that
    it is sent to. A visible pair costs 4 · heads · head size in the forward pass and 2.5 times that in the backward
    pass, which computes the scores again (Dao, arXiv 2307.08691). Embeddings cost nothing; the output layer is counted
    for every token, though only those that predict pass it.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def number(*names: str, default: float = 0) -> float:
        found = (getattr(text, name, None) for name in names)
        return float(next((x for x in found if isinstance(x, int | float) and not isinstance(x, bool)), default))

    hidden, layers = number("hidden_size", "n_embd", "d_model"), number("num_hidden_layers", "n_layer", "n_layers")
    heads = number("num_attention_heads", "n_head", default=1)
    size = number("head_dim", default=hidden / max(heads, 1))
    shared = number("num_key_value_heads", default=heads)
    wide = number("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    chosen = number("num_experts_per_tok", "num_experts_per_token", default=1) + number("n_shared_experts")
    attention = hidden * size * (2 * heads + 2 * shared)
    weights = layers * (attention + 3 * hidden * wide * chosen) + hidden * number("vocab_size")
    return Costs(token=6 * weights, pair=3.5 * 4 * heads * size * layers)


def fitted(tokens: Sequence[float], pairs: Sequence[float], seconds: Sequence[float]) -> Costs:
    """The costs in seconds that explain measured steps best, none below zero; at least three steps are needed."""
    if not len(tokens) == len(pairs) == len(seconds) >= 3:
        raise ValueError(f"{len(tokens)} token counts, {len(pairs)} pair counts and {len(seconds)} times: at least 3")
    columns = np.stack([np.asarray(tokens, float), np.asarray(pairs, float), np.ones(len(tokens))], 1)
    target = np.asarray(seconds, float)
    found = _not_negative(columns / target[:, None], np.ones(len(target)))  # relative errors count alike
    return Costs(token=float(found[0]), pair=float(found[1]), pack=float(found[2]))


def _not_negative(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with x ≥ 0 over the few columns of `a`: the best of all subsets of columns."""
    best, error = np.zeros(a.shape[1]), float(b @ b)
    for chosen in range(1, 1 << a.shape[1]):
        columns = [i for i in range(a.shape[1]) if chosen >> i & 1]
        found, *_ = np.linalg.lstsq(a[:, columns], b, rcond=None)
        left = float(((a[:, columns] @ found - b) ** 2).sum())
        if (found >= 0).all() and left < error:
            best, error = np.zeros(a.shape[1]), left
            best[columns] = found
    return best


def share_out(parts: Sequence[Part], ranks: int, most: int, costs: Costs, joined: bool = True) -> list[list[list[int]]]:
    """Bins of parts by step and rank: `out[step][rank]` lists the parts of that rank's pack, perhaps none.

    most    tokens of a bin; a longer part is a bin of its own
    joined  False: every part is a bin of its own

    The fewest steps that hold the parts, filled by largest cost first into the bin of least cost that has room.
    Deterministic: the same parts give the same bins everywhere.
    """
    if ranks < 1 or most < 1:
        raise ValueError(f"ranks = {ranks} and most = {most} must be at least 1")
    price = [costs.of(p.tokens, p.pairs) for p in parts]
    order = sorted(range(len(parts)), key=lambda i: (-price[i], i))
    steps = math.ceil(sum(p.tokens for p in parts) / (ranks * most)) if joined else math.ceil(len(parts) / ranks)
    while True:
        bins = _filled(parts, price, order, steps * ranks, most, joined)
        if bins is not None:
            break
        steps += 1
    bins = [b for b in bins if b]
    bins.sort(key=lambda b: (-math.fsum(price[i] for i in b), b))
    rows = [bins[i : i + ranks] for i in range(0, len(bins), ranks)]
    dealt = [0.0] * ranks  # so that what is left over does not always fall to the same ranks
    out: list[list[list[int]]] = []
    for row in rows:
        turn = sorted(range(ranks), key=lambda r: (dealt[r], r))
        mine: list[list[int]] = [[] for _ in range(ranks)]
        for rank, held in zip(turn, row, strict=False):
            mine[rank] = sorted(held)
            dealt[rank] += math.fsum(price[i] for i in held)
        out.append(mine)
    return out


def _filled(
    parts: Sequence[Part], price: Sequence[float], order: Sequence[int], count: int, most: int, joined: bool
) -> list[list[int]] | None:
    """Parts in `count` bins, or None where they do not fit."""
    bins: list[list[int]] = [[] for _ in range(count)]
    cost, used = [0.0] * count, [0] * count
    for i in order:
        size = parts[i].tokens
        room = [b for b in range(count) if not bins[b] or (joined and used[b] + size <= most)]
        if not room:
            return None
        at = min(room, key=lambda b: (cost[b], b))
        bins[at].append(i)
        cost[at] += price[i]
        used[at] += size
    return bins


def idle_share(parts: Sequence[Part], plan: Sequence[Sequence[Sequence[int]]], costs: Costs) -> float:
    """The share of all ranks' time that is spent waiting for the dearest pack of each step, 0 where none waits."""
    busy = total = 0.0
    for row in plan:
        held = [math.fsum(costs.of(parts[i].tokens, parts[i].pairs) for i in mine) for mine in row]
        busy += math.fsum(held)
        total += len(row) * max(held)
    return 1 - busy / total if total else 0.0
