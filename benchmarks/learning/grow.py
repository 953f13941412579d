"""Many trees grown side by side: every turn of every branch is sampled in one batch, prefixes live in a cache.

`grow_reference` in the tests says the same thing node by node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from treewright.benchmarks.learning.policy import TinyPolicy
from treewright.benchmarks.learning.world import (
    ANSWER,
    EMPTY,
    ENTITIES,
    PREFIX,
    RELATIONS,
    SEARCH,
    TURN,
    VOCABULARY,
    Array,
    Tasks,
    World,
    contexts,
    observe,
)
from treewright.search.rules.schedules import sqrt_score
from treewright.training.credit import TreeArrays

__all__ = ["Grower", "Grown", "Plan", "grow"]

JUDGE_ACCURACY = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How the trees of a batch grow; all widths are fixed before the first draw of a node.

    widths      [T, 2, M + 1] draws of an open node by tree, the judge's verdict (0, 1) and turn
    merge       token-identical draws of a node become one with their count
    expansions  of all trees or of each [T]. 0: every open node is expanded, turn by turn. Otherwise so many times the
                open node with the largest w·√h, by `widths`; then every open node is closed by one draw a turn
    judge       'noisy': whether all turns so far were right, told wrongly with probability .2;
                'likelihood': whether the policy gave its own last turn a probability of at least `sure`, and all before
    again       when all have ended, so many more draws at random expanded nodes of each tree, to their ends: inexact
    """

    widths: Array
    merge: bool = True
    expansions: int | Array = 0
    judge: str = "noisy"
    sure: float = 0.25
    again: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Grown:
    """A batch of trees.

    arrays  for the estimators, with the rewards as the arm sees them (perhaps flipped)
    rows    [N, length] the tokens from the start of the task to the end of each node
    turn    [N] turns taken, 0 at roots; tree t's root is node t
    logp    [N] of each node's own tokens under the policy that drew them
    truth   [N] rewards before any flip
    tokens  policy tokens sampled, merged draws and all, what comparisons count
    away    [N] Σ (1 − p)² over each node's own tokens;  begun [T] turns that each tree was given;  prefix  of the world
    """

    arrays: TreeArrays
    rows: Array
    turn: Array
    logp: Array
    truth: Array
    tokens: int
    away: Array
    begun: Array
    prefix: int = PREFIX


