"""One update: trees in, credit, packs, loss, a finite step out. Weights change only when everything is finite."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from treewright.envs.errors import TreewrightError
from treewright.kernels import TreePlan
from treewright.search.tree import Tree
from treewright.training.credit import Credit, TreeArrays, credit_stats
from treewright.training.credit.rows import LeafRows
from treewright.training.credit.trees import origin_of
from treewright.training.crediting import NonFinite, best_paths, credit_of
from treewright.training.decoders.experts import has_experts, routing_flips
from treewright.training.decoders.replay import replaying
from treewright.training.flops import spent_on
from treewright.training.heap import give_back
from treewright.training.lora import adapter_off, is_adapted
from treewright.training.loss import LossInputs, LossOptions, LossStats, Mode, by_sequence, policy_loss
from treewright.training.model import chunked_backward, chunked_logprobs, prepare, tree_logprobs
from treewright.training.optim import APART, few_steps, make_optimizer, rate_factor
from treewright.training.pack import PackedBatch, pack_trees
from treewright.training.packed import dealt, trees_of_step
from treewright.training.precision import checkpoint_layers, compute_dtype, computing, logit_rows, rounded
from treewright.training.progress import Progress, Underway
from treewright.training.region import Before, divergence, frozen, held_back, stepped
from treewright.training.routing import Routing
from treewright.training.settings import SMALL, TrainSettings
from treewright.training.versions import age_of, require_fresh, weights_version

__all__ = ["NonFinite", "PackLoss", "TrainSettings", "Trainer", "frozen"]


SAMPLED_PACKS = 4  # of so many packs one says how far a step went, to guess by; two at least, which may differ in kind
REMEMBERED, FORGETS = 1000, 50  # weights whose consumed trees are known, which bounds max_staleness; and how often
PackLoss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, float]]]


@dataclass(slots=True)
class Trainer:
    """Holds the model and its optimizer; `update` takes trees whose rewards are revealed.

    model      a transformers causal LM that `training.model.prepare` accepts
    tokenizer  saved beside the weights, so that a checkpoint can be opened as a policy; None leaves it out
    consumed   (tree id, policy version) of every tree trained on; each is used once
    baselines  by suite (trees from stored nodes apart), the mean root value of the last batch
    reference  the policy that kl_coef pulls to; None: a frozen copy of `model` as it is given here, or, where it has an
               adapter, the model with that off
    versions   names of this trainer's weights, oldest first, by which stale trees are refused; None: not checked
    aliases    other names of the same weights, such as a server gives them: alias → name in `versions`
    chosen     what train.memory led to, in a sentence
    progress   keeps what an update has done so far; None: an update that is stopped begins anew
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
    chosen: str = ""
    progress: Progress | None = None

    def __post_init__(self) -> None:
        prepare(self.model)
        s = self.settings
        s.loss_settings(False)  # refuses what the loss does not know
        if s.clip_rows and (by_sequence(s.loss) or s.max_staleness):
            raise TreewrightError(
                "train.clip_rows = true clips (leaf, token) terms; it goes with neither a loss of whole draws nor "
                "max_staleness"
            )
        if s.max_staleness >= REMEMBERED:
            raise TreewrightError(f"train.max_staleness = {s.max_staleness}: it must be below {REMEMBERED}")
        if s.clip_rows and s.unit != "turn":
            raise TreewrightError("train.clip_rows = true clips rows of turns; it does not go with train.unit")
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.lr, self.most_kl = s.rate_for(trained), self._bound(trained)
        self._large = trained >= SMALL and self.model.device.type == "cpu"
        self.rate, self.dtype = rate_factor(s), compute_dtype(s.precision)
        checkpoint_layers(self.model, s.checkpointing)
        self.logit_rows = logit_rows(self.model)
        if s.kl_coef and self.reference is None and not is_adapted(self.model):
            self.reference = frozen(self.model)
        if self.reference is not None:
            rounded(self.reference, self.dtype)
            prepare(self.reference)
        self._place()
        self.optimizer = make_optimizer(s, self.model, self.lr)

    optimizer: torch.optim.Optimizer = field(init=False)
    lr: float = field(init=False)
    most_kl: float | None = field(init=False)  # train.max_kl, or what it is for a model of this size
    _large: bool = field(init=False)  # whether free pages are worth giving back before each step
    rate: Callable[[int], float] = field(init=False)
    dtype: torch.dtype | None = field(init=False)
    logit_rows: int = field(init=False)
    fixed_rate: float | None = field(init=False, default=None)  # of the next steps, in place of lr and its warm-up
    recent: list[tuple[PackedBatch, Tensor]] = field(init=False, default_factory=list)  # log-probs under most_kl
    routing: Routing = field(init=False, default_factory=Routing)
    moves: list[tuple[float, float]] = field(init=False, default_factory=list)  # (divergence, share) of its steps

    cuts_packs: ClassVar[bool] = False
    """Packs are cut where trees end before they are trained on, so that trees must stand apart in them."""

    def _place(self) -> None:
        """Before the optimizer is made: a trainer of many processes shards the weights here."""

    def _bound(self, trained: int) -> float | None:
        return self.settings.kl_bound(trained)

    def version(self) -> str:
        """The name of the present weights."""
        return weights_version(self.model)

    def update(self, trees: Sequence[Tree], on_pack: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """Trains on the trees not consumed before and returns what to log.

        Raises NonFinite (nothing changed), InexactTree for inexact trees unless allowed, StaleTrees for trees of older
        weights than allowed, TreewrightError when nothing new was given.
        """
        fresh = self.unseen(trees)
        ages = [0] if self.versions is None else self._ages(fresh)
        arrays, credit, rows, tokens = credit_of(fresh, self.settings, self.baselines, self._plain_logprobs)
        stats = self.learn(fresh, arrays, credit, rows=rows, tokens=tokens, stale=max(ages) > 0, on_pack=on_pack)
        return stats | {"oldest": float(max(ages))}

    def unseen(self, trees: Sequence[Tree]) -> list[Tree]:
        """The trees not trained on before, trees of a suite side by side. Raises TreewrightError if there are none."""
        fresh = [t for t in trees if (t.tree_id, t.header.policy_version) not in self.consumed]
        if not fresh:
            raise TreewrightError("every tree given was trained on before; collect new ones or give another folder")
        fresh.sort(key=origin_of)  # stable: trees of a suite stay in order
        return fresh

    def learn(
        self,
        trees: Sequence[Tree],
        arrays: TreeArrays,
        credit: Credit,
        *,
        mode: NDArray[np.int64] | None = None,
        rows: LeafRows | None = None,
        tokens: Sequence[NDArray[np.float64]] | None = None,
        stale: bool = False,
        on_pack: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """`update` with credit that was computed elsewhere; `mode` [N] says what each node is trained with.

        tokens  by node, a coefficient for each of its tokens, where the tokens of a turn are not credited alike
        stale   correct whole draws for having been made by older weights
        """
        s = self.settings
        by_draw = stale or by_sequence(s.loss)
        packs = pack_trees(
            trees, arrays, credit, s.max_tokens, terms="row" if rows is not None else "draw" if by_draw else "token",
            rows=rows, mode=mode, every=bool(s.kl_coef or s.entropy_coef), tokens=tokens, replay=s.replay_routes,
            imitate=best_paths(trees) if s.sft_coef else None, share=not self.cuts_packs,
        )  # fmt: skip
        routing = self._routing(packs[0]) if packs and not self.steps else {}
        stats = routing | self.descend_surrogate(packs, s.loss_settings(stale), on_pack) if packs else {}
        stats |= self.routing.told()
        self.consumed |= {(t.tree_id, t.header.policy_version) for t in trees}
        self._forget()
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
            **spent_on(self.model, packs, s.minibatches, bool(s.kl_coef)),
        }

    def _forget(self) -> None:
        """Of consumed trees, those that no update takes any more, their weights being too old: checkpoints hold all."""
        if self.versions is not None and len(self.versions) > REMEMBERED and len(self.versions) % FORGETS == 0:
            known = set(self.versions[-REMEMBERED:])
            self.consumed = {(tree, by) for tree, by in self.consumed if self.aliases.get(by, by) in known}

    def _routing(self, pack: PackedBatch) -> dict[str, float]:
        """How many of a pack's tokens half precision would send to other experts; {} for a model without experts."""
        if pack.routes is not None or not has_experts(self.model) or self._cuts(pack) is not None:
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

    # -- the optimizer's side -----------------------------------------------------------------------------------

    def descend_surrogate(
        self,
        packs: Sequence[PackedBatch],
        options: LossOptions | None = None,
        on_pack: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """`descend` with the loss of the settings, or of `options`."""
        options = options or self.settings.loss_settings(False)
        at = self._begin(packs, options)
        if len(dealt(packs, self.settings.minibatches)) > 1 and not at.kept and at.stats is None:
            with torch.no_grad():
                at.kept = tuple(self.logprobs(p)[0].detach() for p in packs)
        olds = {id(p): old for p, old in zip(packs, at.kept, strict=False)}

        def surrogate(pack: PackedBatch, trees: float) -> PackLoss:
            return self._surrogate(pack, olds.get(id(pack)), trees, options, self.reference_logprobs(pack))

        return self.descend(packs, surrogate, on_pack, at)

    def descend(
        self,
        packs: Sequence[PackedBatch],
        loss_of: Callable[[PackedBatch, float], PackLoss],
        on_pack: Callable[[int, int], None] | None = None,
        at: Underway | None = None,
    ) -> dict[str, float]:
        """Optimizer steps over the packs, `minibatches` of them, for any loss of their log-probs; what to log.

        loss_of  (pack, trees to divide by) → a function of (log-probs [M], entropies [M]) that gives the loss and what
                 it saw; see `trees_of_step`
        at       where the pass stands; with `progress`, that of a pass that was stopped is taken up
        """
        at = self._begin(packs) if at is None else at
        if at.stats is not None:
            return at.stats
        groups, done = dealt(packs, self.settings.minibatches), 0
        if (few := few_steps(self.settings, len(groups))) is not None:
            warnings.warn(few, stacklevel=2)
        trees = trees_of_step(packs, len(groups))
        for group in groups:
            if done + len(group) <= at.done:  # this step was taken before
                done += len(group)
                continue
            if at.done <= done:  # else the gradient of the packs before is there, and what they were drawn by
                self.optimizer.zero_grad(set_to_none=True)
            for number, pack in enumerate(group, 1):
                done += 1
                if done <= at.done:
                    if self._measures(pack):
                        self.recent.append((pack, at.recent[len(self.recent)]))
                    continue
                with computing(self.model, self.dtype):
                    found = self._backward(pack, loss_of(pack, trees))
                for name, value in found.items():
                    at.sums[name] = at.sums.get(name, 0.0) + value
                if on_pack is not None:
                    on_pack(done, len(packs))
                if number < len(group):
                    self._keep(at, done)
            at.sums["grad_norm"] = at.sums.get("grad_norm", 0.0) + self._step()
            if done < len(packs):
                self.optimizer.zero_grad(set_to_none=True)
                self._keep(at, done)
        if groups and self.versions is not None:
            self.versions.append(self.version())
        per_group = {"grad_norm", "loss"}
        stats = {k: v / (len(groups) if k in per_group else len(packs)) for k, v in at.sums.items()} | self._moves()
        if self.progress is not None:
            self.progress.end(at, stats)
        return stats

    def _begin(self, packs: Sequence[PackedBatch], options: LossOptions | None = None) -> Underway:
        return Underway() if self.progress is None else self.progress.begin(self, packs, options)

    def _keep(self, at: Underway, done: int) -> None:
        at.done = done
        if self.progress is not None:
            self.progress.save(self, at)

    def logprobs(self, pack: PackedBatch, model: Any = None) -> tuple[Tensor, Tensor]:
        """Log-probs and predicting entropies [M] of the pack's targets on the tree path, under `model` or our own; in
        chunks without gradient."""
        model = self.model if model is None else model
        cuts = self._cuts(pack)
        with computing(model, self.dtype), replaying(model, pack.routes):
            if cuts is not None:
                return chunked_logprobs(model, *self._inputs(pack), cuts, self.logit_rows)
            return tree_logprobs(model, *self._inputs(pack), self.logit_rows)

    @torch.no_grad()
    def _plain_logprobs(self, pack: PackedBatch) -> NDArray[np.float64]:
        """[M] log-probs of a pack's targets under the present weights."""
        return self.logprobs(pack)[0].double().cpu().numpy()

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
        if self.reference is None and not (self.settings.kl_coef and is_adapted(self.model)):
            return None
        with torch.no_grad():
            if self.reference is not None:
                return self.logprobs(pack, self.reference)[0]
            with adapter_off(self.model):
                return self.logprobs(pack)[0]

    def _surrogate(
        self,
        pack: PackedBatch,
        old: Tensor | None,
        trees: float,
        options: LossOptions,
        reference: Tensor | None = None,
    ) -> PackLoss:
        def loss(logp: Tensor, entropy: Tensor) -> tuple[Tensor, dict[str, float]]:
            coef, behaviour, weight, imitate = (
                torch.from_numpy(a).to(logp) for a in (pack.term_coef, pack.behaviour, pack.weight, pack.imitate)
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
                imitate=imitate,
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
            if self._measures(pack):
                self.recent.append((pack, logp.detach()))
            return loss

        cuts = self._cuts(pack)
        with self.routing.replaying(self.model, pack):
            if cuts is not None:
                loss, _, _ = chunked_backward(self.model, *self._inputs(pack), objective, cuts, self.logit_rows)
            else:
                loss = objective(*tree_logprobs(self.model, *self._inputs(pack), self.logit_rows))
                loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": float(loss.detach()), **seen}

    def _measures(self, pack: PackedBatch) -> bool:
        """Whether the bound on a step is measured on this pack, too."""
        return self.most_kl is not None and bool((pack.mode == Mode.PG).any())

    def _step(self) -> float:
        norm = self._clipped_norm()
        if not math.isfinite(norm):
            raise self._refuse("gradient")
        factor = self.rate(self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor if self.fixed_rate is None else self.fixed_rate
        if self._large:
            give_back()  # activations' pages, before what the step needs comes on top of them
        before: Before = ()
        if self.recent:
            before = stepped(self.model, self.optimizer, self.settings.optimizer in APART)
        else:
            self.optimizer.step()
        self.steps += 1
        if before and self.most_kl is not None:
            many = len(self.recent)
            few = [self.recent[round(i)] for i in np.linspace(0, many - 1, max(2, -(-many // SAMPLED_PACKS)))]
            rough = (lambda: self._moved(few)) if many >= SAMPLED_PACKS else None
            guesses = 2 if 3 * len(few) <= many else 1  # a second one must cost less than what it spares
            whole = partial(self._moved, self.recent)
            self.moves.append(held_back(before, self.most_kl, whole, rough, guesses))
        self.recent.clear()
        return norm

    def _clipped_norm(self) -> float:
        """The gradient's norm, which is then at most train.grad_clip."""
        return float(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip))

    def _moved(self, packs: Sequence[tuple[PackedBatch, Tensor]]) -> float:
        """How far the weights are from those under which the packs had these log-probs, in nats per drawn token."""
        pairs = [(logp, self.logprobs(pack)[0], torch.from_numpy(pack.mode == Mode.PG)) for pack, logp in packs]
        before, after = (torch.cat([pair[i][pair[2].to(pair[i].device)] for pair in pairs]) for i in (0, 1))
        return divergence(before, after)

    def _moves(self) -> dict[str, float]:
        """What most_kl did to the steps since it was last asked, as means; {} without it."""
        moves, self.moves = self.moves, []
        names = ("step_kl", "step_share")
        return {name: float(np.mean([move[i] for move in moves])) for i, name in enumerate(names)} if moves else {}

    def forget_moments(self) -> None:
        """The optimizer begins anew, for another objective: neither its means nor its count of steps go on."""
        self.optimizer.state.clear()

    def _refuse(self, what: str) -> NonFinite:
        self.optimizer.zero_grad(set_to_none=True)
        self.recent.clear()
        return NonFinite(
            f"{what} not finite at step {self.steps}: no step was taken, weights are as before. "
            "Lower train.lr or look at the batch's rewards and log-probs"
        )


def _logged(seen: LossStats, with_reference: bool) -> dict[str, float]:
    return {k: v for k, v in asdict(seen).items() if with_reference or k != "reference_kl"}
