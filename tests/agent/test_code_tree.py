"""CodeTree's roles around one policy: thinker, solver, debugger, and a critic by name."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from typer.testing import CliRunner

import treewright.agent.policies.opening as opening
from treewright.agent.cli.main import app
from treewright.agent.judges import judge
from treewright.agent.judges.judge import open_evaluator
from treewright.agent.policies.code_tree import CodeTree
from treewright.agent.policies.policy import PolicyStats
from treewright.envs import Observation, TreewrightError, suite
from treewright.envs.code.world import PROBLEMS
from treewright.search.store import TreeStore
from treewright.search.types import Candidate, Completion, Context, NodeStatus

TASK = suite("code").tasks("train", 1)[0]
PROBLEM = next(problem for problem in PROBLEMS if problem.name == TASK.data["problem"])
WRONG = f"def {PROBLEM.head}: return None"


class Roles:
    """A policy that writes a program as the last line of its prompt asks; the prompt is the goal and what is shown."""

    name, version = "roles", "1"

    def __init__(self) -> None:
        self.stats = PolicyStats()
        self.asked: list[str] = []
        self.prompts: list[str] = []

    def context(self, task: Any, tools: Any, first: Any, turns: Sequence[Any], base: Any) -> Context:
        prompt = "\n".join([task.goal, *(turn.response for turn in turns)])
        return Context(keep=0, delta=tuple(prompt.encode()), ids=tuple(prompt.encode()))

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        prompt = bytes(context.ids).decode()
        self.prompts += [prompt] * len(seeds)
        last = prompt.splitlines()[-1]
        code = PROBLEM.source if last.endswith("count from the middle") else WRONG
        said = "submit {}" if "write" in last else "write " + json.dumps({"code": code})
        return [Completion(said, (1,), (-0.5,)) for _ in seeds]

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.asked.append(prompt)
        if "strategies" in prompt:
            return "Well:\n- sort first\n- use a heap\n- give up\n- too many\n- never read"
        return "- count from the middle\n- try again"

    async def first_tokens(self, prompts: Sequence[str]) -> list[dict[str, float]]:
        self.asked += prompts
        return [{" yes": math.log(0.9), " no": math.log(0.1)} for _ in prompts]

    async def close(self) -> None:
        pass


@pytest.fixture
def roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roles:
    made = Roles()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(opening._KINDS, "roles", lambda rest, options: made)
    judge._opened.cache_clear()
    return made


def run(*more: str) -> str:
    done = CliRunner().invoke(app, ["run", "code/0", "--split", "train", "--policy", "roles:x", "--set",
                                    "policy.proposer=codetree", "--set", "search.root_draws=3", *more])  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_each_draw_follows_another_strategy_and_repairs_along_another_reflection(roles: Roles) -> None:
    said = run("--set", "search.rule=depth_first_critic", "--set", "search.evaluator=critic:roles:x")
    firsts = [p.splitlines()[-1] for p in roles.prompts[:3]]
    assert firsts == [f"Solve it along this strategy: {s}" for s in ("sort first", "use a heap", "give up")]
    repairs = {p.splitlines()[-1] for p in roles.prompts if "Repair it" in p}
    assert repairs == {f"Repair it along this thought: {s}" for s in ("count from the middle", "try again")}
    shown = next(p for p in roles.prompts if "Repair it" in p)
    assert "return None" in shown and "passed" in shown, "the debugger reads program and tests"
    assert "reward 1" in said, "the repair along the right thought passes and is submitted"
    assert any("Will it give the right values" in prompt for prompt in roles.asked), "the critic was asked"


def test_equal_places_are_thought_about_once_and_draws_are_not_trained_on(roles: Roles) -> None:
    run("--name", "r")
    strategies = [prompt for prompt in roles.asked if "strategies" in prompt]
    assert len(strategies) == 1 and "at most 4" in strategies[0]
    with TreeStore.open("runs/r/trees.sqlite", read_only=True) as store:
        tree = store.load(store.trees()[0].tree_id)
    written = [i for i in range(1, len(tree)) if not_none(tree.action[i]).name == "write"]
    assert len(written) == 2 and not any(tree.trainable[i] for i in written)


async def test_the_critic_counts_half_beside_the_tests(roles: Roles) -> None:
    evaluator = open_evaluator("critic:roles:x")
    assert evaluator is not None
    seen = Observation("tests: 1 of 4 passed")
    candidate = Candidate((), Completion("write {}", (1,)), None, None, seen, NodeStatus.OPEN, 0.0, 1)
    (score,) = await evaluator.evaluate(TASK, [candidate])
    assert score.value == pytest.approx((0.25 + 0.5 * 0.9) / 1.5) and score.tokens == 1


def test_a_policy_that_writes_nothing_is_refused_with_what_to_set(tmp_path: Path) -> None:
    class Mute:
        name, version, stats = "mute", "1", PolicyStats()

    with pytest.raises(TreewrightError, match=r"mute writes no texts; set policy\.proposer_options\.thinker"):
        CodeTree(Mute())  # type: ignore[arg-type]
    with pytest.raises(TreewrightError, match="at least 1"):
        CodeTree(Roles(), most=0)
