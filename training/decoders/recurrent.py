"""Recurrent layers on trees: states and short convolutions follow the root paths, the model's own code does the rest.

transformers' recurrent layers compute what lies between tokens in a few functions beside the layer's class, each of
which a kernel may stand in for. `attach` puts versions before them that, while a plan runs, call the same function
for the segments of each level of the tree, from their parents' states. Projections, gates and norms see the pack as one
row, since they treat each token alone.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from treewright.kernels import TreeChunk, TreePlan
from treewright.kernels.lightning import lightning_attention
from treewright.kernels.tree_states import tree_convolution, tree_scan, tree_steps
from treewright.training.decoders.attention import NAME, NO_TREE, UnsupportedModel
from treewright.training.decoders.plans import running_plan, turn

__all__ = ["attach", "is_recurrent"]


@dataclass(slots=True)
class _Spot:
    """The layer that runs now and its plan; each of its functions has a name, by which a chunk keeps states apart."""

    tree: TreePlan | TreeChunk
    layer: str

    def name(self) -> Any:
        return turn(self.layer)


_SPOT: ContextVar[_Spot | None] = ContextVar("treewright_recurrent_layer", default=None)


def is_recurrent(module: nn.Module) -> bool:
    """Whether the module computes with one of the functions that are known here."""
    kind: Any = type(module)
    return bool(_functions(kind)) or _is_lightning(kind)


def attach(model: nn.Module) -> None:
    """Makes the model's recurrent layers follow plans. Without a plan they run as before, unless the model is switched
    to tree attention, when they refuse. Calling it again changes nothing."""
    for name, module in model.named_modules():
        kind: Any = type(module)
        if not is_recurrent(module):
            continue
        beside = vars(sys.modules[kind.__module__])
        for function in _functions(kind):
            if not hasattr(beside[function], "treewright_original"):
                beside[function] = _aware(beside[function], FUNCTIONS[function])
        if not hasattr(kind.forward, "treewright_original"):
            kind.forward = _placed(kind.forward, _lightning if _is_lightning(kind) else None)
        module.treewright_place = (name, model.config)


@functools.cache
def _functions(kind: Any) -> tuple[str, ...]:
    """Names of the known functions that the methods of a module's class call."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__ == kind.__module__:
            for value in vars(base).values():
                names.update(getattr(getattr(inspect.unwrap(value), "__code__", None), "co_names", ())
                             if callable(value) else ())  # fmt: skip
    beside = vars(sys.modules[kind.__module__])
    return tuple(sorted(name for name in names & FUNCTIONS.keys() if callable(beside.get(name))))


@functools.cache
def _is_lightning(kind: Any) -> bool:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and {"get_linear_cache", "slope_rate", "qkv_proj", "output_gate"} <= {*code.co_names}


