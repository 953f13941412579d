"""The search loop on the maze: order, budgets, restore, faults, closing, determinism."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from not_none import not_none
from speed import patient
from walker import MOVES, Likelihood, Walker

from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.envs import EnvFault, Restore, TreewrightError
from treewright.envs.maze import SUITE, Faults, Maze
from treewright.envs.types import Action, StepResult
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first, breadth_first, chains, random_on_policy, rule
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Context, NodeStatus

TASK = SUITE.tasks("train", 3)[2]
WAYS = ("north", "east", "south", "west")


def pool(size: int = 1, **options: Any) -> Pool:
    async def opened() -> Maze:
        return Maze(**options)

    return Pool(opened, size, deadline=patient(0.2))


async def grow(env: Pool | None = None, policy: Any = None, **options: Any) -> Tree:
    options.setdefault("settings", Settings(in_flight=4, close=True))
    options.setdefault("budget", Budget(expansions=12))
    options.setdefault("evaluator", Likelihood())
    return await search(TASK, env or pool(), policy or Walker(), **options)


async def test_parents_precede_children_and_every_node_hangs_on_the_root() -> None:
    tree = await grow()
    assert len(tree) > 12
    assert all(tree.parent[i] < i for i in range(len(tree)))
    assert all(tree.path(i)[0] == 0 for i in range(len(tree)))


@pytest.mark.parametrize("make", [best_first, random_on_policy, breadth_first, chains])
@pytest.mark.parametrize("eager", [True, False])
async def test_one_session_and_eight_give_the_same_tree(make: Callable[..., Any], eager: bool) -> None:
    one = await grow(pool(1), Walker(), rule=make(eager=eager))
    eight = await grow(pool(8), Walker(delay=True), rule=make(eager=eager))
    assert one.digest() == eight.digest()


@pytest.mark.parametrize("ways", [{Restore.FORK, Restore.REPLAY}, {Restore.STATE}, {Restore.REPLAY}])
async def test_every_way_back_gives_the_same_tree(ways: set[Restore]) -> None:
    plain = await grow(rule=best_first(eager=True))
    other = await grow(pool(2, ways=frozenset(ways)), rule=best_first(eager=True))
    assert other.digest() == plain.digest()


async def test_closing_leaves_no_open_node_and_keeps_the_tree_exact() -> None:
    tree = await grow()
    assert tree.exact, tree.reasons
    assert not {NodeStatus.OPEN, NodeStatus.DRAFT} & set(tree.status)
    assert tree.spent.closing_tokens > 0


async def test_shares_of_the_children_sum_to_one() -> None:
    tree = await grow()
    for i in range(len(tree)):
        if tree.drawn[i]:
            assert sum(tree.mult[c] for c in tree.children[i]) == tree.drawn[i]
            assert sum(tree.share[c] for c in tree.children[i]) == pytest.approx(1.0)


async def test_truth_is_sealed_until_the_search_is_over() -> None:
    seen: list[Any] = []
    tree = await grow(on_expansion=lambda t, new: seen.extend(t.reward(i) for i in new))
    assert seen and all(math.isnan(r) for r in seen)
    assert not math.isnan(tree.reward(tree.leaves()[0]))


async def test_invalid_output_is_an_executed_node_with_the_error_as_observation() -> None:
    tree = await grow(policy=Walker([("dance {}", 0.5), ('move {"to": "up"}', 0.5)]))
    assert tree.exact
    assert all(tree.error[i] for i in range(1, len(tree)))
    assert all(not_none(tree.observation[i]).text.startswith("error:") for i in range(1, len(tree)))
    assert {tree.status[i] for i in tree.leaves()} == {NodeStatus.TRUNCATED}
    assert all(tree.reward(i) == 0.0 for i in range(1, len(tree)))


async def test_a_wall_is_an_error_observation_and_leaves_the_state() -> None:
    tree = await grow()
    hits = [i for i in range(len(tree)) if tree.error[i] and "wall" in not_none(tree.error[i])]
    assert hits
    for i in hits:
        assert not_none(tree.observation[i]).fingerprint == not_none(tree.observation[tree.parent[i]]).fingerprint


@pytest.mark.parametrize("kind", ["die", "error", "hang"])
async def test_a_fault_is_retried_and_leaves_no_trace(kind: str) -> None:
    faults = Faults({5: kind, 11: kind})
    tree = await grow(pool(2, faults=faults))
    assert tree.digest() == (await grow()).digest()
    assert tree.exact


async def test_a_fault_that_persists_is_masked_and_never_rewarded() -> None:
    tree = await grow(pool(1, faults=Faults(dict.fromkeys(range(4, 400), "die"))))
    lost = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.FAULT]
    assert lost and not tree.exact
    assert all(math.isnan(tree.reward(i)) for i in lost)


async def test_a_diverging_replay_is_recorded_as_unreachable() -> None:
    ways = frozenset({Restore.REPLAY})
    tree = await grow(pool(1, ways=ways, faults=Faults({9: "wrong"})), rule=best_first(eager=True))
    lost = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.UNREACHABLE]
    assert lost and not tree.exact
    assert all("diverged" in not_none(tree.fault[i]) for i in lost)


async def test_live_worlds_never_execute_an_irreversible_action_while_exploring() -> None:
    ledger: list[Any] = []
    table = [*((m, 0.2) for m in Walker().table[0][:1]), ("press {}", 0.8)]
    tree = await grow(pool(1, sandboxed=False, ledger=ledger), Walker(table))
    assert ledger == []
    waiting = [i for i in range(len(tree)) if tree.action[i] and not_none(tree.action[i]).name == "press"]
    assert waiting and {tree.status[i] for i in waiting} == {NodeStatus.DRAFT}
    assert not tree.exact
    assert all(not math.isnan(tree.score[i]) for i in waiting if not tree.closing[i])


async def test_sandboxed_worlds_execute_irreversible_actions() -> None:
    ledger: list[Any] = []
    await grow(pool(1, ledger=ledger), Walker([("press {}", 1.0)]))
    assert ledger


async def test_budgets_are_never_exceeded() -> None:
    for budget in (Budget(expansions=7), Budget(policy_tokens=900), Budget(env_steps=13)):
        tree = await grow(budget=budget, settings=Settings(in_flight=3, max_tokens=24))
        for name in ("expansions", "policy_tokens", "env_steps"):
            limit = getattr(budget, name)
            assert limit is None or getattr(tree.spent, name) <= limit
        assert tree.stopped_by


async def test_lazy_rules_execute_only_what_they_pop() -> None:
    tree = await grow(rule=best_first(eager=False), settings=Settings())
    assert NodeStatus.DRAFT in set(tree.status)
    executed = sum(s is not NodeStatus.DRAFT for s in tree.status) - 1
    assert executed <= tree.spent.expansions


async def test_a_search_ends_with_its_first_answers_whether_they_ended_as_drawn_or_at_their_own_pop() -> None:
    for eager in (True, False):
        settings, likely = Settings(answers=1), Walker([("stop {}", 0.4), *((move, 0.15) for move in MOVES)])
        tree = await grow(policy=likely, rule=best_first(eager=eager), settings=settings, budget=Budget(expansions=30))
        assert tree.stopped_by == "answers"
        if not eager:
            assert len(tree.leaves()) == 1


async def test_truth_does_not_change_the_choice() -> None:
    tree = await grow()
    assert tree.chosen in tree.leaves()
    flipped = await grow(pool(1))
    flipped._truth[:] = [1.0 - r for r in flipped._truth]
    assert tree.chosen == flipped.chosen


async def test_more_sessions_than_one_share_the_work() -> None:
    crew = pool(4)
    await grow(crew, rule=best_first(root_draws=8))
    assert len(crew._idle) > 1
    await crew.close()


def test_an_unknown_rule_names_its_neighbour() -> None:
    with pytest.raises(TreewrightError, match="best_first"):
        rule("best_frist")


async def test_a_waiting_irreversible_action_can_be_chosen_but_not_over_a_better_answer() -> None:
    table = [("press {}", 0.9), ("stop {}", 0.1)]
    tree = await grow(pool(1, sandboxed=False), Walker(table))
    assert not_none(tree.action[not_none(tree.chosen)]).name == "press"
    tree = await grow(pool(1, sandboxed=False), Walker([("press {}", 0.1), ("stop {}", 0.9)]))
    assert not_none(tree.action[not_none(tree.chosen)]).name == "stop"


async def test_the_time_budget_holds_even_if_a_draw_hangs() -> None:
    class Sleepy(Walker):
        async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
            if self.asked >= 2:
                await asyncio.Event().wait()
            return await super().draw(context, seeds, max_tokens)

    began = time.monotonic()
    tree = await grow(policy=Sleepy(), budget=Budget(seconds=0.3), settings=Settings(in_flight=2))
    assert tree.stopped_by == "seconds" and len(tree) > 1
    assert time.monotonic() - began < patient(20)


async def test_draws_kept_apart_take_a_step_and_a_subtree_each() -> None:
    same = scripted_choice([('move {"to": "south"}', 0.9), ("stop {}", 0.1)])
    grown = {
        merge: await search(
            TASK,
            Maze(),
            same,
            rule=breadth_first(draws=4, root_draws=4),
            budget=Budget(expansions=3),
            settings=Settings(merge=merge, close=True),
        )
        for merge in (True, False)
    }
    merged, apart = grown[True], grown[False]
    assert max(merged.mult) > 1 and set(apart.mult) == {1}
    first = [i for i in range(len(apart)) if apart.parent[i] == 0]
    assert len(first) == 4 and len({apart.key(i) for i in first}) == 4
    said = Counter(apart.text[i] for i in first)
    assert said == {merged.text[c]: merged.mult[c] for c in merged.children[0]}
    assert math.isclose(sum(apart.mass[i] for i in first), 1.0) and apart.exact == merged.exact


async def test_a_search_that_never_waits_gives_others_their_turn_and_can_be_cancelled() -> None:
    walk = ScriptedPolicy(lambda task, turns, tools, rng: f'move {{"to": "{rng.choice(WAYS)}"}}', trainable=False)
    growing = asyncio.create_task(
        search(
            replace(TASK, horizon=100),
            Maze(),
            walk,
            rule=breadth_first(draws=4, root_draws=4),
            budget=Budget(expansions=1_000_000),
        )
    )
    for _ in range(5):
        await asyncio.sleep(0)
    assert not growing.done()
    growing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(growing, patient(10))


async def test_a_session_that_cannot_be_opened_is_no_crash() -> None:
    opened: list[Any] = []

    async def once() -> Maze:
        if opened:
            raise EnvFault("no second one")
        opened.append(1)
        return Maze()

    tree = await grow(Pool(once, 4), settings=Settings(in_flight=1, close=True))
    assert len(tree) > 4 and len(opened) == 1


@pytest.mark.parametrize("share_results", [False, True])
async def test_an_error_that_ends_a_search_leaves_nothing_running_and_no_session_held(share_results: bool) -> None:
    class Contradicting(Maze):
        async def step(self, action: Action, key: int) -> StepResult:
            steps.append(self)
            if len(steps) == 2:
                raise TreewrightError("one world is not what it said")
            await asyncio.sleep(600)  # still under way when the second one fails
            return await super().step(action, key)

    async def opened() -> Maze:
        return Contradicting()

    steps = list[Maze]()
    before, worlds = asyncio.all_tasks(), Pool(opened, 4, deadline=1000)
    with pytest.raises(TreewrightError, match="not what it said"):
        settings = Settings(in_flight=1, share_results=share_results)
        await grow(worlds, rule=best_first(4, 4, eager=True), settings=settings)
    assert len(set(steps)) == 2 and asyncio.all_tasks() == before and worlds.spare == 4
