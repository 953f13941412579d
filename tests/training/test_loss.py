"""Every objective against its formula by finite differences, the penalties, the corrections, modes and rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from not_none import not_none
from search_trees import random_tree, tiny_model

from treewright.envs.errors import TreewrightError
from treewright.training.credit import estimate
from treewright.training.credit.arrays import TreeArrays
from treewright.training.credit.rows import LeafRows, leaf_rows
from treewright.training.credit.trees import tree_arrays
from treewright.training.loss import LossInputs, LossOptions, Mode, kl_penalty, policy_loss, sampler_weight
from treewright.training.pack import pack_trees
from treewright.training.step import Trainer, TrainSettings, frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray


if TYPE_CHECKING:
    from numpy.typing import NDArray


M, T = 12, 3


def inputs(seed: int = 0, **changes: Any) -> LossInputs:
    rng = np.random.default_rng(seed)
    old = torch.tensor(-rng.exponential(size=M))
    made = LossInputs(
        logp=(old + torch.tensor(rng.normal(scale=0.5, size=M))).requires_grad_(),
        entropy=torch.tensor(rng.exponential(size=M)).requires_grad_(),
        old=old,
        behaviour=old + torch.tensor(rng.normal(scale=0.4, size=M)),
        weight=torch.tensor(rng.random(M)),
        mode=torch.full((M,), Mode.PG),
        trees=T,
        term=torch.arange(M),
        coef=torch.tensor(rng.normal(size=M)),
        sequence=torch.arange(M) // 4,
        reference=old + torch.tensor(rng.normal(scale=0.3, size=M)),
    )
    return replace(made, **changes)


def plain(
    x: LossInputs, name: str, clip: float = 0.2, high: float = 0.3, dual: float = 3.0, cap: float = 2.0
) -> Callable[[Any], Any]:
    """The formulas in numpy, one token after the other; returns the loss for given log-probs."""

    def loss(logp: Any) -> float:
        ratio = np.exp(logp - x.old.numpy())
        coef = x.coef.numpy()
        total = 0.0
        for i in range(M):
            s = min(math.exp(float(x.old[i] - x.behaviour[i])), cap)
            r, c = ratio[i], coef[i]
            if name == "gspo":
                mates = x.sequence.numpy() == int(x.sequence[i])
                r = math.exp(np.mean(np.log(ratio[mates])))
            term = min(r * c, min(max(r, 1 - clip), 1 + high) * c)
            if name == "dual_clip" and c < 0:
                term = max(term, dual * c)
            if name == "unclipped":
                term = r * c
            total += s * term
        return -total / T

    return loss


def numeric(function: Callable[[Any], Any], at: NDArray[Any], step: float = 1e-6) -> NDArray[Any]:
    out = np.zeros_like(at)
    for i in range(len(at)):
        up, down = at.copy(), at.copy()
        up[i] += step
        down[i] -= step
        out[i] = (function(up) - function(down)) / (2 * step)
    return out


@pytest.mark.parametrize("name", ["clipped", "dual_clip", "gspo", "unclipped"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_the_formula_by_finite_differences(name: str, seed: int) -> None:
    x = inputs(seed)
    if name == "gspo":  # one coefficient for each draw
        x = replace(x, coef=x.coef[x.sequence * 4])
    if name == "dual_clip":
        x = replace(x, logp=(x.old + 2 * torch.linspace(-1, 1, M, dtype=torch.float64)).requires_grad_())
    loss, _ = policy_loss(x, LossOptions(loss=name, clip=0.2, clip_high=0.3))
    (gradient,) = torch.autograd.grad(loss, x.logp)
    expected = plain(x, name)
    at = x.logp.detach().numpy()
    assert float(loss.detach()) == pytest.approx(expected(at), rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), numeric(expected, at), atol=1e-8)
    assert float(gradient.abs().max()) > 1e-3


def test_dual_clip_differs_from_clip_only_for_bad_actions_that_have_grown_likely() -> None:
    x = inputs(coef=torch.full((M,), -1.0, dtype=torch.float64))
    far = replace(x, logp=(x.old + 2.0).requires_grad_())
    one, two = (policy_loss(far, LossOptions(loss=name))[0] for name in ("clipped", "dual_clip"))
    assert float(two.detach()) < float(one.detach())
    (gradient,) = torch.autograd.grad(two, far.logp)
    assert float(gradient.abs().max()) == 0.0


def test_cispo_clips_the_weight_and_keeps_every_gradient() -> None:
    x = inputs()
    loss, seen = policy_loss(x, LossOptions(loss="cispo", clip=0.2, clip_high=0.3))
    (gradient,) = torch.autograd.grad(loss, x.logp)
    s = (x.old - x.behaviour).exp().clamp(max=2.0)
    expected = -s * (x.logp.detach() - x.old).exp().clamp(max=1.3) * x.coef / T
    torch.testing.assert_close(gradient, expected)
    assert (gradient != 0).all() and seen.clipped > 0


def test_at_equal_weights_every_objective_has_the_policy_gradient_of_the_draw() -> None:
    """Without the factor |a|, gspo's gradient would be a quarter of it here: four tokens a draw."""
    x = inputs(behaviour=None or inputs().old)
    x = replace(x, logp=x.old.clone().requires_grad_(), coef=x.coef[x.sequence * 4])
    for name in ("clipped", "dual_clip", "cispo", "gspo", "unclipped"):
        loss, _ = policy_loss(x, LossOptions(loss=name))
        (gradient,) = torch.autograd.grad(loss, x.logp)
        torch.testing.assert_close(gradient, -x.coef / T)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_and_entropy_are_weighted_by_mass_and_divided_by_trees(kind: str) -> None:
    x = inputs(coef=torch.zeros(M, dtype=torch.float64))
    loss, _ = policy_loss(x, LossOptions(kl=kind, kl_coef=0.5, entropy_coef=0.1))
    d = x.logp.detach() - not_none(x.reference)
    kl = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[kind]
    expected = (0.5 * (x.weight * kl).sum() - 0.1 * (x.weight * x.entropy.detach()).sum()) / T
    torch.testing.assert_close(loss.detach(), expected)
    slope, bonus = torch.autograd.grad(loss, (x.logp, x.entropy))
    rise = {"k1": torch.ones(M), "k2": d, "k3": 1 - torch.exp(-d)}[kind]
    torch.testing.assert_close(slope, 0.5 * x.weight * rise / T)
    torch.testing.assert_close(bonus, -0.1 * x.weight / T)


