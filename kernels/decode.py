"""Decoding many branches at once over the prefixes they share.

A path through a tree of prompts is a row of stretches, each with its keys and values, each stored once. The keys of a
stretch that several branches have in common are read once for all of them, as one matrix product, and what the parts
give is merged by log-sum-exps, which is exact (after Juravsky et al. 2024, "Hydragen", arXiv:2402.05099, here with any
number of levels and branches of different lengths). What is short is copied to each branch instead: there one call more
costs more than it saves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from treewright.kernels.tree_attention import tree_attention
from treewright.kernels.tree_plan import TreePlan

__all__ = ["PAYS", "BranchCache", "Path", "PromptCache", "Stretch", "assembled", "path_length"]

PAYS = 1 << 18
"""Numbers per layer that are read again and again (further branches × tokens × heads × head size, keys only) from which
a call of its own pays. Measured on one CPU core: the two ways meet between 200,000 and 260,000 for 2 to 32 branches."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Consecutive tokens of a path, the first at depth `start`: keys and values [layers, Hkv, length, D]."""

    start: int
    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys.numel() * self.keys.element_size() + self.values.numel() * self.values.element_size()

    def split(self, at: int) -> tuple[Stretch, Stretch]:
        """The first `at` tokens and the rest, each in memory of its own, so that either can be freed."""
        first, rest = ((self.keys[:, :, part].clone(), self.values[:, :, part].clone())
                       for part in (slice(at), slice(at, None)))  # fmt: skip
        return Stretch(self.start, *first), Stretch(self.start + at, *rest)


Path = Sequence[Stretch]
"""Stretches from the first token on, without gaps."""


def path_length(path: Path) -> int:
    """Tokens on a path."""
    return path[-1].start + path[-1].length if path else 0


class PromptCache:
    """Takes up keys and values of `count` new tokens behind `path`, layer after layer, while a model runs them.

    positions  int64 [1, count], their depths
    """

    def __init__(self, path: Path, count: int, device: torch.device | str = "cpu") -> None:
        self._path, self._start = path, path_length(path)
        stop = self._start + count
        self._plan = TreePlan.from_segments([-1], [stop]).cut(self._start, stop)
        self._new: dict[int, tuple[Tensor, Tensor]] = {}
        self.positions = torch.arange(self._start, stop, device=device)[None]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None,
        chunk: int | None = None, softcap: float | None = None, sinks: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """What the new tokens see, [1, Hq, T, Dv], for q [1, Hq, T, D], k [1, Hkv, T, D] and v [1, Hkv, T, Dv]; the
        rest as `tree_attention` has it."""
        self._new[layer] = k[0], v[0]
        keys = torch.cat([*(s.keys[layer] for s in self._path), k[0]], 1)
        values = torch.cat([*(s.values[layer] for s in self._path), v[0]], 1)
        options = {"window": window, "chunk": chunk, "softcap": softcap, "sinks": sinks}
        out: Tensor = tree_attention(q[0], keys, values, self._plan, scale, **options)  # type: ignore[call-overload]
        return out[None]

    def stretch(self) -> Stretch:
        """The new tokens as the path's next stretch, once every layer has attended."""
        keys, values = zip(*(self._new[layer] for layer in sorted(self._new)), strict=True)
        return Stretch(self._start, torch.stack(keys), torch.stack(values))


@dataclass(slots=True)
class _Shared:
    """A stretch on the paths of branches [first, stop)."""

    stretch: Stretch
    first: int
    stop: int


