"""What a policy is: a Proposer (prompts at a node, draws from it) with a name, counters and an end.

`treewright.agent.policies.opening` opens one by its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Completion, Context, Exchange

if TYPE_CHECKING:
    from treewright.agent.policies.prompts import Template

__all__ = [
    "SEEDLING",
    "SEEDLING_WEB",
    "Adaptable",
    "Colocated",
    "Policy",
    "PolicyStats",
    "Pushable",
    "Pusher",
    "Sleeper",
    "Templated",
    "Trusting",
    "Uncertain",
    "Updatable",
    "Writer",
    "seedling_folder",
]

SEEDLING = Path(__file__).parents[1] / "seedling"
SEEDLING_WEB = SEEDLING / "web"
"""The second packaged model, `seedling:web`, which knows web pages a little."""


def seedling_folder(rest: str) -> Path:
    """The folder of `seedling[:REST]`: the packaged model, the one for the web, or one built since."""
    if rest == "web" and not Path(rest, "config.json").is_file():
        return SEEDLING_WEB
    return Path(rest) if rest else SEEDLING


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


# Capabilities that some policies have. Two more are the engine's: `Costly` and `Sampler` of treewright.search.types.
# A policy around another one has its capabilities too, see `layers` there.


@runtime_checkable
class Templated(Protocol):
    """Builds its prompts from token ids."""

    template: Template


@runtime_checkable
class Writer(Protocol):
    """A model that writes an answer; `HFPolicy`, `OpenAIPolicy` and `VLLMPolicy` do."""

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        """One answer to a prompt."""


@runtime_checkable
class Updatable(Protocol):
    """Can exchange its weights."""

    def load_weights(self, path: str | Path, version: str = "") -> str | Awaitable[str]:
        """Takes the weights of a `save_pretrained` folder and returns the new version, now or when it is done."""


class Pusher(Protocol):
    """Sends weights from a trainer's memory to served models."""

    async def send(self, policies: Sequence[Any], version: str) -> Sequence[Any]:
        """Those of the policies whose engines have said that they hold the weights called `version`."""


@runtime_checkable
class Pushable(Protocol):
    """Is served where a trainer's weights can be sent to without files."""

    @property
    def policies(self) -> Sequence[Any]:
        """One for each server."""

    def load_pushed(self, push: Pusher, path: str | Path, version: str) -> Awaitable[str]:
        """Takes weights as `push` sends them, else from the folder, which holds the same; the new version."""


@runtime_checkable
class Adaptable(Protocol):
    """Can draw with a LoRA adapter on the weights that it has."""

    def load_adapter(self, path: str | Path, version: str = "") -> Awaitable[str]:
        """Draws from now on with the adapter in a `peft` folder; the new version."""


@runtime_checkable
class Trusting(Protocol):
    """Behind a server that names its weights, and may have been given others since."""

    sure: bool
    """The version is known to name the weights that are drawn from."""


@runtime_checkable
class Colocated(Protocol):
    """May share its accelerator with the trainer."""

    colocated: bool
    """It does, so it cannot draw while the trainer works."""


@runtime_checkable
class Sleeper(Protocol):
    """Can give its accelerator to a trainer."""

    async def sleep(self) -> bool:
        """Gives the memory back; draws wait until `wake`. False where there is nothing to give."""

    async def wake(self) -> None:
        """The end of `sleep`; new weights wake it as well."""


@runtime_checkable
class Uncertain(Protocol):
    """Knows how uncertain its next token is."""

    @property
    def vocabulary(self) -> int:
        """Tokens that it may draw from."""

    async def entropies(self, contexts: Sequence[Sequence[int]]) -> list[float]:
        """Entropy in nats of the token after each prompt of token ids."""
