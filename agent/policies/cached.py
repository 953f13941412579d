"""Drawing with transformers' own cache, whatever a model keeps in it: recurrent states, keys of several shapes.

A stretch of a prompt holds a copy of the whole cache at its end, since a state cannot be cut in two. Draws start from
copies of it, rows of one prompt together. A prompt that branches inside a stretch is computed again from the last cache
above.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treewright.kernels.decode import Path, Stretch, path_length

__all__ = ["CacheRunner"]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept(Stretch):
    """Tokens of a prompt and, unless it was cut off, the cache after the last of them."""

    ids: tuple[int, ...]
    cache: Any

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in _tensors(self.cache))

    def split(self, at: int) -> tuple[Stretch, Stretch]:
        first = _Kept(self.start, self.keys, self.values, self.ids[:at], None)
        return first, _Kept(self.start + at, self.keys, self.values, self.ids[at:], self.cache)


def _tensors(held: Any) -> list[Tensor]:
    """Every tensor in a cache, whose class may be any."""
    if isinstance(held, Tensor):
        return [held]
    if isinstance(held, dict):
        held = list(held.values())
    elif not isinstance(held, list | tuple):
        held = list(vars(held).values()) if hasattr(held, "__dict__") else []
    return [x for part in held for x in _tensors(part)]


class CacheRunner:
    """Runs any transformers causal language model through its own forward and cache, one prompt at a time.

    continues  prompts go on from a cache; without it each is computed from its first token, for models that can only
               take one token behind what they keep
    """

    shares = False

    def __init__(self, model: Any, continues: bool = True) -> None:
        self.model, self.continues = model, continues

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def refresh(self) -> None:
        """Nothing is copied from the model."""

    def release(self) -> None:
        """There is nothing to free."""

    def prefill(self, ids: Sequence[int], path: Path) -> tuple[Stretch, Tensor]:
        parts = [part for part in path if isinstance(part, _Kept)]
        known = max((i for i, part in enumerate(parts) if part.cache is not None), default=-1) if self.continues else -1
        todo = [token for part in parts[known + 1 :] for token in part.ids] + list(ids)
        cache = copy.deepcopy(parts[known].cache) if known >= 0 else None
        start = parts[known].start + parts[known].length if known >= 0 else 0
        logits, cache = self.run(torch.tensor([todo], device=self.device), start, cache)
        nothing = torch.empty(0, device=self.device)
        return _Kept(path_length(path), nothing, nothing, tuple(ids), cache), logits[0]

    @torch.inference_mode()
    def run(self, ids: Tensor, start: int, cache: Any) -> tuple[Tensor, Any]:
        """Logits [B, V] after ids [B, T] at depth `start`, and the cache with them."""
        from treewright.training.decoders.plans import counts_positions

        more: dict[str, Any] = {}
        if counts_positions(self.model):
            more["position_ids"] = torch.arange(start, start + ids.shape[1], device=ids.device).expand(ids.shape)
        if cache is not None:
            more[_name(self.model)] = cache
        out = self.model(input_ids=ids, use_cache=True, **more)
        return out.logits[:, -1], out[_name(self.model)]

    def rows(self, paths: Sequence[Path], repeats: Sequence[int], room: int, most: Sequence[int]) -> _CacheRows:
        return _CacheRows(self, paths, repeats)


def _name(model: Any) -> str:
    """What the model calls its cache."""
    import inspect

    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"


def _chosen(cache: Any, rows: Tensor) -> Any:
    """The cache with these rows of it, in place."""
    if hasattr(cache, "linear_cache"):  # MiniMax keeps states beside transformers' layers
        cache.batch_select_indices(rows)
    else:
        cache.reorder_cache(rows)
    return cache


class _CacheRows:
    """Draws in progress: for each prompt its cache, with a row for each way in which it goes on."""

    def __init__(self, runner: CacheRunner, paths: Sequence[Path], repeats: Sequence[int]) -> None:
        self.runner = runner
        self.lengths, self.counts = [path_length(path) for path in paths], list(repeats)
        self.caches = [self._start(path, count) for path, count in zip(paths, repeats, strict=True)]

    def _start(self, path: Path, count: int) -> Any:
        last = path[-1]
        assert isinstance(last, _Kept)
        cache = last.cache
        if cache is None:  # the prompt ends where another was cut in two
            cache = self.runner.prefill((), path)[0].cache  # type: ignore[attr-defined]
        return _chosen(copy.deepcopy(cache), torch.zeros(count, dtype=torch.long, device=self.runner.device))

    def step(self, tokens: Tensor) -> Tensor:
        logits = []
        for i, part in enumerate(torch.split(tokens, self.counts)):
            if len(part):
                found, self.caches[i] = self.runner.run(part[:, None], self.lengths[i], self.caches[i])
                logits.append(found)
                self.lengths[i] += 1
        return torch.cat(logits)

    def select(self, rows: Tensor) -> None:
        start = 0
        for i, count in enumerate(self.counts):
            kept = rows[(rows >= start) & (rows < start + count)] - start
            start += count
            if kept.tolist() != list(range(count)):
                self.counts[i] = len(kept)
                self.caches[i] = _chosen(self.caches[i], kept) if len(kept) else None
