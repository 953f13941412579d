"""What a policy is: a Proposer (prompts at a node, draws from it) with a name, counters and an end.

`treewright.agent.policies.opening` opens one by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Completion, Context, Exchange

__all__ = ["SEEDLING", "Policy", "PolicyStats"]

SEEDLING = Path(__file__).parents[1] / "seedling"


@dataclass(slots=True)
class PolicyStats:
    """What a policy has done since it was opened.

    prompt_tokens    tokens whose keys and values were computed; cached_tokens were taken from a cache instead
    seconds          time in which the model or server was at work on at least one request
    retries, faults  calls repeated after a failure, and calls given up
    restarts         times that the engine in this program died and was started again
    """

    requests: int = 0
    draws: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    sampled_tokens: int = 0
    seconds: float = 0.0
    retries: int = 0
    faults: int = 0
    restarts: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second at work; 0 before the first draw."""
        return self.sampled_tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


@runtime_checkable
class Policy(Protocol):
    """A Proposer with a name, counters and an end. See `treewright.search.types.Proposer` for the two methods."""

    name: str
    stats: PolicyStats

    @property
    def version(self) -> str:
        """Names the weights; changes with every update."""

    def context(
        self,
        task: Task,
        tools: Sequence[ToolSpec],
        first: Observation,
        turns: Sequence[Exchange],
        base: Sequence[int],
    ) -> Context:
        """The prompt at a node."""

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        """One independent completion for each seed."""

    async def close(self) -> None:
        """Frees the model or the connections; closing twice is fine."""
