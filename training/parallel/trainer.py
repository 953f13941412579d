"""The trainer of many processes: one update, its packs shared out, its gradient that of one process.

Every rank holds a `RankedTrainer` on the same model. The leader's is used like any `Trainer`; the others `follow`. What
a loss is divided by is counted by the leader over all ranks' trees. Ranks go through the same passes in the same order,
with an empty pack where they have none, so that the collectives of sharded weights meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from treewright.envs.errors import TreewrightError
from treewright.kernels import TreePlan
from treewright.training.balance import Costs, costs_of
from treewright.training.decoders.replay import refuse_routes, replaying
from treewright.training.decoders.structure import text_config
from treewright.training.lora import adapter_off, is_adapted
from treewright.training.loss import LossOptions, LossStats
from treewright.training.model import chunked_backward, chunked_logprobs, tree_logprobs
from treewright.training.pack import PackedBatch
from treewright.training.packed import dealt, trees_of_step
from treewright.training.parallel.forest import Slot, compares, from_bytes, shares, to_bytes
from treewright.training.parallel.ranks import Ranks
from treewright.training.parallel.shard import full, full_weights, keep_whole, reshard, shard_model, small
from treewright.training.parallel.states import obey
from treewright.training.precision import logit_rows
from treewright.training.routing import Routing
from treewright.training.settings import TrainSettings
from treewright.training.step import NonFinite, Trainer
from treewright.training.versions import hash_weights

__all__ = ["RankedTrainer", "refuse_settings"]

EMPTY_IDS, EMPTY_PARENT = (0, 0), (-1, 0)


def refuse_settings(settings: TrainSettings) -> None:
    """Raises TreewrightError for what is trained in one process only."""
    alone = "leave torchrun, --processes and --gpus out"
    if settings.max_kl:
        raise TreewrightError(
            f"train.max_kl = {settings.max_kl} measures a step where the whole model is: leave it out, or {alone}"
        )
    if settings.optimizer not in ("adamw", "adamw_fused"):
        raise TreewrightError(
            f"train.optimizer = {settings.optimizer!r} is not shown to be right on sharded weights; set "
            f"train.optimizer=adamw, or {alone}"
        )


@dataclass(slots=True)
class RankedTrainer(Trainer):
    """A Trainer whose weights are sharded over `ranks`.

    costs    by which packs are shared out; None: from the model's configuration
    whole    weights stay gathered and gradients unsummed until the last pack of a step; None: where the model is small
    """

    ranks: Ranks | None = None
    costs: Costs | None = None
    whole: bool | None = None
    cuts_packs: ClassVar[bool] = True

    @property
    def ranks_of(self) -> Ranks:
        """The group. Raises TreewrightError for a trainer that was made without one."""
        if self.ranks is None:
            raise TreewrightError("RankedTrainer needs ranks=join()")
        return self.ranks

    def _bound(self, trained: int) -> float | None:
        """None: no process holds the whole model, on which a step would be measured."""
        return None

    def _place(self) -> None:
        refuse_settings(self.settings)
        self._alike("max_tokens", "chunk_tokens", "checkpointing", "minibatches")
        if self.whole is None:
            self.whole = small(self.model, self.dtype)
        for model in (self.model, self.reference):
            if model is not None:
                shard_model(model, self.ranks_of, self.dtype)
        self.logit_rows = logit_rows(self.model, self.ranks_of.device.type)
        if self.costs is None:
            self.costs = costs_of(text_config(self.model))

    def _alike(self, *names: str) -> None:
        """Raises TreewrightError where ranks have other settings than others: they would wait for each other."""
        mine = torch.tensor([float(getattr(self.settings, name) or 0) for name in names])
        most, least = self.ranks_of.largest(mine), -self.ranks_of.largest(-mine)
        for name, high, low in zip(names, most.tolist(), least.tolist(), strict=True):
            if high != low:
                raise TreewrightError(
                    f"train.{name} is {high:g} on one rank and {low:g} on another; start all ranks by the same line"
                )

    # -- the leader ------------------------------------------------------------------------------------------------

    def descend_surrogate(
        self,
        packs: Sequence[PackedBatch],
        options: LossOptions | None = None,
        on_pack: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        options = options or self.settings.loss_settings(False)
        assert self.costs is not None
        for pack in packs:
            refuse_routes(self.model, pack.routes)  # before any rank begins, for the others would wait
        groups = dealt(packs, self.settings.minibatches)
        trees = trees_of_step(packs, len(groups))
        whole = compares(packs, options.adaptive_clip)
        mine: list[list[list[PackedBatch | None]]] = []
        steps = []
        for group in groups:
            by_rank, slots = shares(
                group, self.ranks_of.world, self.settings.max_tokens, self.settings.chunk_tokens, self.costs, whole
            )
            mine.append(by_rank)
            steps.append({"trees": trees, "slots": [[s.first, s.second] for s in slots]})
        named = bool(steps) and self.versions is not None
        self.ranks_of.tell({"do": "descend", "options": asdict(options), "steps": steps, "named": named})
        self.ranks_of.deal([to_bytes([p for group in mine for p in group[r]]) for r in range(self.ranks_of.world)])
        stats = self._descend([group[0] for group in mine], steps, options, on_pack)
        if named and self.versions is not None:
            self.versions.append(self._version())
        return stats

    def descend(self, packs: Any, loss_of: Any, on_pack: Any = None, at: Any = None) -> dict[str, float]:
        raise TreewrightError(
            "this recipe trains in one process: leave torchrun and --processes out. Credit from trees (treewright "
            "train, treewright loop) takes many"
        )

    def logprobs(self, pack: PackedBatch, model: Any = None) -> tuple[Tensor, Tensor]:
        raise TreewrightError("log-probs outside of an update need the whole model in one process")

    def _routing(self, pack: PackedBatch) -> dict[str, float]:
        return {}  # it runs the model, which takes all ranks

    def version(self) -> str:
        """The name of the present weights, the same as in one process."""
        self.ranks_of.tell({"do": "version"})
        return self._version()

    def stop(self) -> None:
        """Sends the followers home."""
        self.ranks_of.tell({"do": "stop"})

    # -- the followers ---------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Does what the leader orders, until it says stop. Raises RankLost where the leader is gone."""
        while self.follow_one():
            pass

    def follow_one(self) -> bool:
        """Does what the leader orders next; False where that was to stop."""
        order = self.ranks_of.hear()
        match order["do"]:
            case "stop":
                return False
            case "version":
                self._version()
            case "descend":
                self._follow_descent(order)
            case other:
                obey(self, other, order)
        return True

    def _follow_descent(self, order: Mapping[str, Any]) -> None:
        held = from_bytes(self.ranks_of.deal(None))
        mine = []
        for step in order["steps"]:
            mine.append(held[: len(step["slots"])])
            held = held[len(step["slots"]) :]
        try:
            self._descend(mine, order["steps"], LossOptions(**order["options"]))
        except NonFinite:
            return  # the leader tells
        if order["named"]:
            self._version()

    # -- every rank ------------------------------------------------------------------------------------------------

    def _version(self) -> str:
        with self.ranks_of.answering():
            base = self.model.treewright_base["version"] if is_adapted(self.model) else ""
            return hash_weights(full_weights(self.model, keep=True), base)

    def _descend(
        self,
        mine: Sequence[Sequence[PackedBatch | None]],
        steps: Sequence[Mapping[str, Any]],
        options: LossOptions,
        on_pack: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """The optimizer steps over this rank's packs, together with all others; sums over all ranks."""
        slots = [[Slot(*passes) for passes in step["slots"]] for step in steps]
        total = sum(map(len, slots))
        olds: list[list[Tensor | None]] = [[None] * len(group) for group in slots]
        with self.ranks_of.answering():
            if self.whole:
                keep_whole(self.model, True)
            if len(steps) > 1:
                olds = [
                    [self._forward(self.model, p, s) for p, s in zip(held, group, strict=True)]
                    for held, group in zip(mine, slots, strict=True)
                ]
            sums: dict[str, float] = {}
            done = packs = 0
            for held, group, step, before in zip(mine, slots, steps, olds, strict=True):
                self.optimizer.zero_grad(set_to_none=True)
                wrong: str | None = None
                for number, (pack, slot, old) in enumerate(zip(held, group, before, strict=True), 1):
                    if self.whole:
                        keep_whole(self.model, number < len(group))
                    seen, found = self._passes(pack, slot, old, float(step["trees"]), options)
                    wrong = wrong or found
                    for name, value in seen.items():
                        sums[name] = sums.get(name, 0.0) + value
                    packs += pack is not None
                    done += 1
                    if on_pack is not None:
                        on_pack(done, total)
                self._all_finite(wrong)
                sums["grad_norm"] = sums.get("grad_norm", 0.0) + self._step()
        return self._together(sums, packs, len(steps))

    def _passes(
        self, pack: PackedBatch | None, slot: Slot, old: Tensor | None, trees: float, options: LossOptions
    ) -> tuple[dict[str, float], str | None]:
        """One slot: forward and backward of this rank's pack, filled up with empty passes; what was not finite."""
        reference = self._reference(pack, slot)
        wrong: list[str] = []
        seen: dict[str, float] = {}

        def objective(logp: Tensor, entropy: Tensor) -> Tensor:
            assert pack is not None
            if not bool(torch.isfinite(logp).all()):
                wrong.append("log-probs")
                return logp.sum() * 0.0
            loss, found = self._surrogate(pack, old, trees, options, reference)(logp, entropy)
            if not bool(torch.isfinite(loss)):
                wrong.append("loss")
                return logp.sum() * 0.0
            seen.update(found)
            return loss * self.ranks_of.world  # gradients of sharded weights are means over the ranks

        own = Slot(0, 0)
        if pack is not None:
            cuts = self._cuts(pack)
            many = 0 if cuts is None else -(-len(pack) // cuts)
            own = Slot(many, max(many, 1))
        for _ in range(slot.first - own.first):
            self._empty(self.model, gradient=False)
        if pack is not None:
            with self.routing.replaying(self.model, pack):
                if own.first:
                    value, _, _ = chunked_backward(
                        self.model, *self._inputs(pack), objective, self._cuts(pack) or len(pack), self.logit_rows
                    )
                else:
                    value = objective(*tree_logprobs(self.model, *self._inputs(pack), self.logit_rows))
                    value.backward()  # type: ignore[no-untyped-call]
            seen["loss"] = float(value.detach()) / self.ranks_of.world
        for _ in range(slot.second - own.second):
            self._empty(self.model, gradient=True)
        return seen, wrong[0] if wrong else None

    def _reference(self, pack: PackedBatch | None, slot: Slot) -> Tensor | None:
        """What `_forward` gives under the reference policy; None without one."""
        if self.reference is not None:
            return self._forward(self.reference, pack, slot)
        if not self._refers:
            return None
        with adapter_off(self.model):
            return self._forward(self.model, pack, slot)

    @property
    def _refers(self) -> bool:
        return self.reference is not None or bool(self.settings.kl_coef and is_adapted(self.model))

    @torch.no_grad()
    def _forward(self, model: Any, pack: PackedBatch | None, slot: Slot) -> Tensor | None:
        """Log-probs [M] of this rank's pack, filled up with empty passes to those of the slot."""
        out = None
        passes = max(slot.first, 1)
        if pack is not None:
            cuts = self._cuts(pack)
            with replaying(model, pack.routes):
                if cuts is None:
                    out, own = tree_logprobs(model, *self._inputs(pack), self.logit_rows)[0], 1
                else:
                    out = chunked_logprobs(model, *self._inputs(pack), cuts, self.logit_rows)[0]
                    own = -(-len(pack) // cuts)
            passes -= own
            out = out.detach()
        for _ in range(passes):
            self._empty(model, gradient=False)
        if not self.whole or model is not self.model:  # a reference has no last pack, at which it would be freed
            reshard(model)
        return out

    def _empty(self, model: Any, gradient: bool) -> None:
        """A pass that teaches nothing: one row of two tokens with a loss of zero."""
        plan = TreePlan.from_parents(EMPTY_PARENT)
        ids = torch.tensor(EMPTY_IDS, device=self.ranks_of.device)
        row = torch.zeros(1, dtype=torch.int64, device=self.ranks_of.device)
        with torch.set_grad_enabled(gradient):
            logp, entropy = tree_logprobs(model, ids, plan, row, ids[:1])
            if gradient:
                ((logp.sum() + entropy.sum()) * 0.0).backward()  # type: ignore[no-untyped-call]

    def _all_finite(self, wrong: str | None) -> None:
        """Every rank refuses the step where one of them must. Raises NonFinite."""
        kinds = ("log-probs", "loss")
        said = self.ranks_of.largest(torch.tensor([float(wrong == kind) for kind in kinds]))
        for kind, there in zip(kinds, said.tolist(), strict=True):
            if there:
                raise self._refuse(kind)

    def _clipped_norm(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        return float(full(norm))

    def _together(self, sums: dict[str, float], packs: int, steps: int) -> dict[str, float]:
        """Means over all ranks' packs; the loss and the norm by optimizer step."""
        names = ["loss", *(f.name for f in fields(LossStats) if f.name != "reference_kl" or self._refers)]
        counts = self.ranks_of.total(
            torch.tensor([float(packs), *(sums.get(n, 0.0) for n in names)], dtype=torch.float64)
        )
        self.routing = Routing(*self.ranks_of.total(torch.tensor(astuple(self.routing))).tolist())
        many = max(float(counts[0]), 1.0)
        told = dict(zip(names, counts[1:].tolist(), strict=True))
        loss = told.pop("loss") / steps
        return {"loss": loss, **{n: v / many for n, v in told.items()}, "grad_norm": sums["grad_norm"] / steps}
