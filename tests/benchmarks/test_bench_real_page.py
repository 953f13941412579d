"""What the page about real models and the README say is in docs/real.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from treewright.benchmarks.real_exact import RATES

ROOT = Path(__file__).resolve().parents[2]
PAGE, README = (ROOT / "docs/real-models.md").read_text("utf-8"), (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    body = json.loads((ROOT / "docs/real.json").read_text("utf-8"))
    assert body["commit"] and body["hardware"]["cores"] and body["versions"]["transformers"]
    return {name: float(one["value"]) for name, one in body["figures"].items()}


def test_the_table_of_steps_is_what_was_measured(figures: dict[str, float]) -> None:
    rows = re.findall(r"^\| (\d+e-\d+) \| ([\d.]+) \| ([\d.]+) % \|$", PAGE, re.M)
    assert [float(rate) for rate, _, _ in rows] == list(RATES)
    for rate, moved, outside in rows:
        assert float(moved) == pytest.approx(figures[f"step_kl/{float(rate):g}"], rel=0.15)
        assert float(outside) == pytest.approx(100 * figures[f"step_outside_clip/{float(rate):g}"], rel=0.1)


def test_the_default_bound_is_between_the_steps_that_the_page_names(figures: dict[str, float]) -> None:
    from treewright.training.settings import LARGE_KL, LARGE_LR

    assert 1 < LARGE_KL / figures[f"step_kl/{LARGE_LR:g}"] < 1.5 and 5 < figures["step_kl/1e-05"] / LARGE_KL < 20


def test_page_and_readme_tell_the_gap_between_sampler_and_trainer_and_on_how_much(figures: dict[str, float]) -> None:
    gap = f"{figures['exact/sampler_and_trainer']:.1e} nats at most"
    much = f"{figures['exact/tokens']:.0f} tokens of {figures['exact/trees']:.0f} trees"
    for text in (README.partition("## What holds")[0], PAGE):
        said = " ".join(text.split())
        assert gap in said and much in said


def test_the_page_tells_how_fast_the_real_model_is_sampled_as_the_pair_of_builds_has_it(
    figures: dict[str, float],
) -> None:
    pairs = json.loads((ROOT / "docs/performance.json").read_text("utf-8"))["pairs"]
    assert figures["real_tokens_per_s_vs_before"] == pytest.approx(1 / pairs["hf_nodes"]["ratio"])
    after, before, ratio, low, high = (
        figures[name]
        for name in (
            "sampling/after", "sampling/before", "real_tokens_per_s_vs_before", "sampling/low", "sampling/high",
        )
    )  # fmt: skip
    assert f"{after:.0f} beside {before:.0f} of the build before" in PAGE
    assert f"| {ratio:.1f} times as many ({low:.1f} … {high:.1f}) | 2 times |" in PAGE


def test_page_and_readme_tell_what_trees_gained_on_each_suite(figures: dict[str, float]) -> None:
    seeds, head = range(int(figures["seeds"])), " ".join(README.partition("## What holds")[0].split())
    suites = ("office", "workbench")
    (first,) = (line for line in PAGE.splitlines() if line.startswith("| the same loops after 13 rounds"))
    for suite in suites:
        gain, low, high = (f"{figures[f'trees_{kind}/{suite}']:+.0f}" for kind in ("gain", "low", "high"))
        assert f"{gain} ({low} … {high})" in PAGE and f"{gain}, {low} … {high}" in head
        gain, low, high = (f"{figures[f'13_rounds/trees_{kind}/{suite}']:+.0f}" for kind in ("gain", "low", "high"))
        assert f"{gain} ({low} … {high})" in first
    for text in (PAGE, head):
        for shares in (
            [figures[f"imitation/{suite}"] for suite in suites],
            [sum(figures[f"trees/{i}/{suite}"] for i in seeds) / len(seeds) for suite in suites],
        ):
            first, second = (f"{share:.0f} %" for share in shares)
            assert first in text and second in text
    assert {figures[f"trees/{i}/rounds"] for i in seeds} == {18.0} and "eighteen rounds" in head
    assert f"{max(figures[f'trees/{i}/minutes'] for i in seeds):.0f} minutes" in head


def test_the_page_tells_what_greedy_draws_solve_before_the_trees(figures: dict[str, float]) -> None:
    sampled, greedy = (
        [figures[f"imitation{kind}/{suite}"] for suite in ("office", "workbench")] for kind in ("", "_greedy")
    )
    row = "greedy draws of these weights, the same tasks"
    assert f"| {row} | {' %, '.join(f'{share:.0f}' for share in greedy)} % |" in PAGE
    said = " ".join(PAGE.split())
    assert f"{sampled[0]:.0f} % of its tasks and {greedy[0]:.0f} in greedy draws" in said
    assert f"of `workbench` {sampled[1]:.0f} and {greedy[1]:.0f}" in said
    sampled, greedy = (
        [figures[f"stdlib+workbench/imitation{kind}/{suite}"] for suite in ("stdlib", "workbench")]
        for kind in ("", "_greedy")
    )
    assert f"solve {sampled[0]:.0f} % of `stdlib` when they sample and {greedy[0]:.0f} when they do not" in said
    assert f"but {sampled[1]:.0f} and {greedy[1]:.0f} % of `workbench`" in said
    head = " ".join(README.partition("## What holds")[0].split())
    gain, low, high = (f"{figures[f'stdlib+workbench/trees_{kind}/stdlib']:+.0f}" for kind in ("gain", "low", "high"))
    after = sum(figures[f"stdlib+workbench/trees/{i}/stdlib"] for i in range(3)) / 3
    told = f"{sampled[0]:.0f} % sampled and {greedy[0]:.0f} greedy, came to {after:.0f} ({gain}, {low} … {high})"
    assert told in head


def test_the_page_tells_what_a_step_promises_on_its_own_trees_and_on_others(figures: dict[str, float]) -> None:
    said, told = " ".join(PAGE.split()), {
        (name, optimizer): tuple(figures[f"shapes/{name}/{optimizer}/{whose}"] for whose in ("own", "others"))
        for name, optimizer in (("trees", "adamw"), ("trees", "muon"), ("small_trees", "adamw"), ("chains", "adamw"))
    }  # fmt: skip
    for (name, _), (own, others) in told.items():
        many = f"{figures[f'shapes/{name}/trees']:.0f} {'tasks' if name == 'chains' else 'trees'}"
        assert f"| {many}: {own:.1f}; {others:.1f} |" in PAGE
    own, others = told.pop(("trees", "adamw"))
    assert f"{own:.0f} points on the 24 trees that it was made of, and {others:.1f} on trees of other" in said
    rest = [others for _, others in told.values()]
    assert f"promise from {min(rest):.1f} to {max(rest):.1f} there" in said
    sampled = {
        name: f"{figures[f'shapes/{name}/sampled_tokens']:.0f} sampled tokens" for name in ("small_trees", "chains")
    }
    assert all(words in PAGE for words in sampled.values()) and f"({figures['shapes/others']:.0f} trees)" in PAGE


@pytest.mark.parametrize("suites", [("kg", "stdlib"), ("stdlib", "workbench")])
def test_the_page_tells_what_trees_gained_in_earlier_runs(suites: tuple[str, ...], figures: dict[str, float]) -> None:
    run = "+".join(suites)
    (line,) = (
        line for line in PAGE.splitlines() if line.startswith("| an earlier run") and suites[0] in line.split(";")[0]
        and suites[1] in line.split(";")[0]
    )  # fmt: skip
    for suite in suites:
        gain, low, high = (f"{figures[f'{run}/trees_{kind}/{suite}']:+.0f}" for kind in ("gain", "low", "high"))
        assert f"{gain} ({low} … {high})" in line and f"{figures[f'{run}/imitation/{suite}']:.0f} %" in line


def test_the_page_tells_how_far_chains_came(figures: dict[str, float]) -> None:
    run, suites, seeds = "office+workbench", ("office", "workbench"), range(3)
    (line,) = (line for line in PAGE.splitlines() if line.startswith("| chains instead"))
    drawn = [figures[f"{run}/chains/{seed}/sampled_tokens"] for seed in seeds]
    trees = [figures[f"13_rounds/trees/{seed}/sampled_tokens"] for seed in seeds]
    assert figures[f"{run}/seeds"] == 3
    assert all(chains >= tree for chains, tree in zip(drawn, trees, strict=True)), "as many tokens as trees, each seed"
    assert _three(f"{one:,.0f}" for one in drawn) + " sampled tokens" in line
    assert _three(f"{figures[f'{run}/chains/{seed}/rounds']:.0f}" for seed in seeds) + " rounds" in line
    assert f"13 rounds of trees: {_three(f'{one:,.0f}' for one in trees)} with" in line
    said, head = " ".join(PAGE.split()), " ".join(README.partition("## What holds")[0].split())
    means = {}
    for arm, words in ((f"{run}/chains", "stand at"), ("13_rounds/trees", "trees stood at")):
        every = [[figures[f"{arm}/{seed}/{suite}"] for seed in seeds] for suite in suites]
        assert all(_three(f"{one:.0f}" for one in each) in said for each in every)
        office, workbench = means[arm] = [sum(each) / 3 for each in every]
        assert f"{words} {office:.0f} % and {workbench:.0f} %" in head
    early = [f"{figures[f'{run}/9_rounds/chains/0/{suite}']:.0f}" for suite in suites]
    assert f"at {early[0]} and {early[1]} % after nine rounds" in said
    for suite, chains, grown in zip(suites, means[f"{run}/chains"], means["13_rounds/trees"], strict=True):
        gain, low, high = (figures[f"{run}/chains_{kind}/{suite}"] for kind in ("gain", "low", "high"))
        assert (
            f"{gain:+.0f} ({low:+.0f} … {high:+.0f})" in line and f"{figures[f'{run}/imitation/{suite}']:.0f} %" in line
        )
        assert low < gain + grown - chains < high, "else the page may say that trees teach more"


def _three(words: Iterable[str]) -> str:
    first, second, third = words
    return f"{first}, {second} and {third}"


def test_the_page_says_of_no_figure_that_it_is_to_be_measured_once_it_is_there(figures: dict[str, float]) -> None:
    wanted = {
        "the shares of valid draws": "real_valid_share_min",
        "the gap to plain rows": "real_logprob_gap_max",
        "the peak of a loop": "real_peak_gb",
        "success after imitation": "real_after_imitation_min",
        "what training by trees gains": "real_gain_points_min",
    }
    missing = " ".join(PAGE.split()).partition("to be measured, and nothing is claimed of it:")[2].partition(".")[0]
    assert {words: words in missing for words in wanted} == {w: name not in figures for w, name in wanted.items()}
