"""SPaR by a judge and a refiner: scripted ones, so that every tree, pair and vote can be foreseen."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.config import load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.loop import Learner, make_trainer
from treewright.agent.runs.spar import Judge, Refined, Refining, judged_rounds, verdict_of
from treewright.envs.errors import EnvFault
from treewright.envs.types import Task
from treewright.search.engine import Settings, search
from treewright.search.rules import rule
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus, Origin
from treewright.training.recipes.prefer import refinement_pairs

TASK = Task("spar", "t", "Write exactly three x.", horizon=8)


def part(prompt: str, title: str) -> str:
    """What a prompt says under a title, up to the next blank line."""
    return not_none(re.search(rf"{title}:\n(.*?)\n\n", prompt, re.DOTALL))[1]


def judging(task: Task, turns: Any, tools: Any, rng: Any) -> str:
    """Right is what has three x; the remark says how many it has."""
    count = part(task.goal, "Answer").count("x")
    return "All is well.\nVerdict: yes" if count == 3 else f"It has {count}, not three.\nVerdict: no"


def refining(task: Task, turns: Any, tools: Any, rng: random.Random) -> str:
    """One x more than the answer that failed; every second draw changes nothing."""
    failed = part(task.goal, "An answer that fails")
    assert "not three" in part(task.goal, "What is wrong with it")
    return failed + "x" if rng.random() < 0.5 else failed


def stutter(task: Task, turns: Any, tools: Any, rng: Any) -> str:
    return "Hm."


def first_try(text: str) -> ScriptedPolicy:
    return ScriptedPolicy(lambda task, turns, tools, rng: text)


async def grown(
    attempt: str,
    judge: Callable[[Any, Any, Any, Any], Any] = judging,
    refiner: Callable[[Any, Any, Any, Any], Any] = refining,
    draws: int = 4,
    expansions: int = 12,
) -> tuple[Tree, Judge]:
    votes = Judge(ScriptedPolicy(judge), votes=2)
    tree = await search(
        TASK, Refined(votes), Refining(first_try(attempt), ScriptedPolicy(refiner)),
        rule=rule("best_first", draws=draws, root_draws=1), evaluator=votes,
        budget=Budget(expansions=expansions), settings=Settings(stop="first"),
    )  # fmt: skip
    return tree, votes


def test_a_verdict_is_the_last_that_is_said_or_the_word_it_begins_with() -> None:
    said = {"fine\nVerdict: yes": True, "Verdict: yes. No, wait.\n**VERDICT: No**": False, "No, it is short.": False,
            "Yes.": True, "I am not sure": None, "": None}  # fmt: skip
    assert {text: verdict_of(text) for text in said} == said


async def test_the_search_goes_on_from_the_failed_attempt_until_the_judge_says_yes() -> None:
    tree, votes = await grown('answer {"text": "x"}')
    own, *others = tree.children[0]
    assert not others and tree.text[own] == 'answer {"text": "x"}' and tree.origin[own] is Origin.POLICY
    assert not_none(tree.observation[own]).text == "judged not to do what is asked: It has 1, not three."
    (good,) = tree.leaves()
    path = [not_none(tree.action[i]).calls[0].arguments["text"] for i in tree.path(good)[1:]]
    assert path == ["x", "xx", "xxx"] and tree.status[good] is NodeStatus.TERMINAL and tree.chosen == good
    assert tree.outcome_of(good) == 1 and tree.score[good] == 1 and tree.score[own] == 0
    assert {tree.origin[i] for i in range(2, len(tree))} == {Origin.INJECTED} and tree.stopped_by == "first"
    answers = {not_none(tree.action[i]).calls[0].arguments["text"] for i in range(1, len(tree))}
    assert votes.asked == 2 * len(answers), "equal answers are judged once"


async def test_an_attempt_that_is_right_is_not_refined_and_one_that_is_no_answer_is() -> None:
    right, _ = await grown('answer {"text": "xxx"}')
    assert len(right) == 2 and right.outcome_of(1) == 1 and not refinement_pairs([right])

    def from_nothing(task: Task, turns: Any, tools: Any, rng: Any) -> str:
        assert "mumble" in task.goal
        return "xxx"

    odd, _ = await grown("mumble", refiner=from_nothing)
    assert odd.error[1] and any(odd.outcome_of(leaf) == 1 for leaf in odd.leaves())


async def test_pairs_prefer_the_refinement_to_the_attempt_at_the_policy_s_own_prompt() -> None:
    tree, _ = await grown('answer {"text": "xx"}')
    # Scripted policies have no template, so that refinements have no tokens: nothing to prefer.
    assert not refinement_pairs([tree])
    seedling: Any = open_policy("seedling")
    votes = Judge(ScriptedPolicy(lambda *_: "Verdict: yes" if "good" in _[0].goal else "Verdict: no"), votes=1)
    made = await search(
        TASK, Refined(votes), Refining(seedling, ScriptedPolicy(lambda *_: "a good one")),
        rule=rule("best_first", draws=1, root_draws=1), evaluator=votes, budget=Budget(expansions=4),
        settings=Settings(stop="first", max_tokens=24),
    )  # fmt: skip
    (pair,) = refinement_pairs([made])
    assert pair.prompt == made.context_ids(0) and pair.rejected == made.ids[1] and pair.gap == 1
    assert seedling.template.encoder.text(pair.chosen[:-1]) == 'answer {"text":"a good one"}'.replace('":"', '": "')
    await seedling.close()


async def test_a_judge_without_a_verdict_is_a_fault_and_no_reward_of_0() -> None:
    with pytest.raises(EnvFault, match="gave no verdict"):
        await Judge(ScriptedPolicy(stutter)).judge(TASK, "x")
    tree, _ = await grown('answer {"text": "x"}', judge=stutter)
    assert tree.status[1] is NodeStatus.FAULT and tree.lost and not refinement_pairs([tree])


async def test_votes_are_counted_by_majority() -> None:
    seen = iter(["Verdict: yes", "Verdict: no", "perhaps", "Verdict: yes"])
    share, _ = await Judge(ScriptedPolicy(lambda *_: next(seen)), votes=4).judge(TASK, "x")
    assert share == pytest.approx(2 / 3)


async def test_rounds_train_the_policy_towards_refinements_and_serve_it(tmp_path: Path) -> None:
    config = load_config(settings=[f"folder={tmp_path}", "loop.tasks=2", "search.max_tokens=24"])
    learner = Learner(make_trainer(config, SEEDLING), tmp_path / "checkpoints")
    policy, before = open_policy("seedling"), open_policy("seedling").version
    votes = Judge(ScriptedPolicy(lambda *_: "Verdict: yes" if "good" in _[0].goal else "Verdict: no"), votes=1)
    tasks = [Task("own", f"t{i}", f"Instruction {i}") for i in range(3)]
    rounds = await judged_rounds(
        config, tasks, policy, votes, ScriptedPolicy(lambda *_: "a good one"), learner, rounds=2, beta=0.5
    )
    assert [r["pairs"] for r in rounds] == [2, 2] and rounds[0]["right_at_once"] == 0 and rounds[0]["mended"] == 1
    assert rounds[0]["loss"] < rounds[0]["first_loss"] and policy.version != before
    await policy.close()


def test_the_command_trains_by_a_judge_and_keeps_the_refinements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spar_parts.py").write_text(
        'def judge(task, turns, tools, rng):\n    return "Verdict: yes" if "good" in task.goal else "Verdict: no"\n\n'
        'def refine(task, turns, tools, rng):\n    return "a good one"\n'
    )
    rows = [{"id": f"t{i}", "goal": f"Instruction {i}"} for i in range(2)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["train", "spar", "--name", "own", "--tasks-file", "tasks.jsonl", "--rounds", "1", "--set",
            "search.max_tokens=24"]  # fmt: skip
    judge, refine = ["--judge", "scripted:spar_parts:judge"], ["--refiner", "scripted:spar_parts:refine"]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*line, *judge, *refine])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "pairs 2" in done.output and "mended 1" in done.output
    with TreeStore.open("runs/own/trees.sqlite", read_only=True) as store:
        trees = [store.load(row.tree_id) for row in store.trees(suite="spar")]
    assert len(trees) == 2 and all(t.outcome_of(not_none(t.chosen)) == 1 for t in trees)
    assert list((tmp_path / "runs/own/checkpoints").glob("step-*"))
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["show", "--name", "own", trees[0].tree_id])
    assert shown.exit_code == 0 and "a good one" in shown.output
    said = done.output.rsplit("next: treewright ", 1)[1].split()
    after = CliRunner(env={"COLUMNS": "200"}).invoke(app, said)
    assert after.exit_code == 0 and trees[0].tree_id[:8] in after.output
    for given, missing in ((judge, "--tasks-file"), (refine, "--judge")):
        failed = CliRunner().invoke(app, ["train", "spar", "--name", "no", *given])
        assert failed.exit_code == 1 and missing in str(failed.exception or failed.output)
