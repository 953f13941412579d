"""Layers that carry something from token to token, over a whole forest: states and short convolutions.

The state at a segment's start is the state at the end of its parent segment; a convolution reads the last inputs of
the root path. Segments of one level of the tree go through in one call, padded, with initial states gathered from
their parents; where their lengths differ much, the call stops at a shorter one's end and the rest goes on in the next.
What computes a call is given by the caller, so that a model's own function, or a GPU kernel, does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treewright.kernels.tree_chunks import TreeChunk
from treewright.kernels.tree_plan import TreePlan

__all__ = ["Batch", "batches", "segments", "tree_convolution", "tree_scan", "tree_steps"]

IntArray = npt.NDArray[np.int64]
UNIT = 64
"""Calls end at multiples of this, the chunk that recurrent kernels work in."""

FILLED = 0.75
"""Least share of real tokens in a call of several segments of different lengths, if it can be had."""

Run = Callable[[Sequence[Tensor], Tensor, Tensor | None, int], tuple[Tensor, Tensor]]
"""(inputs [S, L, …], real bool [S, L], states [S, …] or None for zeros, longest) → outputs [S, L, …], states [S, …]."""


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Stretches of queries that run from one point where paths meet to the next.

    start, stop  int64 [S], queries
    parent       int64 [S], the segment before; −1 where a tree begins; −2 − key where it follows a key before the cut
    """

    start: IntArray
    stop: IntArray
    parent: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One call: pieces of segments, side by side.

    at      int64 [S, L] queries, 0 where nothing is;  real  bool [S, L]
    source  [(batch, rows int64, places int64)], where initial states come from; batch −1: before the cut, by position
            in `imports`. Rows that no source names begin a tree
    """

    at: Tensor
    real: Tensor
    source: tuple[tuple[int, Tensor, Tensor], ...]

    @property
    def begins(self) -> bool:
        return not self.source


@dataclass(frozen=True, slots=True, eq=False)
class _Schedule:
    """batches, and `place` int64 [T], where each query stands among the batches' flattened outputs.

    imports  int64, keys before the cut whose states are needed
    exports  (batch, row) of each exported query's state
    last     [batches], the last batch that reads each one's states
    """

    batches: tuple[Batch, ...]
    place: Tensor
    imports: Tensor
    exports: tuple[tuple[int, int], ...]
    last: tuple[int, ...]


def _links(plan: TreePlan) -> IntArray:
    """int64 [Tk]; the key before each key on its path."""
    return np.concatenate([np.arange(-1, plan.q_offset - 1), plan.parent.cpu().numpy().astype(np.int64)])


def segments(plan: TreePlan, exports: Sequence[int] = ()) -> Segments:
    """The plan's queries as segments that end where a path branches, and after the queries named in `exports`."""
    key = ("segments", tuple(exports))
    if key not in plan.cache:
        plan.cache[key] = _segments(plan, exports)
    found: Segments = plan.cache[key]
    return found


def _segments(plan: TreePlan, exports: Sequence[int]) -> Segments:
    offset, total = plan.q_offset, plan.n_queries
    up = _links(plan)[offset:]
    at = np.arange(offset, offset + total)
    begins = up != at - 1
    if total:
        begins[0] = True
    others = up[begins & (up >= offset)] - offset  # what branches off there, or goes on after another's subtree
    for query in (*others.tolist(), *exports):
        if query + 1 < total:
            begins[query + 1] = True
    start = np.flatnonzero(begins)
    stop = np.append(start[1:], total).astype(np.int64)
    above = up[start]
    inside = np.searchsorted(start, np.maximum(above - offset, 0), side="right") - 1
    parent = np.where(above < 0, -1, np.where(above < offset, -2 - above, inside))
    return Segments(start, stop, parent)


def batches(plan: TreePlan, exports: Sequence[int] = ()) -> tuple[Batch, ...]:
    """The calls of one pass, in order; kept in the plan."""
    return _schedule(plan, exports).batches


def _schedule(plan: TreePlan, exports: Sequence[int] = ()) -> _Schedule:
    key = ("states", tuple(exports))
    if key not in plan.cache:
        plan.cache[key] = _scheduled(plan, segments(plan, exports), exports)
    found: _Schedule = plan.cache[key]
    return found


