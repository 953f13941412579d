"""A trained process reward model as the search's evaluator: `--set search.evaluator=prm:runs/first/prm`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.types import Candidate, Score

__all__ = ["PrmEvaluator"]


class PrmEvaluator:
    """Scores a draft by what the PRM makes of the prompt it was drawn from and its tokens; siblings share the prompt.

    Costs judge tokens: those that the model read. Raises TreewrightError for policies that give no token ids.
    """

    def __init__(self, prm: Any) -> None:
        self.prm = prm
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Raises TreewrightError for a folder that holds no PRM."""
        from treewright.training.recipes.prm import Prm

        return cls(Prm.load(folder))

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        return await asyncio.to_thread(self._evaluate, candidates)

    def _evaluate(self, candidates: Sequence[Candidate]) -> list[Score]:
        from treewright.training.recipes.prm import Step

        steps = []
        for c in candidates:
            if c.context is None or not c.context.ids or not c.completion.token_ids:
                raise TreewrightError("a PRM reads token ids, and this policy gives none; use seedling or hf:FOLDER")
            steps.append(Step(c.context.ids, c.completion.token_ids))
        with self._lock:
            values = self.prm.scores(steps)
        read = [len(s.response) + (len(s.prompt) if i == 0 else 0) for i, s in enumerate(steps)]
        return [Score(value, tokens) for value, tokens in zip(values, read, strict=True)]
