"""Hugging Face decoder models on packed trees, without forking them.

`prepare` switches a model to tree attention, after it has seen that the model gives on a tree what it gives on each of
its paths: a small twin of it is tried out (see `treewright.training.decoders`), and what differs is refused by name.
The plan of the pack then reaches the layers, also when gradient checkpointing calls them a second time, and position
ids are path depths. Softmax attention of any kind of window, recurrent layers and short convolutions run on trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from treewright.kernels import BranchCache, PromptCache, TreeChunk, TreeChunkState, TreePlan, tree_logp
from treewright.kernels.tree_logp import tree_logp_dot
from treewright.training.decoders import recurrent
from treewright.training.decoders.attention import NAME, UnsupportedModel, register
from treewright.training.decoders.check import Fit, fit_of, running
from treewright.training.decoders.plans import inner_model, states_on
from treewright.training.decoders.structure import refuse_tokens, seen_wrong

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


def prepare(model: nn.Module) -> None:
    """Registers the attention, refuses unsupported models and switches this one over.

    The first model of a configuration is tried out, which takes about a second; later ones are known. An adapter's
    model, such as `peft` makes, is taken as well.
    ``model.set_attn_implementation("sdpa")`` switches it back, for example to generate with a KV cache.
    """
    register()
    fit = refuse_unsupported(model)
    inner = inner_model(model)
    recurrent.attach(inner)
    inner.set_attn_implementation(fit.attention)
    inner.config._attn_implementation = fit.attention  # also where the class does not let it be set
    inner.treewright_fit = fit


def refuse_unsupported(model: nn.Module) -> Fit:
    """How the model runs on trees. Raises UnsupportedModel, naming every part that would not be exact."""
    wrong = seen_wrong(model)
    if not wrong:
        try:
            return fit_of(model)
        except UnsupportedModel as error:
            wrong.append(str(error))
    raise UnsupportedModel(
        f"{type(inner_model(model)).__name__} cannot run on packed trees: {'; '.join(wrong)}. "
        "See docs/models.md for the families that can"
    )


def _needs_prepare(model: nn.Module) -> Any:
    inner = inner_model(model)
    fit = getattr(inner, "treewright_fit", None)
    if inner.config._attn_implementation not in (NAME, *(() if fit is None else (fit.attention,))):
        raise ValueError(f"{type(inner).__name__} does not use tree attention yet; call prepare(model) first")
    return inner


def _needs_chunks(model: nn.Module) -> None:
    inner = _needs_prepare(model)
    if not _fit(inner).chunks:
        raise UnsupportedModel(f"{type(inner).__name__} takes a whole pack at once: unset train.chunk_tokens")


def tree_hidden(model: nn.Module, ids: Tensor, tree: TreePlan | TreeChunk) -> Tensor:
    """States [Tq, H] that the output layer reads, of a pack or of one chunk of it: ids int64 [Tq] in the plan's order.

    Raises ValueError where `prepare` was not called on the model or ids and plan differ in length, UnsupportedModel
    for tokens that stand for images and for paths longer than the model's rotary embedding is the same for.
    """
    inner = _needs_prepare(model)
    plan = tree.plan if isinstance(tree, TreeChunk) else tree
    if ids.shape != (plan.n_queries,):
        raise ValueError(f"ids have shape {tuple(ids.shape)}, but the plan has {plan.n_queries} tokens")
    refuse_tokens(model, ids, int(plan.depth.max()) + 1 if len(ids) else 0)
    return states_on(inner, tree, ids[None])[0]


@dataclass(frozen=True, slots=True)
class _Output:
    """The output layer: weight [V, H], bias [V] or None, and what becomes of its logits."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logp(self, hidden: Tensor, row: Tensor, target: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        return tree_logp(self._scaled(hidden), self.weight, row, target, chunk, self._bias(), self.softcap)

    def dot(
        self, hidden: Tensor, row: Tensor, target: Tensor, d_logp: Tensor, d_row: Tensor | None, chunk: int
    ) -> Tensor:
        hidden = self._scaled(hidden)
        return tree_logp_dot(hidden, self.weight, row, target, d_logp, d_row, chunk, self._bias(), self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        found = F.linear(self._scaled(hidden), self.weight, self._bias())
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)

    def _scaled(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self.weight.dtype)
        return hidden if self.scale == 1 else hidden * self.scale

    def _bias(self) -> Tensor | None:
        return self.bias if self.bias is None or self.scale == 1 else self.bias * self.scale


