"""Where a search of V-STAR spends its draws: expected success plus what is undecided."""

from __future__ import annotations

from collections.abc import Sequence

from treewright.agent.judges.uncertainty import Entropy
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.envs.waiting import together
from treewright.search.types import Candidate, Evaluator, Score

__all__ = ["ValueGuided"]

UNKNOWN = 0.5


class ValueGuided:
    """G = (V + λ·H)/(1 + λ), in [0, 1]. After V-STAR, arXiv 2602.10699.

    V is the value model's chance of success, H the entropy of the next token over its largest possible value; both are
    known before anything is drawn there. Ends have no next token and keep V/(1 + λ). The division, which changes no
    order, is ours.

    value   a process reward model or another evaluator; None: one half everywhere, until `refresh`
    weight  λ >= 0
    """

    def __init__(self, policy: object, value: Evaluator | None = None, weight: float = 0.5) -> None:
        if weight < 0:
            raise TreewrightError(f"search.evaluator_options.weight = {weight}; it must be at least 0")
        self.entropy, self.value, self.weight = Entropy(policy), value, float(weight)

    def refresh(self, value: Evaluator) -> None:
        """Goes by another value model from now on."""
        self.value = value

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Score]:
        value = self.value
        if value is None:
            unsure, worth = await self.entropy.evaluate(task, candidates), [Score(UNKNOWN)] * len(candidates)
        else:
            unsure, found = await together([self.entropy.evaluate(task, candidates), value.evaluate(task, candidates)])
            worth = list(found)
        return [
            Score((v.value + self.weight * h.value) / (1 + self.weight), v.tokens + h.tokens)
            for v, h in zip(worth, unsure, strict=True)
        ]
