"""How a tree grows for training: widths, scores and coins as pure functions of arrays.

A width is K, the number of i.i.d. draws a node gets; it is fixed before the first draw. What keeps a tree exact:
widths and choices may use anything known before the draws (depth, mass, a judge's score, the entropy of the
policy's distribution), but never the drawn token itself; whatever is dropped is dropped by a coin whose
probability is recorded. `EXACT` says which schedules keep that promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "EXACT",
    "choose_schedule",
    "closing_probabilities",
    "entropy_gated",
    "fallback_depth",
    "fan",
    "fork_until_n",
    "late_branch",
    "repeats",
    "roulette_keep",
    "slot_shares",
    "split",
    "split_width",
    "sqrt_score",
    "systematic",
]

EXACT = {
    "chains": True,
    "fan": True,
    "late_branch": True,
    "random": True,
    "split": True,
    "entropy_gated": True,
    "best_first": True,
    "roulette": True,
    "slots": True,
    "pooled": False,
    "reexpand": False,
    "fallback": False,
    "fork_until_n": False,
}
"""Whether trees of a schedule can be credited without bias, their frontier closed. `fork_until_n` stands for drawing
forks and dropping some of them; the rule of that name in `growth.py` decides K first, and is exact."""


def fan(depth: ArrayLike, widths: Sequence[int]) -> NDArray[np.int64]:
    """K by depth: `widths[d]` draws at depth d, the last width below that. Raises ValueError for a width < 1."""
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be at least 1 at every depth, they are {list(widths)}")
    table = np.asarray(widths, dtype=np.int64)
    return np.asarray(table[np.minimum(np.asarray(depth), len(table) - 1)])


def late_branch(horizon: int, *, first: int = 4, last: int = 2) -> tuple[int, ...]:
    """Widths for `fan`: a few draws at the root, single ones on the way, several at the last step; 4,1,1,2 at 4."""
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, it is {horizon}")
    return (first,) if horizon == 1 else (first, *(1,) * (horizon - 2), last)


def split(score: ArrayLike, k: int, *, threshold: float = 0.5) -> NDArray[np.int64]:
    """K draws for nodes whose judge's score is at least `threshold`, one for the others; nothing is killed."""
    return np.where(np.asarray(score) >= threshold, k, 1).astype(np.int64)


def split_width(step_success: float, *, most: int = 8) -> int:
    """K ≈ 1 / (success of one step), so that about one good branch survives each split; within 1..most."""
    if not 0 <= step_success <= 1:
        raise ValueError(f"step_success must lie in [0, 1], it is {step_success}")
    return int(min(most, max(1, round(1 / max(step_success, 1 / most)))))


def choose_schedule(success_rate: float) -> str:
    """'chains' for tasks often solved, 'fan' for some, 'split' for rarely solved ones.

    The bounds (25 % and 6 %) lie between the success rates at which each had the least variance per sampled
    token on a small task; elsewhere they are a guess.
    """
    return "chains" if success_rate >= 0.25 else "fan" if success_rate >= 0.06 else "split"


def entropy_gated(entropy: ArrayLike, usual: ArrayLike, k: int, *, threshold: float = 0.0) -> NDArray[np.int64]:
    """K draws where the entropy of the next-action distribution exceeds the usual one by more than `threshold`.

    After ARPO (2507.19849), which branches where entropy has moved after a tool result. `entropy` must be of the
    distribution: the surprisal of the sampled token would select on the action, and bias.
    """
    return np.where(np.asarray(entropy) - np.asarray(usual) > threshold, k, 1).astype(np.int64)


def sqrt_score(weight: ArrayLike, value: ArrayLike, length: ArrayLike = 1.0) -> NDArray[np.float64]:
    """w·√(h/length): about what a node adds to the standard deviation of the gradient, per root of its cost.

    weight w is the node's mass, value h in [0, 1] a judge's success probability, length the expected tokens.
    """
    h = np.clip(np.asarray(value, dtype=np.float64), 0.0, None)
    return np.asarray(np.asarray(weight) * np.sqrt(h / np.asarray(length)))


def roulette_keep(score: ArrayLike, reference: float, *, least: float = 0.1) -> NDArray[np.float64]:
    """q in [least, 1]: the score over a reference, to be recorded before the coin. Raises ValueError for least ≤ 0."""
    if not 0 < least <= 1:
        raise ValueError(f"least must lie in (0, 1], it is {least}; a node that is never kept cannot be weighted")
    return np.clip(np.asarray(score, dtype=np.float64) / reference, least, 1.0)


def closing_probabilities(score: ArrayLike, *, mean: float = 0.35, least: float = 0.05) -> NDArray[np.float64]:
    """q = clip(c·score, least, 1) with c such that the mean of q is `mean`, for closing only some open nodes.

    `score` is `sqrt_score` with the length of the closing rollout. Raises ValueError unless least ≤ mean ≤ 1.
    """
    s = np.asarray(score, dtype=np.float64)
    if not 0 < least <= mean <= 1:
        raise ValueError(f"need 0 < least ≤ mean ≤ 1, got least={least}, mean={mean}")
    if not s.size or not np.any(s > 0):
        return np.full(s.shape, mean)
    low, high = 0.0, 1.0 / float(np.min(s[s > 0]))
    for _ in range(60):
        c = (low + high) / 2
        low, high = (c, high) if np.mean(np.clip(c * s, least, 1.0)) < mean else (low, c)
    return np.clip(high * s, least, 1.0)


def systematic(probability: ArrayLike, start: float) -> NDArray[np.bool_]:
    """Coins with the given marginals from one uniform `start` in [0, 1): their number varies by less than one."""
    edges = np.concatenate(([0.0], np.cumsum(np.asarray(probability, dtype=np.float64))))
    return np.asarray(np.floor(edges[1:] - start) > np.floor(edges[:-1] - start))


def slot_shares(fractions: Sequence[float]) -> NDArray[np.float64]:
    """Shares of draws opened one at a time: each takes a fraction of what is left, the last one all of it.

    With these shares later draws may be opened after looking at earlier ones: they split a reserve that was set
    aside before the first, and never dilute it.
    """
    if any(not 0 < f < 1 for f in fractions):
        raise ValueError(f"each fraction must lie in (0, 1), they are {list(fractions)}")
    left = np.concatenate(([1.0], np.cumprod([1 - f for f in fractions])))
    return np.append(left[:-1] * np.asarray(fractions, dtype=np.float64), left[-1])


def fork_until_n(live: int, done: int, n: int) -> int:
    """How many of the 2·live forks are kept so that finished and running paths number at most n (after PORTool)."""
    return max(0, min(2 * live, n - done))


def fallback_depth(finished_depth: int, uniform: float) -> int:
    """The depth from which a finished slot restarts: uniform over its path's earlier segments (after TreePO)."""
    return min(int(uniform * finished_depth), max(0, finished_depth - 1))


def repeats(tokens: Sequence[Any], *, span: int = 8, times: int = 3) -> bool:
    """True when the last `span` tokens occurred `times` times in a row at the end: a rollout worth stopping."""
    if span < 1 or times < 2:
        raise ValueError(f"need span ≥ 1 and times ≥ 2, got span={span}, times={times}")
    tail = list(tokens[-span * times :])
    return len(tail) == span * times and all(tail[i] == tail[i % span] for i in range(len(tail)))
