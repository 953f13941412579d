"""Prefix-to-tree: the answers of a task as a trie of tokens, so that estimators see every prefix and not only turns.

After P2T of TEMPO (2509.18314): the value of a prefix is the mean return of the answers that begin with it. A step of
an estimator is then one token where answers part, and the run of tokens behind it where nothing branches; a difference
of values is zero there by itself, which is the gate of TEMPO's temporal differences.

    four answers aab = 1, aac = abd = xyz = 0       V(aa) = 1/2, V(aab) = 1, μ = 1/4, σ = .433
    tempo, each of four rows counting 1/4           b: (.75 + .5)/.433/4 = .72     what follows b: .75/.433/4 = .43
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree
from treewright.training.credit.arrays import Credit, Floats, Ints, TreeArrays
from treewright.training.credit.registry import estimate
from treewright.training.credit.row_trie import RowTrie, flat_rows, row_trie
from treewright.training.credit.rows import Advantage, Rows, has_rows

__all__ = ["PrefixTree", "TokenCredit", "prefix_tree", "row_credit", "token_credit"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PrefixTree:
    """The answers of each group as one tree of prefixes.

    arrays  a root for each group, then the steps in depth-first order, then a leaf without tokens for each draw of each
            row, which carries the row's return
    draws   i64 [nodes of `arrays`] how many draws pass through each node
    trie    of the symbols;  step i64 [T] the node of `arrays` that each symbol of the trie belongs to
    """

    arrays: TreeArrays
    draws: Ints
    trie: RowTrie
    step: Ints

    def pooled(self) -> TreeArrays:
        """The same tree for `split_loo`: a step stands for as many draws as pass through it.

        The answers must be independent draws of the policy. The number of draws at a prefix is then known before their
        next tokens are drawn, which is what the estimator asks for.
        """
        a, up = self.arrays, np.maximum(self.arrays.parent, 0)
        inner = a.parent >= 0
        return a.with_(
            mult=np.where(inner, self.draws, 1),
            k=np.where(a.n_children > 0, self.draws, 0),
            share=np.where(inner, self.draws / np.maximum(self.draws[up], 1), 1.0),
        )


def prefix_tree(
    symbols: NDArray[np.int64],
    offset: NDArray[np.int64],
    returns: Floats,
    *,
    group: Ints | None = None,
    weight: Ints | None = None,
    starts: NDArray[np.bool_] | None = None,
) -> PrefixTree:
    """The prefix tree of R rows of N symbols in all.

    symbols  i64 [N], one row after the other;  offset i64 [R+1] where rows begin
    returns  f64 [R];  group i64 [R], None: one;  weight i64 [R] draws that a row stands for, None: 1 each
    starts   bool [N], where a segment begins: steps are whole segments. None: steps are as long as nothing branches
    Raises TreewrightError where the lengths do not fit.
    """
    rows = len(offset) - 1
    if len(returns) != rows or int(offset[-1]) != len(symbols):
        raise TreewrightError(
            f"{rows} rows of {int(offset[-1])} symbols, but {len(returns)} returns and {len(symbols)} symbols"
        )
    of = np.zeros(rows, np.int64) if group is None else np.unique(group, return_inverse=True)[1].reshape(-1)
    many = np.ones(rows, np.int64) if weight is None else np.asarray(weight, np.int64)
    trie = row_trie(symbols, offset, of, starts)
    length = np.diff(offset)
    first = _first(trie, starts)
    groups, head = int(of.max(initial=-1)) + 1, np.flatnonzero(first)
    step = groups + np.cumsum(first) - 1
    top, through = np.empty(len(trie), np.int64), np.bincount(trie.position, np.repeat(many, length), len(trie))
    top[trie.position] = np.repeat(of, length)
    above = np.where(trie.parent[head] >= 0, step[trie.parent[head]], top[head])
    under = np.where(trie.last >= 0, step[trie.last], of) if len(step) else of
    parent = np.concatenate((np.full(groups, -1), above, np.repeat(under, many)))
    before = groups + len(head)
    gain, draws = np.zeros(len(parent)), np.ones(len(parent), np.int64)
    gain[before:] = np.repeat(returns, many)
    draws[:groups], draws[groups:before] = np.bincount(of, many, groups), through[head]
    arrays = TreeArrays.of(
        parent,
        tree=np.concatenate((np.arange(groups), top[head], np.repeat(of, many))),
        reward=gain,
        n_tokens=np.bincount(step, minlength=len(parent)),
    )
    return PrefixTree(arrays=arrays, draws=draws, trie=trie, step=step)


def _first(trie: RowTrie, starts: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """[T] the first symbol of each step: where rows part, the one behind that, and where a segment begins."""
    up = np.maximum(trie.parent, 0)
    root = trie.parent < 0
    if starts is not None:
        begins = np.zeros(len(trie), np.bool_)
        begins[trie.position] = starts
        return np.asarray(begins | root)
    through = np.bincount(trie.position, minlength=len(trie))
    parted = root | (through[up] != through)
    return np.asarray(parted | parted[up])


def row_credit(name: str, tree: PrefixTree, **options: Any) -> tuple[Credit, Floats]:
    """The credit of the steps by the named estimator, and the coefficient of each symbol of the trie, f64 [T].

    Each group counts as one tree. Estimators of leaf rows see every answer as a row of its own; the others see answers
    that begin alike as draws of the same prefix.
    """
    credit = estimate(name, tree.arrays if has_rows(name) else tree.pooled(), **options)
    return credit, credit.coef[tree.step]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TokenCredit:
    """Credit of the tokens of trees.

    credit   by node of the trees; coef is the mean of its tokens' coefficients
    tokens   by node, f64 [tokens of the node]; all zeros where no finished path holds it
    """

    credit: Credit
    tokens: tuple[Floats, ...]


def token_credit(
    name: str, trees: Sequence[Tree], arrays: TreeArrays, *, segment: int | None = None, **options: Any
) -> TokenCredit:
    """The credit of every token of the trees, `arrays` being theirs: all paths of a task become one trie of tokens.

    A path is what was said and what the policy was shown in return, so that paths go together as far as both are equal,
    in whichever tree or turn they part. segment: tokens of a step, counted from the start of each turn; None: steps
    are as long as nothing branches. Raises TreewrightError for a segment below 1.
    """
    if segment is not None and segment < 1:
        raise TreewrightError(f"segments of {segment} tokens; give at least 1")
    rows = Rows(arrays)
    ended = np.flatnonzero(rows.finished)
    paths = _Paths(trees, segment)
    first = np.concatenate(([0], np.cumsum([len(t) for t in trees])))
    for leaf in rows.plan.order[ended].tolist():
        tree = int(arrays.tree[leaf])
        paths.add(tree, leaf - int(first[tree]), int(first[tree]))
    symbols, offset = flat_rows(paths.rows)
    group = rows.group[ended]
    found = prefix_tree(
        symbols, offset, rows.total[ended], group=group, weight=np.rint(rows.own[ended]).astype(np.int64),
        starts=np.asarray(paths.begins, np.bool_) if segment is not None else None,
    )  # fmt: skip
    _, coef = row_credit(name, found, **options)
    count = np.bincount(rows.group[~rows.inner])[np.unique(group)]
    coef = coef * count[found.arrays.tree[found.step]] if len(coef) else coef
    spans = {node: found.trie.position[offset[row] + a : offset[row] + b] for node, (row, a, b) in paths.spans.items()}
    shared = np.bincount(np.concatenate([*spans.values(), np.empty(0, np.int64)]).astype(np.int64), minlength=len(coef))
    each = coef / np.maximum(shared, 1)
    sizes = [len(ids) for t in trees for ids in t.ids]
    tokens = tuple(each[spans[i]] if i in spans else np.zeros(n) for i, n in enumerate(sizes))
    trained = arrays.trainable & arrays.kept
    whole = rows.credit(Advantage(row=np.zeros_like(rows.n)))
    mean = np.asarray([float(c.mean()) if len(c) and ok else 0.0 for c, ok in zip(tokens, trained, strict=True)])
    return TokenCredit(credit=replace(whole, coef=mean), tokens=tokens)


class _Paths:
    """Paths of trees as rows of symbols: token ids, and a negative number for each thing that was shown.

    spans  by node of the batch: the first row that holds it, and from where to where
    """

    def __init__(self, trees: Sequence[Tree], segment: int | None) -> None:
        self.trees, self.segment = trees, segment
        self.rows: list[list[int]] = []
        self.begins: list[bool] = []
        self.spans: dict[int, tuple[int, int, int]] = {}
        self._shown: dict[tuple[object, ...], int] = {}

    def add(self, tree: int, leaf: int, first: int) -> None:
        """The path to a leaf; `first` is the index of the tree's root in the batch."""
        t = self.trees[tree]
        row, begins, said = [self._seen(t.context_ids(0))], [True], 0
        for node in t.path(leaf)[1:]:
            ids = t.ids[node]
            self.spans.setdefault(first + node, (len(self.rows), len(row), len(row) + len(ids)))
            row += ids
            if self.segment is not None:  # what was shown belongs to the segment behind it
                begins += [said + i > 0 and (said + i) % self.segment == 0 for i in range(len(ids))]
            said += len(ids)
            if not t.in_turn(node) and node != leaf:
                row.append(self._seen((t.keep[node], t.delta[node], "" if ids else t.text[node])))
                begins.append(True)
                said = 0
        self.rows.append(row)
        if self.segment is not None:
            self.begins += begins

    def _seen(self, what: tuple[object, ...]) -> int:
        return -1 - self._shown.setdefault(what, len(self._shown))
