"""Evaluators that compute with a model of their own leave the loop to others while it computes, however long it takes.

Each model here is a real small one that first thinks for longer than a call may hold the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from walker import Walker
from watchdog import HOLD, Watched, watched

from treewright.agent.judges.judge import Learned
from treewright.agent.judges.prm import PrmEvaluator
from treewright.agent.judges.uncertainty import Entropy
from treewright.agent.judges.vstar import ValueGuided
from treewright.agent.policies.hf import HFPolicy
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.rules import rule
from treewright.search.types import Budget, Evaluator
from treewright.training.recipes.prm import Prm
from treewright.training.scorer import DualEncoder, Scorer, ScorerSettings

from .small import compact, qwen3

LONG = 1.5 * HOLD


def fine(seen: Watched) -> bool:
    print(f"turns {seen.turns}, longest {seen.longest:.3f} s of {HOLD}")
    return seen.longest < HOLD


def slowly(work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work after LONG seconds of processor time of the thread that calls it."""

    def working(*given: Any) -> Any:
        until = time.thread_time() + LONG
        while time.thread_time() < until:
            pass
        return work(*given)

    return working


def slow_prm() -> PrmEvaluator:
    prm: Any = Prm(qwen3(), None)
    prm.scores = slowly(prm.scores)
    return PrmEvaluator(prm)


def slow_scorer() -> Learned:
    torch.manual_seed(0)
    scorer: Any = Scorer(DualEncoder(ScorerSettings(width=8)).eval())
    return Learned(slowly(scorer))  # type: ignore[arg-type]


async def test_the_watchdog_sees_a_model_that_is_asked_on_the_loop_itself() -> None:
    async def held() -> None:
        slowly(lambda: None)()

    assert not fine((await watched(held()))[1])


@pytest.mark.parametrize("name", ["prm", "scorer", "entropy", "vstar"])
async def test_a_model_that_takes_long_does_not_hold_the_loop(name: str) -> None:
    policy: Any = HFPolicy(qwen3(), compact(), name="small")
    policy._entropies = slowly(policy._entropies)
    made: dict[str, Callable[[], Evaluator]] = {
        "prm": slow_prm,
        "scorer": slow_scorer,
        "entropy": lambda: Entropy(policy),
        "vstar": lambda: ValueGuided(policy, slow_prm()),
    }
    drawn = Walker([('move {"to": "east"}', 0.5), ('move {"to": "west"}', 0.5)]) if name == "scorer" else policy
    growing = search(
        SUITE.tasks("train", 1)[0], SUITE, drawn, rule=rule("best_first", draws=1, root_draws=2),
        evaluator=made[name](), budget=Budget(expansions=1), settings=Settings(max_tokens=8),
    )  # fmt: skip
    try:
        tree, seen = await watched(growing)
    finally:
        await policy.close()
    assert len(tree) > 1 and tree.score[1] == tree.score[1] and fine(seen)
