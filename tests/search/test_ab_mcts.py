"""Wider or deeper by Thompson sampling: beliefs by hand, what a walk counts, where it goes, that it ends."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest
from walker import Likelihood, Walker

from treewright.benchmarks.ab_mcts import best_scores
from treewright.envs import TreewrightError
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.rules import rule
from treewright.search.rules.ab_mcts import Belief, ByThompson
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus

WAYS = Walker([(f'move {{"to": "{way}"}}', 0.2) for way in ("north", "east", "south", "west")] + [("stop {}", 0.2)])


def belief(*scores: float) -> Belief:
    made = Belief()
    for score in scores:
        made.add(score)
    return made


def test_beta_draws_have_the_mean_and_variance_of_the_distribution() -> None:
    made, rng = belief(0.9, 0.7, 0.8), random.Random(0)
    a, b = 0.5 + 2.4, 0.5 + 0.6
    drawn = [made.beta(rng) for _ in range(4000)]
    assert statistics.mean(drawn) == pytest.approx(a / (a + b), abs=0.01)
    assert statistics.variance(drawn) == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), rel=0.1)


def test_normal_draws_have_the_location_and_scale_of_the_students_t_that_they_come_from() -> None:
    scores, rng = [0.9, 0.7, 0.8, 0.2], random.Random(0)
    made, n = belief(*scores), 4
    mean = statistics.mean(scores)
    kappa = nu = 1 + n
    square = (0.1 + sum((s - mean) ** 2 for s in scores) + n * mean**2 / (1 + n)) / nu
    drawn = [made.gaussian(rng) for _ in range(20000)]
    assert statistics.median(drawn) == pytest.approx(n * mean / kappa, abs=0.01)
    assert statistics.variance(drawn) == pytest.approx(square / kappa * nu / (nu - 2), rel=0.15)


async def grown(width: int = 1, expansions: int = 60, **options: Any) -> Tree:
    return await search(
        SUITE.tasks("train", 1)[0], SUITE, WAYS, rule=rule("ab_mcts", **options), evaluator=Likelihood(),
        budget=Budget(expansions=expansions), settings=Settings(in_flight=width),
    )  # fmt: skip


@pytest.mark.parametrize("width", [1, 3])
async def test_nodes_draw_again_one_at_a_time_and_the_tree_says_that_it_is_inexact(width: int) -> None:
    tree = await grown(width)
    again = [node for node in set(tree.pops) if tree.pops.count(node) > 1]
    assert again and not tree.exact and any("added" in reason for reason in tree.reasons)
    assert all(tree.drawn[node] == tree.pops.count(node) for node in set(tree.pops))
    assert max(tree.depth) > 1 and len(tree.pops) == 60
    same = await grown(width)
    assert same.digest() == tree.digest()


async def test_no_node_draws_more_than_allowed_and_a_finite_world_ends() -> None:
    tree = await grown(expansions=4000, widest=2)
    assert max(tree.drawn) == 2 and tree.stopped_by is None
    assert not any(tree.status[i] is NodeStatus.OPEN for i in range(len(tree)))


async def test_counts_kept_during_a_search_equal_those_of_the_tree_read_from_scratch() -> None:
    tree = await grown(expansions=40)
    front = ByThompson(tree, Belief.beta, 64, 1.0)
    for node in range(1, len(tree)):
        front.applied(tree.parent[node], range(node, node + 1))
    for node in range(len(tree)):
        below = [i for i in range(1, len(tree)) if node in tree.path(i)[:-1]]
        drawn = [i for i in below if tree.parent[i] == node]
        deeper = [i for i in below if tree.parent[i] != node]
        assert front._draw[node].total == pytest.approx(sum(tree.score[i] for i in drawn))
        assert front._down[node].total == pytest.approx(sum(tree.score[i] for i in deeper))
        own = tree.score[node] if node else 0.0
        assert front._child[node].total == pytest.approx(own + sum(tree.score[i] for i in below))


def test_ab_mcts_goes_wide_or_deep_where_that_pays() -> None:
    wide = statistics.mean(best_scores("wide", rule("ab_mcts"), 6, 30))
    once = statistics.mean(best_scores("wide", rule("ab_mcts", widest=1), 6, 30))
    assert wide > once + 0.1, "one draw at the root is what it has"
    deep = statistics.mean(best_scores("deep", rule("ab_mcts"), 6, 30))
    shallow = statistics.mean(best_scores("deep", rule("chains", draws=30), 6, 1))
    assert deep > shallow + 0.02, "thirty first draws"


@pytest.mark.parametrize("options", [{"posterior": "flat"}, {"widest": 0}, {"virtual_loss": -1.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TreewrightError):
        rule("ab_mcts", **options)
