"""Decoding over shared prefixes: one copy that all branches read, against a copy for every branch.

Attention of a few layers, token after token; both ways are `BranchCache`, and their outputs must agree before anything
is timed. CPU seconds of one thread, or seconds of a GPU.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from treewright.kernels.decode import BranchCache, Path, Stretch
from treewright.kernels.reference import relative_error

__all__ = ["CASES", "decode_figures"]

HEADS, KV_HEADS, WIDTH, LAYERS = 8, 4, 64, 2
COPY = 1 << 60

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "8 over 1k": ((1024,), (8,)),
    "32 over 1k": ((1024,), (32,)),
    "8 over 2k": ((2048,), (8,)),
    "32 over 2k": ((2048,), (32,)),
    "4 x 8 over 1k + 256": ((1024, 256), (4, 8)),
    "8 over 64": ((64,), (8,)),
}
"""Lengths of the levels, and into how many each level forks."""


def decode_figures(device: str, quick: bool = False) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A table row per case: microseconds per token of all branches both ways, and bytes of keys and values.

    Raises RuntimeError where the two ways disagree.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            table = [_measure(name, device, 8 if quick else 32) for name in CASES]
    finally:
        torch.set_num_threads(threads)
    long = [row for row in table if row["shared tokens"]]
    return table, {
        "decode_vs_batched": {"value": min(row["faster"] for row in long), "unit": "ratio"},
        "decode_memory_vs_batched": {"value": min(row["smaller"] for row in long), "unit": "ratio"},
        "decode_short_vs_batched": {"value": table[-1]["faster"], "unit": "ratio"},
    }


def _paths(name: str, device: str) -> tuple[list[Path], list[int]]:
    lengths, forks = CASES[name]
    generator = torch.Generator().manual_seed(0)

    def stretch(start: int, length: int) -> Stretch:
        size = (LAYERS, KV_HEADS, length, WIDTH)
        return Stretch(start, *(torch.randn(size, generator=generator).to(device) for _ in range(2)))

    paths: list[Path] = [[]]
    for level, length in enumerate(lengths):
        start = sum(lengths[:level])
        paths = [[*path, stretch(start, length)] for path in paths for _ in range(forks[level - 1] if level else 1)]
    return paths, [forks[-1]] * len(paths)


def _measure(name: str, device: str, steps: int) -> dict[str, Any]:
    paths, repeats = _paths(name, device)
    shared, copied = (BranchCache(paths, repeats, steps, pays) for pays in (None, COPY))
    prefix = sum(s.nbytes for s in {id(s): s for path in paths for s in path}.values())
    spent: tuple[list[float], list[float]] = ([], [])
    for step in range(steps):
        new = _tokens(shared.n_branches, device, step)
        outs: list[Tensor] = [new[0]] * 2
        for i in (0, 1) if step % 2 else (1, 0):  # the second finds the new token in the cache: they take turns
            cache, start = (shared, copied)[i], _now(device)
            outs[i] = torch.stack([cache.attend(layer, *new, WIDTH**-0.5) for layer in range(LAYERS)])
            cache.advance()
            spent[i].append(_now(device) - start)
        if relative_error(outs[0], outs[1]) > 1e-5:
            raise RuntimeError(f"decoding {name}: shared and copied prefixes disagree; nothing is timed")
    fast, slow = (sorted(times)[len(times) // 2] for times in spent)
    kept = shared.nbytes + (prefix if shared.shared_tokens else 0)
    return {
        "branches": name, "shared tokens": shared.shared_tokens, "us": fast * 1e6, "copied us": slow * 1e6,
        "faster": slow / fast, "bytes": kept, "copied bytes": copied.nbytes, "smaller": copied.nbytes / kept,
    }  # fmt: skip


def _tokens(branches: int, device: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(branches, h, 1, WIDTH, generator=generator) for h in (HEADS, KV_HEADS, KV_HEADS))
    return q.to(device), k.to(device), v.to(device)


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
