"""The policy surrogates on packed trees: sums over unique tokens, divided by the number of trees generated.

    L = −(1/T) Σ_i s_i · J(ρ_i, C_i)  +  β/T · Σ_t w_t KL_t  −  η/T · Σ_t w_t H_t  −  α/T · Σ_t R_t log π_t

C is the estimator's coefficient, ρ = π/π_old on log-probs that the trainer recomputed on the tree path, s the truncated
correction of what sampler and trainer compute differently, w the mass of the draws that hold the token, R what the
tree's best path earned, on that path. J is a
registered objective; `train.loss` names it. Neither length nor tokens nor effective sample size is divided by: each of
them would bias the gradient.

A term i is a token with the sum of its coefficients, or, where an objective or a correction is one of whole draws, a
pair (draw, token), or, for the published losses that clip row by row, a pair (leaf, token).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from treewright.envs.doors import Door, blamed, nearest, options_of
from treewright.envs.errors import TreewrightError

__all__ = [
    "KLS",
    "OBJECTIVES",
    "LossInputs",
    "LossOptions",
    "LossStats",
    "Mode",
    "clipped_surrogate",
    "kl_penalty",
    "policy_loss",
    "sampler_weight",
]


class Mode:
    """What a token is trained with: nothing, the policy gradient, plain likelihood, or the policy gradient if its
    entropy is among the highest of its kind (Prefix-RFT)."""

    NONE, PG, SFT, TOP_ENTROPY = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """loss       clipped | dual_clip | cispo | gspo | unclipped, module:function or an entry point
    loss_options  of a loss of one's own, given to it by keyword
    clip          ρ stays within [1 − clip, 1 + clip_high]; clip_high = clip if None
    dual_clip     where C < 0 a term is at least dual_clip · C
    adaptive_clip a > 0 widens both bounds of a term by the factor 1 + a·tanh(|C| / rms of C)
    kl, kl_coef   estimator k1, k2 or k3 of the divergence from the reference, and its weight β
    entropy_coef  η, weight of the entropy bonus
    sft_coef      α, weight of the supervised loss on best paths: rewards in place of a stage of imitation, as the
                  LayerTuning-RL of Dynamic-TreeRPO (arXiv 2509.23352) joins the two; the form is ours
    sampler_cap   s = min(exp(old − behaviour), cap); by_action: of the whole draw instead of the token
    top_entropy   the share of TOP_ENTROPY tokens that are trained
    """

    loss: str = "clipped"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    clip: float = 0.2
    clip_high: float | None = None
    dual_clip: float = 3.0
    adaptive_clip: float = 0.0
    kl: str = "k3"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    sft_coef: float = 0.0
    sampler_cap: float = 2.0
    by_action: bool = False
    top_entropy: float = 0.2

    def __post_init__(self) -> None:
        known = options_of(LOSSES.find(self.loss))
        for option in self.loss_options:
            if known is not None and option not in known[6:]:
                raise TreewrightError(f"loss {self.loss!r} has no option {option!r}; {nearest(option, known[6:])}")
        _known("kl", self.kl, KLS)
        for name, low in (("clip", 0.0), ("dual_clip", 1.0), ("sampler_cap", 0.0)):
            if getattr(self, name) <= low:
                raise TreewrightError(f"{name} = {getattr(self, name)}; it must be above {low:g}")
        if not 0 < self.top_entropy <= 1:
            raise TreewrightError(f"top_entropy = {self.top_entropy}; it is a share in (0, 1]")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LossInputs:
    """M tokens and P terms of one pack.

    logp, entropy   [M] under the policy being trained, differentiable; nats
    old             [M] log-probs before the update, recomputed by the trainer on the tree path
    behaviour       [M] log-probs under the sampler; NaN for tokens that no policy drew: no correction
    weight          [M] mass of the draws that hold the token
    mode            [M] int, a `Mode`
    trees           what the sum is divided by: the trees generated, those without gradient included, shared out among
                    the steps of the batch
    term            [P] which token;  coef  [P] C of the term
    sequence        [P] which draw (or row and draw) the term belongs to; negative = none
    reference       [M] log-probs under the reference policy, or None
    imitate         [M] R of the best paths that hold the token, or None
    """

    logp: Tensor
    entropy: Tensor
    old: Tensor
    behaviour: Tensor
    weight: Tensor
    mode: Tensor
    trees: float
    term: Tensor
    coef: Tensor
    sequence: Tensor
    reference: Tensor | None = None
    imitate: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = [self.logp, self.entropy, self.old, self.behaviour, self.weight, self.mode]
        tokens += [t for t in (self.reference, self.imitate) if t is not None]
        for kind, tensors in (("token", tokens), ("term", [self.term, self.coef, self.sequence])):
            shapes = [tuple(t.shape) for t in tensors]
            if len(set(shapes)) > 1:
                raise ValueError(f"the {kind} arrays must have one shape, got {shapes}")
        if self.trees <= 0:
            raise ValueError(f"trees = {self.trees}: give the number of trees generated, above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossStats:
    """What one surrogate saw, means over trained terms or tokens: `kl` is the k3 estimate against the policy before
    the update, `reference_kl` against the reference, `truncated` the share of corrections at their cap, all in nats."""

    ratio: float
    clipped: float
    kl: float
    sampler_gap: float
    truncated: float = 0.0
    entropy: float = 0.0
    reference_kl: float = 0.0


# -- objectives: (log ratio, logp, C, low, high, options) → (J [P], whether a bound held it back [P]) -----------------

Objective = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, LossOptions], tuple[Tensor, Tensor]]


def _outside(ratio: Tensor, coef: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ((ratio < low) & (coef < 0)) | ((ratio > high) & (coef > 0))


def _clipped(
    delta: Tensor, _: Tensor, coef: Tensor, low: Tensor, high: Tensor, __: LossOptions
) -> tuple[Tensor, Tensor]:
    """min(ρC, clip(ρ)C) (Schulman et al., arXiv 1707.06347)."""
    ratio = delta.exp()
    return torch.minimum(ratio * coef, ratio.clamp(low, high) * coef), _outside(ratio, coef, low, high)


def _dual(
    delta: Tensor, logp: Tensor, coef: Tensor, low: Tensor, high: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """The clipped term, never below c·C where C < 0 (Ye et al., arXiv 1912.09729): a bad action whose probability has
    grown far pulls no further."""
    terms, out = _clipped(delta, logp, coef, low, high, options)
    floor = options.dual_clip * coef
    held = (coef < 0) & (terms < floor)
    return torch.where(held, floor, terms), out | held


def _cispo(
    delta: Tensor, logp: Tensor, coef: Tensor, low: Tensor, high: Tensor, __: LossOptions
) -> tuple[Tensor, Tensor]:
    """sg(min(ρ, 1 + high))·C·log π (MiniMax-M1, arXiv 2506.13585): the weight is clipped, no token is left out."""
    ratio = delta.detach().exp()
    return torch.minimum(ratio, high) * coef * logp, ratio > high


def _unclipped(
    delta: Tensor, _: Tensor, coef: Tensor, __: Tensor, ___: Tensor, ____: LossOptions
) -> tuple[Tensor, Tensor]:
    """ρC: importance sampling as it stands."""
    return delta.exp() * coef, torch.zeros_like(coef, dtype=torch.bool)


OBJECTIVES: dict[str, Objective] = {
    "clipped": _clipped,
    "dual_clip": _dual,
    "cispo": _cispo,
    "gspo": _clipped,
    "unclipped": _unclipped,
}
"""gspo is the clipped objective with one ratio for each draw a, s = exp(mean of its tokens' log ratios) (Zheng et al.,
arXiv 2507.18071). Its gradient is C/|a| Σ∇log π, so the draw's term counts |a| times: once for each of its tokens."""

