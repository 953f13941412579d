"""Prompts are read once: what they have in common is run once, and what does not depend on another is run together.

A prompt of an agent mostly goes on by a few tokens from one that was read before. Alone these few wait for the weights
to come from memory; those of many prompts share the wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from typing import Protocol, runtime_checkable

from torch import Tensor

from treewright.agent.policies.line import shared
from treewright.agent.policies.prefixes import PrefixCache
from treewright.kernels.decode import Path, Stretch, path_length

__all__ = ["Counts", "Reads", "levels", "read", "read_all"]

TOGETHER = 2048  # new tokens that run at once at most, which bounds their activations

Ids = tuple[int, ...]


class Reads(Protocol):
    def prefill(self, ids: Sequence[int], path: Path) -> tuple[Stretch, Tensor]: ...


@runtime_checkable
class ReadsMany(Reads, Protocol):
    def prefill_many(self, parts: Sequence[tuple[Sequence[int], Path]]) -> list[tuple[Stretch, Tensor]]: ...


class Counts(Protocol):
    prompt_tokens: int
    cached_tokens: int


def read(runner: Reads, cache: PrefixCache, ids: Ids, counts: Counts) -> Tensor:
    """The logits [V] after `ids`, whose keys and values the cache holds then."""
    path, logits = _begun(cache, ids)
    length = path_length(path)
    counts.cached_tokens += length
    counts.prompt_tokens += len(ids) - length
    if logits is None:
        stretch, logits = runner.prefill(ids[length:], path)
        cache.put(ids, stretch, logits)
    return logits


def read_all(runner: Reads, cache: PrefixCache, prompts: Sequence[Ids], counts: Counts) -> list[Tensor]:
    """`read` of each prompt; a runner with `prefill_many` runs together what does not build on each other."""
    if isinstance(runner, ReadsMany) and len(prompts) > 1:
        ends = set(prompts)
        for level in levels(prompts):
            counts.prompt_tokens += (new := _read_level(runner, cache, level, ends))
            counts.cached_tokens -= new  # what `read` counts as held below
    return [read(runner, cache, ids, counts) for ids in prompts]


def levels(prompts: Sequence[Ids]) -> list[list[Ids]]:
    """The beginnings of prompts that end where prompts part or end: each goes on from one of the level before."""
    inner = sorted(set(prompts))  # so that those with the most in common are neighbours
    parting = {b[: shared(a, b)] for a, b in itertools.pairwise(inner)}
    out, above = list[list[Ids]](), list[Ids]()
    for ids in sorted({*inner, *parting} - {()}):
        while above and ids[: len(above[-1])] != above[-1]:
            above.pop()
        if len(above) == len(out):
            out.append([])
        out[len(above)].append(ids)
        above.append(ids)
    return out


def _read_level(runner: ReadsMany, cache: PrefixCache, level: Sequence[Ids], ends: Set[Ids]) -> int:
    """How many tokens had to be run."""
    held = [(ids, cache.longest(ids)[0]) for ids in level]
    parts = [(ids, ids[path_length(path) :], path) for ids, path in held if path_length(path) < len(ids)]
    start = 0
    while start < len(parts):
        stop, room = start + 1, TOGETHER - len(parts[start][1])
        while stop < len(parts) and len(parts[stop][1]) <= room:
            room -= len(parts[stop][1])
            stop += 1
        found = runner.prefill_many([(new, path) for _, new, path in parts[start:stop]])
        for (ids, _, _), (stretch, logits) in zip(parts[start:stop], found, strict=True):
            cache.put(ids, stretch, logits if ids in ends else None)
        start = stop
    return sum(len(new) for _, new, _ in parts)


def _begun(cache: PrefixCache, ids: Ids) -> tuple[Path, Tensor | None]:
    """The path of what is held of `ids`, at least one token less where the logits after it are not known."""
    path, logits = cache.longest(ids)
    if path_length(path) < len(ids):
        return path, None
    return (path, logits) if logits is not None else (cache.longest(ids[:-1])[0], None)
