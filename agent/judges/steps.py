"""A model of which step is right as the search's evaluator: `--set search.evaluator=steps:runs/first/steps`."""

from __future__ import annotations

from collections.abc import Sequence

from treewright.envs.types import Task
from treewright.search.types import Candidate, Score
from treewright.training.step_model import StepModel

__all__ = ["StepJudge"]


class StepJudge:
    """The probability that a step is right where it stands; made by `treewright train steps`. Costs no tokens."""

    def __init__(self, model: StepModel) -> None:
        self.model = model

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        found: dict[str, float] = {}
        out = []
        for candidate in candidates:
            key = candidate.action.key if candidate.action is not None else ""
            if key not in found:
                found[key] = self.model(task, candidate.turns, [candidate.action])[0]
            out.append(Score(found[key]))
        return out
