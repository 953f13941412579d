"""How a transformers causal language model is run for drawing: one way for each kind of model.

`SlimRunner` takes small float32 Llama-shaped models, `BranchRunner` every other decoder that tree attention is exact
for, through the model's own layers; both read what branches share once. `ModelRunner` takes what keeps keys and values
of one shape, with transformers' own cache and a copy of the prompt for every draw; `CacheRunner` takes the rest, such
as decoders with recurrent layers. A model is tried on a few tokens, and the first way that gives what its plain forward
gives is taken.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from treewright.agent.policies.cached import CacheRunner
from treewright.agent.policies.sampling import Runner
from treewright.agent.policies.slim import SlimRunner, is_slim
from treewright.envs.errors import TreewrightError
from treewright.kernels.decode import BranchCache, Path, PromptCache, Stretch, assembled, path_length
from treewright.training.decoders.attention import NAME
from treewright.training.decoders.structure import length_limit
from treewright.training.model import UnsupportedModel, branch_logits, refuse_unsupported, tree_attention_in

__all__ = ["BranchRunner", "CacheRunner", "ModelRunner", "runner_for"]

log = logging.getLogger("treewright.agent")
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the largest logit; half precision: 0.05


def runner_for(model: Any) -> Runner:
    """The slim runner where it is exact, else tree attention in the model's own layers, else the model as it is."""
    if is_slim(model):
        return SlimRunner(model)
    ways: list[Callable[[Any], Tried]] = [CacheRunner, functools.partial(CacheRunner, continues=False)]
    with torch.inference_mode():
        why = _no_tree(model)
        if length_limit(model) is None:  # else rows of different lengths must not run together
            ways = [ModelRunner, *ways] if why else [BranchRunner, ModelRunner, *ways]
        for way in ways:
            runner = way(model)
            found = _unlike(runner, model)
            if found is None:
                if not isinstance(runner, BranchRunner):
                    log.info("%s draws without sharing prefixes: %s", type(model).__name__, why)
                return runner
            why = why or found
    log.warning("%s: no way of drawing gives what its plain forward gives: %s", type(model).__name__, why)
    return ModelRunner(model)


def _no_tree(model: Any) -> str | None:
    """Why tree attention would not be exact for the model, None where it would."""
    try:
        fit = refuse_unsupported(model)
    except (UnsupportedModel, AttributeError) as error:
        return str(error).partition("\n")[0]
    if length_limit(model) is not None:
        return "its rotary embedding depends on the length of a row"
    return None if fit.attention == NAME else "its attention is its own, and takes whole masks"


def _unlike(runner: Tried, model: Any) -> str | None:
    """How the runner's logits differ from the model's plain forward, tried on a few tokens; None where they do not."""
    size = model.config.get_text_config().vocab_size
    ids = [i % size for i in range(3, 20)]
    try:
        found = _tried(runner, ids)
        rows = ([*ids[:16], ids[-2]], [*ids[:8], ids[-1]])
        true = torch.stack([_plain(model, row, runner.device) for row in rows]).float()
    except Exception as error:  # a foreign model's code may object to a cache in any way; another way may do
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    gap = float((found - true).abs().max() / true.abs().max())
    return None if gap <= CLOSE.get(model.dtype, 0.05) else f"its logits would be off by {gap:.1e} of the largest"


def _plain(model: Any, ids: Sequence[int], device: torch.device) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
    return logits


def _tried(runner: Tried, ids: Sequence[int]) -> Tensor:
    first, _ = runner.prefill(ids[:8], ())
    second, _ = runner.prefill(ids[8:16], (first,))
    rows = runner.rows([(first, second), (first,)], [1, 1], 1, [1, 1])
    return rows.step(torch.tensor(ids[-2:], device=runner.device)).float()


class BranchRunner:
    """Runs a model's own layers with attention that reads what branches share once."""

    shares = True

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def refresh(self) -> None:
        """Nothing is copied from the model."""

    def release(self) -> None:
        """There is nothing to free."""

    def prefill(self, ids: Sequence[int], path: Path) -> tuple[Stretch, Tensor]:
        cache = PromptCache(path, len(ids), self.device)
        with tree_attention_in(self.model):
            logits = branch_logits(self.model, torch.tensor([ids], device=self.device), cache)
        return cache.stretch(), logits[0]

    def rows(self, paths: Sequence[Path], repeats: Sequence[int], room: int, most: Sequence[int]) -> _BranchRows:
        return _BranchRows(self.model, BranchCache(paths, repeats, room, most=most))


class _BranchRows:
    def __init__(self, model: Any, cache: BranchCache) -> None:
        self.model, self.cache = model, cache

    def step(self, tokens: Tensor) -> Tensor:
        with tree_attention_in(self.model):
            return branch_logits(self.model, tokens[:, None], self.cache)

    def select(self, rows: Tensor) -> None:
        self.cache.keep(rows)


class ModelRunner:
    """Runs any transformers causal language model through its own forward and cache."""

    shares = False

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def refresh(self) -> None:
        """Nothing is copied from the model."""

    def release(self) -> None:
        """There is nothing to free."""

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], path: Path) -> tuple[Stretch, Tensor]:
        before = path_length(path)
        tokens = torch.tensor([ids], device=self.device)
        cache = _cache([path], [1])
        positions = torch.arange(before, before + len(ids), device=self.device)[None]
        out = self.model(
            input_ids=tokens,
            attention_mask=torch.ones(1, before + len(ids), dtype=torch.long, device=self.device),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        layers = out.past_key_values.layers
        held = [
            (x.keys[0, :, before:], x.values[0, :, before:]) for x in layers if getattr(x, "keys", None) is not None
        ]
        if len(held) < len(layers) or len({(k.shape, v.shape) for k, v in held}) > 1:
            kind = self.model.config.model_type
            raise TreewrightError(f"{kind} models keep more than keys and values of one shape between tokens")
        keys, values = zip(*held, strict=True)
        return Stretch(before, torch.stack(keys), torch.stack(values)), out.logits[0, -1]

    def rows(self, paths: Sequence[Path], repeats: Sequence[int], room: int, most: Sequence[int]) -> _ModelRows:
        return _ModelRows(self, paths, repeats)


class _ModelRows:
    def __init__(self, runner: ModelRunner, paths: Sequence[Path], repeats: Sequence[int]) -> None:
        self.model, self.cache = runner.model, _cache(paths, repeats)
        lengths = torch.tensor([path_length(path) for path in paths], device=runner.device)
        self.position = lengths.repeat_interleave(torch.tensor(repeats, device=runner.device))
        width = int(lengths.max())
        self.mask = (torch.arange(width, device=runner.device) >= (width - self.position)[:, None]).long()

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = F.pad(self.mask, (0, 1), value=1)
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        logits: Tensor = out.logits[:, -1]
        return logits

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.position, self.mask = self.position[rows], self.mask[rows]


def _cache(paths: Sequence[Path], repeats: Sequence[int]) -> Any:
    """transformers' cache with path i ``repeats[i]`` times, at the right edge."""
    from transformers import DynamicCache

    cache = DynamicCache()
    if paths[0]:
        keys, values, _ = assembled(paths, repeats, 0, paths[0][0].keys)
        for i, pair in enumerate(zip(keys, values, strict=True)):
            cache.update(*pair, i)
    return cache


Tried = BranchRunner | ModelRunner | CacheRunner
