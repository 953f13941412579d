"""The learning experiment: batched growth against the slow obvious version, equal tokens, and a learner that learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from closeness import assert_near

from treewright.benchmarks.learning import bench as bench_learning
from treewright.benchmarks.learning import sweep
from treewright.benchmarks.learning.arms import ARMS
from treewright.benchmarks.learning.grow import Grower, Grown, Plan, grow
from treewright.benchmarks.learning.train import (
    Curve,
    Setting,
    Sizes,
    coefficients,
    learn,
    log_probs,
    starting_point,
    success,
)
from treewright.benchmarks.learning.world import (
    ANSWER,
    EMPTY,
    ENTITIES,
    PREFIX,
    RELATIONS,
    SEARCH,
    TURN,
    Tasks,
    World,
    contexts,
    demonstrations,
    draw_tasks,
    make_world,
    observe,
)
from treewright.training.credit import split_loo_reference

if TYPE_CHECKING:
    from numpy.random import Generator

    from treewright.benchmarks.learning.policy import TinyPolicy


SETTING = Setting(0.8)
TINY = Sizes(tokens=1_500, batch=400, checks=3, tasks=64, warm=80)


@pytest.fixture(scope="module")
def start() -> tuple[World, TinyPolicy]:
    torch.set_num_threads(1)
    return starting_point(SETTING, 7, 80)


def grown_by(
    name: str, start: tuple[World, TinyPolicy], tasks: int = 12, seed: int = 0, flips: float = 0.0
) -> tuple[Any, Any, Tasks, Plan, Grown]:
    world, policy = start
    rng = np.random.default_rng(seed)
    batch = draw_tasks(world, tasks, rng)
    plan = ARMS[name].plan(batch.hops, {2: 0.5, 3: 0.1, 4: 0.01})
    return world, policy, batch, plan, grow(policy, world, batch, plan, rng, flips)


def turn_tokens(grown: Grown, node: int) -> tuple[Any, Any]:
    at = PREFIX + TURN * (grown.turn[node] - 1)
    return grown.rows[node, at : at + 4].tolist(), at


def test_the_cache_gives_the_logits_of_the_whole_row(start: tuple[World, TinyPolicy]) -> None:
    world, policy = start
    rows = torch.from_numpy(demonstrations(world, 5, 0.5, np.random.default_rng(1))[0][:, :20])
    full = policy(rows)
    cache = policy.empty_cache(5)
    at = torch.zeros(5, dtype=torch.long)
    assert_near(policy.extend(rows[:, :6], at, cache), full[:, 5])
    for i in range(6, 20):
        assert_near(policy.extend(rows[:, i : i + 1], at + i, cache), full[:, i])


def test_rows_at_different_places_extend_as_they_would_alone(start: tuple[World, TinyPolicy]) -> None:
    world, policy = start
    rows = torch.from_numpy(demonstrations(world, 4, 0.5, np.random.default_rng(1))[0])
    at, cache = torch.tensor([6, 10, 14, 7]), policy.empty_cache(4)
    for i, end in enumerate(at.tolist()):
        policy.extend(rows[i : i + 1, :end], torch.zeros(1, dtype=torch.long), one := cache[i : i + 1].clone())
        cache[i] = one[0]
    both = torch.stack([rows[i, end : end + 2] for i, end in enumerate(at.tolist())])
    alone = torch.stack([policy(rows[i : i + 1, : end + 2])[0, -1] for i, end in enumerate(at.tolist())])
    assert_near(policy.extend(both, at, cache), alone)


@pytest.mark.parametrize("name", ARMS)
def test_batched_trees_obey_the_rules_of_the_world_node_by_node(name: str, start: tuple[World, TinyPolicy]) -> None:
    _, _, tasks, _, grown = grown_by(name, start)
    a = grown.arrays
    a.require_exact("this test")
    for n in range(len(a)):
        t, up = a.tree[n], a.parent[n]
        if up < 0:
            assert grown.rows[n, :PREFIX].tolist() == contexts(tasks)[t].tolist()
            continue
        (verb, entity, relation, seen), at = turn_tokens(grown, n)
        assert grown.turn[n] == grown.turn[up] + 1
        assert grown.rows[n, :at].tolist() == grown.rows[up, :at].tolist()
        assert (grown.rows[n, at + a.n_tokens[n] + (seen != EMPTY) :] == EMPTY).all()
        readable = entity < ENTITIES and ENTITIES <= relation < ENTITIES + RELATIONS
        searched = verb == SEARCH and readable and a.n_tokens[n] == 3
        assert searched == (seen != EMPTY)
        assert bool(a.k[n] > 0) == (searched and grown.turn[n] <= tasks.hops[t])
        assert bool(a.truncated[n]) == (searched and grown.turn[n] > tasks.hops[t])
        won = verb == ANSWER and a.n_tokens[n] == 2 and entity == tasks.answer[t]
        assert a.reward[n] == grown.truth[n] == float(won)
    assert grown.tokens == int((a.mult * a.n_tokens).sum())


@pytest.mark.parametrize("name", ["chains", "late", "split"])
def test_widths_are_those_of_the_arm(name: str, start: tuple[World, TinyPolicy]) -> None:
    _, _, tasks, _, grown = grown_by(name, start, tasks=30)
    a = grown.arrays
    opened = a.k > 0
    if name == "split":
        below = a.k[opened & (a.parent >= 0)]
        assert set(below) == {1, 2}
        return
    for n in np.flatnonzero(opened):
        hops, turn = tasks.hops[a.tree[n]], grown.turn[n]
        want = {"chains": 8 if turn == 0 else 1, "late": 4 if turn == 0 else 2 if turn == hops else 1}[name]
        assert a.k[n] == want


@pytest.mark.parametrize("merge", [False, True])
def test_token_identical_draws_are_merged_with_their_count_where_the_plan_says_so(
    merge: bool, start: tuple[World, TinyPolicy]
) -> None:
    world, policy = start
    rng = np.random.default_rng(0)
    batch = draw_tasks(world, 40, rng)
    grown = grow(policy, world, batch, Plan(np.full((40, 2, 5), 2), merge), rng)
    a = grown.arrays
    a.require_exact("this test")
    turns = [(a.parent[n], *turn_tokens(grown, n)[0][:3]) for n in np.flatnonzero(a.parent >= 0)]
    assert (len(set(turns)) == len(turns)) is merge
    assert bool((a.mult > 1).any()) is merge
    assert grown.tokens == int((a.mult * a.n_tokens).sum())


def test_recorded_log_probs_are_those_of_the_whole_row(start: tuple[World, TinyPolicy]) -> None:
    _, policy, _, _, grown = grown_by("split", start)
    for n in range(12, len(grown.arrays)):
        at, count = turn_tokens(grown, n)[1], grown.arrays.n_tokens[n]
        alone = log_probs(policy, torch.from_numpy(grown.rows[n : n + 1]))[0, at - 1 : at - 1 + count].sum()
        assert float(alone.detach()) == pytest.approx(grown.logp[n], abs=1e-4 * float(np.abs(grown.logp).max()))


def slow_episode(policy: TinyPolicy, world: World, tasks: Tasks, i: int, rng: Generator) -> float:
    """One episode with the whole row computed for every token."""
    row, current = contexts(tasks)[i].tolist(), 0.0
    for _turn in range(tasks.hops[i] + 1):
        said: list[Any] = []
        for _token in range(3):
            p = torch.softmax(policy(torch.tensor([row + said]))[0, -1], -1).detach().double().numpy()
            said.append(int(rng.choice(len(p), p=p / p.sum())))
            if said[0] == ANSWER and len(said) == 2:
                return float(said[1] == tasks.answer[i])
        good = said[0] == SEARCH and said[1] < ENTITIES and ENTITIES <= said[2] < ENTITIES + RELATIONS
        if not good:
            return current
        seen = observe(world, np.array([said[1]]), np.array([said[2] - ENTITIES]), rng)[0]
        row += [*said, int(seen)]
    return current


def test_success_agrees_with_episodes_rolled_out_one_token_at_a_time(start: tuple[World, TinyPolicy]) -> None:
    world, policy = start
    tasks = draw_tasks(world, 150, np.random.default_rng(3))
    fast = success(policy, world, tasks.take(np.arange(3000) % 150), np.random.default_rng(4))
    slow = np.mean([slow_episode(policy, world, tasks, i, np.random.default_rng(i)) for i in range(150)])
    assert 0.1 < fast < 0.6
    assert abs(fast - slow) < 4 * np.sqrt(fast * (1 - fast) / 150)


@pytest.mark.parametrize("name", ["late", "split"])
def test_tree_values_agree_with_the_success_of_single_rollouts(name: str, start: tuple[World, TinyPolicy]) -> None:
    world, policy, tasks, _, grown = grown_by(name, start, tasks=300)
    value = ARMS[name].credit(grown.arrays).value[:300]
    single = success(policy, world, tasks.take(np.arange(1500) % 300), np.random.default_rng(5))
    assert abs(value.mean() - single) < 4 * value.std() / np.sqrt(300) + 4 * np.sqrt(single / 1500)


@pytest.mark.parametrize("name", ["late", "split", "adaptive"])
def test_credit_is_split_loo_as_its_formulas_say(name: str, start: tuple[World, TinyPolicy]) -> None:
    *_, grown = grown_by(name, start)
    fast, slow = ARMS[name].credit(grown.arrays), split_loo_reference(grown.arrays, tau=3.0)
    assert np.allclose(fast.coef, slow.coef, atol=1e-9)


def test_rows_hold_each_nodes_tokens_once_and_give_the_gradient_of_the_tree(start: tuple[World, TinyPolicy]) -> None:
    _, policy, _, _, grown = grown_by("split", start, tasks=6)
    credit = ARMS["split"].credit(grown.arrays)
    params = list(policy.parameters())
    rows, coef = coefficients(grown, credit)
    fast = torch.autograd.grad((torch.from_numpy(coef) * log_probs(policy, torch.from_numpy(rows))).sum(), params)
    total: Any = 0.0
    for n in range(6, len(grown.arrays)):
        at, count = turn_tokens(grown, n)[1], grown.arrays.n_tokens[n]
        own = log_probs(policy, torch.from_numpy(grown.rows[n : n + 1, : at + count]))[0, at - 1 :].sum()
        total = total + float(credit.coef[n]) * own
    slow = torch.autograd.grad(total, params)
    for f, s in zip(fast, slow, strict=True):
        assert_near(f, s, 1e-3)
    assert max(float(s.abs().max()) for s in slow) > 1e-3


def test_best_first_opens_the_heaviest_liked_node_of_each_tree(start: tuple[World, TinyPolicy]) -> None:
    world, policy = start
    rng = np.random.default_rng(2)
    tasks = draw_tasks(world, 8, rng)
    g = Grower(policy, world, tasks, Plan(np.full((8, 2, 5), 3)), rng)
    g.draw(np.arange(8), np.full(8, 3))
    best = g.best()
    assert len(set(g.tree[best])) == len(best)
    for node in best:
        rivals = np.flatnonzero(g.open & (g.tree == g.tree[node]))
        score = g.mass * np.sqrt(np.where(g.liked, 0.8, 0.2))
        assert score[node] == max(score[rivals])


def test_best_first_stops_where_nothing_is_open(start: tuple[World, TinyPolicy]) -> None:
    world, policy = start
    rng = np.random.default_rng(2)
    plan = Plan(np.full((2, 2, 5), 1), merge=False, expansions=12)
    grown = grow(policy, world, draw_tasks(world, 2, rng), plan, rng)
    assert grown.arrays.exact.all() and len(grown.arrays) <= 2 + 2 * 5


def test_the_judge_is_right_four_times_in_five(start: tuple[World, TinyPolicy]) -> None:
    world, policy = start
    rng = np.random.default_rng(0)
    tasks = draw_tasks(world, 600, rng)
    g = Grower(policy, world, tasks, Plan(np.full((600, 2, 5), 4)), rng)
    g.draw(np.arange(600), np.full(600, 4))
    new = slice(600, None)
    assert 0.1 < g.right[new].mean() < 0.9
    assert abs((g.liked == g.right)[new].mean() - 0.8) < 0.04


def test_flips_change_what_the_arm_sees_and_not_the_truth(start: tuple[World, TinyPolicy]) -> None:
    *_, grown = grown_by("chains", start, tasks=60, flips=0.15)
    leaf = grown.arrays.k == 0
    assert abs((grown.arrays.reward != grown.truth)[leaf].mean() - 0.15) < 0.06
    assert (grown.arrays.reward == grown.truth)[~leaf].all()


def test_arms_spend_equal_tokens_up_to_one_batch(start: tuple[World, TinyPolicy]) -> None:
    for name, arm in ARMS.items():
        curve = learn(arm, SETTING, 1e-3, 7, TINY, start=start)
        assert TINY.tokens <= curve.tokens[-1] < TINY.tokens + 2 * TINY.batch, name
        assert len(curve.success) == TINY.checks + 1
        assert curve.success[0] == learn(arm, SETTING, 1e-3, 7, Sizes(100, 100, 1, 64, 80), start=start).success[0]


def test_true_rewards_teach_and_permuted_ones_do_not(start: tuple[World, TinyPolicy]) -> None:
    sizes = Sizes(tokens=16_000, batch=1_000, checks=2, tasks=512, warm=80)
    true = learn(ARMS["split"], SETTING, 1e-3, 7, sizes, start=start).success
    dealt = learn(ARMS["split"], SETTING, 1e-3, 7, sizes, start=start, permute=True).success
    assert true[0] == dealt[0]
    assert true[-1] > true[0] + 0.12
    assert dealt[-1] < dealt[0] + 0.05


def test_a_run_with_the_same_seed_gives_the_same_figures() -> None:
    short = Sizes(tokens=900, batch=400, checks=1, tasks=64, warm=3)
    runs = [learn(ARMS["adaptive"], SETTING, 1e-3, 7, short) for _ in range(2)]
    assert runs[0] == runs[1]


def test_area_is_the_mean_of_the_curve_up_to_the_budget() -> None:
    curve = Curve((0, 100, 300), (0.0, 0.5, 0.9), 2, 2)
    assert curve.area(100) == pytest.approx(0.25)
    assert curve.area(200) == pytest.approx((0.25 * 100 + 0.6 * 100) / 200)


def test_a_sweep_that_was_cut_goes_on_and_runs_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [sweep.Cell("x", arm, 1e-3, 7, SETTING, Sizes(500, 300, 1, 16, 2)) for arm in ("chains", "late")]
    path = tmp_path / "runs.jsonl"
    first = sweep.run_cells(cells[:1], path)
    path.write_text(path.read_text() + '{"cell": {"na')
    again = sweep.run_cells(cells, path)
    assert again[0] == first[0]
    monkeypatch.setattr(sweep, "learn", None)
    assert sweep.run_cells(cells, path) == again
    assert [json.loads(x)["cell"]["arm"] for x in path.read_text().splitlines() if x.endswith("}")][-1] == "late"


def test_the_tuned_rate_has_the_largest_mean_area() -> None:
    sizes = Sizes(100, 100, 1, 1, 1)

    def record(lr: float, success: float) -> sweep.Record:
        return sweep.Record(sweep.Cell("hard", "chains", lr, 1, SETTING, sizes), Curve((0, 100), (0, success), 1, 1), 0)

    assert sweep.tuned([record(1e-3, 0.2), record(3e-3, 0.5), record(3e-3, 0.1), record(1e-3, 0.3)]) == {
        ("hard", "chains"): 3e-3
    }


def test_the_interval_is_of_paired_seeds() -> None:
    base = np.array([0.1, 0.2, 0.3, 0.4])
    assert sweep.ratio_interval(1.5 * base, base) == pytest.approx((1.5, 1.5, 1.5))
    ratio, low, high = sweep.ratio_interval(base[::-1], base)
    assert ratio == pytest.approx(1.0)
    assert low < 0.8 < 1.2 < high
    with pytest.raises(ValueError, match="paired"):
        sweep.ratio_interval([1.0], [1.0, 2.0])


def test_each_relation_of_the_world_is_a_permutation() -> None:
    world = make_world(np.random.default_rng(0))
    assert all(sorted(world.graph[:, r]) == list(range(ENTITIES)) for r in range(RELATIONS))
    assert (world.taken_for != np.arange(32) % RELATIONS).all()


def test_a_small_experiment_gives_figures_by_setting_and_arm_and_goes_on_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(tokens=600, batch=300, checks=1, tasks=64, warm=2)
    plan = bench_learning.Experiment(
        settings={"easy": (SETTING, sizes)},
        arms=("chains", "split"),
        extra={},
        seeds=(1, 2),
        tuning_seeds=(3,),
        rates=(1e-3, 2e-3),
        every_rate=("easy",),
        same_rate=("easy",),
    )
    runs = tmp_path / "runs.jsonl"
    first = bench_learning.main(plan=plan, runs=runs, json_path=tmp_path / "out.json")
    names = set(first["figures"])
    assert {"auc_chains_easy", "final_split_easy", "lr_split_easy", "auc_split_easy_lr_0.001"} <= names
    assert {r["seed"] for r in first["runs"]} == {1, 2} and {r["seed"] for r in first["tuning"]} == {3}
    monkeypatch.setattr(sweep, "learn", None)
    assert json.dumps(bench_learning.main(plan=plan, runs=runs)) == json.dumps(first)
    assert json.loads((tmp_path / "out.json").read_text())["quick"] is False


def test_chains_at_their_best_rate_are_the_stricter_comparison() -> None:
    sizes = Sizes(100, 100, 1, 1, 1)
    plan = bench_learning.Experiment(
        {"hard": (SETTING, sizes)}, ("chains", "split"), {}, (1, 2), (3,), (1e-3, 2e-3), ("hard",)
    )

    def record(arm: str, lr: float, seed: int, area: float) -> sweep.Record:
        curve = Curve((0, 100), (area, area), 1, 1)
        return sweep.Record(sweep.Cell("hard", arm, lr, seed, SETTING, sizes), curve, 0.0)

    tuned_runs = [record(arm, 1e-3, s, a) for arm, a in (("chains", 0.1), ("split", 0.3)) for s in (1, 2)]
    checks = [record("chains", lr, s, a) for lr, a in ((1e-3, 0.1), (2e-3, 0.2)) for s in (1, 2)]
    found = bench_learning.figures(plan, tuned_runs) | bench_learning.check_figures(plan, tuned_runs, checks)
    assert [found[f"auc_ratio_hard{e}"]["value"] for e in ("", "_low", "_high")] == pytest.approx([3.0] * 3)
    assert found["auc_ratio_best_rate_split_hard"]["value"] == pytest.approx(1.5)
