"""The runs of an experiment on learning: which world, arm, rate and seed, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Cell", "whole_seeds"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    world: str
    arm: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.world}-{self.arm}-{self.rate:g}-{self.seed}"


def whole_seeds(
    worlds: Sequence[str],
    arms: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    tuned: Mapping[tuple[str, str], float] | None = None,
) -> list[tuple[str, str, float, int]]:
    """Each seed whole before the next, so that a stopped sweep is balanced; every rate where `tuned` names none."""
    return [
        (world, arm, rate, seed)
        for seed in seeds
        for world in worlds
        for arm in arms
        for rate in ([tuned[world, arm]] if tuned is not None else rates)
    ]
