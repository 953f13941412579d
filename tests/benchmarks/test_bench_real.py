"""The sections of `bench real`, run small on the packaged model."""

from __future__ import annotations

from treewright.agent.cli.bench import HOMES
from treewright.benchmarks.real import SECTIONS, valid_figures
from treewright.benchmarks.real_exact import RATES, exact_figures
from treewright.benchmarks.search import section


def test_every_section_is_there() -> None:
    assert HOMES["real"] == "real" and all(callable(section(name)) for name in SECTIONS)


def test_log_probs_and_gradients_agree_and_a_higher_rate_goes_further() -> None:
    found = {name: value for name, (value, _) in exact_figures(True, "seedling").items()}
    assert found["exact/tokens"] > 30
    assert 0 < found["real_logprob_gap_max"] <= 2e-4
    assert 0 < found["exact/gradient_of_plain_rows"] <= 1e-3
    moved = [found[f"step_kl/{rate:g}"] for rate in RATES]
    assert moved == sorted(moved) and moved[-1] > 10 * moved[0] > 0


def test_valid_shares_are_those_of_the_best_way() -> None:
    found = valid_figures(True, "seedling")
    assert found["real_valid_share_min"][0] == found["valid/grammar/kg"][0] == 1.0