class Grower:
    """Nodes of all trees share one index, parents before children; tree t's root is node t."""

    def __init__(
        self, policy: TinyPolicy, world: World, tasks: Tasks, plan: Plan, rng: np.random.Generator,
        given: tuple[Array, Array] | None = None,
    ) -> None:  # fmt: skip
        n = len(tasks)
        self.prefix, self.length = world.prefix, world.length
        self.begun = np.zeros(n, dtype=int) if given is None else given[1]
        self.expansions = np.broadcast_to(plan.expansions, n)
        self.policy, self.world, self.tasks, self.plan, self.rng = policy, world, tasks, plan, rng
        self.coins = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.tokens = 0
        self.rows = np.full((n, self.length), EMPTY)
        self.rows[:, : self.prefix] = contexts(tasks)
        self.tree, self.parent, self.turn = np.arange(n), np.full(n, -1), self.begun.copy()
        self.mult, self.k, self.n_tokens = np.ones(n, dtype=int), np.zeros(n, dtype=int), np.zeros(n, dtype=int)
        self.mass, self.logp, self.reward, self.away = np.ones(n), np.zeros(n), np.zeros(n), np.zeros(n)
        self.open, self.cut = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
        self.right, self.liked = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
        self.cache = policy.empty_cache(n)
        self.next = torch.zeros(n, VOCABULARY)
        for turn in np.unique(self.begun).tolist():
            some, end = np.flatnonzero(self.begun == turn), self.prefix + TURN * turn
            if given is not None and turn:
                self.rows[some, :end] = given[0][some, :end]
            which, at = torch.from_numpy(some), torch.zeros(len(some), dtype=torch.long)
            cache = self.cache[which]
            self.next[which] = policy.extend(torch.from_numpy(self.rows[some, :end]), at, cache)
            self.cache[which] = cache
        self.slot = np.arange(n)

    def widths(self, nodes: Array) -> Array:
        return np.asarray(self.plan.widths[self.tree[nodes], self.liked[nodes].astype(int), self.turn[nodes]])

    def best(self, done: int = 0) -> Array:
        """The open node with the largest w·√h of each tree that gets more than `done` expansions.

        h is the judge's chance of being right.
        """
        nodes = np.flatnonzero(self.open & (self.expansions[self.tree] > done))
        h = np.where(self.liked[nodes], JUDGE_ACCURACY, 1 - JUDGE_ACCURACY)
        order = np.lexsort((-sqrt_score(self.mass[nodes], h), self.tree[nodes]))
        ranked = self.tree[nodes][order]
        return np.asarray(nodes[order][np.flatnonzero(np.diff(ranked, prepend=-1))])

    def sample(self, logits: Tensor) -> tuple[Array, Array]:
        """One token for each row, and its log-prob."""
        logp = torch.log_softmax(logits, -1)
        drawn = torch.multinomial(logp.exp(), 1, generator=self.coins)
        return drawn[:, 0].numpy(), logp.gather(1, drawn)[:, 0].numpy().astype(np.float64)

    def actions(self, nodes: Array, cache: Tensor) -> tuple[Array, Array, Array, Array]:
        """One turn sampled after each node: (tokens [B, 3], −1 where none, how many [B], log-prob, Σ (1 − p)² [B]).

        An answer has two tokens; what cannot be read ends the turn at once.
        """
        at = torch.from_numpy(self.prefix + TURN * self.turn[nodes])
        drawn = np.full((len(nodes), 3), -1)
        logp, away = np.zeros(len(nodes)), np.zeros(len(nodes))
        going, logits = np.ones(len(nodes), dtype=bool), self.next[self.slot[nodes]]
        for i in range(3):
            token, lp = self.sample(logits)
            drawn[going, i] = token[going]
            logp += np.where(going, lp, 0.0)
            away += np.where(going, (1 - np.exp(lp)) ** 2, 0.0)
            if i == 0:
                going = (token == SEARCH) | (token == ANSWER)
            elif i == 1:
                going = going & (drawn[:, 0] == SEARCH) & (token < ENTITIES)
            if i < 2:
                logits = self.policy.extend(torch.from_numpy(token)[:, None], at + i, cache)
        return drawn, (drawn >= 0).sum(1), logp, away

    def draw(self, nodes: Array, k: Array) -> None:
        """K i.i.d. turns at each of these open nodes, merged if the plan says so, executed and judged."""
        self.open[nodes], self.k[nodes] = False, self.k[nodes] + k
        up = np.repeat(nodes, k)
        cache = self.cache[torch.from_numpy(self.slot[up])]
        drawn, count, logp, away = self.actions(up, cache)
        self.tokens += int(count.sum())
        mult = np.ones(len(up), dtype=int)
        if self.plan.merge:
            code = ((up * 128 + drawn[:, 0] + 1) * 128 + drawn[:, 1] + 1) * 128 + drawn[:, 2] + 1
            _, first, mult = np.unique(code, return_index=True, return_counts=True)
            up, drawn, count, logp, away = up[first], drawn[first], count[first], logp[first], away[first]
            cache = cache[torch.from_numpy(first)]
        self._append(up, drawn, count, logp, away, mult, cache)

    def _append(
        self, up: Array, drawn: Array, count: Array, logp: Array, away: Array, mult: Array, cache: Tensor
    ) -> None:
        tree, turn, start = self.tree[up], self.turn[up], self.prefix + TURN * self.turn[up]
        verb, entity, relation = drawn.T
        search = (verb == SEARCH) & (count == 3) & (relation >= ENTITIES) & (relation < ENTITIES + RELATIONS)
        seen = observe(self.world, np.where(search, entity, 0), np.where(search, relation - ENTITIES, 0), self.rng)
        rows, index = self.rows[up], np.arange(len(up))
        for i in range(3):
            some = drawn[:, i] >= 0
            rows[index[some], start[some] + i] = drawn[some, i]
        rows[index[search], start[search] + 3] = seen[search]
        hops = self.tasks.hops[tree]
        going, path = search & (turn < hops), self.tasks.path[tree]
        asked = self.tasks.relations[tree, np.minimum(turn, self.world.most - 1)]
        follows = (
            (entity == path[index, turn])
            & (relation == ENTITIES + asked)
            & (seen == path[index, np.minimum(turn + 1, self.world.most)])
        )
        right = self.right[up] & going & follows
        mass = self.mass[up] * mult / self.k[up]
        new = {
            "tree": tree,
            "parent": up,
            "turn": turn + 1,
            "mult": mult,
            "k": np.zeros(len(up), dtype=int),
            "n_tokens": count,
            "mass": mass,
            "logp": logp,
            "away": away,
            "reward": ((verb == ANSWER) & (entity == self.tasks.answer[tree])).astype(np.float64),
            "open": going,
            "cut": search & ~going,
            "right": right,
            "liked": self._judge(up, right, logp),
            "rows": rows,
            "slot": np.cumsum(going) - 1 + len(self.cache),
        }
        for name, column in new.items():
            setattr(self, name, np.concatenate((getattr(self, name), column)))
        alive = np.flatnonzero(going)
        if len(alive):
            cache = cache[torch.from_numpy(alive)]
            tail = rows[alive[:, None], start[alive, None] + np.array([2, 3])]
            logits = self.policy.extend(torch.from_numpy(tail), torch.from_numpy(start[alive] + 2), cache)
            self.cache, self.next = torch.cat((self.cache, cache)), torch.cat((self.next, logits))

    def _judge(self, up: Array, right: Array, logp: Array) -> Array:
        if self.plan.judge == "likelihood":
            return np.asarray(self.liked[up] & (logp >= np.log(self.plan.sure)))
        return np.asarray(right ^ (self.rng.random(len(right)) >= JUDGE_ACCURACY))


