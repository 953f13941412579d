"""What a launcher says to the processes it starts, read without torch."""

from __future__ import annotations

import os

from treewright.envs.errors import TreewrightError

__all__ = ["LAUNCHER", "launched"]

LAUNCHER = "TREEWRIGHT_LAUNCHER"
"""Set by our own launcher to the file through which the ranks find each other; a rank ends with the launcher."""


def launched() -> tuple[int, int] | None:
    """(rank, number of ranks) as torchrun or our own launcher set them; None for a process that is alone.

    Raises TreewrightError for a rank that does not fit.
    """
    world, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    if not (world.isdigit() and rank.isdigit() and int(rank) < int(world)):
        raise TreewrightError(
            f"RANK={rank} and WORLD_SIZE={world} do not fit together; start with torchrun --nproc-per-node N -m "
            "treewright …, or unset both"
        )
    return (int(rank), int(world)) if int(world) > 1 else None
