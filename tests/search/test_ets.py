"""The integer program of `ets` against trying every subset, and its clusters."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from walker import Walker

from treewright.envs.maze import SUITE
from treewright.envs.types import Task
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import rule
from treewright.search.rules.ets import choose_leaves, clusters, ngram_vectors, shared_draws
from treewright.search.stepper import Stepper
from treewright.search.types import Budget, Candidate, Score


def objective(
    kept: tuple[int, ...] | list[int],
    values: list[float],
    paths: list[list[int]],
    tokens: dict[int, int],
    cluster: list[int],
    cost_weight: float,
    cover_weight: float,
) -> Any:
    """The paper's objective, written out over a set of leaves."""
    leaves, above = {p[-1] for p in paths}, {j for p in paths for j in p[:-1]}
    whole = sum(tokens[j] for j in leaves | above)
    held = {paths[i][-1] for i in kept} | {j for i in kept for j in paths[i][:-1]}
    gain = sum(values[i] for i in kept) / sum(values)
    covered = len({cluster[i] for i in kept})
    return gain - cost_weight * sum(tokens[j] for j in held) / whole + cover_weight * covered / (max(cluster) + 1)


def instance(seed: int) -> tuple[list[float], list[list[int]], dict[int, int], list[int]]:
    rng = random.Random(seed)
    named = [[f"m{rng.randrange(3)}", f"l{i}"] for i in range(7)]
    tokens = {j: rng.randrange(1, 30) for path in named for j in path}
    tokens |= {f"m{i}": rng.randrange(1, 30) for i in range(3)}
    names = {name: i for i, name in enumerate(sorted(tokens))}
    paths = [[names[j] for j in path] for path in named]
    cluster = [rng.randrange(3) for _ in range(7)]
    cluster = [sorted(set(cluster)).index(c) for c in cluster]
    return [rng.random() for _ in range(7)], paths, {names[j]: t for j, t in tokens.items()}, cluster


@pytest.mark.parametrize("seed", range(12))
def test_the_integer_program_is_as_good_as_the_best_of_all_subsets(seed: int) -> None:
    values, paths, tokens, cluster = instance(seed)
    width, weights = 3, (1.0, 0.7)
    chosen = choose_leaves(values, paths, tokens, cluster, width, *weights)
    best = max(
        objective(kept, values, paths, tokens, cluster, *weights)
        for size in range(1, width + 1)
        for kept in itertools.combinations(range(len(values)), size)
    )
    assert 1 <= len(chosen) <= width
    assert objective(chosen, values, paths, tokens, cluster, *weights) == pytest.approx(best, abs=1e-5)


def test_a_cluster_of_poor_leaves_is_worth_little_where_clusters_count_by_weight() -> None:
    values, paths, cluster = [0.45, 0.45, 0.1], [[0], [1], [2]], [0, 0, 1]
    tokens = {0: 20, 1: 20, 2: 5}
    by = {cover: choose_leaves(values, paths, tokens, cluster, 2, 0.1, 1.0, cover) for cover in ("count", "weight")}
    assert by == {"count": [0, 2], "weight": [0, 1]}


def test_costs_are_tokens_not_nodes() -> None:
    values, paths, cluster = [0.5, 0.5], [[0, 1], [2, 3]], [0, 0]
    long, short = {0: 100, 1: 100, 2: 1, 3: 1}, {0: 1, 1: 1, 2: 100, 3: 100}
    assert choose_leaves(values, paths, long, cluster, 1, 1.0, 1.0) == [1]
    assert choose_leaves(values, paths, short, cluster, 1, 1.0, 1.0) == [0]


def test_equal_leaves_are_chosen_in_order_of_creation() -> None:
    assert choose_leaves([0.5] * 4, [[i] for i in range(4)], dict.fromkeys(range(4), 3), [0] * 4, 2, 0.1, 1.0) == [0, 1]


def test_coverage_prefers_leaves_that_differ() -> None:
    args = [0.4, 0.4, 0.2], [[0], [1], [2]], {0: 1, 1: 1, 2: 1}, [0, 0, 1]
    assert choose_leaves(*args, 2, 0.0, 5.0) == [0, 2]
    assert choose_leaves(*args, 2, 0.0, 0.0) == [0, 1]


def test_texts_that_are_nearly_equal_share_a_cluster() -> None:
    found = clusters(ngram_vectors(["read file notes", "read file notes!", "send mail to Ada"]), 0.3)
    assert found[0] == found[1] != found[2]
    assert clusters(np.ones((1, 3)), 0.3).tolist() == [0]


def test_draws_are_shared_out_by_hand() -> None:
    """exp(-4.9) and twice exp(-5.4) beside 1: shares of 16 are 15.74, .117, .071, .071."""
    assert shared_draws([0.99, 0.5, 0.45, 0.45], 16, 0.1) == [16, 1, 1, 1]
    assert shared_draws([0.3, 0.3], 8, 0.1) == [4, 4] and shared_draws([0.9], 8, 0.1) == [8]


class ByPlace:
    """Children of a node are worth .99, .5, .45, .45 in turn."""

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Any]:
        return [Score((0.99, 0.5, 0.45, 0.45)[i % 4]) for i in range(len(candidates))]


@pytest.mark.parametrize("width", [1, 3])
async def test_a_tree_draws_what_its_layers_share_out(width: int) -> None:
    walker = Walker([(f'move {{"to": "{way}"}}', 0.25) for way in ("north", "east", "south", "west")])
    order = rule("ets", width=4, draws=4, root_draws=12, cost_weight=0.0, cover_weight=0.0, temperature=0.1)
    tree = await search(SUITE.tasks("train", 1)[0], SUITE, walker, rule=order, evaluator=ByPlace(),
                        budget=Budget(expansions=12), settings=Settings(in_flight=width))  # fmt: skip
    assert tree.drawn[0] == 12
    for depth in range(1, max(tree.depth)):
        layer = [i for i in tree.pops if tree.depth[i] == depth]
        if len(tree.pops) == 12 and layer[-1:] == tree.pops[-1:]:
            continue  # the budget cut this one
        assert [tree.drawn[i] for i in layer] == shared_draws([tree.score[i] for i in layer], 16, 0.1)
    plain = rule("ets", width=4, draws=4, rebase=False)
    assert "rebase=False" in plain.name


async def test_a_search_that_is_driven_from_outside_shares_out_the_same_draws() -> None:
    """LangGraph drives it so."""
    order = rule("ets", width=4, draws=4, root_draws=12, cost_weight=0.0, cover_weight=0.0, temperature=0.1)
    task, budget = SUITE.tasks("train", 1)[0], Budget(expansions=9)
    whole = await search(task, SUITE, Walker(), rule=order, evaluator=ByPlace(), budget=budget)
    pool = Pool(SUITE.open)
    stepper = Stepper(task, pool, Walker(), rule=order, evaluator=ByPlace(), budget=budget, settings=Settings())
    await stepper.start()
    while (pop := stepper.pop()) is not None:
        await stepper.work.propose(pop)
        stepper.work.screen(pop)
        await stepper.work.explore(pop)
        await stepper.work.judge(pop)
        stepper.apply(pop)
    stepped = await stepper.finish()
    await pool.close()
    assert stepped.digest() == whole.digest() and len(set(stepped.drawn)) > 3
