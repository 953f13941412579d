"""Packs cut where trees end, shared out over ranks, and sent to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from treewright.training.balance import Costs, Part, share_out
from treewright.training.loss import Mode
from treewright.training.pack import PackedBatch, join_packs

__all__ = ["Slot", "compares", "cut", "from_bytes", "part_of", "shares", "to_bytes"]


@dataclass(frozen=True, slots=True)
class Slot:
    """What all ranks do at once: `first` passes without gradient in chunks, then `second` with it.

    A pack that runs whole needs (0, 1), one of n chunks (n, n); who has less fills up with empty passes.
    """

    first: int
    second: int


def part_of(pack: PackedBatch) -> Part:
    """Unique tokens and visible pairs of a pack."""
    return Part(len(pack), pack.plan.n_pairs)


def cut(pack: PackedBatch) -> list[PackedBatch]:
    """The pack's trees as packs of their own, in order: each begins where a token has no predecessor.

    Their terms together are the pack's. The first counts the pack's trees, the others none.
    """
    starts = np.flatnonzero(pack.parent < 0)
    stops = np.append(starts[1:], len(pack))
    owner = np.searchsorted(starts, pack.target, side="right") - 1
    term_owner = owner[pack.term]
    out = []
    for i, (a, b) in enumerate(zip(starts, stops, strict=True)):
        held, terms = owner == i, term_owner == i
        out.append(_within(pack, int(a), int(b), held, terms, pack.trees if i == 0 else 0))
    return out


def _within(
    pack: PackedBatch, a: int, b: int, held: NDArray[np.bool_], terms: NDArray[np.bool_], trees: int
) -> PackedBatch:
    place = np.cumsum(held) - 1
    sequence = pack.sequence[terms]
    _, drawn = np.unique(sequence, return_inverse=True)
    return PackedBatch(
        ids=pack.ids[a:b],
        parent=np.where(pack.parent[a:b] >= 0, pack.parent[a:b] - a, -1).astype(np.int32),
        target=pack.target[held] - a,
        coef=pack.coef[held],
        behaviour=pack.behaviour[held],
        trees=trees,
        weight=pack.weight[held],
        mode=pack.mode[held],
        term=place[pack.term[terms]],
        term_coef=pack.term_coef[terms],
        imitate=pack.imitate[held],
        sequence=sequence if bool((sequence < 0).all()) else drawn.astype(np.int64),
        routes=None if pack.routes is None else pack.routes[a:b],
    )


def shares(
    packs: Sequence[PackedBatch], ranks: int, most: int, chunk: int | None, costs: Costs, whole: bool = False
) -> tuple[list[list[PackedBatch | None]], list[Slot]]:
    """What each rank gets of one optimizer step's packs: `packs[rank][slot]`, and the passes of every slot.

    whole  packs are not cut: where the loss compares a term with others of its pack
    """
    parts = list(packs) if whole else [part for pack in packs for part in cut(pack)]
    parts = [p for p in parts if len(p.target)]
    plan = share_out([part_of(p) for p in parts], ranks, most, costs, joined=not whole)
    dealt: list[list[PackedBatch | None]] = [[] for _ in range(ranks)]
    slots = []
    for row in plan:
        held = [join_packs([parts[i] for i in mine]) if mine else None for mine in row]
        passes = [_passes(pack, chunk) for pack in held]
        slots.append(Slot(max(p.first for p in passes), max(p.second for p in passes)))
        for rank, pack in enumerate(held):
            dealt[rank].append(pack)
    return dealt, slots


def _passes(pack: PackedBatch | None, chunk: int | None) -> Slot:
    if pack is None:
        return Slot(0, 0)
    if chunk is None or len(pack) <= chunk:
        return Slot(0, 1)
    many = -(-len(pack) // chunk)
    return Slot(many, many)


def compares(packs: Sequence[PackedBatch], adaptive_clip: float) -> bool:
    """Whether the loss sets terms of a pack against each other, so that packs must stay as they are."""
    return adaptive_clip > 0 or any(bool((p.mode == Mode.TOP_ENTROPY).any()) for p in packs)


# -- over the wire ----------------------------------------------------------------------------------------------------

ARRAYS = tuple(f.name for f in fields(PackedBatch) if f.name != "trees")


def to_bytes(packs: Sequence[PackedBatch | None]) -> bytes:
    """Packs as safetensors."""
    arrays = {"count": np.asarray([len(packs)], np.int64)}
    for i, pack in enumerate(packs):
        if pack is not None:
            arrays[f"{i}.trees"] = np.asarray([pack.trees], np.int64)
            held = {name: getattr(pack, name) for name in ARRAYS}
            arrays |= {f"{i}.{name}": np.ascontiguousarray(a) for name, a in held.items() if a is not None}
    data: bytes = save(arrays)
    return data


def from_bytes(data: bytes) -> list[PackedBatch | None]:
    """What `to_bytes` was given."""
    arrays = load(data)
    return [_read(arrays, i) if f"{i}.trees" in arrays else None for i in range(int(arrays["count"][0]))]


def _read(arrays: dict[str, NDArray[np.generic]], i: int) -> PackedBatch:
    values = {name: arrays[f"{i}.{name}"] for name in ARRAYS if f"{i}.{name}" in arrays}
    return replace(PackedBatch(**values, trees=0), trees=int(arrays[f"{i}.trees"][0]))  # type: ignore[arg-type]
