"""One update: trees in, credit, packs, loss, a finite step out. Weights change only when everything is finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from treewright.envs.errors import TreewrightError
from treewright.kernels import TreePlan
from treewright.search.tree import Tree
from treewright.training.credit import Credit, TreeArrays, estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.loss import clipped_surrogate
from treewright.training.model import chunked_backward, chunked_logprobs, prepare, tree_logprobs
from treewright.training.pack import PackedBatch, pack_trees

__all__ = ["NonFinite", "TrainSettings", "Trainer"]


class NonFinite(TreewrightError):
    """NaN or infinity in rewards, log-probs, loss or gradient; the step was not taken and no weight has changed."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """lr            AdamW learning rate, constant after `warmup` steps
    minibatches      optimizer steps per batch of trees; with more than one the clip ratio matters
    clip             see clipped_surrogate;  grad_clip  largest gradient norm
    estimator, tau, weight_power  the credit of each step, see treewright.training.credit
    max_tokens       largest pack; a longer tree is a pack of its own
    chunk_tokens     packs longer than this go through the model in chunks of so many tokens: activations of one chunk
                     in memory, the same gradient, one forward pass more; None: never
    allow_biased     accept inexact trees
    """

    lr: float = 3e-4
    warmup: int = 0
    weight_decay: float = 0.0
    minibatches: int = 1
    clip: float = 0.2
    grad_clip: float = 1.0
    estimator: str = "split_loo"
    tau: float = 3.0
    weight_power: float = 1.0
    max_tokens: int = 8192
    chunk_tokens: int | None = None
    allow_biased: bool = False


@dataclass(slots=True)
class Trainer:
    """Holds the model and its optimizer; `update` takes trees whose rewards are revealed.

    model      a transformers causal LM that `training.model.prepare` accepts
    tokenizer  saved beside the weights, so that a checkpoint can be opened as a policy; None leaves it out
    consumed   (tree id, policy version) of every tree trained on; each is used once
    baselines  by suite, the mean root value of the last batch
    """

    model: Any
    settings: TrainSettings = field(default_factory=TrainSettings)
    tokenizer: Any = None
    steps: int = 0
    consumed: set[tuple[str, str]] = field(default_factory=set)
    baselines: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prepare(self.model)
        s = self.settings
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=s.lr, betas=(0.9, 0.99), weight_decay=s.weight_decay
        )

    optimizer: torch.optim.Optimizer = field(init=False)

    def update(self, trees: Sequence[Tree], on_pack: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """Trains on the trees not consumed before and returns what to log.

        Raises NonFinite (nothing changed), InexactTree for inexact trees unless allowed, TreewrightError when nothing
        new was given.
        """
        fresh = [t for t in trees if (t.tree_id, t.header.policy_version) not in self.consumed]
        if not fresh:
            raise TreewrightError("every tree given was trained on before; collect new ones or give another folder")
        fresh.sort(key=lambda t: t.task.suite)  # stable: trees of a suite stay in order
        arrays, credit = self._credit(fresh)
        packs = pack_trees(fresh, arrays, credit, self.settings.max_tokens)
        stats = self._descend(packs, on_pack) if packs else {}
        self.consumed |= {(t.tree_id, t.header.policy_version) for t in fresh}
        used = credit.coef != 0
        return stats | {
            "trees": float(len(fresh)),
            "value": float(np.nanmean(credit.value[arrays.roots])),
            "trees_with_gradient": float(len({int(t) for t in arrays.tree[used]})),
            "log_sum_weight": float(np.log(max(credit.weight[arrays.terminal | arrays.truncated].sum(), 1e-12))),
            "ess": float(np.nanmean(credit.ess[arrays.roots])),
            "tokens": float(sum(len(p) for p in packs)),
            "trained_tokens": float(sum(len(p.target) for p in packs)),
        }

    def _credit(self, trees: Sequence[Tree]) -> tuple[TreeArrays, Credit]:
        """Credit suite by suite: a root's baseline comes from other trees of its own suite, now or in earlier batches.

        Suites differ in how often they succeed; one baseline for all would only add variance.
        """
        options: dict[str, Any] = {}
        if self.settings.estimator == "split_loo":
            options = {name: getattr(self.settings, name) for name in ("tau", "weight_power", "allow_biased")}
        parts: list[tuple[TreeArrays, Credit]] = []
        for suite, group in groupby(trees, key=lambda t: t.task.suite):
            arrays = tree_arrays(list(group))
            arrays.validate()
            own = {"root_baseline": self.baselines.get(suite)} if options else {}
            credit = estimate(self.settings.estimator, arrays, **options, **own)
            if not np.isfinite(credit.coef).all():
                raise NonFinite(f"the credit of {int((~np.isfinite(credit.coef)).sum())} nodes is not finite")
            roots = credit.value[arrays.roots]
            if np.isfinite(roots).any():
                self.baselines[suite] = float(np.nanmean(roots))
            parts.append((arrays, credit))
        joined = (np.concatenate([getattr(c, f.name) for _, c in parts]) for f in fields(Credit))
        return TreeArrays.concatenate([a for a, _ in parts]), Credit(*joined)

    # -- the optimizer's side -----------------------------------------------------------------------------------

    def _descend(self, packs: Sequence[PackedBatch], on_pack: Callable[[int, int], None] | None) -> dict[str, float]:
        groups = [packs[i :: self.settings.minibatches] for i in range(min(self.settings.minibatches, len(packs)))]
        olds: dict[int, Tensor] = {}
        if len(groups) > 1:
            with torch.no_grad():
                olds = {id(p): self.logprobs(p)[0].detach() for p in packs}
        sums: dict[str, float] = {}
        done = 0
        for group in groups:
            trees = sum(p.trees for p in group)
            self.optimizer.zero_grad(set_to_none=True)
            for pack in group:
                for name, value in self._backward(pack, olds.get(id(pack)), trees).items():
                    sums[name] = sums.get(name, 0.0) + value
                done += 1
                if on_pack is not None:
                    on_pack(done, len(packs))
            sums["grad_norm"] = sums.get("grad_norm", 0.0) + self._step()
        per_group = {"grad_norm", "loss"}
        return {k: v / (len(groups) if k in per_group else len(packs)) for k, v in sums.items()}

    def logprobs(self, pack: PackedBatch) -> tuple[Tensor, Tensor]:
        """Log-probs and predicting entropies [M] of the pack's targets on the tree path; in chunks without gradient."""
        cuts = self._cuts(pack)
        if cuts is not None:
            return chunked_logprobs(self.model, *self._inputs(pack), cuts)
        return tree_logprobs(self.model, *self._inputs(pack))

    def _cuts(self, pack: PackedBatch) -> int | None:
        """Tokens per chunk, None where the pack runs whole."""
        most = self.settings.chunk_tokens
        return most if most is not None and len(pack) > most else None

    def _inputs(self, pack: PackedBatch) -> tuple[Tensor, TreePlan, Tensor, Tensor]:
        """ids, plan, rows and target ids as `tree_logprobs` takes them."""
        device = self.model.device
        ids = torch.from_numpy(pack.ids).to(device)
        plan = TreePlan.from_parents(pack.parent)
        target = torch.from_numpy(pack.target).to(device)
        rows = torch.from_numpy(pack.parent.astype(np.int64)).to(device)[target]
        return ids, plan, rows, ids[target]

    def _backward(self, pack: PackedBatch, old: Tensor | None, trees: int) -> dict[str, float]:
        seen: Any = None

        def objective(logp: Tensor, entropy: Tensor) -> Tensor:
            nonlocal seen
            if not bool(torch.isfinite(logp).all()):
                raise self._refuse("log-probs")
            coef = torch.from_numpy(pack.coef).to(logp)
            behaviour = torch.from_numpy(pack.behaviour).to(logp)
            before = logp.detach() if old is None else old
            loss, seen = clipped_surrogate(logp, before, coef, behaviour, trees, clip=self.settings.clip)
            if not bool(torch.isfinite(loss)):
                raise self._refuse("loss")
            return loss

        cuts = self._cuts(pack)
        if cuts is not None:
            loss, _, entropy = chunked_backward(self.model, *self._inputs(pack), objective, cuts)
        else:
            logp, entropy = tree_logprobs(self.model, *self._inputs(pack))
            loss = objective(logp, entropy)
            loss.backward()  # type: ignore[no-untyped-call]
        return {
            "loss": float(loss.detach()),
            "entropy": float(entropy.detach().mean()),
            "clipped": seen.clipped,
            "kl": seen.kl,
            "sampler_gap": seen.sampler_gap,
        }

    def _step(self) -> float:
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip))
        if not math.isfinite(norm):
            raise self._refuse("gradient")
        ramp = min(1.0, (self.steps + 1) / (self.settings.warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * ramp
        self.optimizer.step()
        self.steps += 1
        return norm

    def _refuse(self, what: str) -> NonFinite:
        self.optimizer.zero_grad(set_to_none=True)
        return NonFinite(
            f"{what} not finite at step {self.steps}: no step was taken, weights are as before. "
            "Lower train.lr or look at the batch's rewards and log-probs"
        )