def _scheduled(plan: TreePlan, of: Segments, exports: Sequence[int]) -> _Schedule:
    level = np.zeros(len(of.start), np.int64)
    for s, up in enumerate(of.parent.tolist()):
        level[s] = level[up] + 1 if up >= 0 else 0
    imports = sorted({-2 - up for up in of.parent.tolist() if up < -1})
    held: dict[int, tuple[int, int]] = {-2 - key: (-1, i) for i, key in enumerate(imports)}
    made: list[Batch] = []
    place = np.zeros(plan.n_queries, np.int64)
    passed, last = 0, list[int]()
    for depth in range(int(level.max(initial=-1)) + 1):
        rest = {int(s): int(of.start[s]) for s in np.flatnonzero(level == depth)}
        state = {s: held.get(int(of.parent[s])) for s in rest}
        while rest:
            names, width = _next({s: int(of.stop[s]) - at for s, at in rest.items()})
            batch, where = _batch(names, rest, of.stop, width, state, plan.device)
            place[where[0]] = passed + where[1]
            passed += batch.at.numel()
            for source, *_ in batch.source:
                if source >= 0:
                    last[source] = len(made)
            for row, s in enumerate(names):
                held[s] = state[s] = (len(made), row)
                rest[s] += width
                if rest[s] >= of.stop[s]:
                    del rest[s]
            made.append(batch)
            last.append(-1)
    ends = {int(stop) - 1: held[s] for s, stop in enumerate(of.stop.tolist())}
    out = tuple(ends[query] for query in exports)
    for batch_index, _ in out:
        last[batch_index] = len(made)
    device = plan.device
    return _Schedule(
        tuple(made), torch.from_numpy(place).to(device), torch.tensor(imports, dtype=torch.int64, device=device), out,
        tuple(last),
    )  # fmt: skip


