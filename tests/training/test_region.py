"""A step that goes further than train.max_kl is shortened along its own direction."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from search_trees import random_tree, tiny_model

from treewright.envs import TreewrightError
from treewright.training.memory import formula
from treewright.training.optim import APART, make_optimizer
from treewright.training.parallel.trainer import RankedTrainer
from treewright.training.region import Before, divergence, held_back, stepped
from treewright.training.settings import LoraSettings
from treewright.training.step import Trainer, TrainSettings


def trained(model: Any, **settings: Any) -> tuple[Trainer, dict[str, float]]:
    trainer = Trainer(model, TrainSettings(lr=0.02, minibatches=1, **settings))
    return trainer, trainer.update([random_tree(s) for s in range(6)])


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def copied(model: Any) -> Before:
    return [(p, p.detach().clone()) for p in model.parameters()]


def test_a_step_within_the_bound_is_the_step_without_one() -> None:
    model = tiny_model()
    free, _ = trained(copy.deepcopy(model))
    bound, stats = trained(copy.deepcopy(model), max_kl=1e3)
    assert torch.equal(flat(free.model), flat(bound.model))
    assert stats["step_share"] == 1.0 and 0 < stats["step_kl"] < 1e3


def test_a_longer_step_is_taken_in_part_and_in_its_own_direction() -> None:
    model = tiny_model()
    free, whole = trained(copy.deepcopy(model), max_kl=1e3)
    most = whole["step_kl"] / 50
    bound, stats = trained(copy.deepcopy(model), max_kl=most)
    assert 0.2 * most < stats["step_kl"] <= most and 0 < stats["step_share"] < 0.5
    start = flat(model)
    step, part = flat(free.model) - start, flat(bound.model) - start
    assert float((part - stats["step_share"] * step).norm() / part.norm()) < 1e-5


def test_each_minibatch_has_a_bound_of_its_own() -> None:
    settings = TrainSettings(lr=0.02, minibatches=2, max_tokens=60, max_kl=1e-4)
    trainer = Trainer(tiny_model(), settings)
    stats = trainer.update([random_tree(s) for s in range(6)])
    assert trainer.steps == 2 and 0 < stats["step_kl"] <= 1e-4


def test_a_step_whose_divergence_cannot_be_measured_is_not_taken() -> None:
    model = tiny_model()
    before = copied(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert held_back(before, 0.1, lambda: math.nan) == (0.0, 0.0)
    assert all(torch.equal(p, q) for p, q in before)
    assert held_back(before, 0.1, lambda: 0.5) == (0.0, 0.0)


def with_gradients(seed: int) -> Any:
    """Of all weights but the first."""
    model, made = tiny_model(), torch.Generator().manual_seed(seed)
    for p in list(model.parameters())[1:]:
        p.grad = torch.randn(p.shape, generator=made).to(p)
    return model


@pytest.mark.parametrize("name", APART)
def test_steps_weight_by_weight_are_the_step_of_all_and_hold_no_copies(name: str) -> None:
    whole, apart = with_gradients(0), with_gradients(0)
    settings = TrainSettings(optimizer=name, weight_decay=0.1)
    optimizers = [make_optimizer(settings, model, 0.02) for model in (whole, apart)]
    for seed in range(3):
        start, given = copied(apart), with_gradients(seed)
        for model in (whole, apart):
            for p, q in zip(model.parameters(), given.parameters(), strict=True):
                p.grad = None if q.grad is None else q.grad.clone()
        places = [p.grad.data_ptr() for p in apart.parameters() if p.grad is not None]
        before = [stepped(whole, optimizers[0], False), stepped(apart, optimizers[1], True)]
        assert torch.equal(flat(whole), flat(apart)) and not torch.equal(
            flat(apart), torch.cat([q.reshape(-1) for _, q in start])
        )
        assert all(p.grad is None for model in (whole, apart) for p in model.parameters())
        for kept in before:
            assert [torch.equal(q, old) for (_, q), (_, old) in zip(kept, start[1:], strict=True)] == [True] * len(kept)
        assert [old.data_ptr() for _, old in before[1]] == places, "what weights were stands where gradients stood"
    for p, q in zip(whole.parameters(), apart.parameters(), strict=True):
        one, other = (made.state[weight] for made, weight in zip(optimizers, (p, q), strict=True))
        assert set(one) == set(other) and bool(one) == (p is not next(whole.parameters()))
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)


def test_a_guess_on_some_packs_shortens_a_step_and_never_lets_it_pass() -> None:
    """The divergence is quadratic in the distance here: a good guess leaves one measurement to make, and a wrong one
    that says nothing of the step is found out by the measurement. Where it grows more slowly far away, as divergences
    do, the second guess mends the first."""
    model = tiny_model()
    before = copied(model)

    @torch.no_grad()
    def far() -> float:
        return float(sum(((p - q) ** 2).sum() for p, q in before))

    def moved() -> None:
        with torch.no_grad():
            for p, q in before:
                p.copy_(q + 1.0)

    def saturated() -> float:
        return far() / (1 + far() / far_away)

    moved()
    far_away = far()
    for guess, measured, expected in ((far, 1, 0.09), (lambda: 0.0, 2, 0.095), (saturated, 1, 0.09)):
        moved()
        most, measure = far() / 100, Mock(side_effect=far)
        found, share = held_back(before, most, measure, guess)
        assert 0.8 * most < found <= most and share == pytest.approx(expected, rel=0.01)
        assert measure.call_count == measured
    moved()
    assert held_back(before, 1.0, far, lambda: math.nan) == (0.0, 0.0)
    assert all(torch.equal(p, q) for p, q in before)


def test_of_many_packs_some_make_the_first_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    own, seen = Trainer.logprobs, Counter[int]()
    monkeypatch.setattr(Trainer, "logprobs", lambda self, pack: seen.update([id(pack)]) or own(self, pack))
    settings = TrainSettings(lr=0.02, minibatches=1, max_tokens=60, max_kl=1e-4)
    stats = Trainer(tiny_model(), settings).update([random_tree(s) for s in range(6)])
    assert 0 < stats["step_kl"] <= 1e-4
    least = min(seen.values())
    guessed = [times for times in seen.values() if times == least + 2]
    assert len(seen) > 4 and len(guessed) == -(-len(seen) // 4) and max(seen.values()) == least + 2


def test_the_divergence_is_that_of_the_distributions() -> None:
    """40,000 tokens drawn from a categorical distribution, against Σ p log p/q, within four standard errors."""
    made = torch.Generator().manual_seed(0)
    p, q = (torch.randn(7, generator=made).log_softmax(-1) for _ in range(2))
    tokens = torch.multinomial(p.exp(), 40_000, replacement=True, generator=made)
    true = float((p.exp() * (p - q)).sum())
    d = (q - p)[tokens].double()
    error = float((d.exp() - 1 - d).std()) / math.sqrt(len(d))
    assert abs(divergence(p[tokens], q[tokens]) - true) < 4 * error
    assert divergence(p[:0], q[:0]) == 0.0


def test_a_divergence_bound_below_zero_is_refused() -> None:
    with pytest.raises(TreewrightError, match="must be at least 0"):
        TrainSettings(max_kl=-0.1)


def test_models_of_20_million_parameters_have_a_bound_unless_told_otherwise() -> None:
    small, large = 19_999_999, 20_000_000
    assert TrainSettings().kl_bound(small) is None and TrainSettings().kl_bound(large) == 0.002
    assert TrainSettings(max_kl=0.0).kl_bound(large) is None and TrainSettings(max_kl=0.3).kl_bound(small) == 0.3
    assert TrainSettings(lora=LoraSettings(rank=8)).kl_bound(large) is None


def test_the_bound_of_a_large_model_shortens_its_steps_and_zero_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    _, free = trained(copy.deepcopy(model))
    assert "step_kl" not in free
    monkeypatch.setattr("treewright.training.settings.SMALL", 1)
    monkeypatch.setattr("treewright.training.settings.LARGE_KL", 1e-5)
    bound, stats = trained(copy.deepcopy(model))
    assert 0 < stats["step_kl"] <= 1e-5 and stats["step_share"] < 1
    unbound, told = trained(copy.deepcopy(model), max_kl=0.0)
    assert "step_kl" not in told
    start = flat(model)
    assert (flat(bound.model) - start).norm() < 0.9 * (flat(unbound.model) - start).norm()


def test_what_a_bound_keeps_counts_where_it_is_more_than_activations() -> None:
    costs = formula(tiny_model().config, TrainSettings(max_kl=0.1), "cpu")
    without = formula(tiny_model().config, TrainSettings(), "cpu")
    own = formula(tiny_model().config, TrainSettings(max_kl=0.1, optimizer="adamw_8bit"), "cpu")
    largest = max(p.numel() for p in tiny_model().parameters())
    assert costs.before == 4 * largest and own.before == own.gradients and without.before == 0
    large = replace(costs, before=1e12)
    assert large.peak(64) == large.lasting + 1e12 and costs.peak(4096) == without.peak(4096)


def test_many_processes_have_no_bound_of_their_own() -> None:
    assert RankedTrainer._bound(object.__new__(RankedTrainer), 10**9) is None
