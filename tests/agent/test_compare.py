"""Learning curves over an axis of cost: where points stand, areas, pairs, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from not_none import not_none
from typer.testing import CliRunner, Result

from treewright.agent.cli.main import app
from treewright.agent.runs.compared import arms_of, curve_of
from treewright.envs import TreewrightError


def write(name: str, success: list[Any], tokens: list[Any], **meter: Any) -> None:
    home = Path("runs") / name
    home.mkdir(parents=True)
    rows = [
        {"step": i + 1, "success": {"kg": s, "maze": s}, "seconds": 2.0, "meter": {"sampled_tokens": t, **meter}}
        for i, (s, t) in enumerate(zip(success, tokens, strict=True))
    ]
    (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, shift in ((1, 0.0), (2, 0.1), (3, 0.2)):
        write(f"chains-{seed}", [0.1 + shift, 0.2 + shift, 0.3 + shift], [100, 100, 100], flops=None)
        write(f"late-{seed}", [0.1 + shift, 0.4 + shift, 0.6 + shift], [50, 100, 700], flops=7.0)


def call(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, ["compare", *words])


def test_a_point_stands_at_what_the_rounds_before_it_cost(runs: None) -> None:
    curve = curve_of("late-2", "sampled_tokens")
    assert (curve.arm, curve.seed) == ("late", "2")
    assert curve.spent == (0.0, 50.0, 150.0) and curve.success == pytest.approx((0.2, 0.5, 0.7))
    assert curve_of("late-2", "seconds").spent == (0.0, 2.0, 4.0)
    assert curve.area(100.0) == pytest.approx((50 * 0.35 + 50 * 0.55) / 100)


def test_areas_are_compared_up_to_where_all_runs_come_with_an_interval_over_paired_seeds(runs: None) -> None:
    arms, end = arms_of([curve_of(f"{a}-{s}", "sampled_tokens") for a in ("chains", "late") for s in (1, 2, 3)])
    assert end == 150.0 and [a.name for a in arms] == ["chains", "late"]
    base, late = arms
    assert (base.ratio, base.low, late.pairs) == (None, None, 3)
    area = {a.name: [c.area(end) for c in a.runs] for a in arms}
    assert late.ratio == pytest.approx(np.mean(area["late"]) / np.mean(area["chains"]))
    each = np.divide(area["late"], area["chains"])
    assert each.min() <= not_none(late.low) < not_none(late.ratio) < not_none(late.high) <= each.max()


def test_seeds_without_a_partner_give_no_interval(runs: None) -> None:
    arms, _ = arms_of([curve_of(n, "sampled_tokens") for n in ("chains-1", "chains-2", "late-2", "late-3")])
    assert (arms[1].pairs, arms[1].low, arms[1].high) == (1, None, None) and not_none(arms[1].ratio) > 1


def test_the_command_prints_writes_and_draws(runs: None) -> None:
    line = [f"{a}-{s}" for a in ("chains", "late") for s in (1, 2, 3)]
    done = call(*line, "--axis", "sampled_tokens", "--json", "out/c.json", "--plot", "out/c.svg")
    assert done.exit_code == 0 and "over 150 sampled_tokens" in done.output
    told = json.loads(Path("out/c.json").read_text())
    assert told["axis"] == "sampled_tokens" and told["base"] == "chains" and told["arms"]["late"]["pairs"] == 3
    assert told["arms"]["late"]["runs"]["late-1"]["sampled_tokens"] == [0.0, 50.0, 150.0]
    assert "<svg" in Path("out/c.svg").read_text()


def test_what_cannot_be_compared_is_said_with_what_to_type(runs: None) -> None:
    write("one", [0.5], [10])
    for words, why in [
        (("chains-1", "late-1", "--axis", "flop"), "did you mean 'flops'"),
        (("chains-1", "late-1", "--axis", "flops"), "'chains-1' does not say its flops; it says seconds and sampled"),
        (("chains-1", "none", "--axis", "seconds"), "'none' has no metrics.jsonl"),
        (("chains-1", "one", "--axis", "seconds"), "a curve needs two updates"),
        (("chains-1", "late-1", "late-2"), "--axis sampled_tokens"),
        (("chains-1", "late-1", "--json", "x.json"), "--json and --plot are with --axis"),
        (("chains-1", "runs/chains-1", "--axis", "seconds"), "are both seed '1' of 'chains'"),
    ]:
        with pytest.raises(TreewrightError) as told:
            raise not_none(call(*words).exception)
        assert why in str(told.value)
