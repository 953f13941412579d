"""Segments: responses that are branched at, executed where they end, stored, resumed and credited without bias."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from not_none import not_none

from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.benchmarks.segments import TASK, Letters, gradients, over_noise, reward, table, true_gradient
from treewright.envs.errors import TreewrightError
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first, rule
from treewright.search.rules.base import Rule
from treewright.search.segments import Segments
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeKind, NodeStatus
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

POLICY = scripted_choice(table)


async def opened() -> Letters:
    return Letters()


async def grown(
    seed: int = 0,
    *,
    the_rule: Rule | None = None,
    segments: Segments | None = None,
    expansions: int = 6,
    close: bool = True,
    store: TreeStore | None = None,
    policy: Any = POLICY,
    **more: Any,
) -> Tree:
    return await search(
        TASK, Pool(opened, 1), policy, rule=the_rule or best_first(draws=2, root_draws=2),
        budget=Budget(expansions=expansions), store=store,
        settings=Settings(seed=seed, close=close, segments=segments or Segments(length=1, most=3), **more),
    )  # fmt: skip


def whole(tree: Tree, node: int) -> tuple[int, ...]:
    """The tokens of a turn, from its first segment on."""
    ids, at = tree.ids[node], tree.parent[node]
    while at > 0 and tree.in_turn(at):
        ids, at = tree.ids[at] + ids, tree.parent[at]
    return ids


async def test_a_response_is_a_path_of_segments_whose_last_node_acts() -> None:
    tree = await grown()
    kinds = {tree.kind[i] for i in range(1, len(tree))}
    assert kinds == {NodeKind.SEGMENT, NodeKind.CHOICE}
    for i in range(1, len(tree)):
        if tree.in_turn(i):
            assert tree.action[i] is None and tree.error[i] is None and len(tree.ids[i]) == 1
            assert tree.steps[i] == 0 and tree.status[i] in (NodeStatus.OPEN, NodeStatus.EXPANDED)
        else:
            text = tree.text[i]
            assert whole(tree, i) == (*text.encode(), 256), "text of the whole turn, tokens of the node's own part"
            assert not_none(tree.action[i]).name == text.split()[0]
            assert tree.turns(i) <= 2
    for leaf in tree.leaves():
        said = "".join(not_none(e.action).name for e in tree.exchanges(leaf))
        assert len(tree.exchanges(leaf)) == 2 and tree.outcome_of(leaf) == pytest.approx(reward(said))


async def test_log_probs_of_the_parts_are_conditional_and_sum_to_the_whole() -> None:
    tree = await grown()
    for node in range(1, len(tree)):
        if not tree.in_turn(node):
            total, at = math.fsum(tree.logprobs[node]), tree.parent[node]
            while at > 0 and tree.in_turn(at):
                total, at = total + math.fsum(tree.logprobs[at]), tree.parent[at]
            turns = tree.exchanges(at) if at else ()
            p = dict(table(TASK, turns, ()))[tree.text[node]]
            assert total == pytest.approx(math.log(p))


@pytest.mark.parametrize("cut", [
    Segments(by="delimiter", delimiter="a", length=9, most=2),
    Segments(by="entropy", threshold=0.6, length=9, most=3),
    Segments(by="surprisal", threshold=0.5, length=9, most=3),
    Segments(by=f"{__name__}:two_letters", length=9, most=2),
])  # fmt: skip
async def test_every_way_to_cut_gives_segments_of_its_kind(cut: Segments) -> None:
    tree = await grown(segments=cut)
    parts = [tree.text[i] for i in range(1, len(tree)) if tree.in_turn(i)]
    assert parts
    if cut.by == "delimiter":
        assert all(part.endswith("a") and part.count("a") == 1 for part in parts)
    if ":" in cut.by:
        assert {len(part) for part in parts} == {2}
    ends = [i for i in range(1, len(tree)) if not tree.in_turn(i)]
    assert all(whole(tree, i) == (*tree.text[i].encode(), 256) for i in ends)


def two_letters(text: str) -> bool:
    return len(text) == 2


async def test_uncertainty_cuts_before_an_unsure_token_and_nowhere_else() -> None:
    sure = scripted_choice([("aaa {}", 0.5), ("aab {}", 0.5)])
    tree = await grown(segments=Segments(by="entropy", threshold=0.5, length=20), policy=sure)
    assert {tree.text[i] for i in range(1, len(tree)) if tree.in_turn(i)} == {"aa"}


async def test_a_script_that_knows_no_uncertainty_is_refused_such_cuts() -> None:
    plain = ScriptedPolicy(lambda *_: "aaa {}")
    with pytest.raises(TreewrightError, match="does not know how unsure"):
        await grown(segments=Segments(by="entropy"), policy=plain)


async def test_a_policy_that_cannot_go_on_is_refused_at_once() -> None:
    class Plain:
        version = "v"

        def context(self, *args: Any) -> None:
            raise AssertionError

        async def draw(self, *args: Any) -> None:
            raise AssertionError

    with pytest.raises(TreewrightError, match="goes on from the middle of a response"):
        await grown(policy=Plain())


@pytest.mark.parametrize("bad", [{"by": "word"}, {"length": 0}, {"by": "delimiter", "delimiter": ""}, {"repeat": -1}])
def test_settings_that_are_none_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(TreewrightError, match=r"search\.segments"):
        Segments(**bad)


async def test_a_response_that_repeats_itself_is_stopped_and_judged_as_it_is() -> None:
    loop = ScriptedPolicy(lambda *_: "ab" * 40)
    cut = Segments(length=4, most=99, repeat=2, times=3)
    tree = await grown(policy=loop, segments=cut, max_tokens=80, the_rule=rule("chains", draws=1), expansions=99)
    ended = [i for i in range(1, len(tree)) if not tree.in_turn(i)]
    assert ended and all(len(whole(tree, i)) == 8 for i in ended), "at the first end of a segment that shows it"
    assert all(tree.error[i] is not None for i in ended), "an error of the policy's, which counts"
    assert tree.exact


async def test_lazy_rules_execute_only_what_is_popped() -> None:
    lazy = best_first(draws=2, root_draws=2, eager=False)
    tree = await grown(the_rule=lazy, close=False, expansions=3)
    assert any(tree.in_turn(i) for i in range(1, len(tree)))
    assert all(tree.status[i] in (NodeStatus.OPEN, NodeStatus.EXPANDED) for i in range(1, len(tree)) if tree.in_turn(i))


async def test_trees_with_segments_are_stored_loaded_and_resumed(tmp_path: Path) -> None:
    whole_tree = await grown(seed=3)
    with TreeStore.open(tmp_path / "trees.sqlite") as store:
        first = await grown(seed=3, store=store)
        loaded = store.load(first.tree_id)
        arrays = estimate("split_loo", store.arrays([first.tree_id]))
    assert first.digest() == loaded.digest() == whole_tree.digest()
    assert loaded.kind == first.kind
    assert arrays.coef == pytest.approx(estimate("split_loo", tree_arrays([first])).coef)


class Stop(Exception):
    pass


@pytest.mark.parametrize("pops", [1, 3, 7])
async def test_a_search_that_was_stopped_goes_on_within_a_response(tmp_path: Path, pops: int) -> None:
    wanted = await grown(seed=5)

    def stop(tree: Tree, new: Any) -> None:
        if len(tree.pops) == pops:
            raise Stop

    with TreeStore.open(tmp_path / "trees.sqlite") as store:
        settings = Settings(seed=5, close=True, segments=Segments(length=1, most=3))
        given: dict[str, Any] = {
            "rule": best_first(draws=2, root_draws=2),
            "budget": Budget(expansions=6),
            "settings": settings,
        }
        with pytest.raises(Stop):
            await search(TASK, Pool(opened, 1), POLICY, store=store, on_expansion=stop, **given)
        tree = await search(TASK, Pool(opened, 1), POLICY, store=store, **given)
    assert tree.digest() == wanted.digest()


async def test_other_segments_than_the_tree_was_begun_with_are_refused(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "trees.sqlite") as store:
        settings = Settings(close=True, segments=Segments(length=1))

        def stop(tree: Tree, new: Any) -> None:
            raise Stop

        with pytest.raises(Stop):
            await search(TASK, Pool(opened, 1), POLICY, store=store, on_expansion=stop, settings=settings)
        with pytest.raises(TreewrightError, match="segments changed"):
            await search(TASK, Pool(opened, 1), POLICY, store=store, settings=Settings(close=True))


# -- unbiased ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["best first", "fallback", "entropy cut"])
async def test_split_loo_over_segments_gives_the_true_gradient_within_noise(case: str) -> None:
    found, true = await gradients(case, 250), true_gradient()
    assert over_noise(found) < 1.6
    assert found.mean(0) @ true / np.linalg.norm(found.mean(0)) / np.linalg.norm(true) > 0.8


async def test_the_same_check_catches_a_frontier_that_was_dropped() -> None:
    assert over_noise(await gradients("best first", 250, close=False)) > 2.0
