"""Hugging Face decoder models on packed trees, without forking them.

`prepare` registers an attention function called "treewright" with transformers and switches a model to it. The plan of
the pack then travels as the keyword argument ``tree`` through the decoder layers, also when gradient checkpointing
calls them a second time, and position ids are path depths. Llama- and Qwen3-shaped models give on a tree what they
give on each of its trajectories, outputs and gradients; models with parts for which that cannot hold are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from treewright.kernels import BranchCache, PromptCache, TreeChunk, TreeChunkState, TreePlan, tree_attention, tree_logp
from treewright.kernels.tree_logp import tree_logp_dot

__all__ = [
    "UnsupportedModel",
    "branch_logits",
    "chunked_backward",
    "chunked_logprobs",
    "prepare",
    "refuse_unsupported",
    "register",
    "tree_attention_in",
    "tree_hidden",
    "tree_logprobs",
]

NAME = "treewright"
TREE_LAYERS = {"full_attention", "sliding_attention"}
RECURRENT = ("mamba", "ssm", "rwkv", "recurrent", "linearattention", "deltanet", "retention", "hyena", "shortconv")


class UnsupportedModel(ValueError):
    """A model of which some part cannot run on a packed tree; the message names each."""


def register() -> None:
    """Makes "treewright" known to transformers as an attention implementation. Calling it again changes nothing.

    No mask function is registered on purpose: transformers then builds no mask, and the plan is the mask.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def prepare(model: nn.Module) -> None:
    """Registers the attention, refuses unsupported models and switches this one over.

    ``model.set_attn_implementation("sdpa")`` switches it back, for example to generate with a KV cache.
    """
    register()
    refuse_unsupported(model)
    model.set_attn_implementation(NAME)  # type: ignore[operator]


def refuse_unsupported(model: nn.Module) -> None:
    """Raises UnsupportedModel, naming every part that would not be exact on a tree; returns None if there is none."""
    config: Any = model.config
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    wrong = [*_wrong_config(config, text), *_wrong_layers(model, text)]
    if wrong:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot run on packed trees: {'; '.join(wrong)}. "
            "Use a decoder with plain or sliding-window softmax attention, such as Llama or Qwen3"
        )


def _wrong_config(config: Any, text: Any) -> list[str]:
    wrong = []
    if getattr(config, "is_encoder_decoder", False) or not getattr(text, "is_causal", True):
        wrong.append("it is not a causal decoder")
    if getattr(config, "vision_config", None) is not None or getattr(config, "audio_config", None) is not None:
        wrong.append("image or audio inputs (training is text only)")
    if (getattr(text, "attention_dropout", 0.0) or 0.0) > 0:
        wrong.append(f"attention dropout {text.attention_dropout} (set config.attention_dropout = 0)")
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        if getattr(text, name, None) is not None:
            wrong.append(name)
    for name in ("logit_scale", "logits_scaling"):
        if getattr(text, name, None) not in (None, 1, 1.0):
            wrong.append(f"{name} {getattr(text, name)}")
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    for kind in ("dynamic", "longrope"):
        if kind in kinds:
            wrong.append(f"{kind} rotary embedding (its frequencies depend on the length of the whole sequence)")
    return wrong


def _wrong_layers(model: nn.Module, text: Any) -> list[str]:
    wrong = []
    kinds = set(getattr(text, "layer_types", None) or ()) - TREE_LAYERS
    if kinds:
        wrong.append(f"layers of type {', '.join(sorted(kinds))}")
    first: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.Conv1d) or (name and any(word in kind.lower() for word in RECURRENT)):
            first.setdefault(kind, name)
    wrong += [f"{kind} ({name})" for kind, name in first.items()]
    if not getattr(model, "_supports_attention_backend", True):
        wrong.append("attention that transformers does not let a backend replace")
    embeddings: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = embeddings()
    if head is not None and getattr(head, "bias", None) is not None:
        wrong.append("a bias in the output layer")
    return wrong


