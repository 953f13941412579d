"""The second experiment: costs as the meter counts them, starts as the curriculum moves them, a page that is true."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from treewright.benchmarks import learning2
from treewright.benchmarks.learning.charge import RESPONSE, WORK, charge
from treewright.benchmarks.learning.grow import Grown
from treewright.benchmarks.learning.train import Setting, coefficients, log_probs, starting_point
from treewright.benchmarks.learning.trials import ARMS, LONG, SHORT, TrialSizes, grown_by, noise, run, widths
from treewright.benchmarks.learning.world import TURN, Tasks, World, draw_tasks
from treewright.benchmarks.learning2 import AXES, NAMED, PLAN, Cell, Plan, Planned, named, tuned
from treewright.envs.types import Action, Observation, Task
from treewright.search.meter import Meter, measured
from treewright.search.rules.adapting import ARMS as SCHEDULES
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent
from treewright.training.credit import Credit, estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.pack import pack_trees
from treewright.training.schedules import noise_of

if TYPE_CHECKING:
    from treewright.benchmarks.learning.policy import TinyPolicy

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "learning2.md").read_text()
RARE = Setting(0.7, fewest=5, most=5, words=8)
Start = tuple[World, "TinyPolicy"]


@pytest.fixture(scope="module")
def start() -> Start:
    return starting_point(RARE, 7, 60)


def batch(start: Start, arm: str, seed: int = 0, begun: list[int] | None = None) -> tuple[Tasks, Grown, Credit]:
    world, policy = start
    rng = np.random.default_rng(seed)
    tasks = draw_tasks(world, 6, rng)
    made = ARMS[arm]
    names = rng.choice(SCHEDULES, 6) if made.schedule == "adaptive" else np.full(6, made.schedule)
    given = None
    if begun is not None:
        rows = grown_by(ARMS["chains_4"], np.full(6, "chains_4"), policy, world, tasks, rng)
        longest = [max(np.flatnonzero(rows.arrays.tree == t), key=lambda n: rows.turn[n]) for t in range(6)]
        given = rows.rows[longest], np.minimum(begun, rows.turn[longest] - 1)
    grown = grown_by(made, names, policy, world, tasks, rng, given=given)
    coins = (grown.arrays.k == 0) * rng.integers(0, 2, len(grown.arrays))  # so that every arm has credit
    grown = replace(grown, arrays=grown.arrays.with_(reward=coins))
    arrays = grown.arrays.with_(group=grown.arrays.tree) if made.own_group else grown.arrays
    return tasks, grown, estimate(made.estimator, arrays, **dict(made.options))


def as_tree(grown: Grown, which: int, ratio: int) -> tuple[Tree, dict[int, int]]:
    """The same tree as the engine would leave it, with prompts of that size; and its nodes by those of the batch."""
    a, new = grown.arrays, RESPONSE * ratio
    root = int(np.flatnonzero((a.tree == which) & (a.parent < 0))[0])
    begins = new + int(grown.begun[which]) * (RESPONSE + new)
    first = Outcome(Observation("s", "s"), NodeStatus.OPEN, delta=tuple(range(1000, 1000 + begins)))
    task = Task("graph", str(which), "g")
    tree = Tree.start(
        TreeHeader(run="r", task=task, attempt=0, seed=which, policy_version="v", settings={}, root=first)
    )
    place = {root: 0}

    def draft(node: int, slot: int, k: int) -> Draft:
        at = grown.prefix + TURN * (int(grown.turn[node]) - 1)
        ids = tuple(int(x) for x in grown.rows[node, at : at + a.n_tokens[node]])
        base = begins + (int(grown.turn[node]) - 1 - int(grown.begun[which])) * (RESPONSE + new)
        inner = bool(a.k[node])
        shown = (int(grown.rows[node, at + 3]) + 500,) * new if inner else ()
        outcome = Outcome(
            Observation("o", f"{node}"), NodeStatus.OPEN if inner else NodeStatus.TERMINAL,
            reward=float(a.reward[node]), keep=base + len(ids) if inner else 0, delta=shown, steps=1,
        )  # fmt: skip
        each = tuple([float(grown.logp[node]) / len(ids)] * len(ids))
        said = Completion("x", ids, each, finish_reason="stop", policy_version="v")
        return Draft(after=0, slot=slot, mult=1, share=1 / k, seed=node, completion=said, action=Action.of("a"),
                     outcome=outcome)  # fmt: skip

    for node in np.flatnonzero((a.tree == which) & (a.k > 0)).tolist():
        below = np.flatnonzero(a.parent == node).tolist()
        drafts = tuple(draft(child, slot, len(below)) for slot, child in enumerate(below))
        spent = Spent(policy_tokens=int(a.n_tokens[below].sum()), env_steps=len(below))
        ids = tree.apply(
            Expansion(
                seq=len(tree.pops),
                node=place[node],
                closing=False,
                drawn=len(below),
                outcome=None,
                drafts=drafts,
                spent=spent,
            )
        )
        place |= dict(zip(below, ids, strict=True))
    tree.reveal()
    return tree, place


@pytest.mark.parametrize("ratio", [SHORT, LONG])
@pytest.mark.parametrize("arm", ["chains", "late", "rows", "adaptive", "tree_grpo"])
def test_costs_are_those_of_the_meter_and_of_the_trainers_packs(arm: str, ratio: int, start: Start) -> None:
    _, grown, credit = batch(start, arm, begun=[0, 0, 1, 1, 2, 3] if arm == "adaptive" else None)
    found, meter = charge(grown, credit, ratio), Meter()
    for which in range(6):
        tree, place = as_tree(grown, which, ratio)
        order = sorted(place, key=lambda n: place[n])
        own = Credit(**{name: getattr(credit, name)[order] for name in ("value", "coef", "weight", "ess")})
        packs = pack_trees([tree], tree_arrays([tree]), own)
        flops = sum(WORK.trained(p.plan.depth.numpy(), len(p.target)) for p in packs)
        meter += measured(tree, WORK) + Meter(trained_packed=sum(map(len, packs)), train_flops=flops)
        assert found.flops[which] == pytest.approx(measured(tree, WORK).flops + flops)
    want = replace(meter, prompt_cacheless=0, trained_rows=0)
    got = replace(found.meter, prompt_cacheless=0, trained_rows=0, replayed_steps=0).as_dict()
    assert got == pytest.approx(want.as_dict())
    if arm != "adaptive":
        assert found.meter.prompt_cacheless == meter.prompt_cacheless
    assert found.alone >= found.meter.flops and found.meter.trained_packed > 0


def test_paths_that_share_nothing_cost_as_much_as_the_tree_of_them_and_what_they_share_costs_more(start: Start) -> None:
    _, grown, credit = batch(start, "late")
    found = charge(grown, credit, LONG)
    alone = 0.0
    a = grown.arrays
    for leaf in np.flatnonzero(a.k == 0):
        path = [int(leaf)]
        while a.parent[path[-1]] >= 0:
            path.append(int(a.parent[path[-1]]))
        ends, taught = [], 0
        for turn, node in enumerate(reversed(path[:-1])):
            begin = RESPONSE * LONG * (turn + 1) + RESPONSE * turn
            alone += WORK.forward(begin - RESPONSE * LONG, begin, 1)
            alone += WORK.forward(begin, begin + int(a.n_tokens[node]), int(a.n_tokens[node]))
            ends.append(begin + int(a.n_tokens[node]))
            taught += int(a.n_tokens[node]) if credit.coef[node] else 0
        if taught:
            alone += 3 * WORK.forward(0, ends[-1], taught)
    assert found.alone == pytest.approx(alone)
    assert found.alone > 1.2 * found.meter.flops


def test_the_noise_of_a_tree_is_what_the_packages_schedules_go_by(start: Start) -> None:
    _, grown, _ = batch(start, "split")
    alone = estimate("split_loo", grown.arrays.with_(group=grown.arrays.tree), tau=3.0, root_baseline=0.1)
    found = noise(replace(grown, away=np.where(grown.away > 0, 1.0, 0.0)), alone)
    for which in range(6):
        tree, _ = as_tree(grown, which, SHORT)
        certain = [len(ids) and 1.0 for ids in tree.ids]
        own = estimate("split_loo", tree_arrays([tree]), root_baseline=0.1).coef
        assert found[which] == pytest.approx(float((own**2 * np.array(certain)).sum()))
        assert noise_of(tree, 0.1) == pytest.approx(
            sum(own[i] ** 2 * ((1 - np.exp(np.array(tree.logprobs[i]))) ** 2).sum() for i in range(1, len(tree)))
        )


def test_token_probabilities_are_kept_as_the_noise_needs_them(start: Start) -> None:
    _, policy = start
    _, grown, _ = batch(start, "chains_4")
    p = log_probs(policy, torch.from_numpy(grown.rows)).exp().detach().double().numpy()
    for node in range(6, 30):
        at = grown.prefix + TURN * (grown.turn[node] - 1) - 1
        want = ((1 - p[node, at : at + grown.arrays.n_tokens[node]]) ** 2).sum()
        assert grown.away[node] == pytest.approx(want, abs=1e-4)


def test_trees_begin_behind_given_turns_and_train_none_of_them(start: Start) -> None:
    _, grown, credit = batch(start, "adaptive", begun=[0, 1, 1, 2, 2, 3])
    a = grown.arrays
    a.require_exact("this test")
    assert set(grown.begun) > {0} and (grown.turn[:6] == grown.begun).all()
    for node in range(6, len(a)):
        above = int(a.parent[node])
        end = grown.prefix + TURN * grown.turn[above]
        assert (grown.rows[node, :end] == grown.rows[above, :end]).all()
    rows, coef = coefficients(grown, credit)
    assert np.count_nonzero(coef) == int(a.n_tokens[(credit.coef != 0) & (a.parent >= 0)].sum()) and len(rows)
    given = charge(grown, credit, SHORT).meter
    assert given.replayed_steps == int(grown.begun.sum()) and given.env_steps == len(a) - 6


@pytest.mark.parametrize(
    ("schedule", "liked", "disliked"),
    [("chains_16", [16, 1, 1, 1, 1, 1], [16, 1, 1, 1, 1, 1]), ("late_branch", [4, 1, 1, 1, 1, 2], [4, 1, 1, 1, 1, 2]),
     ("split", [2, 2, 2, 2, 2, 2], [2, 1, 1, 1, 1, 1]), ("best_first", [4, 2, 2, 2, 2, 2], [4, 2, 2, 2, 2, 2])],
)  # fmt: skip
def test_schedules_draw_as_the_page_says(schedule: str, liked: list[int], disliked: list[int]) -> None:
    table, expansions = widths(schedule, 5, 5)
    assert table.tolist() == [disliked, liked] and expansions == (4 if schedule == "best_first" else 0)


def test_tree_grpo_adds_draws_to_nodes_that_were_expanded_and_says_so(start: Start) -> None:
    _, grown, _ = batch(start, "tree_grpo")
    a = grown.arrays
    leaves = np.bincount(a.tree[a.k == 0])
    assert (leaves == 8).all(), "four chains, four more draws to their ends"
    assert not a.exact.any() and (a.k[:6] >= 4).all()
    assert (np.bincount(a.parent[6:], minlength=len(a)) == a.k).all()


def test_starts_move_towards_the_root_and_are_paid_for(start: Start) -> None:
    sizes = TrialSizes(6_000, 800, 1, 16, 60)
    arm = replace(ARMS["curriculum"], schedule="chains_8")
    spent = [run(a, RARE, 1e-3, 7, sizes, start)[-1] for a in (arm, replace(arm, curriculum=0.0))]
    assert sizes.tokens <= min(p["sampled_tokens"] for p in spent)
    steps = [p["env_steps"] / p["sampled_tokens"] for p in spent]
    assert steps[0] > steps[1], "turns on the way to a start are steps of the world too"


def test_a_run_goes_on_from_its_file_and_figures_are_of_whole_seeds(tmp_path: Path) -> None:
    planned = Planned(RARE, TrialSizes(500, 300, 1, 16, 2), ("chains", "chains_4", "late", "adaptive"))
    plan = Plan({"rare": planned}, (1e-3,), (101,), (1, 2))
    path, asked = tmp_path / "runs.jsonl", [0]

    def after(count: int) -> Callable[[], bool]:
        asked[0] = 0

        def stop() -> bool:
            asked[0] += 1
            return asked[0] > count

        return stop

    first = learning2.main(plan=plan, runs=path, stop=after(2))
    assert first["seeds"] == {"rare": 0} and first["figures"]["hard_auc_ratio"]["value"] is None
    second = learning2.main(plan=plan, runs=path, stop=after(6))
    assert second["seeds"] == {"rare": 1} and asked[0] > 6
    path.write_text(path.read_text() + '{"cell": {"wor')
    out = tmp_path / "out.json"
    whole = learning2.main(plan=plan, runs=path, json_path=str(out))
    assert whole["seeds"] == {"rare": 2}
    again = learning2.main(plan=plan, runs=path, stop=lambda: True)
    assert json.dumps(again) == json.dumps(whole)
    told = json.loads(out.read_text())
    assert set(told["figures"]) == set(NAMED) and {"hardware", "versions", "commit"} <= set(told)
    assert set(told["worlds"]["rare"]["arms"]) == {told["worlds"]["rare"]["base"], "late", "adaptive"}


def test_runs_of_another_plan_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    planned = Planned(RARE, TrialSizes(300, 300, 1, 8, 2), ("chains",))
    path = tmp_path / "runs.jsonl"
    learning2.main(plan=Plan({"rare": planned}, (1e-3,), (), (1,)), runs=path)
    other = replace(planned, sizes=replace(planned.sizes, tasks=9))
    found = learning2.main(plan=Plan({"rare": other}, (1e-3,), (), (1,)), runs=path, stop=lambda: True)
    assert found["seeds"] == {"rare": 0}


def test_chains_are_tuned_as_the_other_arms_are() -> None:
    def points(*success: float) -> list[dict[str, float]]:
        return [{"success": s, **dict.fromkeys(AXES, 100.0 * i)} for i, s in enumerate(success)]

    rates, base = tuned({
        Cell("rare", "chains", 1e-3, 1): points(0.0, 0.2), Cell("rare", "chains", 3e-3, 1): points(0.0, 0.1),
        Cell("rare", "chains_4", 1e-3, 1): points(0.0, 0.1), Cell("rare", "chains_4", 3e-3, 1): points(0.0, 0.3),
        Cell("rare", "late", 1e-3, 1): points(0.0, 0.9), Cell("rare", "late", 3e-3, 1): points(0.0, 0.9),
    })  # fmt: skip
    assert rates == {"chains": 1e-3, "chains_4": 3e-3, "late": 1e-3} and base == "chains_4"


def test_the_page_says_what_the_plan_is() -> None:
    for name in (*PLAN.worlds, *ARMS, *AXES):
        assert f"`{name}`" in PAGE
    for planned in PLAN.worlds.values():
        assert f"{planned.sizes.tokens:,}" in PAGE and f"{planned.sizes.tasks} tasks" in PAGE
    assert "seeds 101, 102 and 103" in PAGE and PLAN.tuning == (101, 102, 103)
    assert "seeds 1 to 10" in PAGE and PLAN.seeds == tuple(range(1, 11))
    assert " and ".join(f"{rate:g}" for rate in PLAN.rates) in PAGE


@pytest.mark.skipif(not (DOCS / "learning2.json").exists(), reason="no counted run has been made yet")
def test_page_and_figures_are_those_of_the_runs_in_the_json() -> None:
    told: dict[str, Any] = json.loads((DOCS / "learning2.json").read_text())
    assert set(told["figures"]) == set(NAMED) and not told["quick"]
    assert {name: f["value"] for name, f in told["figures"].items()} == named(told["worlds"])
    for world, found in told["worlds"].items():
        results = {
            Cell(world, name.rsplit(" ", 1)[0], found["arms"][name.rsplit(" ", 1)[0]]["rate"], int(name.split()[-1])): p
            for name, p in told["runs"][world]["runs"].items()
        }
        rates = {arm: x["rate"] for arm, x in found["arms"].items()}
        again = learning2.figures(world, results, found["base"], rates)
        for arm, x in again["arms"].items():
            for axis in AXES:
                assert x[axis] == pytest.approx(found["arms"][arm][axis])
    assert learning2.results(told) in PAGE
    assert not told["worlds"] or ((DOCS / "learning2.svg").exists() and "learning2.svg" in PAGE)
