"""Options of the published estimators and of what grows their trees, as configuration gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treewright.agent.config import load_config
from treewright.agent.runs.setup import rule_of
from treewright.envs.errors import TreewrightError
from treewright.training.credit import ESTIMATORS, TreeArrays, estimate
from treewright.training.credit.registry import require_options

# Two trees of a task: forks, a draw that stands for three, states met twice, calls that fail, rewards on the way.
ARRAYS = TreeArrays.of(
    [-1, 0, 0, 1, 1, 2, 2, 3, 3, -1, 9, 9, 10, 10],
    tree=[0] * 9 + [1] * 5,
    mult=[1, 3, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    k=[4, 3, 2, 2, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0],
    reward=[0, 0.5, 0, 0, 1, 0, 2, 3, 0, 0, 0.25, 1, 0, 2],
    state_key=[5, 6, 6, 7, 8, 9, 9, 1, 2, 5, 6, 3, 4, 9],
    call_ok=[True, True, False, True, False, True, True, True, False, True, False, True, True, True],
    group=[0] * 14,
)
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "forest": {"trees": 2, "depth": 1, "tries": 1, "seed": 3, "features": "text"},
    "grpo": {"eps": 0.5},
    "dr_grpo": {},
    "rloo": {},
    "tree_grpo": {"eps": 0.5},
    "treepo": {"whiten": False, "eps": 0.5},
    "tempo": {"std": False, "eps": 0.5},
    "treerl": {},
    "treeps": {"parent": 0.25, "root": 0.75},
    "sibling": {"by": "nodes", "eps": 0.5},
    "gigpo": {"omega": 0.5, "gamma": 0.5, "std": False, "eps": 0.5},
    "portool": {"blend": 0.25, "call": 0.4, "decay": 0.5, "eps": 0.5},
    "vine": {},
    "split_loo": {"tau": 0.5, "weight_power": 0.5},
    "split_fitted": {"values": ""},
}
GIVEN = {name: {"root_baseline", "allow_biased"} for name in ("split_loo", "split_fitted")}  # the trainer's to say
CASES = [(name, option, value) for name, options in OPTIONS.items() for option, value in options.items()]


def set_to(name: str, option: str, value: Any) -> tuple[str, str]:
    return f"train.estimator={name}", f"train.options.{option}={json.dumps(value)}"


def test_every_option_of_every_estimator_is_in_the_list() -> None:
    from treewright.training.credit.registry import _options

    for name, function in ESTIMATORS.items():
        if not function.__module__.startswith("treewright."):
            continue  # one that another test registered
        assert set(_options(function) or ()) == set(OPTIONS[name]) | GIVEN.get(name, set()), name


@pytest.mark.parametrize(("name", "option", "value"), CASES)
def test_an_option_that_is_set_reaches_the_estimator_and_changes_its_credit(name: str, option: str, value: Any) -> None:
    given = load_config(settings=set_to(name, option, value)).train.estimator_options
    assert given == {option: value}
    require_options(name, given)
    if (name, option) in (("forest", "features"), ("forest", "seed"), ("forest", "tries"), ("split_fitted", "values")):
        return  # needs texts, scores or more nodes: tests/training/test_credit_texts.py, test_split_fitted.py
    biased = {"allow_biased": True} if name == "split_loo" else {}
    plain, told = estimate(name, ARRAYS, **biased), estimate(name, ARRAYS, **biased, **given)
    assert np.abs(told.coef - plain.coef).max() > 1e-3


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_misspelt_is_told_with_the_nearest(name: str) -> None:
    known = next(iter(OPTIONS[name]), None)
    with pytest.raises(TreewrightError, match=f"did you mean '{known}'" if known else "has no option"):
        require_options(name, load_config(settings=set_to(name, f"{known}x", 1)).train.estimator_options)


def test_what_grows_their_trees_has_options_too() -> None:
    settings = [
        ("fork_until_n", "factor", 3, "factor=3"),
        ("ets", "temperature", 0.5, "temperature=0.5"),
        ("treepo", "fallback", 0.25, "fallback=0.25"),
        ("vstar", "extra", 3, "extra=3"),
    ]
    for rule, option, value, shown in settings:
        config = load_config(settings=[f"search.rule={rule}", f"search.options.{option}={value}"])
        assert shown in rule_of(config.search).name
        with pytest.raises(TreewrightError, match=f"did you mean '{option}'"):
            rule_of(load_config(settings=[f"search.rule={rule}", f"search.options.{option}x={value}"]).search)


def test_they_can_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[train]\nestimator = "portool"\n[train.options]\nblend = 0.25\n')
    told = load_config(tmp_path / "own.toml", ["train.options.decay=0.5"]).train
    assert (told.estimator, told.estimator_options) == ("portool", {"blend": 0.25, "decay": 0.5})