def _needs_prepare(model: nn.Module) -> None:
    if getattr(model.config, "_attn_implementation", None) != NAME:
        raise ValueError(f"{type(model).__name__} does not use tree attention yet; call prepare(model) first")


def tree_hidden(model: nn.Module, ids: Tensor, tree: TreePlan | TreeChunk) -> Tensor:
    """Last hidden states [Tq, H] of one pack, or of one chunk of it: ids int64 [Tq] in the plan's order.

    Raises ValueError where `prepare` was not called on the model or ids and plan differ in length.
    """
    _needs_prepare(model)
    plan = tree.plan if isinstance(tree, TreeChunk) else tree
    if ids.shape != (plan.n_queries,):
        raise ValueError(f"ids have shape {tuple(ids.shape)}, but the plan has {plan.n_queries} tokens")
    decoder: Any = model.base_model
    out = decoder(ids[None], position_ids=plan.depth[None].to(ids.device), tree=tree, use_cache=False)
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def tree_logprobs(
    model: nn.Module, ids: Tensor, plan: TreePlan, rows: Tensor, targets: Tensor, chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy (nats) at each predicting token; both [M], float32 or wider, differentiable.

    rows     int64 [M], the tokens that predict: ``plan.parent[t]`` for a trained token t, never t − 1
    targets  int64 [M], the vocabulary ids predicted: ``ids[t]``

    Only the rows that occur pass through the output layer, each once, at most `chunk` at a time.
    """
    hidden = tree_hidden(model, ids, plan)
    used, row = torch.unique(rows.to(hidden.device), return_inverse=True)
    if used.numel() and int(used[0]) < 0:
        raise ValueError("rows contain −1: a root token is predicted by nothing; leave it out")
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    logp, entropy = tree_logp(hidden[used].to(weight.dtype), weight, row, targets.to(hidden.device), chunk)
    return logp, entropy[row]


@contextmanager
def tree_attention_in(model: nn.Module) -> Iterator[None]:
    """The registered attention for the time of a `with` block; whoever else uses the model finds it as it was."""
    register()
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def branch_logits(model: nn.Module, ids: Tensor, cache: PromptCache | BranchCache) -> Tensor:
    """Logits [B, V] after the last of ids int64 [B, T], without gradients; the cache takes up their keys and values.

    cache  a `PromptCache`, [1, T] tokens of a prompt behind what is known of it; its `stretch` then extends the path.
           Or a `BranchCache`, one token [B, 1] of each branch; what branches share is read once.
    """
    _needs_prepare(model)
    decoder: Any = model.base_model
    out = decoder(ids, position_ids=cache.positions, branches=cache, use_cache=False)
    if isinstance(cache, BranchCache):
        cache.advance()
    logits: Tensor = model.get_output_embeddings()(out.last_hidden_state[:, -1])  # type: ignore[operator]
    return logits


def chunked_backward(
    model: nn.Module,
    ids: Tensor,
    plan: TreePlan,
    rows: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    cuts: int | Sequence[int],
    chunk: int = 4096,
) -> tuple[Tensor, Tensor, Tensor]:
    """`loss(logp, entropy).backward()` over a pack of which only one chunk's activations fit in memory.

    loss  maps what `tree_logprobs` gives, both [M], to a scalar: any function of all of them
    cuts  most tokens per chunk, or where chunks begin

    Adds the exact gradient to the parameters' ``grad`` and returns the loss's value, logp and entropy, detached. Two
    forward passes and one backward; K and V of the whole pack stay in memory.
    """
    state = TreeChunkState(plan.to(ids.device), cuts)
    logp, entropy = _first_pass(model, ids, state, rows, targets, chunk)
    parts = _pairs_by_chunk(state, rows)
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    with torch.enable_grad():
        logp.requires_grad_(), entropy.requires_grad_()
        value = loss(logp, entropy)
        d_logp, d_entropy = torch.autograd.grad(value, (logp, entropy), allow_unused=True, materialize_grads=True)
        for part, pairs in reversed(list(zip(state.chunks, parts, strict=True))):
            hidden = tree_hidden(model, ids[part.start : part.stop], part)
            used, row = torch.unique(rows[pairs] - part.start, return_inverse=True)
            by_row = torch.zeros(used.shape, dtype=d_entropy.dtype, device=ids.device)
            by_row.index_add_(0, row, d_entropy[pairs])
            own = hidden[used].to(weight.dtype)
            surrogate = tree_logp_dot(own, weight, row, targets[pairs], d_logp[pairs], by_row, chunk)
            # A chunk without trained tokens is still owed by later ones: backward must pass through its layers.
            torch.autograd.backward((surrogate, hidden), (torch.ones_like(surrogate), torch.zeros_like(hidden)))
    return value.detach(), logp.detach(), entropy.detach()


@torch.no_grad()
def chunked_logprobs(
    model: nn.Module,
    ids: Tensor,
    plan: TreePlan,
    rows: Tensor,
    targets: Tensor,
    cuts: int | Sequence[int],
    chunk: int = 4096,
) -> tuple[Tensor, Tensor]:
    """What `tree_logprobs` gives, both [M], detached, to the bit as `chunked_backward` sees them with these cuts."""
    return _first_pass(model, ids, TreeChunkState(plan.to(ids.device), cuts), rows, targets, chunk)


@torch.no_grad()
def _first_pass(
    model: nn.Module, ids: Tensor, state: TreeChunkState, rows: Tensor, targets: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Runs the chunks in order, which keeps their keys and values in `state`; log-probs and entropies [M]."""
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    wide = torch.promote_types(weight.dtype, torch.float32)
    logp, entropy = (torch.empty(rows.shape, dtype=wide, device=ids.device) for _ in range(2))
    for part, pairs in zip(state.chunks, _pairs_by_chunk(state, rows), strict=True):
        hidden = tree_hidden(model, ids[part.start : part.stop], part)
        used, row = torch.unique(rows[pairs] - part.start, return_inverse=True)
        logp[pairs], by_row = tree_logp(hidden[used].to(weight.dtype), weight, row, targets[pairs], chunk)
        entropy[pairs] = by_row[row]
    return logp, entropy


def _pairs_by_chunk(state: TreeChunkState, rows: Tensor) -> list[Tensor]:
    """For each chunk the pairs that its tokens predict."""
    return [torch.nonzero((rows >= c.start) & (rows < c.stop)).flatten() for c in state.chunks]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    tree: TreePlan | TreeChunk | None = None,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    branches: PromptCache | BranchCache | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, Hq, Tq, D] → ([1, Tq, Hq, D], None). ``s_aux`` are sinks."""
    # Under autocast, norms leave queries and keys in float32 beside values in the working type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if branches is not None and attention_mask is None and s_aux is None and softcap is None:
        index: Any = module.layer_idx
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return branches.attend(index, query, key, value, scale, sliding_window).transpose(1, 2), None
    if tree is None:
        raise ValueError('no tree given: call tree_hidden(), or model.set_attn_implementation("sdpa") for plain use')
    if attention_mask is not None:
        raise ValueError("an attention mask was given, but the plan is the mask; pad with TreePlan.pad_to instead")
    if query.shape[0] != 1:
        raise ValueError(f"a batch of {query.shape[0]} was given; pack several trees into one plan instead")
    if key.shape[2] != query.shape[2]:
        raise ValueError(f"{key.shape[2]} keys for {query.shape[2]} queries: trees are trained without a KV cache")
    if dropout or softcap is not None:
        raise UnsupportedModel(f"attention with dropout {dropout} and softcap {softcap} is not exact on a tree")
    own = query[0], key[0], value[0]
    if isinstance(tree, TreeChunk):
        layer: Any = module.layer_idx
        out = tree.attention(layer, *own, scaling, window=sliding_window, sinks=s_aux)
    else:
        out = tree_attention(*own, tree, scaling, window=sliding_window, sinks=s_aux)
    return out.transpose(0, 1)[None], None
