"""What a loop learns about growing trees, beside the weights: where they begin, and by which schedule they grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treewright.agent.config import Config
from treewright.agent.runs.collect import World
from treewright.agent.runs.rounds import Grower
from treewright.agent.runs.starts import Starts
from treewright.envs.errors import TreewrightError
from treewright.search.engine import Keeper
from treewright.search.meter import Meter, work_of
from treewright.search.tree import Tree
from treewright.search.types import Evaluator
from treewright.training.manifest import BEGUN
from treewright.training.recipes.curriculum import Front
from treewright.training.schedules import Schedules

__all__ = ["Adapted"]


class Adapted:
    """The backward curriculum (loop.curriculum) and the chances of schedules (search.rule=adaptive by noise) of a loop.

    kept  what a checkpoint of the loop kept of them; {}: the loop begins
    All choices of a round are made before its first draw, from earlier rounds alone.
    Raises TreewrightError for a curriculum with collectors, and for sources that are not there.
    """

    def __init__(
        self, config: Config, kept: Mapping[str, Any], store: Keeper | None, policy: Any, crew: Grower | None
    ) -> None:
        self.work, self.starts, self.schedules = work_of(policy), None, None
        if config.loop.curriculum.share:
            if crew is not None:
                raise TreewrightError(
                    "loop.curriculum.share > 0 begins trees in the loop's own process; leave loop.collectors out"
                )
            self.starts = Starts(config, store, kept.get("curriculum"), self.work)
        options = config.search.options
        if config.search.rule == "adaptive" and options.get("by") == "noise":
            self.schedules = Schedules(options.get("cost", "sampled_tokens"), config.seed)
            if "schedules" in kept:
                self.schedules.restore(kept["schedules"])

    def rates(self, baselines: Mapping[str, float]) -> dict[str, float]:
        """What the rule of the next round is told: success by suite, and the chances of schedules."""
        known = {suite: rate for suite, rate in baselines.items() if not suite.endswith(BEGUN)}
        return known if self.schedules is None else known | self.schedules.chances()

    async def begin(
        self, roots: int, worlds: Mapping[str, World], policy: Any, run: str, store: Keeper | None, index: int,
        rates: Mapping[str, float], judge: Evaluator | None,
    ) -> tuple[list[Front], list[Tree]]:  # fmt: skip
        """The round's trees from stored nodes, and what they begin at."""
        if self.starts is None:
            return [], []
        return await self.starts.grow(roots, worlds, policy, run, store, index, rates, judge)

    def note(
        self, trees: Sequence[Tree], begun: Sequence[Tree], chosen: Sequence[Front], rates: Mapping[str, float],
        baselines: Mapping[str, float], seconds: float,
    ) -> tuple[dict[str, float], dict[str, Any], Meter]:  # fmt: skip
        """After a round: what to log, what a checkpoint keeps, and what the sources of starts cost, once."""
        told: dict[str, float] = {}
        kept: dict[str, Any] = {}
        cost = Meter()
        if self.starts is not None:
            told |= self.starts.note(trees, begun, chosen)
            kept["curriculum"] = self.starts.plan.state()
            cost, self.starts.cost = self.starts.cost, Meter()
        if self.schedules is not None:
            self.schedules.note(trees, rates, baselines, self.work, seconds)
            kept["schedules"] = self.schedules.state()
            told |= {f"chance/{name}": chance for name, chance in self.schedules.chances().items()}
        return told, kept, cost
