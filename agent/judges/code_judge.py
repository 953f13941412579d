"""Values for programs: the share of public tests passed, and what a critic thinks of the program.

Li et al. 2024 (CodeTree, https://arxiv.org/abs/2411.04329) score a node by execution and by a critic; so does this.
Neither sees hidden tests or rewards. With the rule `depth_first_critic` and the proposer `codetree` it is CodeTree's
search over the suite `code`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from treewright.agent.judges.checklist import Model, answer_shares
from treewright.envs.code.world import share_passed
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.types import Candidate, Score

__all__ = ["Critic", "ModelCritic", "TestsPassed"]

Critic = Callable[[Task, Candidate], Awaitable[Score]]
"""An opinion on a program in [0, 1] and the judge tokens it cost; asked only where the public tests were run."""


class ModelCritic:
    """A model's opinion: P(yes) of yes and no, asked whether the program is right beyond the tests that it was shown.

    letters  most of a program and of what the tests said that it reads
    """

    def __init__(self, model: Model, letters: int = 4000) -> None:
        self.model, self.letters = model, letters

    async def __call__(self, task: Task, candidate: Candidate) -> Score:
        said = candidate.observation.text if candidate.observation is not None else ""
        prompt = (
            f"Task: {task.goal}\n\nA program was written:\n{candidate.completion.text.strip()[: self.letters]}\n\n"
            f"The tests that were run say:\n{said[: self.letters]}\n\nWill it give the right values for other inputs "
            "as well? Answer yes or no.\nAnswer:"
        )
        (tokens,) = await self.model.first_tokens([prompt])
        yes, no, _ = answer_shares(tokens)
        return Score(yes / (yes + no) if yes + no else 0.5, 1)


class TestsPassed:
    """Evaluator: (share of public tests passed + weight · critic) / (1 + weight); without a critic the share alone.

    What runs no test (a look, a submission, invalid output) has the share of the last run before it, 0 before any.
    """

    __test__ = False  # no test class, whatever its name looks like to pytest

    def __init__(self, critic: Critic | None = None, weight: float = 0.5) -> None:
        if weight < 0:
            raise TreewrightError(f"the critic's weight is {weight}; it must not be negative")
        self.critic, self.weight = critic, weight

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        """One score for each candidate."""
        return [await self._one(task, candidate) for candidate in candidates]

    async def _one(self, task: Task, candidate: Candidate) -> Score:
        here = share_passed(candidate.observation.text) if candidate.observation is not None else None
        if here is None:
            before = [s for turn in candidate.turns if (s := share_passed(turn.observation.text)) is not None]
            return Score(before[-1] if before else 0.0)
        if self.critic is None:
            return Score(here)
        opinion = await self.critic(task, candidate)
        return Score((here + self.weight * opinion.value) / (1 + self.weight), opinion.tokens)