def test_kl_estimators_estimate_the_divergence_and_k2_has_its_gradient() -> None:
    logits, other = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64), torch.tensor([0.0, 0.4, 0.3]).double()
    logits.requires_grad_()
    p, q = logits.log_softmax(-1), other.log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    (true,) = torch.autograd.grad(exact, logits, retain_graph=True)
    weights = p.exp().detach()
    for kind in ("k1", "k3"):
        assert float((weights * kl_penalty(p, q, kind)).sum().detach()) == pytest.approx(float(exact.detach()))
    slopes = {
        kind: torch.autograd.grad((weights * kl_penalty(p, q, kind)).sum(), logits, retain_graph=True)[0]
        for kind in ("k1", "k2")
    }
    torch.testing.assert_close(slopes["k2"], true)
    assert float(slopes["k1"].abs().max()) < 1e-12


def test_the_sampler_correction_is_truncated_and_by_draw_it_is_the_product() -> None:
    old, behaviour = torch.tensor([0.0, 0.5, 1.0, 0.0]), torch.tensor([0.2, 0.0, 0.0, math.nan])
    weight, _ = sampler_weight(old, behaviour, 2.0)
    torch.testing.assert_close(weight, torch.tensor([math.exp(-0.2), math.exp(0.5), 2.0, 1.0]))
    by_draw, _ = sampler_weight(old, behaviour, 9.0, torch.tensor([7, 7, 3, 3]))
    torch.testing.assert_close(by_draw, torch.tensor([math.exp(0.3)] * 2 + [math.e] * 2))


def test_modes_choose_what_a_token_is_trained_with() -> None:
    mode = torch.tensor([Mode.NONE] * 3 + [Mode.SFT] * 3 + [Mode.TOP_ENTROPY] * 6)
    x = inputs(mode=mode)
    loss, _ = policy_loss(x, LossOptions(top_entropy=0.5, clip=9.0))
    (gradient,) = torch.autograd.grad(loss, x.logp)
    assert (gradient[:3] == 0).all()
    torch.testing.assert_close(gradient[3:6], -x.coef[3:6] / T)
    entropies = x.entropy.detach()[6:]
    highest = entropies >= entropies.sort(descending=True).values[2]
    assert ((gradient[6:] != 0) == highest).all()


def test_adaptive_clipping_gives_large_credit_more_room() -> None:
    x = inputs(coef=torch.tensor([0.01, 4.0] + [0.0] * 10, dtype=torch.float64))
    x = replace(x, logp=(x.old + math.log(1.3)).requires_grad_())
    for adaptive, held in ((0.0, [True, True]), (1.0, [True, False])):
        loss, _ = policy_loss(x, LossOptions(clip=0.2, adaptive_clip=adaptive))
        (gradient,) = torch.autograd.grad(loss, x.logp)
        assert (gradient[:2] == 0).tolist() == held


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "cliped"}, "did you mean 'clipped'"),
        ({"kl": "k9"}, "k1"),
        ({"clip": 0.0}, "above 0"),
        ({"top_entropy": 0.0}, "share"),
        ({"clip_rows": True, "loss": "gspo"}, "whole draws"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TreewrightError, match=message):
        Trainer(tiny_model(), TrainSettings(**settings))


def test_gspo_needs_terms_by_draw() -> None:
    with pytest.raises(ValueError, match="terms by draw"):
        policy_loss(inputs(sequence=torch.full((M,), -1)), LossOptions(loss="gspo"))


# -- on packs -----------------------------------------------------------------------------------------------------


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.fixture
def float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr("transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm.forward", forward)


