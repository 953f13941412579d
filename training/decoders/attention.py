"""The attention functions and masks that transformers is given, by which its models run on trees.

"treewright" is tree attention: transformers then builds no mask, and the plan is the mask. What a model wants beyond
causality (a sliding window, chunks) it says by the function that its mask would be made from; that function is asked
about depths on a path instead of places in a row, and understood. Models that compute attention in a way of their own
but take a mask run as "eager", and get the whole mask, [1, 1, T, T], made from the plan and that function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from treewright.envs.errors import TreewrightError
from treewright.kernels import BranchCache, PromptCache, TreeChunk, TreePlan, tree_attention
from treewright.training.decoders.plans import Plan, running_plan, turn

__all__ = ["DENSE", "NAME", "UnsupportedModel", "reach_of", "register"]

NAME = "treewright"
DENSE = "eager"
Seen = Callable[..., Tensor]
NO_TREE = 'no tree given: call tree_hidden(), or model.set_attn_implementation("sdpa") for plain use'


class UnsupportedModel(TreewrightError, ValueError):
    """A model of which some part cannot run on a packed tree; the message names each."""


def register() -> None:
    """Makes tree attention and its masks known to transformers. Calling it again changes nothing.

    "eager" masks stay what they are wherever no plan runs.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)
    plain = ALL_MASK_ATTENTION_FUNCTIONS[DENSE]
    if not hasattr(plain, "treewright_original"):
        ALL_MASK_ATTENTION_FUNCTIONS.register(DENSE, _planned(plain))


