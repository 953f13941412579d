"""Routes of a tree's rows: which experts the sampler sent each token to, for packing.

A draw's routes cover what it added to the row before it (see `treewright.search.routes`): the last token of the answer
before, which nobody had read until then, the prompt behind it, and its own tokens but the last; and perhaps some tokens
before, which the sampler computed, and routed, once more. So what a token's route is depends on the draw that asks: its
own where it covers the token, else that of the draws above it. Draws that share tokens and were routed differently over
them cannot share a token's state, and stand apart in a pack from there on.

The last token of an answer is predicted by the one before it; its own route matters to what comes after it alone. So
there it stands where the first draw below it puts it, and takes no place of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.search.routes import decode_routes, encode_routes
from treewright.search.tree import Tree

__all__ = ["ID_BITS", "RowRoutes", "needed_nodes", "record_routes", "row_routes", "token_of"]

ID_BITS = 32
"""Where a token and its route are one number, the token id is in so many lower bits, the row of the table above."""

Marks = NDArray[np.int64]


def token_of(symbols: Marks) -> Marks:
    """Token ids of (route, token) numbers."""
    return symbols & ((1 << ID_BITS) - 1)


def needed_nodes(tree: Tree, trained: NDArray[np.bool_]) -> list[int]:
    """Trained nodes and those above them, the root left out, parents first."""
    needed = np.array(trained, bool)
    for i in range(len(tree) - 1, 0, -1):
        needed[tree.parent[i]] |= needed[i]
    return [i for i in np.flatnonzero(needed).tolist() if i]


@dataclass(frozen=True, slots=True, eq=False)
class RowRoutes:
    """By node, its row being the prompt it was drawn from and its tokens:

    table  i16 [U, L, K] distinct routes; the first is −1: not known
    begin  where in the row the node decides; before that it is the row of its parent
    marks  i64 [length − begin] rows of `table`, in the order of nodes
    """

    table: NDArray[np.int16]
    begin: dict[int, int]
    marks: dict[int, Marks]

    def of(self, tree: Tree, node: int) -> Marks:
        """Rows of `table` for the whole row of a node."""
        parts = [self.marks[node]]
        end = self.begin[node]
        while end:
            node = tree.parent[node]
            if self.begin[node] < end:
                parts.append(self.marks[node][: end - self.begin[node]])
                end = self.begin[node]
        return np.concatenate(parts[::-1])


def row_routes(tree: Tree, trained: NDArray[np.bool_]) -> RowRoutes | None:
    """The routes of the rows of trained nodes; None where no draw has any.

    Raises TreewrightError for routes of more tokens than were read, and of two models.
    """
    nodes = needed_nodes(tree, trained)
    known = {i: decode_routes(tree.routes[i]) for i in nodes if tree.routes[i]}
    if not known:
        return None
    shapes = {found.shape[1:]: i for i, found in known.items()}
    if len(shapes) > 1:
        first, second = list(shapes.items())[:2]
        raise TreewrightError(
            f"tree {tree.tree_id}: routes of {first[0][0]} layers with {first[0][1]} experts a token at node "
            f"{first[1]}, of {second[0][0]} with {second[0][1]} at node {second[1]}; one model drew the tree"
        )
    table, rows = _interned(list(known.values()))
    row_of = dict(zip(known, rows, strict=True))
    length, begin, marks = {0: 0}, dict[int, int](), dict[int, Marks]()
    for node in nodes:
        above = tree.parent[node]
        kept = min(tree.keep[above], length[above]) if above else 0
        length[node] = kept + len(tree.delta[above]) + len(tree.ids[node])
        own = row_of.get(node, np.zeros(0, np.int64))
        read = max(length[node] - 1, 0)
        if len(own) > read:
            raise TreewrightError(
                f"node {node} of tree {tree.tree_id} has routes of {len(own)} tokens, but {read} were read when its "
                "last token was drawn"
            )
        begin[node] = max(min(kept, length[above] - 1, read - len(own)), 0)
        marks[node] = np.zeros(length[node] - begin[node], np.int64)
        marks[node][read - len(own) - begin[node] : read - begin[node]] = own
    for node in reversed(nodes):  # the last token of an answer, as the first draw below read it
        above = tree.parent[node]
        last = length[above] - 1
        if above and begin[node] <= last < min(tree.keep[above], length[node]):
            marks[above][-1] = marks[node][last - begin[node]]
    return RowRoutes(table, begin, marks)


def _interned(parts: Sequence[NDArray[np.int16]]) -> tuple[NDArray[np.int16], list[Marks]]:
    """The distinct routes of all parts behind one that is not known, and for each part [n, L, K] their rows [n]."""
    flat = np.ascontiguousarray(np.concatenate(parts))
    keys = flat.reshape(len(flat), -1)
    whole = keys.view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).reshape(-1)
    _, first, row = np.unique(whole, return_index=True, return_inverse=True)
    table = np.concatenate([np.full((1, *flat.shape[1:]), -1, np.int16), flat[first]])
    ends = np.cumsum([len(part) for part in parts])
    return table, np.split(row.reshape(-1).astype(np.int64) + 1, ends[:-1])


def record_routes(tree: Tree, model: Any) -> None:
    """Fills `tree.routes` with how `model` routes the rows of what its policy drew, as its sampler would have told.

    model  a transformers model that `training.model.prepare` was called on. It runs each row by itself
    """
    import torch

    from treewright.kernels import TreePlan
    from treewright.search.types import Origin
    from treewright.training.decoders.experts import routes

    for node in range(1, len(tree)):
        above = tree.parent[node]
        ids = [*tree.context_ids(above), *tree.ids[node]][:-1]
        if tree.origin[node] is not Origin.POLICY or not ids:
            continue
        found = routes(model, torch.tensor(ids, device=model.device), TreePlan.from_segments([-1], [len(ids)]))
        if found:
            rows = torch.stack(list(found.values()), 1).cpu().numpy()
            tree.routes[node] = encode_routes(rows[max(len(ids) - len(tree.delta[above]) - len(tree.ids[node]), 0) :])
