"""Schedules that are chosen by noise for cost: exact whatever the choice, and a choice that follows what was seen."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from all_draws import outcomes
from choices import Choices, Guide, Softmax, gradients, opened, tree_gradient, true_gradient, z_scores

from treewright.envs import Task, TreewrightError
from treewright.envs.types import seed_of
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import rule
from treewright.search.rules.adapting import ARMS, arm_of, chance_of
from treewright.search.rules.base import Rule
from treewright.search.tree import Tree
from treewright.search.types import Budget
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.schedules import FLOOR, NEWEST, Schedules, noise_of

TASK = Task("choices", "t", "choose", horizon=3)


def only(arm: str) -> dict[str, Any]:
    return {chance_of("choices", arm): 1.0}


def by_noise(rates: dict[str, Any] | None = None, **options: Any) -> Rule:
    given = dict(draws=2, root_draws=2, threshold=0.25, expand=2)
    return rule("adaptive", by="noise", rates=rates or {}, **(given | options))


def seeded(seed: int, suite: str = "choices") -> Any:
    return SimpleNamespace(header=SimpleNamespace(seed=seed_of(seed)), task=replace(TASK, suite=suite))


@pytest.fixture(scope="module", params=ARMS)
def everything(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(arm, every tree that it can give with its chance)."""
    import asyncio

    made = by_noise(only(request.param))

    async def grow(policy: Any) -> Tree:
        return await search(
            TASK, Choices(), policy, rule=made, evaluator=Guide(), budget=Budget(expansions=6),
            settings=Settings(close=True),
        )  # fmt: skip

    return request.param, asyncio.run(outcomes(grow))


def test_every_arm_gives_the_true_gradient_exactly(everything: tuple[Any, Any]) -> None:
    arm, found = everything
    assert sum(p for p, _ in found) == pytest.approx(1) and all(t.exact for _, t in found)
    credited = [(p, t, estimate("split_loo", tree_arrays([t]), root_baseline=0.3)) for p, t in found]
    mean = sum(p * tree_gradient(t, c) for p, t, c in credited)
    assert np.abs(mean - true_gradient()).max() < 1e-12 * np.abs(true_gradient()).max()
    assert (max(map(len, (t for _, t in found))) > 7) == (arm != "chains"), "the others branch below the root"


def test_the_noise_that_stands_for_a_gradient_is_near_its_expected_square(everything: tuple[Any, Any]) -> None:
    _, found = everything
    credited = [(p, t, estimate("split_loo", tree_arrays([t]), root_baseline=0.3)) for p, t in found]
    square = sum(p * float((tree_gradient(t, c) ** 2).sum()) for p, t, c in credited)
    assert sum(p * noise_of(t, 0.3) for p, t in found) == pytest.approx(square, rel=0.2)


async def test_trees_of_all_arms_together_give_the_true_gradient_within_noise() -> None:
    found = await gradients(by_noise(root_draws=3, expand=3), 250, expansions=6)
    assert z_scores(found).max() < 4.0
    cosine = found.mean(0) @ true_gradient() / np.linalg.norm(found.mean(0)) / np.linalg.norm(true_gradient())
    assert cosine > 0.9


def test_a_trees_arm_follows_the_chances_by_its_seed_alone() -> None:
    rates = {chance_of("choices", "split"): 0.75, chance_of("choices", "chains"): 0.25, "choices": 0.9}
    counts = Counter(arm_of(seeded(i), rates) for i in range(2000))
    assert set(counts) == {"split", "chains"} and counts["split"] == pytest.approx(1500, abs=80)
    other = Counter(arm_of(seeded(i, "other"), rates) for i in range(2000))
    assert set(other) == set(ARMS) and min(other.values()) > 400, "nothing is known of that suite"
    assert [arm_of(seeded(i), rates) for i in range(20)] == [arm_of(seeded(i), rates) for i in range(20)]
    with pytest.raises(TreewrightError, match="'success' or by 'noise'"):
        rule("adaptive", by="nois")
    with pytest.raises(TreewrightError, match="did you mean 'flops'"):
        rule("adaptive", by="noise", cost="flop")


def made(**records: Any) -> Schedules:
    plan = Schedules()
    plan.restore({"rounds": 3, "seen": {"kg": records}})
    return plan


def test_chances_go_to_the_arm_of_least_noise_for_cost_and_every_arm_keeps_some() -> None:
    rng = np.random.default_rng(0)

    def record(noise: float, cost: int, n: int = 40) -> list[Any]:
        return [[float(q), cost] for q in noise * rng.gamma(1.0, size=n)]

    clear = made(chains=record(1, 100), late_branch=record(1, 200), split=record(0.2, 100), best_first=record(1, 90))
    chances = clear.chances()
    assert chances == clear.chances() and sum(chances.values()) == pytest.approx(1)
    assert chances["kg by split"] > 0.85 and min(chances.values()) >= FLOOR / 4 - 1e-9
    alike = made(**{arm: record(1, 100) for arm in ARMS}).chances()
    assert max(alike.values()) < 0.8, "what is not known to be better does not take all"
    few = made(chains=record(1, 100), split=[[0.0, 100.0]] * 2, late_branch=record(1, 100), best_first=record(1, 100))
    assert few.chances()["kg by split"] < 0.6, "two trees that saw no success do not prove an arm"
    fresh = made(chains=record(1, 100)).chances()
    assert all(p > 0.1 for p in fresh.values()), "arms without a tree are as the others until they have some"


async def test_rounds_are_noted_by_the_arms_that_grew_them_and_go_through_a_checkpoint() -> None:
    plan, pool = Schedules("env_steps"), Pool(opened, 1)
    rates: dict[str, float] = {}
    assert plan.chances() == {}
    trees = [
        await search(replace(TASK, id=f"t{i}"), pool, Softmax(), rule=by_noise(), evaluator=Guide(),
                     budget=Budget(expansions=2), settings=Settings(close=True))
        for i in range(24)
    ]  # fmt: skip
    open_ = await search(replace(TASK, id="open"), pool, Softmax(), rule=by_noise(), budget=Budget(expansions=1))
    plan.note([*trees, open_], rates, {"choices": 0.3})
    seen = plan.seen["choices"]
    assert sum(map(len, seen.values())) == 24, "inexact trees say nothing"
    assert {arm: len(x) for arm, x in seen.items()} == Counter(arm_of(t, rates) for t in trees)
    first = next(t for t in trees if arm_of(t, rates) == "chains")
    assert seen["chains"][0] == (noise_of(first, 0.3), len(first) - 1)
    assert set(plan.chances()) == {chance_of("choices", arm) for arm in ARMS}
    back = Schedules("env_steps")
    back.restore(json.loads(json.dumps(plan.state())))
    assert back.chances() == plan.chances() and back.state() == plan.state()
    for _ in range(12):
        plan.note(trees, rates, {})
    assert max(map(len, plan.seen["choices"].values())) == NEWEST