def _fit(inner: Any) -> Fit:
    fit: Fit | None = getattr(inner, "treewright_fit", None)
    if fit is None:
        fit = inner.treewright_fit = fit_of(inner)
    return fit


def _output_of(model: nn.Module) -> _Output:
    inner = inner_model(model)
    layer, fit = inner.get_output_embeddings(), _fit(inner)
    return _Output(layer.weight, getattr(layer, "bias", None), fit.scale, fit.softcap)


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
    logp, entropy = _output_of(model).logp(hidden[used], row, targets.to(hidden.device), chunk)
    return logp, entropy[row]


@contextmanager
def tree_attention_in(model: nn.Module) -> Iterator[None]:
    """The registered attention for the time of a `with` block; whoever else uses the model finds it as it was."""
    register()
    with running(model, NAME):
        yield


@torch.no_grad()
def branch_logits(model: nn.Module, ids: Tensor, cache: PromptCache | BranchCache) -> Tensor:
    """Logits [B, V] after the last of ids int64 [B, T], without gradients; the cache takes up their keys and values.

    cache  a `PromptCache`, [1, T] tokens of a prompt behind what is known of it; its `stretch` then extends the path.
           Or a `BranchCache`, one token [B, 1] of each branch; what branches share is read once.
    """
    hidden = states_on(_needs_prepare(model), cache, ids)
    if isinstance(cache, BranchCache):
        cache.advance()
    return _output_of(model).logits(hidden[:, -1])


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
    _needs_chunks(model)
    state = TreeChunkState(plan.to(ids.device), cuts)
    logp, entropy = _first_pass(model, ids, state, rows, targets, chunk)
    parts = _pairs_by_chunk(state, rows)
    with torch.enable_grad():
        logp.requires_grad_(), entropy.requires_grad_()
        value = loss(logp, entropy)
        d_logp, d_entropy = torch.autograd.grad(value, (logp, entropy), allow_unused=True)
        d_logp = torch.zeros_like(logp) if d_logp is None else d_logp
        for part, pairs in reversed(list(zip(state.chunks, parts, strict=True))):
            hidden = tree_hidden(model, ids[part.start : part.stop], part)
            output = _output_of(model)  # after the layers ran: only then are sharded weights whole
            used, row = torch.unique(rows[pairs] - part.start, return_inverse=True)
            by_row = None  # a loss that has no entropy in it spares a product over all logits
            if d_entropy is not None:
                by_row = torch.zeros(used.shape, dtype=d_entropy.dtype, device=ids.device)
                by_row.index_add_(0, row, d_entropy[pairs])
            surrogate = output.dot(hidden[used], row, targets[pairs], d_logp[pairs], by_row, chunk)
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
    _needs_chunks(model)
    return _first_pass(model, ids, TreeChunkState(plan.to(ids.device), cuts), rows, targets, chunk)


@torch.no_grad()
def _first_pass(
    model: nn.Module, ids: Tensor, state: TreeChunkState, rows: Tensor, targets: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Runs the chunks in order, which keeps their keys and values in `state`; log-probs and entropies [M]."""
    wide = torch.promote_types(_output_of(model).weight.dtype, torch.float32)
    logp, entropy = (torch.empty(rows.shape, dtype=wide, device=ids.device) for _ in range(2))
    for part, pairs in zip(state.chunks, _pairs_by_chunk(state, rows), strict=True):
        hidden = tree_hidden(model, ids[part.start : part.stop], part)
        used, row = torch.unique(rows[pairs] - part.start, return_inverse=True)
        logp[pairs], by_row = _output_of(model).logp(hidden[used], row, targets[pairs], chunk)
        entropy[pairs] = by_row[row]
    return logp, entropy


def _pairs_by_chunk(state: TreeChunkState, rows: Tensor) -> list[Tensor]:
    """For each chunk the pairs that its tokens predict."""
    return [torch.nonzero((rows >= c.start) & (rows < c.stop)).flatten() for c in state.chunks]
