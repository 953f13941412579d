"""Gradient variance per cost: the statistics against their definitions, the gradients against the trainer's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.benchmarks import variance
from treewright.benchmarks.variance import Sample, compared, moments
from treewright.envs import TreewrightError
from treewright.search.store import TreeStore
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.pack import pack_trees


def test_moments_are_those_over_pairs_of_different_trees_in_every_resample() -> None:
    rng = np.random.default_rng(1)
    g = rng.normal(size=(6, 40)) + 0.5
    spread, signal = moments(g, np.ones((1, 6)))
    assert spread[0] == pytest.approx(np.trace(np.cov(g.T)))
    total = g.sum(0)
    assert signal[0] == pytest.approx((total @ total - (g**2).sum()) / 30)
    drawn = np.array([[2.0, 0, 1, 0, 3, 0]])
    rows = np.repeat(np.arange(6), drawn[0].astype(int))
    pairs = [(i, j) for i in rows for j in rows if i != j]
    assert moments(g, drawn)[0][0] == pytest.approx(np.mean([((g[i] - g[j]) ** 2).sum() / 2 for i, j in pairs]))
    assert moments(g, drawn)[1][0] == pytest.approx(np.mean([g[i] @ g[j] for i, j in pairs]))


def samples(n: int, seed: int = 0, noise: float = 2.0) -> dict[str, Any]:
    """Trees of two schedules with the same mean gradient; the second deviates `noise` times as far at half the cost."""
    rng = np.random.default_rng(seed)
    mean = np.ones(50)

    def one(scale: float, cost: float) -> Sample:
        g = mean + scale * rng.normal(size=(n, 50))
        return Sample(
            tuple(map(str, range(n))), {"split_loo": g, "grpo": 3 * g + 1e-9}, {"sampled_tokens": np.full(n, cost)},
            np.zeros(n),
        )  # fmt: skip

    return {"chains": one(1.0, 100.0), "late_branch": one(noise, 50.0)}


def test_products_of_variance_and_cost_are_compared_with_intervals_that_hold_the_truth() -> None:
    cells = {(c.schedule, c.estimator): c for c in compared(samples(40))}
    base, other = cells["chains", "split_loo"], cells["late_branch", "split_loo"]
    assert base.ratio["sampled_tokens"] == (1.0, 1.0, 1.0) and not base.biased
    ratio, low, high = other.ratio["sampled_tokens"]
    assert ratio == pytest.approx(2.0, rel=0.15) and low < 2.0 < high < 3.0, "four times the variance at half the cost"
    first, least, most = map(not_none, base.noise["sampled_tokens"])
    assert least < 100.0 < most and first == pytest.approx(100.0, rel=0.2), "|E g|² = 50 and tr Cov = 50"
    scaled = cells["late_branch", "grpo"]
    assert scaled.biased and scaled.length == pytest.approx(3.0, rel=1e-3)
    assert scaled.ratio["sampled_tokens"] == pytest.approx(other.ratio["sampled_tokens"], rel=1e-3)
    assert scaled.noise["sampled_tokens"] == pytest.approx(other.noise["sampled_tokens"], rel=1e-3)


def test_a_signal_that_does_not_show_is_unknown_and_other_tasks_are_resampled_apart() -> None:
    few = samples(5, noise=100.0)
    late = few["late_branch"]
    few["stored"] = Sample(("x", "y", "z"), {k: v[:3] for k, v in late.gradients.items()},
                           {"sampled_tokens": np.full(3, 50.0)}, np.zeros(3))  # fmt: skip
    cells = {(c.schedule, c.estimator): c for c in compared(few)}
    assert cells["late_branch", "split_loo"].noise["sampled_tokens"][2] is None
    assert cells["stored", "split_loo"].trees == 3 and cells["stored", "split_loo"].ratio["sampled_tokens"][1] > 1


def test_sketches_keep_products_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (torch.randn(90_000, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    whole = [variance.Sketch(90_000).of([x[:9], x[9:].reshape(-1, 1)]) for x in (a, a + b)]
    np.testing.assert_array_equal(whole[0], a.double().numpy())
    monkeypatch.setattr(variance, "LARGEST", 10)
    short = [variance.Sketch(90_000).of([x[:9], x[9:]]) for x in (a, a + b)]
    assert short[0].shape == (variance.SKETCH,)
    assert short[0] @ short[1] == pytest.approx(whole[0] @ whole[1], rel=0.05)


def test_a_run_is_measured_on_its_own_tasks_and_gradients_are_those_of_its_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    say = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    done = say.invoke(app, ["collect", "-n", "a", "--suites", "kg", "--tasks", "3", "--set", "search.expansions=1"])
    assert done.exit_code == 0
    seen: dict[Any, Any] = {}
    sampled = variance._sample

    def watched(trainer: Any, trees: Any, estimators: Any, baselines: Any) -> Sample:
        seen["trainer"], seen["baselines"] = trainer, baselines
        seen[len(seen)] = (trees, sample := sampled(trainer, trees, estimators, baselines))
        return sample

    monkeypatch.setattr(variance, "_sample", watched)
    monkeypatch.setattr(variance, "SCHEDULES", ("chains", "best_first", "stored"))
    result = variance.main(quick=True, json_path="v.json", name="a", tasks=4)
    told = json.loads((tmp_path / "v.json").read_text())
    assert told["cells"] == result["cells"] and told["hardware"]["cores"]
    assert {c["schedule"] for c in told["cells"]} == {"chains", "best_first", "stored"}
    assert set(told["cells"][0]["ratio"]) == set(variance.COSTS)
    with TreeStore.open("runs/a/trees.sqlite", read_only=True) as store:
        assert len(store.trees()) == 3, "nothing is written to the run"
    trainer, base = seen["trainer"], seen["baselines"]["kg"]
    trees, sample = next(v for k, v in seen.items() if isinstance(k, int))
    arrays = [tree_arrays([t]) for t in trees]
    credits = [estimate("split_loo", a, root_baseline=base) for a in arrays]
    at = max(range(len(trees)), key=lambda i: np.abs(credits[i].coef).sum())
    packs = pack_trees([trees[at]], arrays[at], credits[at])
    monkeypatch.setattr(type(trainer), "_step", lambda self: 0.0)
    trainer.settings = replace(trainer.settings, minibatches=1)
    trainer.descend_surrogate(packs)
    step = torch.cat([-w.grad.flatten() for w in trainer.model.parameters() if w.grad is not None]).double().numpy()
    found, whole = sample.gradients["split_loo"][at], variance.Sketch(len(step)).of([torch.from_numpy(step)])
    assert np.linalg.norm(found) > 0 and np.linalg.norm(found - whole) < 1e-5 * np.linalg.norm(whole)


def test_a_run_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TreewrightError, match="there is no run 'none'"):
        variance.main(quick=True, name="none")
    with pytest.raises(TreewrightError, match="bench credit has no use for --name"):
        raise not_none(CliRunner().invoke(app, ["bench", "credit", "--name", "a"]).exception)
