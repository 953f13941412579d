"""How one update is made: the options of optimizer, loss and credit, with their defaults. The section `[train]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.training.loss import LossOptions

__all__ = ["PRECISIONS", "LoraSettings", "TrainSettings", "bytes_of"]

SMALL, SMALL_LR, LARGE_LR, ADAPTER_LR = 20_000_000, 1e-3, 3e-6, 1e-4
LARGE_KL = 0.002
PRECISIONS = ("float32", "bfloat16")
UNITS = {"": 1, "B": 1, **{f"{letter}iB": 1 << 10 * i for i, letter in enumerate("KMGT", 1)},
         **{f"{letter}B": 10 ** (3 * i) for i, letter in enumerate("KMGT", 1)}}  # fmt: skip


def bytes_of(text: str) -> int:
    """The number that "20GiB", "900 MB" or "1e9" says. Raises TreewrightError for another text, or none above 0."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]i?B|B)?\s*", text)
    try:
        size = int(float(found[1]) * UNITS[found[2] or ""]) if found else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise TreewrightError(f"train.memory = {text!r} is no amount of memory; write 20GiB, or 900MiB")
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """The section `[train.lora]`: low-rank adapters in place of training all weights (Hu et al., arXiv 2106.09685)."""

    rank: int = field(default=0, metadata={"doc": "of the adapter; 0 trains all weights"})
    alpha: float = field(default=32.0, metadata={"doc": "its output is scaled by alpha / rank"})
    targets: tuple[str, ...] = field(
        default=(), metadata={"doc": "names of the layers that it adapts; else all linear ones but the output layer"}
    )
    dropout: float = field(
        default=0.0, metadata={"doc": "only 0: with another, log-probs would not be those of the rows"}
    )

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise TreewrightError(f"train.lora.rank = {self.rank}; give 16, or 0 to train all weights")
        if self.alpha <= 0:
            raise TreewrightError(f"train.lora.alpha = {self.alpha}; it must be above 0")
        if self.dropout:
            raise TreewrightError(
                f"train.lora.dropout = {self.dropout}: a token would be dropped in one pass over a tree and not in the "
                "other, so that ratios and gradients would not be those of its rows; leave it at 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The section `[train]` and what `Trainer` takes; each field says what it means.

    Raises TreewrightError for a value out of its range; losses and estimators refuse options they do not take.
    """

    lr: float | None = field(
        default=None,
        metadata={
            "doc": "learning rate, that of `schedule` after `warmup`; else 1e-3 for models of less than 20 million "
            "parameters, 3e-6 for larger ones (docs/real-models.md says why), 1e-4 for adapters"
        },
    )
    warmup: int = field(default=0, metadata={"doc": "steps until the rate is reached"})
    schedule: str = field(
        default="constant",
        metadata={"doc": "of the rate after `warmup`: constant | linear | cosine | polynomial | inverse_sqrt"},
    )
    schedule_steps: int | None = field(
        default=None,
        metadata={"doc": "optimizer steps until it ends; else loop.iterations times train.minibatches"},
    )
    optimizer: str = field(
        default="adamw",
        metadata={
            "doc": "adamw | adamw_fused | adamw_8bit | muon, module:function, or an entry point of "
            "treewright.optimizers"
        },
    )
    optimizer_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"doc": "of the optimizer, e.g. {betas = [0.9, 0.95]}"}
    )
    weight_decay: float = field(default=0.0, metadata={"doc": "of the optimizer"})
    precision: str = field(
        default="float32",
        metadata={
            "doc": "what the model computes in: float32 | bfloat16; weights and optimizer state stay float32 (but for "
            "the frozen ones under an adapter)"
        },
    )
    checkpointing: bool = field(
        default=False,
        metadata={"doc": "gradient checkpointing: layers run again in the backward pass, and keep no activations"},
    )
    memory: str | None = field(
        default=None,
        metadata={
            "doc": 'what training may take in all, each of several processes by itself, e.g. "20GiB": chooses '
            "max_tokens, chunk_tokens and checkpointing"
        },
    )
    lora: LoraSettings = field(default_factory=LoraSettings)
    minibatches: int = field(
        default=2,
        metadata={
            "doc": "optimizer steps per batch of trees, at most one for each pack; with more than one the clip ratio "
            "matters"
        },
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
    sft_coef: float = field(
        default=0.0,
        metadata={"doc": "weight of a supervised loss on the best path of each tree, times what that path earned"},
    )
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
    max_kl: float | None = field(
        default=None,
        metadata={
            "doc": "how far one optimizer step may move the policy, in nats per drawn token; a step that goes further "
            "is shortened. Costs one or two forward passes; with optimizers other than adamw and muon a copy of the "
            "weights, too. Else 0.002 where all weights of a model of 20 million parameters or more are trained in one "
            "process (docs/real-models.md says why); 0: no bound"
        },
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
    unit: str = field(
        default="turn",
        metadata={
            "doc": "what is credited alike: turn (a node of the tree) | token (answers of a task as a trie of tokens) "
            "| segment:N (the same in steps of N tokens)"
        },
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
    replay_routes: bool = field(
        default=True,
        metadata={
            "doc": "routers of a model with experts take the experts that the sampler took, where trees hold them "
            "(docs/kernels.md)"
        },
    )
    allow_biased: bool = field(default=False, metadata={"doc": "train on inexact trees too"})
    max_staleness: int = field(default=0, metadata={"doc": "updates ago that a tree may have been drawn"})
    save_every: float = field(
        default=5.0,
        metadata={
            "doc": "seconds between two savings of an update under way, which goes on from there when it was stopped; "
            "saving takes a tenth of the time at most. 0: after every pack"
        },
    )

    def __post_init__(self) -> None:
        above = {"lr": 0, "clip": 0, "clip_high": 0, "dual_clip": 1, "sampler_cap": 0, "grad_clip": 0}
        least = {
            "warmup": 0, "weight_decay": 0, "minibatches": 1, "adaptive_clip": 0, "kl_coef": 0, "entropy_coef": 0,
            "sft_coef": 0, "tau": 0, "weight_power": 0, "max_tokens": 1, "chunk_tokens": 1, "max_staleness": 0,
            "schedule_steps": 1, "save_every": 0, "max_kl": 0,
        }  # fmt: skip
        for name, low in {**above, **least}.items():
            value = getattr(self, name)
            if value is not None and not (value > low if name in above else value >= low):
                word = "above" if name in above else "at least"
                raise TreewrightError(f"train.{name} = {value}; it must be {word} {low}")
        if self.unit not in ("turn", "token") and not (self.segment or 0) >= 1:
            raise TreewrightError(f"train.unit = {self.unit!r}; write turn, token or segment:N, such as segment:128")
        if not 0 < self.top_entropy <= 1:
            raise TreewrightError(f"train.top_entropy = {self.top_entropy}; it is a share in (0, 1]")
        if self.precision not in PRECISIONS:
            raise TreewrightError(f"no train.precision {self.precision!r}; {nearest(self.precision, PRECISIONS)}")
        if self.memory is not None:
            bytes_of(self.memory)

    @property
    def segment(self) -> int | None:
        """Tokens of a step, where `unit` says segment:N."""
        kind, _, count = self.unit.partition(":")
        return int(count) if kind == "segment" and count.isdecimal() else None

    @property
    def estimator_options(self) -> dict[str, Any]:
        """What the user tells the estimator: `options`, and the two that have a key of their own."""
        short = {"tau": self.tau, "weight_power": self.weight_power}
        return {**{name: value for name, value in short.items() if value is not None}, **self.options}

    def rate_for(self, parameters: int) -> float:
        """The learning rate where so many parameters are trained."""
        usual = ADAPTER_LR if self.lora.rank else SMALL_LR if parameters < SMALL else LARGE_LR
        return self.lr if self.lr is not None else usual

    def kl_bound(self, parameters: int) -> float | None:
        """How far one optimizer step may move the policy where so many parameters are trained; None: as it will."""
        if self.max_kl is not None:
            return self.max_kl or None
        return LARGE_KL if parameters >= SMALL and not self.lora.rank else None

    def loss_settings(self, by_action: bool) -> LossOptions:
        """What the loss is told; `by_action` corrects whole draws, for trees of older weights."""
        from treewright.training.loss import LossOptions

        own = (
            "loss", "loss_options", "clip", "clip_high", "dual_clip", "adaptive_clip", "kl", "kl_coef", "entropy_coef",
            "sft_coef", "sampler_cap", "top_entropy",
        )  # fmt: skip
        return LossOptions(**{name: getattr(self, name) for name in own}, by_action=by_action)
