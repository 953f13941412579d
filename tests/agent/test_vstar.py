"""V-STAR: what its scores are, where its rule branches, how siblings are compared, and the loop that evolves both."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.config import load_config
from treewright.agent.judges.judge import open_evaluator
from treewright.agent.judges.vstar import ValueGuided
from treewright.agent.policies.scripted import scripted_choice
from treewright.agent.runs.guiding import guided
from treewright.benchmarks.segments import TASK, Guide, Letters, table
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import rule
from treewright.search.segments import Segments
from treewright.search.store import TreeStore
from treewright.search.types import Budget, Candidate, Completion, Context, NodeStatus, Score
from treewright.training.credit import TreeArrays, estimate


class Half:
    """A policy of two tokens, even everywhere."""

    vocabulary = 4

    async def entropies(self, contexts: Sequence[Sequence[int]]) -> list[Any]:
        return [math.log(2)] * len(contexts)


class Values:
    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Any]:
        return [Score(0.2 + 0.6 * i, 3) for i in range(len(candidates))]


def candidate(after: Context | None) -> Candidate:
    return Candidate((), Completion("x"), None, None, None, NodeStatus.OPEN, 0.0, 1, None, after)


async def test_the_score_is_value_plus_weighted_entropy_over_its_largest() -> None:
    here = Context(keep=0, delta=(1,), ids=(1,))
    judge = ValueGuided(Half(), Values(), weight=0.5)
    found = await judge.evaluate(TASK, [candidate(here), candidate(None)])
    assert [s.value for s in found] == pytest.approx([(0.2 + 0.5 * 0.5) / 1.5, 0.8 / 1.5])
    assert [s.tokens for s in found] == [3, 3]
    fresh = ValueGuided(Half(), weight=0.5)
    assert (await fresh.evaluate(TASK, [candidate(here)]))[0].value == pytest.approx((0.5 + 0.25) / 1.5)
    fresh.refresh(Values())
    assert (await fresh.evaluate(TASK, [candidate(here)]))[0].value == pytest.approx((0.2 + 0.25) / 1.5)


def test_its_options_are_told_and_wrong_ones_refused() -> None:
    opened: Any = open_evaluator("vstar", Half(), {"weight": 0.25})
    assert opened.weight == 0.25
    with pytest.raises(TreewrightError, match="did you mean 'weight'"):
        open_evaluator("vstar", Half(), {"wieght": 0.25})
    with pytest.raises(TreewrightError, match="at least 0"):
        open_evaluator("vstar", Half(), {"weight": -1})
    with pytest.raises(TreewrightError, match="no PRM at"):
        open_evaluator("vstar:nowhere", Half())


async def opened() -> Letters:
    return Letters()


@pytest.mark.parametrize("segments", [None, Segments(length=1, most=3)])
async def test_the_rule_branches_within_its_gate_and_budget_and_at_high_scores_first(segments: Segments | None) -> None:
    tree = await search(
        TASK, Pool(opened, 1), scripted_choice(table), evaluator=Guide(), budget=Budget(expansions=9),
        rule=rule("vstar", draws=3, root_draws=2, extra=5, first=1, last=2),
        settings=Settings(close=True, merge=False, segments=segments),
    )  # fmt: skip
    assert tree.exact
    extra = [tree.drawn[i] - 1 for i in range(1, len(tree)) if tree.drawn[i] > 1]
    assert 0 < sum(extra) <= 5
    assert all(1 <= tree.depth[i] <= 2 for i in range(1, len(tree)) if tree.drawn[i] > 1)
    popped = [i for i in tree.pops[1:3]]
    assert tree.score[popped[0]] == max(tree.score[c] for c in tree.children[0])


def test_siblings_count_by_nodes_or_by_their_draws() -> None:
    tree = TreeArrays.of([-1, 0, 0, 0], mult=[1, 3, 1, 1], reward=[0, 1, 0, 0.5])
    values = np.array([1.0, 0.0, 0.5])
    weights = {"nodes": np.ones(3), "draws": np.array([3.0, 1, 1])}
    rows = np.array([3.0, 1, 1])
    mean = (rows * values).sum() / 5
    grpo = (values - mean) / math.sqrt((rows * (values - mean) ** 2).sum() / 5)
    for by, w in weights.items():
        among = (w * values).sum() / w.sum()
        spread = math.sqrt((w * (values - among) ** 2).sum() / w.sum())
        found = estimate("sibling", tree, by=by, eps=0.0).coef[1:]
        assert found == pytest.approx(rows / 5 * (grpo + (values - among) / spread))
    assert estimate("sibling", tree).coef == pytest.approx(estimate("sibling", tree, by="draws").coef)
    with pytest.raises(ValueError, match="by nodes or by draws"):
        estimate("sibling", tree, by="words")


def test_a_loop_that_is_not_guided_by_values_has_none_to_train() -> None:
    config = load_config(settings=["loop.prm_every=1"])
    with pytest.raises(TreewrightError, match=r"search\.evaluator=vstar"):
        guided(config, None)
    assert guided(load_config(), None) is None


@pytest.mark.parametrize("cut", [None, 'search.segments={"by": "length", "length": 3, "most": 3}'])
def test_the_loop_evolves_policy_and_value_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = (
        "search.rule=vstar", "search.evaluator=vstar", "search.evaluator_options.weight=0.2", "loop.prm_every=1",
        "loop.iterations=2", "loop.tasks=2", "train.estimator=sibling", "search.expansions=4",
        *([cut] if cut else []),
    )  # fmt: skip
    line = ["loop", "--name", "both", "--suites", "kg", *(word for s in settings for word in ("--set", s))]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "runs" / "both" / "prm" / "prm.json").read_text())
    assert about["steps"] > 0 and about["trees"] == 2
    rows = [json.loads(x) for x in (tmp_path / "runs" / "both" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all("prm_brier" in json.dumps(row) for row in rows)
    with TreeStore.open(tmp_path / "runs" / "both" / "trees.sqlite", read_only=True) as store:
        trees = [store.load(row.tree_id) for row in store.trees()]
    inside = [t.score[i] for t in trees for i in range(1, len(t)) if t.in_turn(i)]
    assert bool(inside) == bool(cut) and not any(math.isnan(x) for x in inside), "segments are scored as turns are"