BY_SEQUENCE = frozenset({"gspo"})

LOSSES = Door(kind="loss", group="treewright.losses", built_in=lambda: OBJECTIVES)
"""Objectives by name. A function of one's own is called as (log ratio, logp, C, low, high, options, **loss_options) and
gives (J [P], whether a bound held it back [P]); with an attribute `by_sequence = True` it gets one ratio a draw."""


def by_sequence(loss: str) -> bool:
    """True for an objective of whole draws: its log ratios are means over each draw's tokens."""
    return loss in BY_SEQUENCE or (loss not in OBJECTIVES and bool(getattr(LOSSES.find(loss), "by_sequence", False)))


KLS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: torch.exp(-d) - 1 + d,
}


def kl_penalty(logp: Tensor, reference: Tensor, kind: str = "k3") -> Tensor:
    """Estimates of KL(π ‖ reference) in nats at tokens drawn from π, shape of the inputs; d = log π − log reference.

    k1 = d is unbiased, and its gradient is zero in expectation: a number to watch, not a loss. k2 = d²/2 has the right
    gradient in expectation on policy, that of k1 taken off the reward token by token. k3 = exp(−d) − 1 + d is unbiased
    and never negative; its gradient pulls to the reference by KL(reference ‖ π). Names after Schulman, "Approximating
    KL divergence", 2020.
    """
    penalty: Tensor = KLS[_known("kl", kind, KLS)](logp - reference.detach())
    return penalty


