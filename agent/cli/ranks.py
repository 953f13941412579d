"""The options --processes and --gpus: the same command in many processes that train one model."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from treewright.agent.cli.options import say
from treewright.envs.errors import TreewrightError
from treewright.training.parallel.launched import LAUNCHER, launched

__all__ = ["Gpus", "Processes", "alone", "spread"]

Processes = Annotated[
    int | None, typer.Option(min=1, help="Train by so many processes of this machine; torchrun does so on many.")
]
Gpus = Annotated[int | None, typer.Option(min=1, help="Train on so many GPUs of this machine, a process for each.")]


def spread(processes: int | None, gpus: int | None) -> None:
    """Starts the processes that were asked for and ends with what they end with; nothing where this is one of them.

    Raises TreewrightError for a number that does not fit this machine, or torchrun's.
    """
    if processes is None and gpus is None:
        return
    if processes is not None and gpus is not None:
        raise TreewrightError("--processes and --gpus are both given; --gpus N starts a process for each of N GPUs")
    asked = int(gpus or processes or 1)
    found = launched()
    if found is not None:
        if found[1] != asked:
            raise TreewrightError(
                f"torchrun started {found[1]} processes, but the line says {asked}; leave --processes and --gpus out"
            )
        return
    if LAUNCHER in os.environ:  # a group of one
        return
    there = _gpus()
    if gpus is not None and gpus > there:
        told = told_of(there) if there else "torch sees no GPU on this machine"
        raise TreewrightError(f"--gpus {gpus}: {told}; write --gpus {there}" if there else f"--gpus {gpus}: {told}; "
                              f"write --processes {gpus} to train on its CPUs")  # fmt: skip
    if processes is not None and 0 < there < processes:
        raise TreewrightError(
            f"--processes {processes}: {told_of(there)}, and each process needs its own; write --gpus {there}, or set "
            "CUDA_VISIBLE_DEVICES= to train on CPUs"
        )
    if asked == 1:
        return
    from treewright.agent.cli.main import main
    from treewright.agent.runs.ranks import launch

    raise typer.Exit(launch(main, asked, sys.argv[1:], say))


def alone(processes: int | None, gpus: int | None, recipe: str) -> None:
    """Raises TreewrightError where a recipe that trains in one process is asked for, or started, in many."""
    if processes is not None or gpus is not None or launched() is not None:
        raise TreewrightError(
            f"train {recipe} trains in one process: leave --processes, --gpus and torchrun out. Credit from trees "
            "(treewright train, treewright loop) takes many"
        )


def told_of(gpus: int) -> str:
    return "this machine has 1 GPU" if gpus == 1 else f"this machine has {gpus} GPUs"


def _gpus() -> int:
    """How many NVIDIA GPUs there are for this process, without loading torch."""
    try:
        there = len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([d for d in visible.split(",") if d.strip() not in ("", "-1")]))
