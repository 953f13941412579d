"""Evidence in other words, judged by a model: paraphrases count, irrelevant quotes do not, and trees know the judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from not_none import not_none
from walker import Likelihood, Walker

from treewright.agent.config import load_config
from treewright.agent.judges.entailment import Entailment, open_entailment
from treewright.agent.runs.setup import evidence_of
from treewright.envs import Action, Task, TreewrightError
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.evidence import Evidence
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget


class Told:
    """Says yes with .9 where `said` stands for what was seen and where it has to do with the step."""

    def __init__(self, says: bool, reasons: bool) -> None:
        self.prompts: list[Any]
        self.says, self.reasons, self.prompts = says, reasons, []

    async def first_tokens(self, prompts: Sequence[str]) -> list[Any]:
        self.prompts += prompts
        good = [self.says if "say or imply" in p else self.reasons for p in prompts]
        return [{"yes": math.log(0.9 if g else 0.2), "no": math.log(0.1 if g else 0.8)} for g in good]

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        return ""


@pytest.mark.parametrize(("says", "reasons", "value"), [(True, True, 0.9), (True, False, 0.2), (False, True, 0.2)])
async def test_both_questions_count_and_the_lower_probability_is_the_score(
    says: bool, reasons: bool, value: float
) -> None:
    model = Told(says, reasons)
    task = Task("own", "1", "find the boss")
    score = await Entailment(model, "told").supports(task, ["find the boss", "", "Bob leads"], "Bob is the boss",
                                                     Action.of("go", to="Bob"))  # fmt: skip
    assert score.value == pytest.approx(value) and score.tokens == 2
    assert "Bob leads" in model.prompts[0] and "Next step: go" in model.prompts[1]


async def grown(judge: Entailment | None, close: bool = False) -> Tree:
    table = [('<evidence>the exit is to the east</evidence>\nmove {"to": "east"}', 0.5), ("stop {}", 0.5)]
    return await search(
        SUITE.tasks("train", 3)[2], SUITE, Walker(table), rule=best_first(root_draws=12), evaluator=Likelihood(),
        budget=Budget(expansions=4), settings=Settings(close=close), evidence=Evidence(["move"], judge),
    )  # fmt: skip


@pytest.mark.parametrize("close", [False, True])
async def test_a_paraphrase_is_refused_as_a_quote_and_taken_by_a_judge_that_believes_it(close: bool) -> None:
    quoted = await grown(None, close)
    believed = await grown(Entailment(Told(True, True), "told"), close)
    doubted = await grown(Entailment(Told(True, False), "told"), close)
    moves = [
        [t.error[i] for i in range(1, len(t)) if "evidence" in t.text[i]] for t in (quoted, believed, doubted)
    ]  # fmt: skip
    assert all(moves) and all("not in what you were shown" in not_none(e) for e in moves[0])
    assert not any(e and "reason" in e for e in moves[1]) and all(
        "no reason for this action" in not_none(e) for e in moves[2]
    )
    assert believed.spent.judge_tokens > 0 and doubted.exact == quoted.exact
    assert "told >= 0.5" in believed.header.settings["evidence"] != quoted.header.settings["evidence"]


def test_the_setting_opens_the_judge_and_a_policy_that_cannot_judge_is_refused() -> None:
    spec = "scripted:treewright.agent.policies.uniform:uniform_calls"
    with pytest.raises(TreewrightError, match="judge evidence with"):
        open_entailment(spec)
    section = load_config(settings=["search.evidence=all", f"search.evidence_judge={spec}"]).search
    with pytest.raises(TreewrightError, match="judge evidence with"):
        evidence_of(section)
    assert not_none(evidence_of(load_config(settings=["search.evidence=all"]).search)).judge is None