def row_by_row(
    model: Any, before: Any, trees: list[Any], arrays: TreeArrays, rows: LeafRows, clip: float
) -> tuple[float, Any]:
    """Every leaf's whole trajectory as a row of its own, clipped by itself; straight from the trees."""
    twin, start, total = copy.deepcopy(model), 0, 0.0
    twin.set_attn_implementation("sdpa")
    before = copy.deepcopy(before)
    before.set_attn_implementation("sdpa")
    offset = {}
    for tree in trees:
        offset.update({start + i: (tree, i) for i in range(len(tree))})
        start += len(tree)
    for node, coef in zip(rows.node, rows.coef, strict=True):
        tree, i = offset[int(node)]
        prompt, said = tree.context_ids(tree.parent[i]), tree.ids[i]
        both = []
        for one in (twin, before):
            logits = one(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 : -1]
            both.append(torch.log_softmax(logits, -1)[torch.arange(len(said)), torch.tensor(said)])
        ratio = (both[0] - both[1].detach()).exp()
        loss = -torch.minimum(ratio * coef, ratio.clamp(1 - clip, 1 + clip) * coef).sum() / len(trees)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total, gradient(twin)


def moved(model: Any, seed: int = 3, scale: float = 0.05) -> Any:
    other = copy.deepcopy(model)
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight += scale * torch.randn(weight.shape, generator=made, dtype=weight.dtype)
    return other


@pytest.mark.parametrize("estimator", ["grpo", "treepo", "treerl"])
def test_terms_by_leaf_and_token_equal_rows_that_are_clipped_one_by_one(estimator: str, float64_norms: None) -> None:
    trees = [random_tree(s, task="t") for s in range(4)]
    arrays = tree_arrays(trees)
    rows = leaf_rows(estimator, arrays)
    old = tiny_model(1)
    trainer = Trainer(moved(old), TrainSettings(estimator=estimator, clip_rows=True))
    expected, slope = row_by_row(trainer.model, old, trees, arrays, rows, 0.1)
    Trainer(old)
    total = 0.0
    for pack in pack_trees(trees, arrays, estimate(estimator, arrays), terms="row", rows=rows):
        before = trainer.logprobs(pack, old)[0].detach()
        pack = replace(pack, behaviour=before.numpy())
        loss, _ = trainer._surrogate(pack, before, len(trees), LossOptions(clip=0.1))(*trainer.logprobs(pack))
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    assert total == pytest.approx(expected, rel=1e-9)
    assert float((gradient(trainer.model) - slope).norm() / slope.norm()) < 1e-9
    summed = pack_trees(trees, arrays, estimate(estimator, arrays))[0]
    other, _ = trainer._surrogate(replace(summed, behaviour=before.numpy()), before, 4, LossOptions(clip=0.1))(
        *trainer.logprobs(summed)
    )
    assert abs(float(other.detach()) - total) > 1e-6  # rows of opposite sign do not clip as their sum does


@pytest.mark.parametrize("loss", ["clipped", "dual_clip", "cispo", "gspo", "unclipped"])
def test_an_update_with_every_loss_makes_better_than_average_actions_likelier(loss: str) -> None:
    trees = [random_tree(s, task=f"t{s}") for s in range(6)]
    settings = TrainSettings(lr=3e-3, loss=loss, minibatches=2, max_tokens=100, entropy_coef=1e-3, kl_coef=1e-3)
    trainer = Trainer(tiny_model(dtype=torch.float32), settings)
    arrays = tree_arrays(trees)
    packs = pack_trees(trees, arrays, estimate("split_loo", arrays))

    def value() -> float:
        terms = (trainer.logprobs(p)[0].detach().double() * torch.from_numpy(p.coef) for p in packs)
        return sum(float(term.sum()) for term in terms)

    before = value()
    stats = trainer.update(trees)
    assert value() > before
    names = {"ess", "sum_weight", "log_sum_weight", "zero_groups", "clipped", "kl", "entropy", "reference_kl"}
    assert names <= stats.keys() and all(math.isfinite(v) for v in stats.values())
    assert stats["reference_kl"] >= 0 and stats["entropy"] > 0


def test_the_reference_is_a_frozen_copy_unless_another_is_given() -> None:
    model = tiny_model()
    trainer = Trainer(model, TrainSettings(kl_coef=0.1))
    assert not any(p.requires_grad for p in trainer.reference.parameters())
    with torch.no_grad():
        model.model.norm.weight += 1
    assert not torch.equal(trainer.reference.model.norm.weight, model.model.norm.weight)
    other = frozen(tiny_model(5))
    assert Trainer(tiny_model(), TrainSettings(kl_coef=0.1), reference=other).reference is other


def test_penalties_reach_draws_without_credit_by_their_mass() -> None:
    trees = [random_tree(s) for s in range(3)]
    for tree in trees:
        tree._truth[:] = [0.0] * len(tree)
    arrays = tree_arrays(trees)
    credit = estimate("split_loo", arrays, root_baseline=0.0)
    assert pack_trees(trees, arrays, credit) == []
    (pack,) = pack_trees(trees, arrays, credit, every=True)
    first = pack.target[pack.parent[pack.target] == len(trees[0].delta[0]) - 1]
    assert len(first) and pack.weight[np.isin(pack.target, first)].sum() == pytest.approx(1.0)  # the first tree's root
