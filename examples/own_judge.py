"""A judge (evaluator) of your own: an estimate of success for each candidate, by which a search picks its nodes.

    python examples/own_judge.py
    treewright run maze/0 --policy scripted:own_rule:walker --set search.evaluator=own_judge:Shown \\
        --set search.evaluator_options.word=goal

It sees what the policy has seen and done. It never sees a reward, so that a search cannot cheat.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from own_rule import walker

import treewright
from treewright.envs.types import Task
from treewright.search import Budget, Score, rule
from treewright.search.types import Candidate


class Shown:
    """Likes places that were not seen on the way yet, and places that show `word` best of all."""

    def __init__(self, word: str = "goal") -> None:
        self.word = word

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Score]:
        return [Score(self.one(c)) for c in candidates]  # one score in [0, 1] for each; siblings come together

    def one(self, candidate: Candidate) -> float:
        if candidate.observation is None:  # drawn and not executed yet, under a lazy rule
            return 0.5
        text = candidate.observation.text
        if candidate.action is not None and candidate.action.name == "stop":
            return 1.0 if candidate.turns and self.shown(candidate.turns[-1].observation.text) else 0.0
        if self.shown(text):
            return 0.9
        return 0.1 if text in [turn.observation.text for turn in candidate.turns] else 0.5

    def shown(self, text: str) -> bool:
        return re.search(rf"\b{self.word}\b", text) is not None


async def main(tasks: int = 10) -> None:
    suite = treewright.suite("maze")
    for name, judge in (("without a judge", None), ("with one", Shown())):
        won = 0
        for task in suite.tasks("train", tasks):
            tree = await treewright.search(
                task, suite, walker, rule=rule("score_first", draws=4), evaluator=judge, budget=Budget(expansions=80)
            )
            won += tree.chosen is not None and tree.outcome_of(tree.chosen) == 1.0
        print(f"{name}: {won} of {tasks} mazes solved")


if __name__ == "__main__":
    asyncio.run(main())