def _next(left: dict[int, int]) -> tuple[list[int], int]:
    """Which segments go into the next call, of those with so many tokens left, and how many tokens of each at most."""
    longest = max(left.values())
    ends = sorted({min(longest, -(-n // UNIT) * UNIT) for n in left.values()})
    for end in reversed(ends):
        if sum(min(n, end) for n in left.values()) >= FILLED * len(left) * end:
            return list(left), end
    short = [s for s, n in left.items() if n <= UNIT // 4]
    if short and len(short) < len(left):
        return short, max(left[s] for s in short)
    return list(left), ends[0]


def _batch(
    names: Sequence[int],
    at: dict[int, int],
    stop: IntArray,
    width: int,
    state: dict[int, tuple[int, int] | None],
    device: torch.device,
) -> tuple[Batch, tuple[IntArray, IntArray]]:
    index = np.asarray([at[s] for s in names])[:, None] + np.arange(width)
    real = index < np.asarray([stop[s] for s in names])[:, None]
    source: dict[int, list[tuple[int, int]]] = {}
    for row, s in enumerate(names):
        found = state[s]
        if found is not None:
            source.setdefault(found[0], []).append((row, found[1]))
    sources = tuple(
        (
            batch,
            torch.tensor([row for row, _ in pairs], device=device),
            torch.tensor([at for _, at in pairs], device=device),
        )
        for batch, pairs in source.items()
    )
    where = np.flatnonzero(real.ravel())
    batch = Batch(torch.from_numpy(np.where(real, index, 0)).to(device), torch.from_numpy(real).to(device), sources)
    return batch, (index.ravel()[where], where)


def tree_scan(inputs: Sequence[Tensor], tree: TreePlan | TreeChunk, run: Run, name: Any = None) -> Tensor:
    """What a recurrent layer gives for each token, [T, …], where each goes on from the state of the one before it.

    inputs  [T, …] each, in the plan's order
    run     computes a call; where `real` is False it must leave the state as it is. States are [S, …]
    name    of the layer, under which a `TreeChunk` keeps states between chunks
    """
    plan, exports = (tree.plan, tree.exports) if isinstance(tree, TreeChunk) else (tree, ())
    schedule = _schedule(plan, exports)
    before = None
    if isinstance(tree, TreeChunk) and len(schedule.imports):
        before = tree.read(("state", name), tree.live[schedule.imports.to(tree.live.device)])
    states: list[Tensor | None] = []
    outputs: list[Tensor] = []
    for i, batch in enumerate(schedule.batches):
        parts = [x[batch.at] for x in inputs]
        out, after = run(parts, batch.real, _initial(batch, states, before), batch.at.shape[1])
        outputs.append(out.flatten(0, 1))
        states.append(after if schedule.last[i] > i else None)
        for source, *_ in batch.source:
            if source >= 0 and schedule.last[source] == i:
                states[source] = None
    whole = torch.cat(outputs)[schedule.place]
    if isinstance(tree, TreeChunk) and exports:
        kept = [states[batch] for batch, _ in schedule.exports]
        rows = torch.stack([x[row] for x, (_, row) in zip(kept, schedule.exports, strict=True) if x is not None])
        whole = tree.write(("state", name), exports, rows, whole)
    return whole


def _initial(batch: Batch, states: Sequence[Tensor | None], before: Tensor | None) -> Tensor | None:
    """States [S, …] that a call starts from; None: all zero."""
    found: list[tuple[Tensor, Tensor]] = []
    for source, rows, places in batch.source:
        held = before if source < 0 else states[source]
        assert held is not None
        found.append((rows, held if len(places) == len(held) and _counts_up(places) else held[places]))
    if not found:
        return None
    if len(found) == 1 and len(found[0][0]) == len(batch.at):
        return found[0][1]
    first = found[0][1]
    start = torch.zeros(len(batch.at), *first.shape[1:], dtype=first.dtype, device=first.device)
    return start.index_copy(0, torch.cat([r for r, _ in found]), torch.cat([x for _, x in found]))


def _counts_up(places: Tensor) -> bool:
    return bool((places == torch.arange(len(places), device=places.device)).all())


def tree_steps(factor: Tensor, added: Tensor, tree: TreePlan | TreeChunk, name: Any = None) -> Tensor:
    """State of each token, h = factor · h before + added, elementwise: [T, …], tokens of one depth at a time.

    For recurrences that no kernel takes in chunks. A chunk keeps states as `tree_scan` does.
    """
    plan, exports = (tree.plan, tree.exports) if isinstance(tree, TreeChunk) else (tree, ())
    up, offset = _links(plan)[plan.q_offset :], plan.q_offset
    known = [torch.zeros_like(added[:1])]  # position 0: nothing before
    position = np.zeros(plan.n_keys + 1, np.int64)
    if isinstance(tree, TreeChunk):
        needed = np.unique(up[(up >= 0) & (up < offset)])
        if len(needed):
            known.append(tree.read(("state", name), tree.live[torch.from_numpy(needed).to(tree.live.device)]))
            position[needed] = 1 + np.arange(len(needed))
    held = torch.cat(known)
    depth = plan.depth.cpu().numpy()
    order = np.argsort(depth, kind="stable")
    where = np.zeros(plan.n_queries, np.int64)
    previous, levels, passed = held, list[Tensor](), 0
    for ids in np.split(order, np.flatnonzero(np.diff(depth[order])) + 1):
        source = position[up[ids]] if len(ids) else ids
        outside = up[ids] < offset
        pool = torch.cat([held, previous]) if levels else held
        take = torch.from_numpy(np.where(outside | (not levels), source, source + len(held))).to(added.device)
        at = torch.from_numpy(ids).to(added.device)
        previous = factor[at] * pool[take] + added[at]
        position[ids + offset] = np.arange(len(ids))
        where[ids] = passed + np.arange(len(ids))
        passed += len(ids)
        levels.append(previous)
    whole = torch.cat(levels)[torch.from_numpy(where).to(added.device)]
    if isinstance(tree, TreeChunk) and exports:
        whole = tree.write(("state", name), exports, whole[torch.tensor(exports, device=whole.device)], whole)
    return whole


def tree_convolution(
    x: Tensor, width: int, tree: TreePlan | TreeChunk, run: Callable[[Tensor], Tensor], name: Any = None
) -> Tensor:
    """A causal convolution of `width` tokens along each root path: x [T, C] → [T, C'].

    run  the convolution of one row, [L, C] → [L, C'], with zeros before its first token. It is called once, on all
         segments behind each other, each behind the inputs before it.
    """
    plan = tree.plan if isinstance(tree, TreeChunk) else tree
    layout = _windows(plan, width)
    if isinstance(tree, TreeChunk):
        due = tree.tails(width - 1)
        if len(due):
            own = torch.tensor(due, device=x.device)
            x = tree.write(("conv", name), due, x[own], x)
        if len(layout.before):
            x = torch.cat([x, tree.read(("conv", name), tree.live[layout.before.to(tree.live.device)])])
    padded = torch.cat([x, torch.zeros_like(x[:1])])
    return run(padded[layout.take])[layout.keep]


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """take int64: tokens behind each other (T … T + before: those before the cut, then a zero); keep int64 [T]."""

    take: Tensor
    keep: Tensor
    before: Tensor


def _windows(plan: TreePlan, width: int) -> _Windows:
    key = ("windows", width)
    if key in plan.cache:
        found: _Windows = plan.cache[key]
        return found
    of, up, offset = segments(plan), _links(plan), plan.q_offset
    reach, at = [], of.start + offset
    for _ in range(width - 1):
        at = np.where(at >= 0, up[at], -1)
        reach.append(at)
    ahead = np.stack(reach[::-1], 1) if reach else np.zeros((len(of.start), 0), np.int64)  # [S, width − 1] keys
    before = np.unique(ahead[(ahead >= 0) & (ahead < offset)])
    rank = np.searchsorted(before, np.maximum(ahead, 0))
    none = plan.n_queries + len(before)
    ahead = np.where(ahead < 0, none, np.where(ahead < offset, plan.n_queries + rank, ahead - offset))
    lengths = of.stop - of.start
    size = lengths + width - 1
    begin = np.cumsum(size) - size
    take = np.empty(int(size.sum()), np.int64)
    keep = np.arange(plan.n_queries) + np.repeat(begin + width - 1 - of.start, lengths)
    take[keep] = np.arange(plan.n_queries)
    take[(begin[:, None] + np.arange(width - 1)).ravel()] = ahead.ravel()
    parts = (torch.from_numpy(a).to(plan.device) for a in (take, keep, before))
    plan.cache[key] = made = _Windows(*parts)
    return made
