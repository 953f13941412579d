"""Sections of the configuration that are about training: trackers, the loop, and what is measured."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator

__all__ = ["RAY", "CurriculumSection", "EvalSection", "LoopSection", "Section", "TrackSection"]

RAY = re.compile(r"ray://(?P<place>[^/?]+)\?workers=(?P<count>[1-9][0-9]*)")
"""Workers of a Ray cluster; the place `local` is one that is begun here."""


class Section(BaseModel):
    """A section refuses keys that it does not have, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class TrackSection(Section):
    """Where the numbers of training go."""

    trackers: tuple[str, ...] = Field(
        default=(),
        description="beside runs/NAME/metrics.jsonl: tensorboard | wandb | trackio | mlflow, module:object, or an "
        "entry point of treewright.trackers; see docs/training.md",
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description='of trackers by name, e.g. {wandb = {project = "mine", mode = "offline"}}'
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _listed(cls, trackers: Any) -> Any:
        return tuple(t.strip() for t in trackers.split(",") if t.strip()) if isinstance(trackers, str) else trackers


class CurriculumSection(Section):
    """Trees that begin at nodes of stored successes, nearer the root as success there allows; see docs/recipes.md."""

    share: float = Field(
        default=0.0, ge=0, lt=1,
        description="most of a round's trees that begin at stored nodes, beside those of loop.tasks; 0: none",
    )  # fmt: skip
    sources: tuple[str, ...] = Field(
        default=(),
        description="runs or stores with successes from before, demonstrations too; the loop's own always count",
    )
    rare: float = Field(default=0.25, gt=0, le=1, description="only tasks that are solved less often from the root")
    target: float = Field(default=0.5, gt=0, le=1, description="success at which a start moves towards the root")
    step: int = Field(default=1, ge=1, description="turns, or tokens, by which it moves")
    patience: int = Field(
        default=2, ge=1, description="trees in a row without success after which it moves towards the end"
    )
    unit: Literal["turn", "token"] = Field(default="turn", description="what starts are counted in")

    @field_validator("sources", mode="before")
    @classmethod
    def _listed(cls, sources: Any) -> Any:
        return tuple(s.strip() for s in sources.split(",") if s.strip()) if isinstance(sources, str) else sources


class LoopSection(Section):
    """Collect, train, again."""

    iterations: int = Field(default=8, ge=1, description="of collect → train")
    tasks: int = Field(default=24, ge=1, description="per suite and iteration")
    suite_tasks: dict[str, int] = Field(
        default_factory=dict, description="suites with another number of tasks, e.g. {market = 6}"
    )
    skip_tasks: dict[str, NonNegativeInt] = Field(
        default_factory=dict,
        description="how many training tasks of a suite are left out, from its first, e.g. {kg = 300} where a policy "
        "imitated those and has seen their solutions",
    )
    checkpoints: int = Field(default=3, ge=1, description="how many are kept")
    prm_every: int = Field(
        default=0, ge=0, description="iterations after which the value model of search.evaluator=vstar is trained anew"
    )
    behind: int | None = Field(
        default=None, ge=0, le=1,
        description="1: the next round is collected while the trainer works, so that trees are one update old; else 1 "
        "with collectors, 0 without",
    )  # fmt: skip
    collectors: int | str | None = Field(
        default=None,
        description="processes that grow the trees, leasing them from a PostgreSQL store: so many of this machine, or "
        "ray://HOST:PORT?workers=N of a Ray cluster; 0: only those that `treewright collector` starts anywhere; none: "
        "the loop grows them itself",
    )  # fmt: skip
    push: Literal["auto", "files", "nccl"] = Field(
        default="auto",
        description="how vLLM's servers get new weights: as files in the run's folder, or over NCCL from the trainer's "
        "GPU; auto: over NCCL where trainer and servers can, see docs/cluster.md",
    )
    curriculum: CurriculumSection = CurriculumSection()
    lease: float = Field(default=30.0, gt=0, description="seconds that a tree stays with a collector that says nothing")

    @field_validator("collectors")
    @classmethod
    def _counted(cls, given: int | str | None) -> int | str | None:
        if isinstance(given, str) and given.isdigit():
            given = int(given)
        if (isinstance(given, str) and RAY.fullmatch(given) is None) or (isinstance(given, int) and given < 0):
            raise ValueError(f"{given}: give a number of processes, or ray://HOST:PORT?workers=N")
        return given

    @property
    def steps_behind(self) -> int:
        """`behind`, or what follows from there being collectors."""
        return self.behind if self.behind is not None else int(self.collectors is not None)


class EvalSection(Section):
    """Success on held-out tasks."""

    split: Literal["train", "test"] = Field(default="test", description="which tasks")
    tasks: int = Field(default=100, ge=1, description="per suite")
    expansions: int = Field(default=0, ge=0, description="of the search; 0: the policy alone")
