"""Optimizers and rates by name. All state but the moments follows from the number of steps taken."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from treewright.envs.doors import Door, nearest
from treewright.envs.errors import TreewrightError
from treewright.training.settings import TrainSettings

__all__ = [
    "APART",
    "OPTIMIZERS",
    "SCHEDULES",
    "MuonWithAdamW",
    "few_steps",
    "make_optimizer",
    "rate_factor",
    "state_bytes",
]

BETAS = (0.9, 0.99)
EIGHT_BIT = (("bitsandbytes.optim", "AdamW8bit"), ("torchao.optim", "AdamW8bit"))
"""Where 8-bit moments (Dettmers et al., arXiv 2110.02861) are found, the first that is installed."""


def _adamw(params: list[nn.Parameter], lr: float, weight_decay: float, betas: Any = BETAS, eps: float = 1e-8) -> Any:
    return torch.optim.AdamW(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)


def _fused(params: list[nn.Parameter], lr: float, weight_decay: float, betas: Any = BETAS, eps: float = 1e-8) -> Any:
    return torch.optim.AdamW(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, fused=True)


def _eight_bit(params: list[nn.Parameter], lr: float, weight_decay: float, betas: Any = BETAS) -> Any:
    for module, name in EIGHT_BIT:
        try:
            kind = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        return kind(params, lr=lr, betas=tuple(betas), weight_decay=weight_decay)
    raise TreewrightError(
        "train.optimizer = adamw_8bit needs bitsandbytes or torchao: pip install bitsandbytes; or take adamw"
    )


def _muon(
    named: Mapping[str, nn.Parameter], output: Iterable[int], lr: float, weight_decay: float, momentum: float = 0.95,
    adamw_lr: float | None = None, betas: Any = BETAS,
) -> Any:  # fmt: skip
    if not hasattr(torch.optim, "Muon"):
        raise TreewrightError(f"train.optimizer = muon: torch {torch.__version__} has none; update it, or take adamw")
    outside = set(output)
    matrices = [p for p in named.values() if p.dim() == 2 and id(p) not in outside]
    others = [p for p in named.values() if p.dim() != 2 or id(p) in outside]
    if not matrices:
        raise TreewrightError("train.optimizer = muon: this model trains no matrix inside its layers; take adamw")
    return MuonWithAdamW(matrices, others, lr, adamw_lr or lr, weight_decay, momentum, tuple(betas))


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for matrices inside the layers, AdamW for vectors, embeddings and the output layer.

    Muon's updates are scaled to the size of AdamW's, so that one rate serves both (Liu et al., arXiv 2502.16982).
    """

    def __init__(
        self, matrices: Sequence[Tensor], others: Sequence[Tensor], lr: float, adamw_lr: float, weight_decay: float,
        momentum: float, betas: tuple[float, float],
    ) -> None:  # fmt: skip
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
        ]
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=adamw_lr, betas=betas, weight_decay=weight_decay))
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state  # as they are since the last load_state_dict
            part.step()


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": _adamw,
    "adamw_fused": _fused,
    "adamw_8bit": _eight_bit,
    "muon": _muon,
}
APART = ("adamw", "adamw_fused", "muon")
"""Those whose step of a weight depends on no other weight."""
DOOR = Door(kind="optimizer", group="treewright.optimizers", built_in=lambda: OPTIMIZERS)
"""One of one's own is called with its options and, where it asks for them, with `params` (the parameters that are
trained), `named` (the same by name), `lr` and `weight_decay`, and gives a torch.optim.Optimizer."""


def make_optimizer(settings: TrainSettings, model: Any, lr: float) -> torch.optim.Optimizer:
    """The optimizer of the settings over the weights that are trained. Raises TreewrightError for an unknown name or
    option, and where what it needs is not installed."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    output = [id(p) for end in ends if end is not None for p in end.parameters()]
    made = DOOR.make(
        settings.optimizer, settings.optimizer_options, params=list(named.values()), named=named, output=output, lr=lr,
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    if not isinstance(made, torch.optim.Optimizer):
        raise TreewrightError(f"optimizer {settings.optimizer!r} gave a {type(made).__name__}, not a torch Optimizer")
    for group in made.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return made


SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine", "polynomial": "polynomial",
             "inverse_sqrt": "inverse_sqrt"}  # fmt: skip
"""Names of `train.schedule`, and what transformers calls them."""
ENDLESS = ("constant", "inverse_sqrt")


def rate_factor(settings: TrainSettings) -> Callable[[int], float]:
    """Steps taken before → what the rate is multiplied by; transformers' schedule, counted so that no step has rate 0.

    Raises TreewrightError for an unknown schedule, and for one that ends where nobody said when.
    """
    name, total, warmup = settings.schedule, settings.schedule_steps, settings.warmup
    if name not in SCHEDULES:
        raise TreewrightError(f"no train.schedule named {name!r}; {nearest(name, SCHEDULES)}")
    if total is None and name not in ENDLESS:
        raise TreewrightError(f"train.schedule = {name} ends: say after how many steps with train.schedule_steps=N")
    if total is not None and name not in ENDLESS and total <= warmup:
        raise TreewrightError(f"train.schedule_steps = {total} leaves nothing after train.warmup = {warmup}")
    if name == "constant":  # what most runs have, without the imports of transformers' schedules
        return lambda steps: min(1.0, (steps + 1) / (warmup + 1))
    factor = _transformers_factor(SCHEDULES[name], warmup + 1, None if total is None else total + 1)
    return lambda steps: factor(steps + 1)


def few_steps(settings: TrainSettings, steps: int) -> str | None:
    """A sentence where a batch takes fewer steps than a schedule that ends counts on; else None."""
    s = settings
    if steps >= s.minibatches or s.schedule in ENDLESS:
        return None
    return (
        f"train.minibatches = {s.minibatches}, but a batch that fits so few packs takes fewer steps ({steps}), and "
        f"train.schedule = {s.schedule} ends after {s.schedule_steps} of them, later than it was meant to; lower "
        "train.max_tokens, or set train.schedule_steps"
    )


@functools.cache
def _transformers_factor(name: str, warmup: int, total: int | None) -> Callable[[int], float]:
    from transformers import get_scheduler

    nothing = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = get_scheduler(name, nothing, num_warmup_steps=warmup, num_training_steps=total)
    factor: Callable[[int], float] = made.lr_lambdas[0]
    return factor


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the optimizer's tensors take."""
    return sum(v.numel() * v.element_size() for slots in optimizer.state.values() for v in slots.values()
               if isinstance(v, Tensor))  # fmt: skip
