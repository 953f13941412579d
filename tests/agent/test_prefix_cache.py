"""Keys and values of prompts are free as soon as nobody needs them, without a collection of garbage."""

from __future__ import annotations

import gc
import weakref

import torch

from treewright.agent.policies.prefixes import PrefixCache
from treewright.kernels import Stretch


def put(cache: PrefixCache, ids: tuple[int, ...]) -> None:
    path, _ = cache.longest(ids)
    at = sum(s.length for s in path)
    keys, values = (torch.zeros(1, 1, len(ids) - at, 4) for _ in range(2))
    cache.put(ids, Stretch(at, keys, values), torch.zeros(8))


def test_what_a_cache_of_prompts_held_is_free_when_it_is_cleared() -> None:
    """A loop clears it at every update: what waited for the collection grew by megabytes each time."""
    cache = PrefixCache(1 << 30)
    gc.collect()
    gc.disable()
    try:
        for ids in ((1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 6, 7), (8, 9)):
            put(cache, ids)
        held = [weakref.ref(node.stretch.keys) for node in cache._nodes]
        assert len(held) > 5 and all(one() is not None for one in held)
        cache.clear()
        assert not cache._nodes and [one for one in held if one() is not None] == []
    finally:
        gc.enable()


def test_what_is_trimmed_is_free_at_once() -> None:
    cache = PrefixCache(1 << 30)
    gc.collect()
    gc.disable()
    try:
        put(cache, (1, 2, 3))
        put(cache, (1, 2, 4))
        held = [weakref.ref(node.stretch.keys) for node in cache._nodes]
        cache.limit = 0
        cache.trim()
        assert [one for one in held if one() is not None] == []
    finally:
        gc.enable()
