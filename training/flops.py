"""Floating-point operations of a decoder, by formula from its configuration.

A multiplication and an addition are two operations. A token meets each weight of the linear layers once: two operations
each, of a mixture those of the experts that it is sent to, and of the router. A visible pair of query and key costs
2 · heads · (size of a key + size of a value). The backward pass costs twice the forward pass (Chowdhery et al., PaLM,
arXiv 2204.02311, appendix B); what is computed again to save memory is not counted, embeddings and norms cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.envs.lines import json_value
from treewright.training.packed import PackedBatch

__all__ = ["DecoderWork", "spent_on", "work_of_config", "work_of_folder", "work_of_model"]

UNGATED = frozenset({
    "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "nemotron", "opt", "phi",
    "starcoder2",
})  # fmt: skip
"""Families whose feed-forward part has two matrices; all others have three."""
KNOWN = ("full_attention", "sliding_attention", "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWork:
    """What a decoder computes.

    linear   weights of the layers that a token meets;  head  those of the output layer
    pairs    (window, FLOP of a visible pair) for each kind of layer; window None: all tokens before are seen
    frozen   weights that get no gradient, as under an adapter: their backward pass is that of the inputs alone
    """

    linear: float
    head: float
    pairs: tuple[tuple[int | None, float], ...]
    frozen: bool = False

    def forward(self, start: int, stop: int, logits: int) -> float:
        """FLOP of the tokens at positions start … stop − 1, `logits` of which predict."""
        seen = sum(each * _visible(start, stop, window) for window, each in self.pairs)
        return 2.0 * self.linear * (stop - start) + 2.0 * self.head * logits + seen

    def dense(self, length: int, logits: int) -> float:
        """FLOP of a whole row where every query meets every key, as kernels without a mask and torch's counter do."""
        seen = sum(each * length * length for _, each in self.pairs)
        return 2.0 * self.linear * length + 2.0 * self.head * logits + seen

    def packed(self, depth: NDArray[np.int64], logits: int) -> float:
        """FLOP of the forward pass of packed trees: depth i64 [T] of each token on its path, 0 for a first one."""
        seen = 0.0
        for window, each in self.pairs:
            keys = depth + 1 if window is None else np.minimum(depth + 1, window)
            seen += each * float(keys.sum())
        return 2.0 * self.linear * len(depth) + 2.0 * self.head * logits + seen

    def trained(self, depth: NDArray[np.int64], logits: int) -> float:
        """FLOP of forward and backward of packed trees."""
        forward = self.packed(depth, logits)
        given = 2.0 * (self.linear * len(depth) + self.head * logits) if self.frozen else 0.0
        return 3.0 * forward - given


def _visible(start: int, stop: int, window: int | None) -> int:
    """Σ min(p + 1, window) over positions start … stop − 1."""
    if window is None or stop <= window:
        return (stop * (stop + 1) - start * (start + 1)) // 2
    cut = max(start, window)
    return (stop - cut) * window + (_visible(start, cut, None) if cut > start else 0)


def work_of_config(config: Any, frozen: bool = False) -> DecoderWork | None:
    """The work of a transformers configuration, or of a config.json's content; None for shapes without a formula."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if isinstance(text, Mapping) and isinstance(text.get("text_config"), Mapping):
        text = text["text_config"]

    def get(*names: str) -> Any:
        found = (text.get(n) if isinstance(text, Mapping) else getattr(text, n, None) for n in names)
        return next((x for x in found if x is not None), None)

    hidden, layers = get("hidden_size", "n_embd", "d_model"), get("num_hidden_layers", "n_layer", "n_layers")
    heads, vocabulary = get("num_attention_heads", "n_head"), get("vocab_size")
    if not all(isinstance(x, int) and x > 0 for x in (hidden, layers, heads, vocabulary)) or get("kv_lora_rank"):
        return None
    size = get("head_dim") or hidden // heads
    shared = get("num_key_value_heads") or heads
    kinds = list(get("layer_types") or [])
    if not kinds:
        sliding = get("sliding_window") if get("use_sliding_window") is not False else None
        kinds = ["sliding_attention" if sliding else "full_attention"] * layers
    if len(kinds) != layers or not set(kinds) <= set(KNOWN):
        return None
    attention = hidden * size * (2 * heads + 2 * shared)
    matrices = 2 if get("model_type") in UNGATED else 3
    wide = get("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    dense, sparse = matrices * hidden * wide, _sparse(get, hidden, wide)
    mixed = _mixed(get, layers) if sparse is not None else [False] * layers
    linear = sum(attention + (sparse if mixed[i] and sparse is not None else dense) for i in range(layers))
    pair, pairs = 4.0 * heads * size, dict[int | None, float]()
    for kind in kinds:
        window = int(get("sliding_window")) if kind == "sliding_attention" and get("sliding_window") else None
        pairs[window] = pairs.get(window, 0.0) + pair
    return DecoderWork(linear=float(linear), head=float(hidden * vocabulary), pairs=tuple(pairs.items()), frozen=frozen)


def _sparse(get: Any, hidden: int, wide: int) -> float | None:
    """Weights that a token meets in a mixture of experts: router, chosen and shared experts; None without one."""
    experts = get("num_local_experts", "num_experts", "n_routed_experts")
    if not isinstance(experts, int) or experts < 2:
        return None
    each = get("moe_intermediate_size") or wide
    chosen = (get("num_experts_per_tok", "experts_per_token") or 1) + (get("n_shared_experts") or 0)
    beside = get("shared_expert_intermediate_size") or 0
    return float(hidden * experts + 3 * hidden * (each * chosen + beside) + (hidden if beside else 0))


def _mixed(get: Any, layers: int) -> list[bool]:
    """Which layers are mixtures."""
    every, first = get("decoder_sparse_step") or 1, get("first_k_dense_replace") or 0
    plain = set(get("mlp_only_layers") or ())
    return [i not in plain and (i + 1) % every == 0 and i >= first for i in range(layers)]


def work_of_model(model: Any) -> DecoderWork | None:
    """The work of a transformers model as it is trained, its adapter's small matrices left out."""
    weights = list(model.parameters())
    frozen = sum(w.numel() for w in weights if not w.requires_grad) > sum(w.numel() for w in weights) / 2
    return work_of_config(model.config, frozen)


def spent_on(model: Any, packs: Sequence[PackedBatch], minibatches: int, reference: bool) -> dict[str, float]:
    """Of an update on packs: `row_tokens`, what its paths are as rows of their own, and `train_flops`.

    Log-probs before several minibatches, and those of a reference policy, are a forward pass each. `train_flops` is NaN
    for a model without a formula.
    """
    work, rows, flops = work_of_model(model), 0, 0.0
    again = int(min(minibatches, len(packs)) > 1) + int(reference)
    for pack in packs:
        depth = pack.plan.depth.numpy()
        inner = np.zeros(len(depth), np.bool_)
        inner[pack.parent[pack.parent >= 0]] = True
        rows += int((depth[~inner] + 1).sum())
        if work is not None:
            flops += work.trained(depth, len(pack.target)) + again * work.packed(depth, len(pack.target))
    return {"row_tokens": float(rows), "train_flops": flops if work is not None else math.nan}


def work_of_folder(folder: str | Path) -> DecoderWork | None:
    """The work of the model in a folder, by its config.json; None where there is none, or no formula for it."""
    try:
        told = json_value((Path(folder) / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return work_of_config(told) if isinstance(told, dict) else None
