"""Many trees grown side by side on the enumerable world, by every schedule of search/schedules.py.

>>> grow("chains", 16).arrays.trees
16
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from treewright.search.rules.schedules import (
    entropy_gated,
    fallback_depth,
    fan,
    fork_until_n,
    late_branch,
    roulette_keep,
    split,
    sqrt_score,
)
from treewright.training.check.mdp import GROUP, Array, Grown, Mdp, measure, small_mdp
from treewright.training.credit import Credit, TreeArrays

__all__ = ["SCHEDULES", "bias_over_noise", "grow"]


class _Grower:
    """Grows many trees side by side; nodes of all trees share one index, parents before children."""

    def __init__(self, mdp: Mdp, trees: int, rng: np.random.Generator) -> None:
        self.mdp, self.rng, self.trees = mdp, rng, trees
        self.tree = np.arange(trees)
        self.parent = np.full(trees, -1)
        self.state = np.zeros(trees, dtype=int)
        self.action = np.full(trees, -1)
        self.mult = np.ones(trees, dtype=int)
        self.k = np.zeros(trees, dtype=int)
        self.w = np.ones(trees)
        self.keep = np.ones(trees)
        self.kept = np.ones(trees, dtype=bool)
        self.control = np.zeros(trees)
        self.aux = np.zeros(trees, dtype=bool)
        self.share = np.ones(trees)

    def open(self) -> Array:
        return np.flatnonzero((self.k == 0) & (self.state >= 0) & self.kept & ~self.aux)

    def step(self, nodes: Array) -> Array:
        return np.asarray(self.mdp.step[self.state[nodes]])

    def draw(
        self, nodes: Array, k: Array | int, *, merge: bool = True, aux: bool = False, share: float | None = None
    ) -> Array:
        """K i.i.d. draws at each node, token-identical ones merged with their count; returns the new nodes.

        `share` is what each draw gets of a reserve; None = m/k.
        """
        widths = np.broadcast_to(np.asarray(k), nodes.shape)
        counts = self.rng.multinomial(widths, self.mdp.policy[self.state[nodes]])
        row, action = np.nonzero(counts)
        m = counts[row, action]
        if not merge:
            row, action, m = np.repeat(row, m), np.repeat(action, m), np.ones(int(m.sum()), dtype=int)
        self.k[nodes] += 0 if aux else widths
        p, old = nodes[row], len(self.parent)
        added = {
            "tree": self.tree[p],
            "parent": p,
            "state": self.mdp.to[self.state[p], action],
            "action": action,
            "mult": m,
            "k": np.zeros(len(p), dtype=int),
            "w": np.zeros(len(p)) if aux else self.w[p] * m / self.k[p],
            "keep": np.ones(len(p)),
            "kept": np.ones(len(p), dtype=bool),
            "control": np.zeros(len(p)),
            "aux": np.full(len(p), aux),
            "share": np.full(len(p), np.nan if share is None else share),
        }
        for name, column in added.items():
            setattr(self, name, np.concatenate((getattr(self, name), column)))
        return np.arange(old, len(self.parent))

    def close(self) -> None:
        """One rollout from every open node to its end."""
        while len(nodes := self.open()):
            self.draw(nodes, 1)

    def one_per_tree(self, nodes: Array, score: Array) -> Array:
        """Of these nodes the best-scored one of each tree."""
        order = np.lexsort((-score, self.tree[nodes]))
        ranked = nodes[order]
        first = np.concatenate(([True], self.tree[ranked][1:] != self.tree[ranked][:-1]))
        return np.asarray(ranked[first]) if len(ranked) else ranked

    def random_one(self, nodes: Array) -> Array:
        return self.one_per_tree(nodes, self.rng.random(len(nodes)))

    def judge(self, nodes: Array) -> Array:
        return np.asarray(np.where(self.state[nodes] >= 0, self.mdp.judge[self.state[nodes]], 0.0))

    def rewards(self) -> Array:
        p = np.maximum(self.parent, 0)
        return np.asarray(np.where(self.parent >= 0, self.mdp.reward[self.state[p], self.action], 0.0))

    def remove(self, nodes: Array) -> None:
        """Takes leaves away without a trace, as a schedule does that forgets what it does not keep."""
        np.subtract.at(self.k, self.parent[nodes], self.mult[nodes])
        stays = np.ones(len(self.parent), dtype=bool)
        stays[nodes] = False
        new = np.cumsum(stays) - 1
        for name in ("tree", "parent", "state", "action", "mult", "k", "w", "keep", "kept", "control", "aux", "share"):
            setattr(self, name, getattr(self, name)[stays])
        self.parent = np.where(self.parent >= 0, new[self.parent], -1)

    def grown(self, reason: str | None = None) -> Grown:
        reasons = [(reason,) if reason else ()] * self.trees
        even = np.where(self.aux, 0.0, self.mult / np.maximum(self.k[self.parent], 1))
        arrays = TreeArrays.of(
            self.parent, reasons=reasons, tree=self.tree, group=self.tree // GROUP, mult=self.mult, k=self.k,
            share=np.where(np.isnan(self.share), even, self.share),
            keep_prob=self.keep, kept=self.kept, control=self.control, reward=self.rewards(), terminal=self.state < 0,
            aux=self.aux, state_key=self.state,
        )  # fmt: skip
        return Grown(arrays, self.state, self.action, self.trees)


Schedule = Callable[[_Grower], Grown]
SCHEDULES: dict[str, Schedule] = {}


def _schedule(function: Schedule) -> Schedule:
    SCHEDULES[function.__name__] = function
    return function


def _by_width(g: _Grower, width: Callable[[Array], Array | int]) -> Grown:
    while len(nodes := g.open()):
        g.draw(nodes, width(nodes))
    return g.grown()


@_schedule
def chains(g: _Grower) -> Grown:
    """Independent episodes, one per tree."""
    return _by_width(g, lambda nodes: 1)


@_schedule
def chains_aux(g: _Grower) -> Grown:
    """Independent episodes, with two auxiliary rollouts from every state on the way (after VinePPO)."""
    g.close()
    nodes, k = np.flatnonzero(g.state >= 0), 2
    while len(nodes):
        new = g.draw(nodes, k, merge=False, aux=True)
        nodes, k = new[g.state[new] >= 0], 1
    return g.grown()


@_schedule
def fixed_2(g: _Grower) -> Grown:
    """Two draws at every node."""
    return _by_width(g, lambda nodes: 2)


@_schedule
def late(g: _Grower) -> Grown:
    """4,1,1,2 draws by depth."""
    return _by_width(g, lambda nodes: fan(g.step(nodes), late_branch(4)))


@_schedule
def split_liked(g: _Grower) -> Grown:
    """Three draws where the judge likes the state, one elsewhere."""
    liked = float(np.median(g.mdp.judge))
    return _by_width(g, lambda nodes: split(g.judge(nodes), 3, threshold=liked))


@_schedule
def entropy(g: _Grower) -> Grown:
    """Three draws where the policy is less certain than usual, one elsewhere."""
    pi = g.mdp.policy
    bits = -(pi * np.log(pi)).sum(1)
    return _by_width(g, lambda nodes: entropy_gated(bits[g.state[nodes]], float(bits.mean()), 3))


@_schedule
def random(g: _Grower) -> Grown:
    """Five expansions of three draws at random open nodes, then every open node closed."""
    for _ in range(5):
        g.draw(g.random_one(g.open()), 3)
    g.close()
    return g.grown()


def _search(g: _Grower) -> None:
    """Five expansions of three draws at the best open node by w√h; a tree stops at its first success."""
    for _ in range(5):
        won = np.unique(g.tree[g.rewards() >= 1])
        nodes = g.open()
        nodes = nodes[~np.isin(g.tree[nodes], won)]
        g.draw(g.one_per_tree(nodes, sqrt_score(g.w[nodes], g.judge(nodes))), 3)


@_schedule
def best_first(g: _Grower) -> Grown:
    """Best-first by w√h with a stop at the first success, then every open node closed."""
    _search(g)
    g.close()
    return g.grown()


@_schedule
def best_first_dropped(g: _Grower) -> Grown:
    """The same search, its open nodes left as they are."""
    _search(g)
    return g.grown()


@_schedule
def roulette(g: _Grower) -> Grown:
    """Three draws at every node; continuations are kept with a probability from w√h, recorded, with a control."""
    while len(nodes := g.open()):
        new = g.draw(nodes, 3)
        new = new[g.state[new] >= 0]
        g.keep[new] = roulette_keep(sqrt_score(g.w[new], g.judge(new)), 0.25, least=0.15)
        g.kept[new] = g.rng.random(len(new)) < g.keep[new]
        g.control[new] = np.where(g.keep[new] < 1, g.judge(new), 0.0)
    return g.grown()


def _second_look(g: _Grower, *, reserve: bool) -> None:
    """One chain; then, where it failed, five more draws at the root, else one."""
    roots = np.arange(g.trees)
    g.draw(roots, 1, share=0.5 if reserve else None)
    g.close()
    won = np.isin(roots, g.tree[g.rewards() >= 1])
    g.draw(roots[won], 1, share=0.5 if reserve else None)
    g.draw(roots[~won], 5, merge=False, share=0.1 if reserve else None)
    g.close()


@_schedule
def slots(g: _Grower) -> Grown:
    """One chain with half of the mass; where it failed five more split the reserve, else one takes it."""
    _second_look(g, reserve=True)
    return g.grown()


@_schedule
def pooled(g: _Grower) -> Grown:
    """The same draws, all of equal share although their number was chosen after looking: inexact."""
    _second_look(g, reserve=False)
    return g.grown("draws added later")


@_schedule
def reexpand(g: _Grower) -> Grown:
    """Two chains, then twice one more chain from a random inner node (after Tree-GRPO): draws are pooled, inexact."""
    g.draw(np.arange(g.trees), 2, merge=False)
    g.close()
    for _ in range(2):
        inner = np.flatnonzero(g.state >= 0)
        g.draw(g.random_one(inner), 1)
        g.close()
    return g.grown("draws added later")


@_schedule
def fallback(g: _Grower) -> Grown:
    """Two chains; each finished slot restarts from an earlier segment of its path (after TreePO): inexact."""
    g.draw(np.arange(g.trees), 2, merge=False)
    g.close()
    for _ in range(2):
        node = g.random_one(np.flatnonzero(g.state < 0))
        path = [node]
        while np.any(path[-1] != (up := np.where(g.parent[path[-1]] >= 0, g.parent[path[-1]], path[-1]))):
            path.append(up)
        ancestors = np.array(path)
        depth = (ancestors[1:] != ancestors[:-1]).sum(0)
        coins = g.rng.random(len(depth))
        restart = np.array([fallback_depth(int(d), u) for d, u in zip(depth, coins, strict=True)])
        g.draw(ancestors[depth - restart, np.arange(len(node))], 1)
        g.close()
    return g.grown("draws added later")


@_schedule
def fork(g: _Grower) -> Grown:
    """Every running path forks in two and the forks kept bring the paths to four (after PORTool): inexact."""
    live = np.arange(g.trees)
    while len(live):
        done = np.bincount(g.tree[g.state < 0], minlength=g.trees)
        running = np.bincount(g.tree[live], minlength=g.trees)
        room = np.array([fork_until_n(int(r), int(d), 4) for r, d in zip(running, done, strict=True)])
        new = g.draw(live, 2, merge=False)
        order = np.lexsort((g.rng.random(len(new)), g.tree[new]))
        ranked = g.tree[new][order]
        rank = np.arange(len(new)) - np.searchsorted(ranked, ranked)
        g.remove(new[order][rank >= room[ranked]])
        live = np.flatnonzero((np.arange(len(g.parent)) >= new[0]) & (g.state >= 0))
    return g.grown("forks not kept")


def grow(schedule: str, trees: int, seed: int = 0, mdp: Mdp | None = None) -> Grown:
    """`trees` trees (a multiple of GROUP) of a schedule of SCHEDULES. Raises ValueError for anything else."""
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if trees < 2 * GROUP or trees % GROUP:
        raise ValueError(f"trees must be a multiple of {GROUP} and at least {2 * GROUP}, it is {trees}")
    return SCHEDULES[schedule](_Grower(mdp or small_mdp(), trees, np.random.default_rng(seed)))


def bias_over_noise(
    estimator: Callable[[TreeArrays], Credit], schedule: str, trees: int, seed: int = 0, mdp: Mdp | None = None
) -> float:
    """|bias| of the estimator over its Monte-Carlo noise on `trees` trees: about 1 if unbiased, above 3 if not."""
    world = mdp or small_mdp()
    grown = grow(schedule, trees, seed, world)
    return measure(world, grown, estimator(grown.arrays)).over_noise
