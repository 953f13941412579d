"""A batch of trees as a struct of arrays, and what an estimator gives back.

One node is one policy turn; node i hangs under `parent[i]`, and parent < child always. Rewards belong to
the transition into a node, so the root's reward is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treewright.envs.errors import TreewrightError

__all__ = ["Bools", "Credit", "Floats", "InexactTree", "Ints", "MalformedTree", "NodeKind", "Origin", "TreeArrays"]

Ints = NDArray[Any]
Floats = NDArray[Any]
Bools = NDArray[np.bool_]


class Origin:
    """Who wrote a node's response tokens; only POLICY is ever trained on."""

    POLICY, DEMO, STORED, INJECTED, ENV = range(5)


class NodeKind:
    """CHOICE: children are alternatives. ALL: all children are needed. SEGMENT: part of a turn."""

    CHOICE, ALL, SEGMENT = range(3)


class MalformedTree(TreewrightError, ValueError):
    """The arrays do not describe trees; the message names the array, the first bad node and the rule."""


class InexactTree(TreewrightError, ValueError):
    """An unbiased estimator was given trees that cannot be credited without bias."""


_DTYPES: dict[str, Any] = {
    "tree": np.int32,
    "group": np.int32,
    "parent": np.int32,
    "k": np.int32,
    "mult": np.int32,
    "share": np.float32,
    "keep_prob": np.float32,
    "kept": np.bool_,
    "control": np.float32,
    "reward": np.float32,
    "terminal": np.bool_,
    "truncated": np.bool_,
    "executed": np.bool_,
    "fault": np.bool_,
    "aux": np.bool_,
    "state_key": np.int64,
    "call_ok": np.bool_,
    "n_tokens": np.int32,
    "importance": np.float64,
    "origin": np.int8,
    "kind": np.int8,
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TreeArrays:
    """N nodes of T trees, every array of shape [N] (`reasons` has length T).

    tree       i32   which tree, 0..T−1
    group      i32   which task: trees of one group are attempts at the same task
    parent     i32   index of the parent in these arrays, −1 for a root; always smaller than the node's own index
    k          i32   draws made when the node was expanded, killed ones included, auxiliary ones not; 0 = never
    mult       i32   how many token-identical draws this node stands for
    share      f32   μ, the node's share of its parent's mass; mult/k of the parent for i.i.d. draws
    keep_prob  f32   q in (0, 1], the recorded probability of being kept, closed or executed; 1 without roulette
    kept       bool  whether that coin came up; False = the value is `control` and nothing below counts
    control    f32   h, an estimate of reward + value fixed before the coin; 0 is allowed
    reward     f32   of the transition into the node; NaN = unknown
    terminal   bool  the episode ended here
    truncated  bool  the task's own horizon ended it here (a rollout cut by a budget is neither: it is open)
    executed   bool  the action was carried out
    fault      bool  the infrastructure failed: masked, never a reward of 0
    aux        bool  rolled out for its value only: no mass, never trained on
    state_key  i64   equal for equal states; −1 = not known
    call_ok    bool  the action was a valid call
    n_tokens   i32   tokens sampled for this node
    importance f64   π(a)/μ(a) of the node's tokens, where μ drew them, the policy at another temperature; NaN = not
                     known yet, 1 where the policy itself drew
    origin     i8    an `Origin`
    kind       i8    a `NodeKind`
    reasons    why each tree is inexact, as recorded while it grew; empty = no recorded reason
    more       every other number of a node by name, such as score or money, in a dtype of its own; may be empty
    """

    tree: Ints
    group: Ints
    parent: Ints
    k: Ints
    mult: Ints
    share: NDArray[Any]
    keep_prob: NDArray[Any]
    kept: Bools
    control: NDArray[Any]
    reward: NDArray[Any]
    terminal: Bools
    truncated: Bools
    executed: Bools
    fault: Bools
    aux: Bools
    state_key: Ints
    call_ok: Bools
    n_tokens: Ints
    importance: NDArray[Any]
    origin: Ints
    kind: Ints
    reasons: tuple[tuple[str, ...], ...]
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        parent: ArrayLike,
        *,
        reasons: Sequence[Sequence[str]] | None = None,
        more: Mapping[str, NDArray[Any]] | None = None,
        **given: ArrayLike,
    ) -> TreeArrays:
        """Arrays from the parents alone, every other array defaulted unless given, checked by `validate`.

        Defaults: one tree per root, one group per tree, single i.i.d. draws (k and share follow from `mult` and
        `aux`), everything kept, executed and of policy origin, leaves terminal, rewards 0, one token per node.
        Raises TypeError for an unknown array name and MalformedTree for arrays that are no trees.
        """
        up = np.asarray(parent, dtype=np.int32)
        unknown = sorted(set(given) - set(_DTYPES))
        if unknown:
            raise TypeError(f"TreeArrays has no array {unknown[0]!r}; it has {', '.join(_DTYPES)}")
        n = len(up)
        have: dict[str, Any] = {name: np.asarray(value) for name, value in given.items()}
        inner = np.flatnonzero(up >= 0)
        if np.any(up >= np.arange(n)) or np.any(up < -1):
            raise MalformedTree(_first("parent", (up >= np.arange(n)) | (up < -1), "must be −1 or an earlier node", up))
        full = {
            "mult": np.ones(n),
            "aux": np.zeros(n, bool),
            "keep_prob": np.ones(n),
            "kept": np.ones(n, bool),
            "control": np.zeros(n),
            "reward": np.zeros(n),
            "truncated": np.zeros(n, bool),
            "executed": np.ones(n, bool),
            "fault": np.zeros(n, bool),
            "state_key": np.full(n, -1),
            "call_ok": np.ones(n, bool),
            "n_tokens": (up >= 0).astype(np.int32),
            "importance": np.ones(n),
            "origin": np.zeros(n),
            "kind": np.zeros(n),
        } | have
        if "tree" not in have:
            full["tree"] = _tree_of(up)
        full.setdefault("group", full["tree"])
        drawn = np.where(full["aux"], 0, full["mult"])
        full.setdefault("k", np.bincount(up[inner], weights=drawn[inner], minlength=n))
        draws = np.where(up >= 0, np.asarray(full["k"])[up], 1)
        full.setdefault("share", np.where(up < 0, 1.0, drawn / np.maximum(draws, 1)))
        is_leaf = np.bincount(up[inner], minlength=n) == 0
        full.setdefault("terminal", is_leaf & np.asarray(full["kept"], bool) & ~np.asarray(full["truncated"], bool))
        trees = int(np.max(full["tree"], initial=-1)) + 1
        why = tuple(tuple(r) for r in reasons) if reasons is not None else ((),) * trees
        columns: dict[str, Any] = {
            name: np.asarray(full[name] if name != "parent" else up, dtype=_DTYPES[name]) for name in _DTYPES
        }
        result = cls(**columns, reasons=why, more=more or {})
        result.validate()
        return result

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def trees(self) -> int:
        """T, the number of trees."""
        return len(self.reasons)

    @property
    def roots(self) -> Ints:
        """[T] the root of each tree, in tree order."""
        roots = np.flatnonzero(self.parent < 0)
        return roots[np.argsort(self.tree[roots], kind="stable")]

    @property
    def n_children(self) -> Ints:
        """[N] children that are not auxiliary, killed ones included."""
        n = len(self) + 1
        count = np.bincount(self.parent + 1, minlength=n)
        if self.aux.any():
            count -= np.bincount(self.parent[self.aux] + 1, minlength=n)
        return np.asarray(count[1:])

    @property
    def lost(self) -> Bools:
        """[N] nodes whose value is not known by themselves: faults, unknown rewards, and open or unexecuted ends.

        A killed node is known (its value is `control`), an auxiliary one is not asked.
        """
        inner = self.parent >= 0
        ended = self.terminal | self.truncated | (self.n_children > 0)
        unknown = ~ended | (inner & (np.isnan(self.reward) | ~self.executed))
        lost: Bools = (self.fault | (self.kept & unknown)) & ~self.aux
        return lost

    @property
    def trainable(self) -> Bools:
        """[N] nodes whose tokens the policy drew for training; killed draws count, faults and open drafts do not."""
        ran = self.executed | ~self.kept
        drawn: Bools = (self.parent >= 0) & ran & ~self.fault & ~self.aux & (self.origin == Origin.POLICY)
        return drawn

    def why_inexact(self) -> tuple[tuple[str, ...], ...]:
        """Per tree every reason against exactness: the recorded ones, then those the arrays themselves show."""
        placed = (self.parent >= 0) & ~self.aux
        up = np.maximum(self.parent, 0)
        drawn, mass = (
            np.bincount(self.parent + 1, weights=column * placed, minlength=len(self) + 1)[1:]
            for column in (self.mult, self.share)
        )
        choice = self.kind != NodeKind.ALL
        ended = self.terminal | self.truncated | (self.n_children > 0)
        live = self.kept & ~self.aux
        shown = {
            "fault": self.fault & ~self.aux,
            "open frontier": live & ~ended & self.executed & ~self.fault,
            "unexecuted draft": live & ~self.executed & (self.parent >= 0) & ~self.fault,
            "unknown reward": live & np.isnan(self.reward) & (self.parent >= 0),
            "draws missing": choice & live & ((drawn != self.k) | ((drawn > 0) & (np.abs(mass - 1) > 1e-4))),
            "drawn at other temperatures, weights not known": placed & np.isnan(self.importance),
            "not drawn from the policy": placed & (self.origin != Origin.POLICY) & (self.share < 1) & choice[up],
        }
        found: list[list[str]] = [list(r) for r in self.reasons]
        for reason, where in shown.items():
            for t in np.unique(self.tree[where]):
                if reason not in found[t]:
                    found[t].append(reason)
        return tuple(tuple(r) for r in found)

    @property
    def exact(self) -> Bools:
        """[T] trees without any reason against exactness."""
        return np.array([not reasons for reasons in self.why_inexact()], dtype=np.bool_)

    def require_exact(self, estimator: str) -> None:
        """Raises InexactTree, with the reasons counted, unless every tree is exact."""
        why = self.why_inexact()
        bad = [t for t, reasons in enumerate(why) if reasons]
        if not bad:
            return
        counts: dict[str, int] = {}
        for reasons in why:
            for reason in reasons:
                counts[reason] = counts.get(reason, 0) + 1
        listed = ", ".join(f"{reason} ({count})" for reason, count in counts.items())
        raise InexactTree(
            f"{estimator}: {len(bad)} of {self.trees} trees are inexact, first tree {bad[0]}: {listed}. "
            f"Close or leave out these trees, or accept the bias with allow_biased=True"
        )

    def require_choices(self, estimator: str) -> None:
        """Raises MalformedTree when an ALL node has children: its value is no mean over draws."""
        joint = (self.kind == NodeKind.ALL) & (self.n_children > 0)
        if joint.any():
            node = int(np.flatnonzero(joint)[0])
            raise MalformedTree(f"{estimator}: node {node} needs all its children; credit it by graphs.split_loo_graph")

    def validate(self) -> None:
        """Raises MalformedTree for a wrong shape, dtype, parent order, tree id or number."""
        n = len(self.parent)
        for name, dtype in _DTYPES.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.shape != (n,):
                want = f"{np.dtype(dtype).name}[{n}]"
                raise MalformedTree(f"{name} must be {want}, it is {column.dtype.name}{list(column.shape)}")
        inner = self.parent >= 0
        up = np.maximum(self.parent, 0)
        leaf = np.bincount(self.parent[inner], minlength=n) == 0
        rules = (
            ("parent", (self.parent >= np.arange(n)) | (self.parent < -1), "must be −1 or an earlier node"),
            ("tree", (self.tree < 0) | (self.tree >= self.trees), f"must be 0..{self.trees - 1}, one per `reasons`"),
            ("tree", inner & (self.tree[up] != self.tree), "must equal its parent's"),
            ("group", inner & (self.group[up] != self.group), "must equal its parent's"),
            ("aux", inner & self.aux[up] & ~self.aux, "must be True below an auxiliary node"),
            ("k", self.k < 0, "must not be negative"),
            ("mult", self.mult < 1, "must be at least 1"),
            ("share", ~((self.share >= 0) & (self.share <= 1 + 1e-5)), "must lie in [0, 1]"),
            ("keep_prob", ~((self.keep_prob > 0) & (self.keep_prob <= 1)), "must lie in (0, 1]"),
            ("kept", ~self.kept & (self.keep_prob == 1) & ~self.aux, "cannot be False where keep_prob is 1"),
            ("control", ~np.isfinite(self.control), "must be finite"),
            ("reward", np.isinf(self.reward), "must be finite, or NaN for unknown"),
            ("terminal", self.terminal & ~leaf, "cannot be True for a node with children"),
            ("truncated", self.truncated & ~leaf, "cannot be True for a node with children"),
            ("n_tokens", self.n_tokens < 0, "must not be negative"),
            ("importance", ~((self.importance > 0) | np.isnan(self.importance)), "must be above 0, or NaN for unknown"),
        )
        for name, column in self.more.items():
            if column.shape != (n,):
                raise MalformedTree(f"more[{name!r}] must have shape [{n}], it has {list(column.shape)}")
        for name, bad, rule in rules:
            if bad.any():
                raise MalformedTree(_first(name, bad, rule, getattr(self, name)))
        per_tree = np.bincount(self.tree[~inner], minlength=self.trees)
        if np.any(per_tree != 1):
            t = int(np.flatnonzero(per_tree != 1)[0])
            raise MalformedTree(f"tree {t} has {per_tree[t]} roots (parent −1); every tree has exactly one")

    def with_(self, **columns: ArrayLike) -> TreeArrays:
        """A checked copy with some arrays replaced (cast to their dtype)."""
        cast: dict[str, Any] = {name: np.asarray(v, dtype=_DTYPES[name]) for name, v in columns.items()}
        result = replace(self, **cast)
        result.validate()
        return result

    def select(self, trees: ArrayLike) -> TreeArrays:
        """The trees where `trees` bool[T] is True, renumbered. Choosing by outcome biases what is learned from them."""
        chosen = np.asarray(trees, dtype=np.bool_)
        if chosen.shape != (self.trees,):
            raise ValueError(f"select takes one bool per tree, bool[{self.trees}], got shape {list(chosen.shape)}")
        nodes = chosen[self.tree]
        columns: dict[str, Any] = {name: getattr(self, name)[nodes] for name in _DTYPES}
        new_node, new_tree = np.cumsum(nodes) - 1, np.cumsum(chosen) - 1
        columns["parent"] = np.where(columns["parent"] >= 0, new_node[columns["parent"]], -1).astype(np.int32)
        columns["tree"] = new_tree[columns["tree"]].astype(np.int32)
        more = {name: column[nodes] for name, column in self.more.items()}
        reasons = tuple(r for r, c in zip(self.reasons, chosen, strict=True) if c)
        return TreeArrays(**columns, reasons=reasons, more=more)

    @staticmethod
    def concatenate(batches: Sequence[TreeArrays]) -> TreeArrays:
        """One batch out of several: parents and tree ids are shifted, group ids are kept as they are."""
        if not batches:
            raise MalformedTree("concatenate needs at least one TreeArrays")
        nodes = np.cumsum([0] + [len(b) for b in batches])
        trees = np.cumsum([0] + [b.trees for b in batches])
        columns: dict[str, Any] = {name: np.concatenate([getattr(b, name) for b in batches]) for name in _DTYPES}
        shifted = [np.where(b.parent >= 0, b.parent + nodes[i], -1) for i, b in enumerate(batches)]
        columns["parent"] = np.concatenate(shifted).astype(np.int32)
        columns["tree"] = np.concatenate([b.tree + trees[i] for i, b in enumerate(batches)]).astype(np.int32)
        shared = [name for name in batches[0].more if all(name in b.more for b in batches)]
        more = {name: np.concatenate([b.more[name] for b in batches]) for name in shared}
        return TreeArrays(**columns, reasons=tuple(r for b in batches for r in b.reasons), more=more)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Credit:
    """What an estimator says about each node, all float64[N].

    value   estimated return after the node's own reward; NaN = unknown
    coef    factor of ∇ log π(a|s) for the edge parent → node, summed over all rows that hold it; 0 = not trained on
    weight  the node's mass in an average over its tree; sums to 1 over finished leaves in expectation
    ess     effective number of independent finished leaves behind `value`
    """

    value: Floats
    coef: Floats
    weight: Floats
    ess: Floats


def _first(name: str, bad: Bools, rule: str, column: NDArray[Any]) -> str:
    node = int(np.flatnonzero(bad)[0])
    return f"{name}[{node}] = {column[node]} {rule} ({int(bad.sum())} nodes break this)"


def _tree_of(parent: Ints) -> Ints:
    """[N] tree ids by the order of the roots, by pointer jumping."""
    top = np.where(parent < 0, np.arange(len(parent)), parent)
    while np.any(top != top[top]):
        top = top[top]
    number = np.cumsum(parent < 0) - 1
    return np.asarray(number[top])