class BranchCache:
    """Keys and values of B branches: ``paths[i]`` is continued by ``repeats[i]`` branches, neighbours of each other.

    paths      equal prefixes are shared where they are the same `Stretch` objects of neighbouring paths
    room       how many tokens each branch can take
    pays       what is read again less than this is copied; None: `PAYS`
    most       how many branches each path will fork to, for which there is room; None: `repeats`
    positions  int64 [B, 1], the depth of each branch's next token

    One token of every branch is an `attend` per layer, then `advance`.
    """

    def __init__(
        self, paths: Sequence[Path], repeats: Sequence[int], room: int, pays: int | None = None,
        most: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        sample = paths[0][0].keys
        least = (PAYS if pays is None else pays) / (sample.shape[1] * sample.shape[3])
        bounds = list(accumulate(repeats, initial=0))
        will = bounds if most is None else list(accumulate(most, initial=0))
        parts, own = _divided(paths, will, least)
        self._shared = [_Shared(part, bounds[first], bounds[stop]) for part, first, stop in parts]
        keys, values, depth = assembled(own, repeats, room, sample, will[-1])
        self._with_room = keys, values  # [layers, most branches, Hkv, L, D]
        self._keys, self._values = keys[:, : bounds[-1]], values[:, : bounds[-1]]  # [layers, B, Hkv, L, D]
        self._at, self._lowest = depth.shape[1] - room, torch.finfo(keys.dtype).min
        lengths = [path_length(path) for path in paths]
        count = torch.tensor(repeats, device=keys.device)
        self.positions = torch.tensor(lengths, device=keys.device).repeat_interleave(count)[:, None]
        depth[:, self._at :] = self.positions + torch.arange(room, device=keys.device)
        self._depth = depth
        self._padding = self._bias(depth >= 0, keys.dtype)
        self._masks: dict[tuple[int, int | None, int | None], Tensor] = {}

    @property
    def n_branches(self) -> int:
        return self.positions.shape[0]

    @property
    def shared_tokens(self) -> int:
        """Tokens of which all branches below read one copy."""
        return sum(part.stretch.length for part in self._shared)

    @property
    def nbytes(self) -> int:
        """Of the branches' own parts."""
        return sum(x.numel() * x.element_size() for x in (self._keys, self._values))

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None,
        chunk: int | None = None, softcap: float | None = None, sinks: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Takes one token of each branch, k [B, Hkv, 1, D], v [B, Hkv, 1, Dv]; returns what q [B, Hq, 1, D] sees,
        [B, Hq, 1, Dv]; the rest as `tree_attention` has it."""
        keys, values, at = self._keys[layer], self._values[layer], self._at
        keys[:, :, at], values[:, :, at] = k[:, :, 0], v[:, :, 0]
        grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[3])  # query heads that share a key stand as rows
        whole = window is None and chunk is None
        mask = self._padding if whole else self._own_mask(window, chunk, keys.dtype)
        stop = at + 1
        out, lse = _attention(grouped, keys[:, :, :stop], values[:, :, :stop], mask[..., :stop], scale, softcap)
        if self._shared:
            out = out.to(lse.dtype)
        for i, part in enumerate(self._shared):
            rows = slice(part.first, part.stop)
            hidden = None if whole else self._mask(i, window, chunk, grouped)
            more, more_lse = _over(grouped[rows], part.stretch, layer, hidden, scale, softcap)
            total = torch.logaddexp(lse[rows], more_lse)
            out[rows] = torch.lerp(out[rows], more.to(out.dtype), (more_lse - total).exp_()[..., None])
            lse[rows] = total
        if sinks is not None:
            kept = torch.sigmoid(lse - sinks.to(lse.dtype).view(lse.shape[1:]))
            out = out * kept[..., None].to(out.dtype)
        return out.to(q.dtype).reshape(q.shape[0], q.shape[1], 1, -1)

    def advance(self) -> None:
        """To be called when every layer has taken the token."""
        self.positions = self.positions + 1
        self._at += 1
        self._masks.clear()

    def keep(self, branches: Tensor) -> None:
        """Goes on with these branches, int64 [B'], not falling; one that is named n times forks into n."""
        rows = branches.tolist()
        if any(a > b for a, b in pairwise(rows)):
            raise ValueError(f"branches to keep must not fall, as {rows[:8]} do; they stay in their order")
        keys, values = (_moved(x, rows, self._at) for x in self._with_room)
        self._with_room = keys, values
        self._keys, self._values = keys[:, : len(rows)], values[:, : len(rows)]
        self._depth, self._padding = self._depth[branches], self._padding[branches]
        self.positions = self.positions[branches]
        for part in self._shared:
            part.first, part.stop = bisect_left(rows, part.first), bisect_left(rows, part.stop)
        self._shared = [part for part in self._shared if part.first < part.stop]
        self._masks.clear()

    def _bias(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, L] to add to scores. The lowest number, not −∞: a stretch of which a branch sees nothing then has
        a log-sum-exp that vanishes in the sum, and no NaN."""
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, self._lowest)[:, None, None]

    def _own_mask(self, window: int | None, chunk: int | None, dtype: torch.dtype) -> Tensor:
        key = (-1, window, chunk)
        if key not in self._masks:
            seen = (self._depth >= 0) & _near(self._depth, self.positions, window, chunk)
            self._masks[key] = self._bias(seen, dtype)
        return self._masks[key]

    def _mask(self, index: int, window: int | None, chunk: int | None, grouped: Tensor) -> Tensor:
        """[1, 1, rows · groups, L] for shared stretch `index` where a window or chunk ends inside or behind it."""
        key, part = (index, window, chunk), self._shared[index]
        if key not in self._masks:
            depth = part.stretch.start + torch.arange(part.stretch.length, device=grouped.device)
            seen = _near(depth, self.positions[part.first : part.stop], window, chunk)
            self._masks[key] = self._bias(seen, grouped.dtype)[:, 0].expand(-1, grouped.shape[2], -1).flatten(0, 1)
        return self._masks[key][None, None]


def _moved(own: Tensor, rows: Sequence[int], filled: int) -> Tensor:
    """own [layers, most branches, Hkv, L, D], of which L so many are filled, with `rows`, not falling, in front.

    In place where there is room, on a CPU one by one: new pages for copies cost more than what is read and written.
    """
    if len(rows) > own.shape[1]:
        grown = own.new_empty(own.shape[0], len(rows), *own.shape[2:])
        grown[:, :, :, :filled] = own[:, list(rows), :, :filled]
        return grown
    moved = [(to, row) for to, row in enumerate(rows) if to != row]
    if own.device.type != "cpu":
        own[:, [to for to, _ in moved], :, :filled] = own[:, [row for _, row in moved], :, :filled]
        return own
    # Nothing is written before it was read: what moves down is read from further up only, and the other way round.
    down, up = [one for one in moved if one[0] < one[1]], [one for one in moved if one[0] > one[1]]
    for to, row in (*down, *reversed(up)):
        own[:, to, :, :filled] = own[:, row, :, :filled]
    return own


def _near(depth: Tensor, at: Tensor, window: int | None, chunk: int | None) -> Tensor:
    """Whether keys at `depth` lie within the window and the chunk of queries at `at` [B, 1]."""
    seen = depth <= at
    if window is not None:
        seen = seen & (depth > at - window)
    return seen if chunk is None else seen & (depth // chunk == at // chunk)


def _divided(
    paths: Sequence[Path], bounds: Sequence[int], least: float
) -> tuple[list[tuple[Stretch, int, int]], list[list[Stretch]]]:
    """The stretches to share, with the paths [first, stop) that do, and, for each path, those to copy. Path i has
    branches [bounds[i], bounds[i + 1])."""
    shared = list[tuple[Stretch, int, int]]()
    own: list[list[Stretch]] = [[] for _ in paths]
    todo = [(0, len(paths), 0)]  # paths [a, b) agree in their first `level` stretches
    while todo:
        a, stop, level = todo.pop()
        while a < stop:
            if len(paths[a]) == level:
                a += 1
                continue
            b = a + 1
            while b < stop and paths[b][level : level + 1] == paths[a][level : level + 1]:
                b += 1
            chain = _common(paths[a:b], level)
            again = (bounds[b] - bounds[a] - 1) * sum(s.length for s in chain)
            if again >= least:
                shared.append((_joined(chain), a, b))
            else:
                for i in range(a, b):
                    own[i] += chain
            todo.append((a, b, level + len(chain)))
            a = b
    return shared, own


def _common(paths: Sequence[Path], level: int) -> list[Stretch]:
    """The stretches from `level` on that all these paths have in common."""
    chain: list[Stretch] = []
    for here in zip(*(path[level:] for path in paths), strict=False):
        if any(s is not here[0] for s in here):
            break
        chain.append(here[0])
    return chain


def _joined(chain: Sequence[Stretch]) -> Stretch:
    if len(chain) == 1:
        return chain[0]
    return Stretch(chain[0].start, torch.cat([s.keys for s in chain], 2), torch.cat([s.values for s in chain], 2))


def assembled(
    paths: Sequence[Path], repeats: Sequence[int], room: int, sample: Tensor, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [layers, B, Hkv, longest + room, D] of path i ``repeats[i]`` times, at the right edge of the
    first part, and the depth of each column, int64 [B, longest + room], −1 where nothing is.

    sample  any stretch's keys. Padding is zero, so that a masked column is 0 and never NaN.
    most    room for so many branches, of which those behind the B hold anything; None: B
    """
    sizes = [sum(s.length for s in path) for path in paths]
    width, total = max(sizes), sum(repeats)
    stretches = [s for path in paths for s in path]
    shapes = [stretches[0].keys.shape, stretches[0].values.shape] if stretches else [sample.shape] * 2
    keys, values = (sample.new_empty(s[0], max(total, most or 0), s[1], width + room, s[3]) for s in shapes)
    keys[:, :total, :, :width], values[:, :total, :, :width] = 0, 0
    depth = torch.full((total, width + room), -1, device=sample.device)
    row = 0
    for path, n, size in zip(paths, repeats, sizes, strict=True):
        column = width - size
        for stretch in path:
            after = column + stretch.length
            keys[:, row : row + n, :, column:after] = stretch.keys[:, None]
            values[:, row : row + n, :, column:after] = stretch.values[:, None]
            depth[row : row + n, column:after] = torch.arange(
                stretch.start, stretch.start + stretch.length, device=sample.device
            )
            column = after
        row += n
    return keys, values, depth


def _over(
    q: Tensor, stretch: Stretch, layer: int, mask: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Branches' queries [n, Hkv, groups, D] over one stretch: out like q and lse [n, Hkv, groups]."""
    rows = q.transpose(0, 1).flatten(1, 2)[None]  # branches and query heads of a group are rows of one product
    out, lse = _attention(rows, stretch.keys[layer][None], stretch.values[layer][None], mask, scale, softcap)
    shape = (q.shape[1], q.shape[0], q.shape[2])
    return out[0].reshape(*shape, -1).transpose(0, 1), lse[0].reshape(shape).transpose(0, 1)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """q [N, H, R, D] over k [N, H, L, D], v [N, H, L, Dv] without causality: out [N, H, R, Dv] and lse [N, H, R]."""
    if q.device.type == "cpu" and softcap is None and v.shape[-1] == q.shape[-1]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=bias, scale=scale
        )
        return out, lse
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse[..., None]).to(v.dtype) @ v, lse
