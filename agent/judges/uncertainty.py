"""The policy's own uncertainty as a score: what the rule `entropy_gated` reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from treewright.agent.policies.policy import Policy, Uncertain
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.types import Candidate, Score, layers

__all__ = ["Entropy"]


class Entropy:
    """Entropy of the next token after what an action showed, over its largest possible value: 0 sure, 1 clueless.

    It is the entropy of the distribution that the next turn will be drawn from, not the surprise of what was drawn.
    Where an episode ended, or a draft was not executed, there is none, and the score is 0.
    Raises TreewrightError for a policy that cannot tell, such as one behind a server.
    """

    def __init__(self, policy: object) -> None:
        found = next((p for p in layers(policy) if isinstance(p, Uncertain)), None)
        if found is None:
            name = policy.name if isinstance(policy, Policy) else type(policy).__name__
            raise TreewrightError(
                f"policy {name} does not give entropies; search.evaluator=entropy needs seedling or hf:FOLDER"
            )
        self.policy = found

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        asked = [c.after.ids for c in candidates if c.after is not None]
        found = iter(await self.policy.entropies(asked)) if asked else iter(())
        most = math.log(self.policy.vocabulary)
        return [Score(min(1.0, next(found) / most) if c.after is not None else 0.0) for c in candidates]
