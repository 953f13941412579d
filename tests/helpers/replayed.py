"""Models with experts, routes for their tokens, and what rows compute whose routers were told their experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray

from treewright.kernels import TreePlan
from treewright.training.decoders.check import running
from treewright.training.decoders.tiny import tiny_model

How = tuple[Callable[..., Any], Callable[..., Any]]

EXPERTS, EACH = 4, 2
PLAN = TreePlan.from_segments([-1, 0, 1, 1, 0, -1], [9, 4, 3, 5, 6, 5])


# -- what routers compute from given experts, written down once more ---------------------------------------------------


def softmax_first(router: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    weights = F.softmax(F.linear(x, router.weight), -1).gather(-1, index)
    return weights / weights.sum(-1, keepdim=True)


def softmax_last(router: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return F.softmax(F.linear(x, router.weight, getattr(router, "bias", None)).gather(-1, index), -1)


def sigmoid(router: Any, x: torch.Tensor, index: torch.Tensor) -> Any:
    weights = F.linear(x, router.weight).sigmoid().gather(-1, index)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * router.routed_scaling_factor


def places(*order: str) -> Callable[[Any, Any, Any], tuple[Any, ...]]:
    return lambda logits, weights, index: tuple({"l": logits, "w": weights, "i": index}[name] for name in order)


FAMILIES: dict[str, How] = {
    "Mixtral": (softmax_first, places("l", "w", "i")),
    "Qwen3Moe": (softmax_first, places("l", "w", "i")),
    "GptOss": (softmax_last, places("l", "w", "i")),
    "DeepseekV3": (sigmoid, places("l", "w", "i")),
    "Qwen3Next": (softmax_first, places("l", "w", "i")),  # with recurrent layers
    "GraniteMoe": (softmax_last, places("i", "w", "l")),
}
OPTIONS: dict[str, dict[str, Any]] = {"Qwen3Moe": {"norm_topk_prob": True}, "Qwen3Next": {"num_hidden_layers": 2}}
GROUPED = {
    "n_group": 4, "topk_group": 2, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": 1,
}  # fmt: skip


def model_of(name: str) -> Any:
    if name == "grouped":
        torch.manual_seed(0)
        config = transformers.DeepseekV3Config(**GROUPED)
        config._experts_implementation = "eager"
        model = transformers.DeepseekV3ForCausalLM(config).double().eval()
        torch.nn.init.normal_(next(m for n, m in model.named_modules() if n.endswith("mlp.gate")).weight)
        return model
    kind = getattr(transformers, f"{name}ForCausalLM")
    return tiny_model(kind, kind.config_class(**OPTIONS.get(name, {})))


def routers(model: torch.nn.Module) -> list[Any]:
    return [m for n, m in model.named_modules() if n.endswith(("mlp.gate", "mlp.router", "block_sparse_moe.router"))]


def some_routes(tokens: int, layers: int, seed: int = 0, experts: int = EXPERTS, unknown: float = 0.2) -> NDArray[Any]:
    """int16 [tokens, layers, EACH] at random, no expert twice; of some tokens nothing is known."""
    rng = np.random.default_rng(seed)
    found = rng.permuted(np.tile(np.arange(experts), (tokens, layers, 1)), axis=-1)[..., :EACH].astype(np.int16)
    found[rng.random(tokens) < unknown] = -1
    return found


def row_logprobs(model: torch.nn.Module, ids: torch.Tensor, given: NDArray[Any], how: How) -> Any:
    """[T − 1] log-probs of a row by the model's own code, its routers replaced by `how`; −1 where they route as usual.

    given  int [T, L, K]
    """
    weigh, order = how
    found = routers(model)

    def forward(router: Any, layer: int, x: torch.Tensor) -> Any:
        x = x.reshape(-1, x.shape[-1])
        logits = F.linear(x, router.weight, getattr(router, "bias", None))
        rows = torch.from_numpy(given[:, layer].astype(np.int64))
        usual = (logits.sigmoid() if weigh is sigmoid else logits).topk(EACH, -1).indices
        index = torch.where(rows < 0, usual, rows)
        return order(logits, weigh(router, x, index), index)

    try:
        for layer, router in enumerate(found):
            router.forward = functools.partial(forward, router, layer)
        with running(model, "eager"):
            scores = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
    finally:
        for router in found:
            del router.forward
    return scores[torch.arange(len(ids) - 1), ids[1:]]


def grads(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def near(found: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-9) -> None:
    assert float(wanted.norm()) > 1e-6
    assert float((found - wanted).norm()) <= limit * float(wanted.norm())


def problem(
    model: torch.nn.Module, plan: TreePlan = PLAN
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 90, (plan.n_queries,), generator=torch.Generator().manual_seed(0))
    trained = torch.nonzero(plan.parent >= 0).flatten()
    weight = torch.randn(len(trained), generator=torch.Generator().manual_seed(1))
    return ids, plan.parent[trained].long(), ids[trained], weight


def by_rows(
    model: torch.nn.Module,
    ids: torch.Tensor,
    given: NDArray[Any],
    weight: torch.Tensor,
    how: How,
    plan: TreePlan = PLAN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of every token that has one before it, and the gradient of their weighted sum, from plain rows."""
    parent: list[int] = plan.parent.tolist()
    logp: dict[int, torch.Tensor] = {}
    model.zero_grad()
    for leaf in sorted(set(range(len(parent))) - set(parent)):
        path = [leaf]
        while parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        path.reverse()
        logp |= zip(path[1:], row_logprobs(model, ids[path], given[path], how), strict=True)
    found = torch.stack([logp[t] for t in sorted(logp)])
    (found * weight).sum().backward()  # type: ignore[no-untyped-call]
    return found.detach(), grads(model)
