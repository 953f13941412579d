"""Equal states as one: found by fingerprint, recorded as a reason against exactness, credited as a graph."""

from __future__ import annotations

import numpy as np
from not_none import not_none
from walker import Walker

from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.planning.equal import MERGED, equal_states
from treewright.search.rules import breadth_first
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus
from treewright.training.credit import TreeArrays
from treewright.training.credit.graphs import split_loo_graph
from treewright.training.credit.trees import tree_arrays

TASK = SUITE.tasks("train", 3)[2]


async def grown(close: bool) -> Tree:
    return await search(
        TASK, SUITE, Walker(), rule=breadth_first(draws=3, root_draws=3), budget=Budget(expansions=14),
        settings=Settings(close=close),
    )  # fmt: skip


async def test_open_nodes_are_merged_with_an_expanded_state_that_is_not_above_them() -> None:
    tree = await grown(close=False)
    same = equal_states(tree)
    merged = [i for i, other in enumerate(same) if other >= 0]
    assert merged and MERGED in tree.reasons
    for i in merged:
        assert not_none(tree.observation[i]).fingerprint == not_none(tree.observation[same[i]]).fingerprint
        assert tree.status[i] is NodeStatus.OPEN and tree.status[same[i]] is NodeStatus.EXPANDED
        assert same[i] not in tree.path(i)


async def test_nothing_is_merged_in_a_closed_tree_and_it_stays_exact() -> None:
    tree = await grown(close=True)
    assert set(equal_states(tree)) == {-1} and tree.exact


async def test_the_graph_estimator_shares_the_value_of_merged_states() -> None:
    tree = await grown(close=False)
    same = equal_states(tree)
    have = tree_arrays([tree])
    open_ends = np.asarray([s is NodeStatus.OPEN and m < 0 for s, m in zip(tree.status, same, strict=True)])
    arrays = TreeArrays.of(have.parent, mult=have.mult, reward=have.reward, truncated=have.truncated | open_ends)
    credit = split_loo_graph(arrays.with_(terminal=arrays.terminal & (np.asarray(same) < 0)), same_as=same)
    for node, other in enumerate(same):
        if other >= 0:
            assert credit.value[node] == credit.value[other]