def sampler_weight(old: Tensor, behaviour: Tensor, cap: float, sequence: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(min(ratio, cap), log ratio) with ratio = exp(old − behaviour), detached: truncated importance sampling (Yao et
    al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").

    sequence  [P] the draw of each entry: the ratio is then the product over the draw, for data of other weights
    Where `behaviour` is NaN nothing is known and the weight is 1.
    """
    gap = (old - behaviour).detach()
    gap = torch.where(torch.isnan(behaviour), torch.zeros_like(gap), gap)
    if sequence is not None and len(sequence):
        _, draw = torch.unique(sequence, return_inverse=True)
        gap = torch.zeros(int(draw.max()) + 1, dtype=gap.dtype, device=gap.device).index_add_(0, draw, gap)[draw]
    return gap.exp().clamp(max=cap), gap


def policy_loss(inputs: LossInputs, options: LossOptions | None = None) -> tuple[Tensor, LossStats]:
    """The surrogate of one pack and what it saw; see the head of this module for the formula.

    Raises ValueError for an objective or correction by draw on terms that name no draw.
    """
    options = options or LossOptions()
    x, at = inputs, inputs.term
    mode = _modes(x, options)[at]
    whole = by_sequence(options.loss)
    sequence = x.sequence if whole or options.by_action else None
    if sequence is not None and bool((sequence < 0).any()):
        raise ValueError(f"loss {options.loss!r} needs terms by draw; pack with terms='draw'")
    logp, old, coef = x.logp[at], x.old.detach()[at], x.coef
    weight, gap = sampler_weight(old, x.behaviour[at], options.sampler_cap, sequence if options.by_action else None)
    delta = logp - old
    if sequence is not None and whole:
        delta = _mean_by(delta, sequence)
    low, high = _bounds(coef, options)
    terms, held = _terms(delta, logp, coef, low, high, options)
    gradient = (mode == Mode.PG).to(terms)
    likelihood = (mode == Mode.SFT).to(terms)
    total = (gradient * weight * terms + likelihood * coef * logp).sum()
    loss = -total / x.trees + _penalties(x, options) / x.trees
    return loss, _stats(x, options, mode == Mode.PG, delta, held, gap, weight)


def _terms(
    delta: Tensor, logp: Tensor, coef: Tensor, low: Tensor, high: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """What the objective gives. Raises TreewrightError for one of one's own that raises or gives something else."""
    if options.loss in OBJECTIVES:
        return OBJECTIVES[options.loss](delta, logp, coef, low, high, options, **options.loss_options)
    with blamed(f"loss {options.loss!r}"):
        given = LOSSES.find(options.loss)(delta, logp, coef, low, high, options, **options.loss_options)
    both = isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, Tensor) for part in given)
    if not both or any(part.shape != coef.shape for part in given):
        shown = [list(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in given] if both else given
        raise TreewrightError(
            f"loss {options.loss!r} gave {shown if both else type(given).__name__}; it must give two tensors of shape "
            f"{list(coef.shape)}: the terms, and whether a bound held each back"
        )
    return given[0], given[1]


def _modes(x: LossInputs, options: LossOptions) -> Tensor:
    """[M] modes with TOP_ENTROPY resolved into PG and NONE: the highest entropies of those tokens in this pack."""
    asked = x.mode == Mode.TOP_ENTROPY
    count = int(asked.sum())
    if not count:
        return x.mode
    kept = max(1, round(options.top_entropy * count))
    floor = x.entropy.detach()[asked].sort(descending=True).values[kept - 1]
    high = asked & (x.entropy.detach() >= floor)
    none, pg = torch.full_like(x.mode, Mode.NONE), torch.full_like(x.mode, Mode.PG)
    return torch.where(asked, torch.where(high, pg, none), x.mode)


def _bounds(coef: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Clip bounds [P]. With adaptive_clip, terms of large credit get more room.

    After Dynamic-TreeRPO (arXiv 2509.23352), which couples rewards with dynamic clipping bounds; the form is ours.
    """
    high = options.clip if options.clip_high is None else options.clip_high
    wide = torch.ones_like(coef)
    if options.adaptive_clip and len(coef):
        scale = coef.square().mean().sqrt().clamp(min=1e-12)
        wide = 1 + options.adaptive_clip * torch.tanh(coef.abs() / scale)
    return (1 - options.clip * wide).clamp(min=0.0), 1 + high * wide


def _mean_by(values: Tensor, sequence: Tensor) -> Tensor:
    """Each entry's mean over the entries of its sequence, differentiable."""
    _, draw, size = torch.unique(sequence, return_inverse=True, return_counts=True)
    total = torch.zeros(len(size), dtype=values.dtype, device=values.device).index_add(0, draw, values)
    mean: Tensor = total / size
    return mean[draw]


def _penalties(x: LossInputs, options: LossOptions) -> Tensor:
    """β Σ w KL − η Σ w H over the tokens that policies drew, − α Σ R log π over those of best paths."""
    out = x.logp.new_zeros(())
    drawn = x.weight * ((x.mode == Mode.PG) | (x.mode == Mode.TOP_ENTROPY))
    if options.kl_coef:
        if x.reference is None:
            raise ValueError("kl_coef > 0 needs log-probs under a reference policy")
        out = out + options.kl_coef * (drawn * kl_penalty(x.logp, x.reference, options.kl)).sum()
    if options.entropy_coef:
        out = out - options.entropy_coef * (drawn * x.entropy).sum()
    if options.sft_coef and x.imitate is not None:
        out = out - options.sft_coef * (x.imitate * x.logp).sum()
    return out


@torch.no_grad()
def _stats(
    x: LossInputs, options: LossOptions, trained: Tensor, delta: Tensor, held: Tensor, gap: Tensor, weight: Tensor
) -> LossStats:
    reference = 0.0 if x.reference is None else _mean(KLS["k3"](x.logp - x.reference))
    return LossStats(
        ratio=_mean(delta[trained].exp()),
        clipped=_mean(held[trained].float()),
        kl=_mean(KLS["k3"](delta[trained])),
        sampler_gap=float(gap[trained].abs().max()) if bool(trained.any()) else 0.0,
        truncated=_mean((weight[trained] >= options.sampler_cap).float()),
        entropy=_mean(x.entropy),
        reference_kl=reference,
    )


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0


def clipped_surrogate(
    logp: Tensor,
    old: Tensor,
    coef: Tensor,
    behaviour: Tensor,
    trees: float,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    sampler_cap: float = 2.0,
) -> tuple[Tensor, LossStats]:
    """The default surrogate alone: L = −(1/trees) Σ_t s_t · min(ρ_t C_t, clip(ρ_t) C_t), all arrays [M]."""
    if not logp.shape == old.shape == coef.shape == behaviour.shape:
        shapes = [tuple(t.shape) for t in (logp, old, coef, behaviour)]
        raise ValueError(f"logp, old, coef and behaviour must have one shape [M], got {shapes}")
    everyone = torch.arange(len(logp), device=logp.device)
    inputs = LossInputs(
        logp=logp,
        entropy=torch.zeros_like(logp),
        old=old,
        behaviour=behaviour,
        weight=torch.ones_like(logp),
        mode=torch.full_like(everyone, Mode.PG),
        trees=trees,
        term=everyone,
        coef=coef,
        sequence=torch.full_like(everyone, -1),
    )
    return policy_loss(inputs, LossOptions(clip=clip, clip_high=clip_high, sampler_cap=sampler_cap))


def _known(what: str, name: str, table: dict[str, Any]) -> str:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        raise TreewrightError(
            f"no {what} named {name!r}; {f'did you mean {near[0]!r}?' if near else 'known: ' + ', '.join(table)}"
        )
    return name
