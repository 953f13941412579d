"""One update: trees in, credit, packs, loss, a finite step out. Weights change only when everything is finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from treewright.envs.errors import TreewrightError
from treewright.kernels import TreePlan
from treewright.search.tree import Tree
from treewright.training.credit import Credit, TreeArrays, credit_stats, estimate, options_taken
from treewright.training.credit.rows import LeafRows, leaf_rows
from treewright.training.credit.trees import tree_arrays
from treewright.training.decoders.experts import has_experts, routing_flips
from treewright.training.loss import LossInputs, LossOptions, LossStats, by_sequence, policy_loss
from treewright.training.model import chunked_backward, chunked_logprobs, prepare, tree_logprobs
from treewright.training.pack import PackedBatch, pack_trees
from treewright.training.settings import TrainSettings
from treewright.training.versions import age_of, require_fresh, weights_version

__all__ = ["NonFinite", "PackLoss", "TrainSettings", "Trainer", "frozen"]


class NonFinite(TreewrightError):
    """NaN or infinity in rewards, log-probs, loss or gradient; the step was not taken and no weight has changed."""


PackLoss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, float]]]


@dataclass(slots=True)
class Trainer:
    """Holds the model and its optimizer; `update` takes trees whose rewards are revealed.

    model      a transformers causal LM that `training.model.prepare` accepts
    tokenizer  saved beside the weights, so that a checkpoint can be opened as a policy; None leaves it out
    consumed   (tree id, policy version) of every tree trained on; each is used once
    baselines  by suite, the mean root value of the last batch
    reference  the policy that kl_coef pulls to; None: a frozen copy of `model` as it is given here
    versions   names of this trainer's weights, oldest first, by which stale trees are refused; None: not checked
    aliases    other names of the same weights, such as a server gives them: alias → name in `versions`
    """

    model: Any
    settings: TrainSettings = field(default_factory=TrainSettings)
    _: KW_ONLY
    tokenizer: Any = None
    steps: int = 0
    consumed: set[tuple[str, str]] = field(default_factory=set)
    baselines: dict[str, float] = field(default_factory=dict)
    reference: Any = None
    versions: list[str] | None = None
    aliases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prepare(self.model)
        s = self.settings
        s.loss_settings(False)  # refuses what the loss does not know
        if s.clip_rows and (by_sequence(s.loss) or s.max_staleness):
            raise TreewrightError(
                "train.clip_rows = true clips (leaf, token) terms; it goes with neither a loss of whole draws nor "
                "max_staleness"
            )
        self.lr = s.rate_for(sum(p.numel() for p in self.model.parameters()))
        if s.kl_coef and self.reference is None:
            self.reference = frozen(self.model)
        if self.reference is not None:
            prepare(self.reference)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=s.weight_decay
        )

    optimizer: torch.optim.Optimizer = field(init=False)
    lr: float = field(init=False)

    def update(self, trees: Sequence[Tree], on_pack: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """Trains on the trees not consumed before and returns what to log.

        Raises NonFinite (nothing changed), InexactTree for inexact trees unless allowed, StaleTrees for trees of older
        weights than allowed, TreewrightError when nothing new was given.
        """
        fresh = self.unseen(trees)
        ages = [0] if self.versions is None else self._ages(fresh)
        arrays, credit, rows = self._credit(fresh)
        stats = self.learn(fresh, arrays, credit, rows=rows, stale=max(ages) > 0, on_pack=on_pack)
        return stats | {"oldest": float(max(ages))}

    def unseen(self, trees: Sequence[Tree]) -> list[Tree]:
        """The trees not trained on before, trees of a suite side by side. Raises TreewrightError if there are none."""
        fresh = [t for t in trees if (t.tree_id, t.header.policy_version) not in self.consumed]
        if not fresh:
            raise TreewrightError("every tree given was trained on before; collect new ones or give another folder")
        fresh.sort(key=lambda t: t.task.suite)  # stable: trees of a suite stay in order
        return fresh

    def learn(
        self,
        trees: Sequence[Tree],
        arrays: TreeArrays,
        credit: Credit,
        *,
        mode: NDArray[np.int64] | None = None,
        rows: LeafRows | None = None,
        stale: bool = False,
        on_pack: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """`update` with credit that was computed elsewhere; `mode` [N] says what each node is trained with.

        stale  correct whole draws for having been made by older weights
        """
        s = self.settings
        by_draw = stale or by_sequence(s.loss)
        packs = pack_trees(
            trees, arrays, credit, s.max_tokens, terms="row" if rows is not None else "draw" if by_draw else "token",
            rows=rows, mode=mode, every=bool(s.kl_coef or s.entropy_coef),
        )  # fmt: skip
        routing = self._routing(packs[0]) if packs and not self.steps else {}
        stats = routing | self.descend_surrogate(packs, s.loss_settings(stale), on_pack) if packs else {}
        self.consumed |= {(t.tree_id, t.header.policy_version) for t in trees}
        used = credit.coef != 0
        seen = credit_stats(arrays, credit)
        return stats | {
            **asdict(seen),
            "trees": float(len(trees)),
            "value": float(np.nanmean(credit.value[arrays.roots])),
            "trees_with_gradient": float(len({int(t) for t in arrays.tree[used]})),
            "sum_weight": math.exp(seen.log_sum_weight),
            "ess_tree": float(np.nanmean(credit.ess[arrays.roots])),
            "tokens": float(sum(len(p) for p in packs)),
            "trained_tokens": float(sum(len(p.target) for p in packs)),
        }

    def _routing(self, pack: PackedBatch) -> dict[str, float]:
        """How many of a pack's tokens half precision would send to other experts; {} for a model without experts."""
        if not has_experts(self.model) or self._cuts(pack) is not None:
            return {}
        ids, plan, *_ = self._inputs(pack)
        return {"routing_flips": routing_flips(self.model, ids, plan)}

    def _ages(self, trees: Sequence[Tree]) -> list[int]:
        assert self.versions is not None
        drawn_by = [self.aliases.get(t.header.policy_version, t.header.policy_version) for t in trees]
        return require_fresh(drawn_by, self.versions, self.settings.max_staleness)

    def age_of(self, version: str) -> int | None:
        """How many updates ago this trainer's weights went by that name, 0 = now; None if never, or if not checked."""
        return age_of(self.aliases.get(version, version), self.versions or ())

    def _credit(self, trees: Sequence[Tree]) -> tuple[TreeArrays, Credit, LeafRows | None]:
        """Credit suite by suite: a root's baseline comes from other trees of its own suite, now or in earlier batches.

        Suites differ in how often they succeed; one baseline for all would only add variance.
        """
        name, options = self.settings.estimator, self.settings.estimator_options
        biased = options_taken(name, {"allow_biased": self.settings.allow_biased})
        parts: list[tuple[TreeArrays, Credit]] = []
        rows: list[LeafRows] = []
        nodes = 0
        for suite, group in groupby(trees, key=lambda t: t.task.suite):
            arrays = tree_arrays(list(group))
            arrays.validate()
            own = options_taken(name, {"root_baseline": self.baselines.get(suite)})
            credit = estimate(name, arrays, **{**biased, **own, **options})
            if not np.isfinite(credit.coef).all():
                raise NonFinite(f"the credit of {int((~np.isfinite(credit.coef)).sum())} nodes is not finite")
            if self.settings.clip_rows:
                found = leaf_rows(name, arrays, **options)
                rows.append(LeafRows(found.leaf + nodes, found.node + nodes, found.coef))
            nodes += len(arrays)
            roots = credit.value[arrays.roots]
            if np.isfinite(roots).any():
                self.baselines[suite] = float(np.nanmean(roots))
            parts.append((arrays, credit))
        joined = {f.name: np.concatenate([getattr(c, f.name) for _, c in parts]) for f in fields(Credit)}
        together = (np.concatenate([getattr(r, f.name) for r in rows]) for f in fields(LeafRows)) if rows else None
        return (
            TreeArrays.concatenate([a for a, _ in parts]),
            Credit(**joined),
            LeafRows(*together) if together is not None else None,
        )

    # -- the optimizer's side -----------------------------------------------------------------------------------

    def descend_surrogate(
        self,
        packs: Sequence[PackedBatch],
        options: LossOptions | None = None,
        on_pack: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """`descend` with the loss of the settings, or of `options`."""
        options = options or self.settings.loss_settings(False)
        olds: dict[int, Tensor] = {}
        if min(self.settings.minibatches, len(packs)) > 1:
            with torch.no_grad():
                olds = {id(p): self.logprobs(p)[0].detach() for p in packs}

        def surrogate(pack: PackedBatch, trees: int) -> PackLoss:
            return self._surrogate(pack, olds.get(id(pack)), trees, options)

        return self.descend(packs, surrogate, on_pack)

    def descend(
        self,
        packs: Sequence[PackedBatch],
        loss_of: Callable[[PackedBatch, int], PackLoss],
        on_pack: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Optimizer steps over the packs, `minibatches` of them, for any loss of their log-probs; what to log.

        loss_of  (pack, trees generated for its step) → a function of (log-probs [M], entropies [M]) that gives the
                 loss and what it saw
        """
        groups = [packs[i :: self.settings.minibatches] for i in range(min(self.settings.minibatches, len(packs)))]
        sums: dict[str, float] = {}
        done = 0
        for group in groups:
            trees = sum(p.trees for p in group)
            self.optimizer.zero_grad(set_to_none=True)
            for pack in group:
                for name, value in self._backward(pack, loss_of(pack, trees)).items():
                    sums[name] = sums.get(name, 0.0) + value
                done += 1
                if on_pack is not None:
                    on_pack(done, len(packs))
            sums["grad_norm"] = sums.get("grad_norm", 0.0) + self._step()
        if groups and self.versions is not None:
            self.versions.append(weights_version(self.model))
        per_group = {"grad_norm", "loss"}
        return {k: v / (len(groups) if k in per_group else len(packs)) for k, v in sums.items()}

    def logprobs(self, pack: PackedBatch, model: Any = None) -> tuple[Tensor, Tensor]:
        """Log-probs and predicting entropies [M] of the pack's targets on the tree path, under `model` or our own; in
        chunks without gradient."""
        model = self.model if model is None else model
        cuts = self._cuts(pack)
        if cuts is not None:
            return chunked_logprobs(model, *self._inputs(pack), cuts)
        return tree_logprobs(model, *self._inputs(pack))

    def _cuts(self, pack: PackedBatch) -> int | None:
        """Tokens per chunk, None where the pack runs whole."""
        most = self.settings.chunk_tokens
        return most if most is not None and len(pack) > most else None

    def _inputs(self, pack: PackedBatch) -> tuple[Tensor, TreePlan, Tensor, Tensor]:
        """ids, plan, rows and target ids as `tree_logprobs` takes them."""
        device = self.model.device
        ids = torch.from_numpy(pack.ids).to(device)
        target = torch.from_numpy(pack.target).to(device)
        rows = torch.from_numpy(pack.parent.astype(np.int64)).to(device)[target]
        return ids, pack.plan, rows, ids[target]

    def reference_logprobs(self, pack: PackedBatch) -> Tensor | None:
        """[M] log-probs under the reference policy, or None without one."""
        if self.reference is None:
            return None
        with torch.no_grad():
            return self.logprobs(pack, self.reference)[0]

    def _surrogate(self, pack: PackedBatch, old: Tensor | None, trees: int, options: LossOptions) -> PackLoss:
        reference = self.reference_logprobs(pack)

        def loss(logp: Tensor, entropy: Tensor) -> tuple[Tensor, dict[str, float]]:
            coef, behaviour, weight = (
                torch.from_numpy(a).to(logp) for a in (pack.term_coef, pack.behaviour, pack.weight)
            )
            mode, term, sequence = (torch.from_numpy(a).to(logp.device) for a in (pack.mode, pack.term, pack.sequence))
            before = logp.detach() if old is None else old
            inputs = LossInputs(
                logp=logp,
                entropy=entropy,
                old=before,
                behaviour=behaviour,
                weight=weight,
                mode=mode,
                trees=trees,
                term=term,
                coef=coef,
                sequence=sequence,
                reference=reference,
            )
            value, seen = policy_loss(inputs, options)
            return value, _logged(seen, reference is not None)

        return loss

    def _backward(self, pack: PackedBatch, loss_of: PackLoss) -> dict[str, float]:
        seen: dict[str, float] = {}

        def objective(logp: Tensor, entropy: Tensor) -> Tensor:
            if not bool(torch.isfinite(logp).all()):
                raise self._refuse("log-probs")
            loss, found = loss_of(logp, entropy)
            if not bool(torch.isfinite(loss)):
                raise self._refuse("loss")
            seen.update(found)
            return loss

        cuts = self._cuts(pack)
        if cuts is not None:
            loss, _, _ = chunked_backward(self.model, *self._inputs(pack), objective, cuts)
        else:
            loss = objective(*tree_logprobs(self.model, *self._inputs(pack)))
            loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": float(loss.detach()), **seen}

    def _step(self) -> float:
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip))
        if not math.isfinite(norm):
            raise self._refuse("gradient")
        ramp = min(1.0, (self.steps + 1) / (self.settings.warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * ramp
        self.optimizer.step()
        self.steps += 1
        return norm

    def _refuse(self, what: str) -> NonFinite:
        self.optimizer.zero_grad(set_to_none=True)
        return NonFinite(
            f"{what} not finite at step {self.steps}: no step was taken, weights are as before. "
            "Lower train.lr or look at the batch's rewards and log-probs"
        )


def frozen(model: Any) -> Any:
    """A copy of the model that no training changes."""
    twin = copy.deepcopy(model).eval()
    for weight in twin.parameters():
        weight.requires_grad_(False)
    return twin


def _logged(seen: LossStats, with_reference: bool) -> dict[str, float]:
    return {k: v for k, v in asdict(seen).items() if with_reference or k != "reference_kl"}