def grow(
    policy: TinyPolicy, world: World, tasks: Tasks, plan: Plan, rng: np.random.Generator, flips: float = 0.0,
    given: tuple[Array, Array] | None = None,
) -> Grown:  # fmt: skip
    """One tree for each task, every branch rolled out to its end; each leaf's reward is flipped with chance `flips`.

    given  (rows [T, length], turns [T]): trees begin behind so many turns of these rows; None: at their roots
    """
    g = Grower(policy, world, tasks, plan, rng, given)
    for done in range(int(g.expansions.max(initial=0))):
        if len(nodes := g.best(done)):
            g.draw(nodes, g.widths(nodes))
    _to_the_end(g)
    if plan.again:
        inner = np.flatnonzero(g.k > 0)
        order = inner[np.argsort(g.tree[inner], kind="stable")]
        many = np.bincount(g.tree[inner], minlength=len(tasks))
        first = np.cumsum(many) - many
        chosen = order[first[:, None] + rng.integers(0, many[:, None], (len(tasks), plan.again))]
        g.draw(*np.unique(chosen, return_counts=True))
        _to_the_end(g)
    leaf = g.k == 0
    flipped = leaf & (rng.random(len(leaf)) < flips)
    arrays = TreeArrays.of(
        g.parent,
        tree=g.tree,
        group=tasks.hops[g.tree] + 100 * g.begun[g.tree],
        k=g.k,
        mult=g.mult,
        reward=np.where(flipped, 1 - g.reward, g.reward),
        terminal=leaf & ~g.cut,
        truncated=g.cut,
        n_tokens=g.n_tokens,
        reasons=[("draws were added after others were seen",) if plan.again else ()] * len(tasks),
    )
    return Grown(arrays, g.rows, g.turn, g.logp, g.reward, g.tokens, g.away, g.begun, g.prefix)


def _to_the_end(g: Grower) -> None:
    """Every open node is gone on with until none is left."""
    while g.open.any():
        nodes = np.flatnonzero(g.open)
        g.draw(nodes, np.where(g.expansions[g.tree[nodes]] > 0, 1, g.widths(nodes)))
