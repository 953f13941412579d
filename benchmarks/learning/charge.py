"""What a batch of trees costs by the meter's rules, for prompts of any size: counted from arrays.

The small world shows a few tokens; agents read far more than they say. So each response of three tokens is charged as
if it stood behind 3·ratio new tokens of prompt, at the root and after every search. They are charged and not read: what
is learned does not depend on them. The tests hold this equal to `treewright.search.meter.measured` and to what the
trainer says of its packs, on trees with such prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from treewright.benchmarks.learning.grow import Grown
from treewright.benchmarks.learning.world import TURN, VOCABULARY, Array
from treewright.search.meter import Meter
from treewright.training.credit import Credit
from treewright.training.flops import DecoderWork, work_of_config

__all__ = ["RESPONSE", "WORK", "Charge", "charge"]

RESPONSE = 3
SHAPE = {
    "model_type": "gpt2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY,
    "intermediate_size": 128,
}  # fmt: skip
"""`TinyPolicy` as the formulas take it."""
WORK = cast(DecoderWork, work_of_config(SHAPE))


@dataclass(frozen=True, slots=True)
class Charge:
    """meter  as the package grows and trains trees: a cache of the tree's prompts, packed
    alone  FLOP of the same paths as episodes of their own: a cache within each, trained as rows
    flops  [T] of the meter's, by tree
    """

    meter: Meter
    alone: float
    flops: Array


def charge(grown: Grown, credit: Credit, ratio: int, work: DecoderWork = WORK) -> Charge:
    """The cost of growing the batch and of one update on it.

    ratio  prompt tokens for each token of a search turn
    """
    a, new = grown.arrays, RESPONSE * ratio
    inner, drawn, turn, said = a.k > 0, a.parent >= 0, grown.turn, a.n_tokens.astype(int)
    before = new + np.arange(int(turn.max()) + 1) * (RESPONSE + new)  # [t] the prompt that turn t + 1 is said behind
    some = [int(p) for p in before]
    reading = np.array([work.forward(p - new, p, 1) for p in some])
    whole = np.array([work.forward(0, p, 1) for p in some])
    saying = np.array([[work.forward(p, p + n, n) for n in range(RESPONSE + 1)] for p in some])
    shown = np.where(drawn, new, before[turn]) * inner  # tokens of prompt that a node adds
    reads = np.where(drawn, reading[turn], whole[turn]) * inner
    says = np.where(drawn, saying[np.maximum(turn - 1, 0), said], 0.0)
    taught = (credit.coef != 0) & drawn
    needed, leaf = _needed(grown, taught), ~inner & drawn
    tokens, trained = _packed(grown, needed, taught, before, new, work)
    last = leaf & needed
    predicted = 2.0 * work.head * (inner + said - np.where(taught, said, 0))
    rows = _along(grown, reads + says - predicted)
    meter = Meter(
        sampled_tokens=grown.tokens, prompt_computed=int(shown.sum()), env_steps=int(drawn.sum()),
        prompt_cacheless=int(_along(grown, before[turn] * inner)[leaf].sum()), replayed_steps=int(grown.begun.sum()),
        generation_flops=float((a.mult * says).sum()), prompt_flops=float(reads.sum()),
        train_flops=3.0 * float(trained.sum()), trained_packed=tokens,
        trained_rows=int(_along(grown, shown + said)[last].sum()),
    )  # fmt: skip
    alone = float(_along(grown, reads + says)[leaf].sum() + 3.0 * rows[last].sum())
    by_tree = np.bincount(a.tree, weights=a.mult * says + reads, minlength=len(grown.begun)) + 3.0 * trained
    return Charge(meter, alone, by_tree)


def _packed(
    grown: Grown, needed: Array, taught: Array, before: Array, new: int, work: DecoderWork
) -> tuple[int, Array]:
    """(tokens, FLOP of the forward pass by tree [T]) of packs, where equal tokens behind equal tokens stand once."""
    a, index = grown.arrays, np.arange(len(needed))
    one = np.array([work.forward(p, p + 1, 0) for p in range(int(before[-1]) + RESPONSE)])
    key = np.zeros(grown.rows.shape, np.uint64)
    now = a.tree.astype(np.uint64)
    with np.errstate(over="ignore"):
        for place in range(grown.rows.shape[1]):
            now = (now + grown.rows[:, place].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            now ^= now >> np.uint64(29)
            key[:, place] = now
    tokens, flops = 0, np.zeros(len(grown.begun))
    for i in range(RESPONSE):
        here = index[needed & (a.n_tokens > i)]
        place = grown.prefix + TURN * (grown.turn[here] - 1) + i
        _, first = np.unique(key[here, place], return_index=True)
        tokens += len(first)
        np.add.at(flops, a.tree[here[first]], one[before[grown.turn[here[first]] - 1] + i])
        _, target = np.unique(key[here, place][taught[here]], return_index=True)
        np.add.at(flops, a.tree[here[taught[here]][target]], 2.0 * work.head)
    prompts = np.concatenate([np.zeros(1), np.cumsum(one)])
    roots = index[needed & (a.parent < 0)]
    tokens += int(before[grown.turn[roots]].sum())
    flops[a.tree[roots]] += prompts[before[grown.turn[roots]]]
    here = index[needed & (a.k > 0) & (a.parent >= 0)]
    _, first = np.unique(key[here, grown.prefix + TURN * grown.turn[here] - 1], return_index=True)
    end = before[grown.turn[here[first]]]
    tokens += new * len(first)
    np.add.at(flops, a.tree[here[first]], prompts[end] - prompts[end - new])
    return tokens, flops


def _along(grown: Grown, each: Array) -> Array:
    """[N] the sum over the nodes of each node's path."""
    total, parent = np.array(each, dtype=float), grown.arrays.parent
    for turn in range(1, int(grown.turn.max()) + 1):
        here = np.flatnonzero((grown.turn == turn) & (parent >= 0))
        total[here] += total[parent[here]]
    return total


def _needed(grown: Grown, taught: Array) -> Array:
    """[N] what is trained on and what lies above it; nothing of trees that teach nothing."""
    needed, parent = np.array(taught), grown.arrays.parent
    for turn in range(int(grown.turn.max()), 0, -1):
        here = np.flatnonzero((grown.turn == turn) & needed & (parent >= 0))
        needed[parent[here]] = True
    return needed
