"""Tokens that `hf:` samples in a second with a real model, beside the build before 0.2.0, both in turns in one run."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

from treewright.benchmarks import pair
from treewright.benchmarks.pair_work import MODEL, PROMPTED
from treewright.benchmarks.real_learning import SPEC, begun_model, begun_of, learning_home
from treewright.benchmarks.real_parts import Figures, kept, size_of

__all__ = ["sampling_figures"]

WORKLOAD = "hf_nodes"


def sampling_figures(quick: bool, spec: str = SPEC, between: Sequence[str] = ()) -> Figures:
    """Eight draws at each of the first prompts of the first suite that was taught, of the weights that the section
    `learning` begins with.

    between  two builds, as `bench pair` takes them
    """
    size = size_of(quick)
    home = learning_home(spec, size)
    with tempfile.TemporaryDirectory() as folder:
        begun = asyncio.run(begun_model(home or Path(folder), spec, size))
        of = {"part": "sampling", **begun_of(spec, size)}
        return kept(of, partial(_beside, begun.resolve(), size.taught[0], quick, between))


def _beside(model: Path, suite: str, quick: bool, between: Sequence[str]) -> Figures:
    with patch.dict(os.environ, {MODEL: str(model), PROMPTED: suite}):
        found = pair.main(quick, between=between, only=[WORKLOAD])["pairs"][WORKLOAD]
    return {
        "sampling/nodes": (float(found["size"]), "nodes"),
        "sampling/before": (1e6 / found["before"], "tokens/s"),
        "sampling/after": (1e6 / found["after"], "tokens/s"),
        "sampling/low": (1 / found["high"], "ratio"),
        "sampling/high": (1 / found["low"], "ratio"),
        "real_tokens_per_s_vs_before": (1 / found["ratio"], "ratio"),
    }
