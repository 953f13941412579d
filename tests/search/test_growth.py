"""Growth schedules in the real engine: shapes of the trees, recorded coins, what is exact and what says it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from choices import Choices, Guide, Softmax, grow
from not_none import not_none
from walker import Walker

from treewright.envs.doors import options_of
from treewright.envs.errors import TreewrightError
from treewright.envs.maze import SUITE as MAZE
from treewright.envs.types import Suite, Task
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import known_rules, rule
from treewright.search.rules.base import Rule
from treewright.search.rules.training import GROWTH, REPEATED, adaptive, entropy_gated, fork_until_n, roulette, split
from treewright.search.stepper import Stepper
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, Context, NodeStatus
from treewright.training.credit.trees import tree_arrays
from treewright.training.export import View, decode_tree, encode_tree

TASK = Task("choices", "t", "choose", horizon=3)
POOLED = "draws were added to a node after its first ones were seen"


async def one(
    made: Rule,
    expansions: int = 30,
    close: bool = True,
    seed: int = 0,
    task: Task = TASK,
    env: Suite | None = None,
    policy: Any = None,
    **options: Any,
) -> Tree:
    return await search(
        task, env or Choices(), policy or Softmax(), rule=made, evaluator=Guide() if env is None else None,
        budget=Budget(expansions=expansions), settings=Settings(seed=seed, close=close), **options,
    )  # fmt: skip


def widths(tree: Tree) -> dict[int, set[int]]:
    return {d: {tree.drawn[i] for i in range(len(tree)) if tree.depth[i] == d and tree.drawn[i]} for d in range(3)}


@pytest.mark.parametrize("name", [n for n in GROWTH if n not in ("segments", "reexpand")])
async def test_exact_schedules_give_exact_trees(name: Any) -> None:
    tree = await one(rule(name))
    assert tree.exact and tree_arrays([tree]).exact.all()
    assert all(tree.status[i] is not NodeStatus.OPEN for i in range(len(tree)))


async def test_late_branch_is_wide_at_the_root_and_at_the_last_step() -> None:
    tree = await one(rule("late_branch", draws=3, root_draws=4, steps=3))
    assert widths(tree) == {0: {4}, 1: {1}, 2: {3}}
    tree = await one(rule("late_branch", draws=3, root_draws=4, steps=2))
    assert widths(tree)[1] == {3}


async def test_fan_follows_its_widths() -> None:
    assert widths(await one(rule("fan", widths=[3, 2, 1]))) == {0: {3}, 1: {2}, 2: {1}}


async def test_split_widens_only_what_the_judge_likes() -> None:
    tree = await one(split(draws=3, root_draws=8, threshold=0.25))
    inner = [i for i in range(1, len(tree)) if tree.drawn[i]]
    assert {tree.drawn[i] for i in inner} == {1, 3}
    assert all((tree.drawn[i] == 3) == (tree.score[i] >= 0.25) for i in inner)


async def test_the_entropy_gate_compares_a_turn_with_those_before_it() -> None:
    tree = await one(entropy_gated(draws=3, root_draws=4))
    for i in range(1, len(tree)):
        if tree.drawn[i] and tree.depth[i] == 2:
            assert tree.drawn[i] == (3 if tree.score[i] > tree.score[tree.parent[i]] else 1)
    assert {tree.drawn[i] for i in range(1, len(tree)) if tree.drawn[i]} == {1, 3}


@pytest.mark.parametrize("n", [1, 3, 5, 8])
async def test_fork_until_n_ends_with_n_finished_paths(n: int) -> None:
    class Wide(Softmax):
        """Never the same draw twice, so that no two paths merge."""

        async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Any]:
            from dataclasses import replace

            return [replace(d, token_ids=(*d.token_ids, seed), logprobs=(*d.logprobs, 0.0)) for d, seed in
                    zip(await super().draw(context, seeds, max_tokens), seeds, strict=True)]  # fmt: skip

    tree = await one(fork_until_n(n), expansions=60, policy=Wide())
    assert len(tree.leaves()) == n and tree.exact


async def test_roulette_records_its_coins_and_what_it_drops_stays_in_the_tree() -> None:
    tree = await one(roulette(draws=2, root_draws=6, reference=0.9, least=0.2))
    dropped = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.PRUNED]
    assert dropped and all(not tree.kept[i] and 0.2 <= tree.keep_prob[i] < 1 for i in dropped)
    kept = [i for i in range(1, len(tree)) if tree.drawn[i]]
    assert all(tree.keep_prob[i] == pytest.approx(min(1, max(0.2, tree.score[i] / 0.9))) for i in kept)
    assert tree_arrays([tree]).exact.all()


async def test_roulette_tosses_for_drafts_too_where_they_are_executed_late() -> None:
    tree = await one(roulette(draws=2, root_draws=6, reference=0.9, least=0.2, eager=False))
    dropped = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.PRUNED]
    assert dropped and all(tree.observation[i] is None and tree.keep_prob[i] < 1 for i in dropped)
    assert tree.exact and tree_arrays([tree]).exact.all()


async def test_reexpansion_adds_draws_of_equal_share_and_says_so() -> None:
    tree = await one(rule("reexpand", root_draws=2), expansions=14)
    again = [i for i in range(len(tree)) if tree.drawn[i] > (2 if i == 0 else 1)]
    assert again and tree.reasons == [POOLED]
    for i in again:
        kids = tree.children[i]
        assert sum(tree.mult[c] for c in kids) == tree.drawn[i]
        assert sum(tree.share[c] for c in kids) == pytest.approx(1.0)
        assert len({tree.seed[c] for c in kids}) == len(kids)
    assert sum(tree.mass[i] for i in tree.leaves()) == pytest.approx(1.0)


async def test_segments_fall_back_to_an_earlier_turn_once_all_slots_have_ended() -> None:
    tree = await one(rule("segments", root_draws=2, times=9), expansions=12)
    assert POOLED in tree.reasons
    first = next(j for j, node in enumerate(tree.pops) if node in tree.pops[:j])
    assert len([i for i in tree.leaves() if tree.born[i] < first]) >= 1
    assert all(tree.status[i] is not NodeStatus.OPEN or tree.born[i] >= first for i in range(len(tree)))


async def test_a_path_that_repeats_itself_is_stopped_and_named() -> None:
    north = [('move {"to": "north"}', 1.0)]
    task = MAZE.tasks("train", 1)[0]
    tree = await one(rule("segments", root_draws=1, times=3), expansions=3, task=task, env=MAZE, policy=Walker(north))
    stopped = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.PRUNED]
    assert stopped and tree.depth[stopped[0]] == 3 and REPEATED in tree.reasons


@pytest.mark.parametrize(("rate", "inner"), [(0.5, {1}), (0.1, {1, 2}), (0.01, {1, 5})])
async def test_the_adaptive_rule_picks_chains_a_fan_or_a_split_by_the_success_rate(
    rate: float, inner: set[int]
) -> None:
    tree = await one(adaptive(draws=2, root_draws=8, rates={"choices": rate}, threshold=0.25))
    assert {tree.drawn[i] for i in range(1, len(tree)) if tree.drawn[i]} == inner


@pytest.mark.parametrize("name", ["roulette", "reexpand", "segments", "adaptive", "fork_until_n"])
async def test_a_stored_tree_and_one_resumed_in_its_middle_equal_the_whole(name: str, tmp_path: Path) -> None:
    made, budget = rule(name, **({"least": 0.7} if name == "roulette" else {})), Budget(expansions=12)
    whole = await one(made, expansions=12)
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        count = 0

        class Enough(Exception):
            pass

        def stop(tree: Tree, new: Any) -> None:
            nonlocal count
            count += 1
            if count == 2:
                raise Enough

        with pytest.raises(Enough):
            await one(made, expansions=12, store=store, on_expansion=stop)
        resumed = await one(made, expansions=12, store=store)
        assert resumed.digest() == whole.digest() == store.load(whole.tree_id).digest()
        row = encode_tree(View(resumed), store.expansions(whole.tree_id))
        assert decode_tree(row).tree.digest() == whole.digest()
        columns = store.arrays([whole.tree_id])
        assert columns["drawn"].tolist() == whole.drawn and columns["share"].tolist() == pytest.approx(whole.share)
    stepper = Stepper(
        TASK, Pool(lambda: _open()), Softmax(), rule=made, evaluator=Guide(), budget=budget,
        settings=Settings(close=True),
    )  # fmt: skip
    done = await stepper.start()
    while done is None and (pop := stepper.pop()):
        await stepper.work.propose(pop)
        stepper.work.screen(pop)
        await stepper.work.explore(pop)
        await stepper.work.judge(pop)
        stepper.apply(pop)
    assert (await stepper.finish()).digest() == whole.digest()


async def _open() -> Choices:
    await asyncio.sleep(0)
    return Choices()


async def test_several_pops_in_flight_give_the_same_tree_for_one_session_and_four() -> None:
    async def grown(sessions: int) -> Tree:
        return await search(
            TASK, Pool(_open, sessions), Softmax(), rule=rule("reexpand"), evaluator=Guide(),
            budget=Budget(expansions=16), settings=Settings(in_flight=3, close=True),
        )  # fmt: skip

    assert (await grown(1)).digest() == (await grown(4)).digest()


def test_names_and_options_are_checked() -> None:
    assert "rates" in not_none(options_of(known_rules()["adaptive"]))
    wrong: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: rule("late_brunch"), "late_branch"),
        (lambda: rule("late_branch", step=3), "steps"),
        (lambda: rule("fan", widths=[0]), "at least 1"),
        (lambda: rule("roulette", least=0), "least"),
        (lambda: rule("segments", times=1), "times"),
    )
    for call, said in wrong:
        with pytest.raises(TreewrightError, match=said):
            call()


async def test_growing_many_trees_is_what_the_helper_says() -> None:
    assert len([t async for t in grow(rule("fan"), 2)]) == 2


async def test_the_fork_factor_says_into_how_many_a_path_forks() -> None:
    plain, wide = fork_until_n(5), fork_until_n(9, factor=3)
    assert "factor" not in plain.name and "factor=3" in wide.name, "trees begun before go on"
    tree = await one(fork_until_n(9, factor=3), expansions=60)
    assert max(tree.drawn) == 3
    with pytest.raises(TreewrightError, match="factor = 0"):
        fork_until_n(factor=0)
