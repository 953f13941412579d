"""Exploration that grows with depth: a sampling temperature by how deep a draw stands, fixed before all draws.

After Dynamic-TreeRPO (arXiv 2509.23352), which lets the noise of its sampler change along the tree: a language model
has a temperature in its place. A draw keeps its temperature and the log-probs of the distribution that it came from;
training weighs what it is worth to the policy, see `treewright.training.tempered`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from treewright.envs.errors import TreewrightError
from treewright.search.types import Completion, Context

__all__ = ["Temperatures", "require_warm", "warmed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperatures:
    """The section `search.temperature_by_depth`: the smaller of `most` and start + growth · depth.

    Depth counts the turns taken before a draw, and the segments of its own turn. Rollouts that close a tree are drawn
    as the policy draws by itself: they say what it earns from there.
    by  module:function of the depth in place of the line; `most` holds for it too

    Raises TreewrightError for temperatures that are not above 0.
    """

    start: float = 1.0
    growth: float = 0.1
    most: float = 2.0
    by: str = ""

    def __post_init__(self) -> None:
        for name in ("start", "most"):
            if not 0 < getattr(self, name) < math.inf:
                raise TreewrightError(f"search.temperature_by_depth.{name} = {getattr(self, name)}; it is above 0")
        if not math.isfinite(self.growth):
            raise TreewrightError(f"search.temperature_by_depth.growth = {self.growth}; write a number such as 0.1")

    def at(self, depth: int) -> float:
        """The temperature of draws at a depth. Raises TreewrightError where it is not above 0."""
        if not self.by:
            found = self.start + self.growth * depth
        else:
            from treewright.envs.custom import load_named

            found = float(load_named(self.by, "search.temperature_by_depth.by")(depth))
        if not 0 < found < math.inf:
            raise TreewrightError(f"search.temperature_by_depth gives {found:g} at depth {depth}; it must be above 0")
        return min(found, self.most)


def warmed(context: Context, temperatures: Temperatures | None, depth: int) -> Context:
    """The prompt, which asks for the temperature of its depth where there are temperatures."""
    return context if temperatures is None else replace(context, temperature=temperatures.at(depth))


def require_warm(drawn: Sequence[Completion], asked: float | None) -> None:
    """Raises TreewrightError where draws were not made at the temperature that their prompt asked for."""
    other = next((done.temperature for done in drawn if asked is not None and done.temperature != asked), None)
    if other is not None:
        raise TreewrightError(
            f"search.temperature_by_depth asked for a draw at temperature {asked:g}, and the policy drew at {other:g}; "
            "use seedling, hf:…, vllm:FOLDER or scripted choices, or leave the setting out"
        )