def _planned(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def mask(*args: Any, **more: Any) -> Any:
        return plain(*args, **more) if running_plan() is None else _dense_mask(*args, **more)

    mask.treewright_original = plain  # type: ignore[attr-defined]
    return mask


def _mask(mask_function: Seen, local_size: int | None = None, device: Any = None, **_: Any) -> Tensor | None:
    """What a layer sees of its path: int64 [1, 1, 1, 2], window and chunk with 0 for none; None where it sees all."""
    plan = _needed()
    window, chunk = reach_of(mask_function, _longest(plan), local_size)
    if window is None and chunk is None:
        return None
    return torch.tensor([window or 0, chunk or 0]).view(1, 1, 1, 2)


def _needed() -> Plan:
    plan = running_plan()
    if plan is None:
        raise ValueError(NO_TREE)
    return plan


def _longest(plan: Plan) -> int:
    """Depths that occur lie below this."""
    depth = plan.positions if isinstance(plan, PromptCache | BranchCache) else _plan_of(plan).depth
    return int(depth.max()) + 1 if depth.numel() else 1


def _plan_of(plan: TreePlan | TreeChunk) -> TreePlan:
    return plan.plan if isinstance(plan, TreeChunk) else plan


def reach_of(seen: Seen, longest: int, size: int | None) -> tuple[int | None, int | None]:
    """(window, chunk) of a mask function of transformers, each None where there is none, on paths up to `longest`.

    seen  (batch, head, query, key) → bool, broadcasting;  size  the window or chunk that transformers names beside it

    Raises UnsupportedModel where it is neither causal, nor a sliding window, nor chunks.
    """
    query, key = _samples(longest, size)
    zero = torch.zeros_like(query)
    try:
        truth = torch.as_tensor(seen(zero, zero, query, key)).expand_as(query)
    except IndexError:
        raise UnsupportedModel("its attention mask depends on more than depths on a path") from None
    causal = key <= query
    candidates: list[tuple[int | None, int | None]] = [(None, None)]
    if size is not None:
        candidates += [(size, None), (None, size)]
    for window, chunk in candidates:
        guess = causal
        if window is not None:
            guess = guess & (query - key < window)
        if chunk is not None:
            guess = guess & (query // chunk == key // chunk)
        if torch.equal(guess, truth):
            return window, chunk
    raise UnsupportedModel("its attention mask is neither causal, nor a sliding window, nor chunks of a fixed length")


def _samples(longest: int, size: int | None) -> tuple[Tensor, Tensor]:
    """Pairs of depths, flat: all of the first ones, and around every place where a window or chunk would end."""
    first = torch.arange(min(longest, 96))
    marks = torch.tensor([0, 1, *(m + d for m in (size or 0, 2 * (size or 0)) for d in (-1, 0, 1))])
    spread = torch.linspace(0, longest - 1, 64).long()
    depths = torch.unique(torch.cat([marks, spread, torch.tensor([longest - 1])]).clamp(0, longest - 1))
    back = torch.unique(torch.cat([marks, spread]).clamp(0, longest - 1))
    far = [torch.cartesian_prod(depths, depths)]
    near = torch.cartesian_prod(depths, back)
    far.append(torch.stack([near[:, 0], (near[:, 0] - near[:, 1]).clamp(min=0)], 1))
    if size:
        begin = depths // size * size
        far += [torch.stack([depths, (begin + d).clamp(0, longest - 1)], 1) for d in (-1, 0)]
    pairs = torch.cat([torch.cartesian_prod(first, first), *far])
    return pairs[:, 0], pairs[:, 1]


def _dense_mask(mask_function: Seen, device: Any = None, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
    """The plan and the mask function together, [1, 1, T, T], to add to scores."""
    tree = _needed()
    if not isinstance(tree, TreePlan):
        raise UnsupportedModel("this model's attention takes a whole pack at once: unset train.chunk_tokens")
    plan = tree.to(torch.device(device if device is not None else "cpu"))
    query, key = plan.depth[:, None], plan.key_depth[None]
    zero = torch.zeros_like(query)
    seen = plan.dense_mask() & torch.as_tensor(mask_function(zero, zero, query, key), device=plan.device)
    hidden = torch.zeros(seen.shape, dtype=dtype, device=plan.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return hidden[None, None]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, Hq, Tq, D] → ([1, Tq, Hq, Dv], None). ``s_aux`` are sinks."""
    plan = running_plan() or more.get("tree")
    if plan is None:
        raise ValueError(NO_TREE)
    window, chunk = _reach(attention_mask)
    # Under autocast, norms leave queries and keys in float32 beside values in the working type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    index: Any = module.layer_idx
    if dropout:
        raise UnsupportedModel(f"attention with dropout {dropout} is not exact on a tree")
    if more.get("position_bias") is not None:
        raise UnsupportedModel("attention with a bias by position is not exact on a tree")
    if isinstance(plan, PromptCache | BranchCache):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _rows(plan.attend(index, query, key, value, scale, window, chunk, softcap, s_aux)), None
    if query.shape[0] != 1:
        raise ValueError(f"a batch of {query.shape[0]} was given; pack several trees into one plan instead")
    if key.shape[2] != query.shape[2]:
        raise ValueError(f"{key.shape[2]} keys for {query.shape[2]} queries: trees are trained without a KV cache")
    own = query[0], key[0], value[0]
    options: dict[str, Any] = {"window": window, "chunk": chunk, "softcap": softcap, "sinks": s_aux}
    if isinstance(plan, TreeChunk):
        return _rows(plan.attention(turn(index), *own, scaling, **options)[None]), None
    return _rows(tree_attention(*own, plan, scaling, **options)[None]), None


def _rows(out: Tensor) -> Tensor:
    """[B, H, T, D] → [B, T, H, D], in memory as it reads, since some models `view` it."""
    return out.transpose(1, 2).contiguous()


def _reach(mask: Tensor | None) -> tuple[int | None, int | None]:
    if mask is None:
        return None, None
    if mask.shape != (1, 1, 1, 2) or mask.dtype != torch.int64:
        raise ValueError("an attention mask was given, but the plan is the mask; pad with TreePlan.pad_to instead")
    window, chunk = mask.flatten().tolist()
    return window or None, chunk or None