def _placed(forward: Callable[..., Any], on_tree: Callable[..., Any] | None) -> Callable[..., Any]:
    """The layer's forward, which finds the plan, or refuses to run without one where a plan is needed."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **more: Any) -> Any:
        place = getattr(self, "treewright_place", None)
        plan = running_plan() or more.get("tree")
        if place is None or plan is None:
            if place is not None and place[1]._attn_implementation == NAME:
                raise ValueError(NO_TREE)
            return forward(self, *args, **more)
        if not isinstance(plan, TreePlan | TreeChunk):
            raise UnsupportedModel("recurrent layers draw without shared prefixes")
        token = _SPOT.set(_Spot(plan, place[0]))
        try:
            return (on_tree or forward)(self, *args, **more)
        finally:
            _SPOT.reset(token)

    run.treewright_original = forward  # type: ignore[attr-defined]
    return run


def _aware(original: Callable[..., Any], on_tree: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **more: Any) -> Any:
        spot = _SPOT.get()
        return original(*args, **more) if spot is None else on_tree(spot, original, *args, **more)

    call.treewright_original = original  # type: ignore[attr-defined]
    return call


def _unit(longest: int) -> int:
    """Tokens per chunk of a recurrent kernel: no more than there are, but a power of two."""
    return min(64, max(16, 1 << (longest - 1).bit_length()))


def _masked(x: Tensor, real: Tensor) -> Tensor:
    return torch.where(real.view(*real.shape, *(1,) * (x.dim() - 2)), x, 0)


def _one(*parts: Tensor) -> list[Tensor]:
    """[1, T, …] → [T, …]."""
    if any(len(x) != 1 for x in parts):
        raise ValueError(f"a batch of {len(parts[0])} was given; pack several trees into one plan instead")
    return [x[0] for x in parts]


def _convolution(
    spot: _Spot, original: Any, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None,
    activation: str | None = None, **_: Any,
) -> Tensor:  # fmt: skip
    """Depthwise and causal: hidden_states [1, C, T], weight [C, K]."""

    def row(x: Tensor) -> Tensor:
        out: Tensor = original(x.T[None], weight, bias, activation=activation)
        return out[0].T

    (x,) = _one(hidden_states)
    return tree_convolution(x.T, weight.shape[-1], spot.tree, row, spot.name()).T[None]


def _delta(
    spot: _Spot, original: Any, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor,
    use_qk_l2norm_in_kernel: bool = False, initial_state: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Gated delta rule, decay g [1, T, H], and KDA, g [1, T, H, K]. A token with g and beta zero changes no state."""

    def run(parts: Any, real: Tensor, state: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
        q, k, v, decay, rate = parts
        out, after = original(
            q, k, v, g=_masked(decay, real), beta=_masked(rate, real), chunk_size=_unit(longest), initial_state=state,
            output_final_state=True, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        )  # fmt: skip
        return out, after

    return tree_scan(_one(query, key, value, g, beta), spot.tree, run, spot.name())[None], None


def _ssd(
    spot: _Spot, original: Any, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int,
    D: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")), **_: Any,
) -> Tensor:  # fmt: skip
    """Mamba-2: hidden_states [1, T, H, P], dt [1, T, H], A [H], B and C [1, T, G, N]. dt zero changes no state."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    dt = torch.clamp(F.softplus(dt) if dt_softplus else dt, *dt_limit)

    def run(parts: Any, real: Tensor, state: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
        x, step, b, c = parts
        out, after = original(
            x, _masked(step, real), A, b, c, chunk_size=_unit(longest), D=D, initial_states=state,
            return_final_states=True,
        )  # fmt: skip
        return out, after

    return tree_scan(_one(hidden_states, dt, B, C), spot.tree, run, spot.name())[None]


def _selective(
    spot: _Spot, original: Any, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None = None, z: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = False,
    **_: Any,
) -> Tensor:  # fmt: skip
    """Mamba-1: hidden_states, dt, z [1, C, T]; A [C, N]; B, C [1, N, T]. Tokens of one depth at a time."""
    x, step, b, c = (y.T for y in _one(hidden_states, dt, B, C))
    if delta_bias is not None:
        step = step + delta_bias.to(step.dtype)
    if delta_softplus:
        step = F.softplus(step)
    factor = torch.exp(A[None] * step[..., None])
    added = step[..., None] * b[:, None].float() * x[..., None].float()
    states = tree_steps(factor, added.to(factor.dtype), spot.tree, spot.name())
    out = (states.to(x.dtype) @ c.to(x.dtype)[..., None])[..., 0]
    if D is not None:
        out = out + x * D
    if z is not None:
        out = out * F.silu(z[0].T)
    return out.T[None]


def _no_shortcut(spot: _Spot, original: Any, *_: Any, **__: Any) -> None:
    """A kernel for a whole layer at once knows no trees; the layer goes its longer way."""
    return None


def _lightning(self: Any, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Lightning attention, whose layer has no function of its own for it."""
    spot = _SPOT.get()
    assert spot is not None
    mixed = self.act_fn(self.qkv_proj(hidden_states))
    heads = mixed.view(*mixed.shape[:2], self.num_attention_heads, 3 * self.head_dim)
    slope = self.slope_rate.flatten().to(heads.dtype)

    def run(parts: Any, real: Tensor, state: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
        q, k, v = parts
        fall = slope * real[..., None]
        return lightning_attention(q, _masked(k, real), _masked(v, real), fall, state)

    out = tree_scan(_one(*heads.split(self.head_dim, -1)), spot.tree, run, spot.name())[None]
    out = self.norm(out.reshape(*mixed.shape[:2], -1))
    return self.out_proj(torch.sigmoid(self.output_gate(hidden_states)) * out), None


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolution,
    "chunk_gated_delta_rule": _delta,
    "torch_chunk_gated_delta_rule": _delta,
    "chunk_kimi_delta_attention": _delta,
    "mamba2_chunk_scan": _ssd,
    "mamba_chunk_scan_combined": _ssd,
    "mamba_selective_scan": _selective,
    "mamba2_split_conv1d_scan_combined": _no_shortcut,
    "mamba_inner_fn": _no_shortcut,
}
"""Functions beside transformers' layers, by the names they have there."""
