"""How one update is made: the options of optimizer, loss and credit, with their defaults. The section `[train]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.training.loss import LossOptions

__all__ = ["TrainSettings"]

SMALL, SMALL_LR, LARGE_LR = 20_000_000, 1e-3, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The section `[train]` and what `Trainer` takes; each field says what it means.

    Raises TreewrightError for a value out of its range; losses and estimators refuse options they do not take.
    """

    lr: float | None = field(
        default=None,
        metadata={
            "doc": "AdamW learning rate, constant after `warmup`; else 1e-3 for models of less than 20 million "
            "parameters, 1e-5 for larger ones"
        },
    )
    warmup: int = field(default=0, metadata={"doc": "steps until the rate is reached"})
    weight_decay: float = field(default=0.0, metadata={"doc": "of AdamW"})
    minibatches: int = field(
        default=2,
        metadata={"doc": "optimizer steps per batch of trees; with more than one the clip ratio matters"},
    )
    loss: str = field(
        default="clipped",
        metadata={
            "doc": "clipped | dual_clip | cispo | gspo | unclipped, module:function, or an entry point of "
            "treewright.losses"
        },
    )
    loss_options: Mapping[str, Any] = field(default_factory=dict, metadata={"doc": "of a loss of one's own"})
    clip: float = field(default=0.2, metadata={"doc": "the ratio stays within [1 - clip, 1 + clip_high]"})
    clip_high: float | None = field(default=None, metadata={"doc": "see clip; else the same as clip"})
    dual_clip: float = field(
        default=3.0,
        metadata={"doc": "of the loss dual_clip: where credit is negative a term is at least dual_clip times it"},
    )
    adaptive_clip: float = field(
        default=0.0,
        metadata={"doc": "above 0 it widens the bounds of terms with much credit"},
    )
    kl: str = field(default="k3", metadata={"doc": "estimator of the divergence from the reference: k1 | k2 | k3"})
    kl_coef: float = field(default=0.0, metadata={"doc": "its weight"})
    entropy_coef: float = field(default=0.0, metadata={"doc": "weight of the entropy bonus"})
    sampler_cap: float = field(
        default=2.0,
        metadata={"doc": "cap of the correction exp(old - behaviour) between trainer and sampler"},
    )
    top_entropy: float = field(
        default=0.2,
        metadata={"doc": "share of tokens that Prefix-RFT trains of the given part"},
    )
    clip_rows: bool = field(
        default=False,
        metadata={"doc": "clip each leaf's row by itself, as the publications of row-based estimators do"},
    )
    reference: Path | None = field(
        default=None,
        metadata={"doc": "folder of the policy that kl_coef pulls to; else the weights that the run began with"},
    )
    grad_clip: float = field(default=1.0, metadata={"doc": "largest gradient norm"})
    estimator: str = field(
        default="split_loo",
        metadata={
            "doc": "the credit of each step (docs/credit.md): a name, module:function, or an entry point of "
            "treewright.estimators"
        },
    )
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"doc": "of the estimator, e.g. {tau = 3.0}; one that it does not take is an error"},
    )
    tau: float | None = field(default=None, metadata={"doc": "short for options.tau"})
    weight_power: float | None = field(default=None, metadata={"doc": "short for options.weight_power"})
    max_tokens: int = field(default=8192, metadata={"doc": "largest pack; a longer tree is a pack of its own"})
    chunk_tokens: int | None = field(
        default=None,
        metadata={
            "doc": "longer packs go through the model in chunks of so many tokens: the same gradient, less memory, "
            "one forward pass more"
        },
    )
    allow_biased: bool = field(default=False, metadata={"doc": "train on inexact trees too"})
    max_staleness: int = field(default=0, metadata={"doc": "updates ago that a tree may have been drawn"})

    def __post_init__(self) -> None:
        above = {"lr": 0, "clip": 0, "clip_high": 0, "dual_clip": 1, "sampler_cap": 0, "grad_clip": 0}
        least = {
            "warmup": 0, "weight_decay": 0, "minibatches": 1, "adaptive_clip": 0, "kl_coef": 0, "entropy_coef": 0,
            "tau": 0, "weight_power": 0, "max_tokens": 1, "chunk_tokens": 1, "max_staleness": 0,
        }  # fmt: skip
        for name, low in {**above, **least}.items():
            value = getattr(self, name)
            if value is not None and not (value > low if name in above else value >= low):
                word = "above" if name in above else "at least"
                raise TreewrightError(f"train.{name} = {value}; it must be {word} {low}")
        if not 0 < self.top_entropy <= 1:
            raise TreewrightError(f"train.top_entropy = {self.top_entropy}; it is a share in (0, 1]")

    @property
    def estimator_options(self) -> dict[str, Any]:
        """What the user tells the estimator: `options`, and the two that have a key of their own."""
        short = {"tau": self.tau, "weight_power": self.weight_power}
        return {**{name: value for name, value in short.items() if value is not None}, **self.options}

    def rate_for(self, parameters: int) -> float:
        """The learning rate of a model with so many parameters."""
        return self.lr if self.lr is not None else SMALL_LR if parameters < SMALL else LARGE_LR

    def loss_settings(self, by_action: bool) -> LossOptions:
        """What the loss is told; `by_action` corrects whole draws, for trees of older weights."""
        from treewright.training.loss import LossOptions

        own = (
            "loss", "loss_options", "clip", "clip_high", "dual_clip", "adaptive_clip", "kl", "kl_coef", "entropy_coef",
            "sampler_cap", "top_entropy",
        )  # fmt: skip
        return LossOptions(**{name: getattr(self, name) for name in own}, by_action=by_action)
