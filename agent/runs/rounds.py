"""What a round of the loop is: what was measured of it, what collectors are told of it, what a checkpoint knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypedDict

from treewright.envs.types import Task
from treewright.search.meter import Meter
from treewright.search.tree import Tree
from treewright.training.manifest import latest, read_manifest
from treewright.training.track import Update

__all__ = ["Ahead", "Grower", "Round", "RoundOrder", "untold"]


@dataclass(frozen=True, slots=True)
class Round:
    """One iteration: the policy version that drew the trees, the one trained from them, what was measured and spent."""

    index: int
    drawn_by: str
    trained: str
    success: dict[str, float]
    stats: dict[str, float]
    seconds: float
    meter: Meter = field(default_factory=Meter)

    def update(self, step: int) -> Update:
        """What metrics keep of it; `step` counts the optimizer's steps."""
        return Update(
            step=step, iteration=self.index + 1, version=self.trained, drawn_by=self.drawn_by, stats=self.stats,
            seconds=self.seconds, success=self.success, meter=self.meter.as_dict(),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOrder:
    """What collectors are told of a round.

    run      that its trees belong to
    index    which batch of tasks
    weights  the folder of the weights that draw; None: those that the policy is opened with
    version  what these weights are called
    rates    success by suite, for a rule that adapts to it
    """

    run: str
    index: int
    weights: str | None
    version: str
    rates: dict[str, float]


class Grower(Protocol):
    """Who grows a round's trees where the loop's own process does not."""

    async def grow(self, order: RoundOrder, tasks: Sequence[Task]) -> list[Tree]: ...


class Ahead(TypedDict):
    """What a checkpoint says of the round that was being collected when it was made, one step behind: the version of
    the weights that draw its trees, and the success rates by suite that its rule was given."""

    drawn_by: str
    rates: dict[str, float]


def untold(folder: Path, versions: Sequence[str] | None) -> Update | None:
    """What a metrics file must hold of the newest checkpoint in a folder, for a process that was ended between the two.

    versions  of the trainer that was restored from it, oldest first
    """
    saved = latest(folder)
    extra = {} if saved is None else read_manifest(saved.path)["extra"]
    if saved is None or "stats" not in extra or "iteration" not in extra:
        return None
    return Update(
        step=saved.step, iteration=int(extra["iteration"]), version=(versions or [saved.version])[-1],
        drawn_by=extra.get("drawn_by"), stats=extra["stats"], seconds=0.0, success=extra.get("success", {}),
        recipe=extra.get("recipe", "credit"),
        meter=(Meter.of(extra.get("meter", {})) + Meter.trained(extra["stats"])).as_dict(),
    )  # fmt: skip
