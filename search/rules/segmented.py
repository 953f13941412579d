"""Growth that goes by local uncertainty, made for searches with `search.segments`: `--set search.rule=treepo`."""

from __future__ import annotations

import math
from collections.abc import Callable

from treewright.envs.errors import TreewrightError
from treewright.envs.types import seed_of
from treewright.search.rules.base import Rule, estimate, spell
from treewright.search.rules.training import ENDED, at_least_one
from treewright.search.tree import Node
from treewright.search.types import NodeStatus

__all__ = ["WITHIN", "treepo", "vstar"]

LIVE = (NodeStatus.OPEN, NodeStatus.DRAFT)


def treepo(
    leaves: int = 8,
    draws: int = 2,
    root_draws: int = 2,
    spread: int = 8,
    fallback: float = 0.0,
    eager: bool | None = None,
) -> Rule:
    """Branches at the ends of segments until `leaves` paths run or have ended: where the policy is unsure first.

    After TreePO (arXiv 2508.17445): segments of fixed length, a budget of branches for each depth that goes to the
    places of local uncertainty, paths that repeat themselves stopped (search.segments.repeat), and slots that fall back
    to an earlier prefix. The budget lets the number of paths grow evenly from `root_draws` to `leaves` over `spread`
    layers. Within a layer the nodes of the highest scores come first, each with up to `draws`; the score must be known
    before a node's draws, as that of search.evaluator=entropy is.

    fallback  probability of one draw more at a node while there is room, by a coin of its seed: where TreePO lets a
              slot that has ended go on from an earlier prefix. Here the coin is thrown before the node's first draw,
              and its probability is part of the rule's name, so that the tree stays exact: what comes of a node does
              not decide its draws.
    """
    at_least_one(leaves=leaves, draws=draws, root_draws=root_draws, spread=spread)
    if not 0 <= fallback <= 1:
        raise TreewrightError(f"fallback = {fallback}; it is a probability")

    def width(node: Node) -> int:
        if node.depth == 0:
            return min(root_draws, leaves)
        running = sum(s in LIVE or s in ENDED for s in node.tree.status)
        grown = root_draws + (leaves - root_draws) * min(node.depth, spread) / spread
        again = seed_of(node.tree.seed[node.id], "fallback") / 2.0**63 < fallback
        return 1 + max(min(round(grown) - running, draws - 1), min(leaves - running, int(again)), 0)

    name = spell("treepo", leaves=leaves, draws=draws, root_draws=root_draws, spread=spread, fallback=fallback,
                 eager=eager)  # fmt: skip
    return Rule(name=name, priority=_unsure_first, draws=width, eager=eager)


def vstar(
    draws: int = 2,
    root_draws: int = 2,
    extra: int = 8,
    first: int = 0,
    last: int = 16,
    eager: bool | None = None,
) -> Rule:
    """Highest score first, with `draws` each, until `extra` draws more than single ones were made; then single draws.

    After the value-guided decoding of V-STAR (arXiv 2602.10699), at turns or, with search.segments, within them: with
    search.evaluator=vstar the score is G = V + λ·entropy, so that draws go to the decisive nodes. Nodes outside the
    depths from `first` to `last` are never branched at, and come after the others. Nothing is given up: what was not
    expanded is closed by one rollout each, so that trees stay exact.
    """
    at_least_one(draws=draws, root_draws=root_draws)
    if extra < 0 or first < 0 or last < first:
        raise TreewrightError(
            f"extra = {extra}, first = {first}, last = {last}; need extra >= 0 and 0 <= first <= last"
        )

    def gated(node: Node) -> bool:
        return first <= node.depth <= last

    def width(node: Node) -> int:
        if node.depth == 0:
            return root_draws
        made = sum(k - 1 for k in node.tree.drawn[1:] if k > 1)
        return 1 + max(0, min(draws - 1, extra - made)) if gated(node) else 1

    name = spell("vstar", draws=draws, root_draws=root_draws, extra=extra, first=first, last=last, eager=eager)
    return Rule(
        name=name, priority=lambda node: estimate(node) if gated(node) else -1.0 - node.depth, draws=width, eager=eager
    )


def _unsure_first(node: Node) -> float:
    """Layer by layer, in each the highest score first."""
    score = node.score
    return -float(node.depth) + (0.0 if math.isnan(score) else 0.5 * min(max(score, 0.0), 1.0))


WITHIN: dict[str, Callable[..., Rule]] = {"treepo": treepo, "vstar": vstar}
