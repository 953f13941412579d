"""AB-MCTS of the package treequest on the functions of benchmarks/ab_mcts.py. Run by an interpreter that has it.

    PEER_PYTHON peer_treequest.py SEEDS STEPS

Prints one line of JSON: for each function the best score of every seed. It imports nothing of this package; the
functions stand in both files.
"""

from __future__ import annotations

import json
import math
import random
import sys
from importlib import import_module
from typing import Any


def first(kind: str, rng: random.Random) -> float:
    return rng.gauss(0.0, 1.0) if kind == "wide" else rng.gauss(0.0, 0.2)


def further(kind: str, state: float, rng: random.Random) -> float:
    return state + rng.gauss(0.0, 0.05 if kind == "wide" else 0.5)


def score(kind: str, state: float) -> float:
    return math.exp(-abs(state - 1.5)) if kind == "wide" else math.exp(-abs(state - 3.0) / 2.0)


def best(tq: Any, kind: str, seed: int, steps: int) -> float:
    rng = random.Random(seed)
    found = [0.0]

    def generate(state: float | None) -> tuple[float, float]:
        made = first(kind, rng) if state is None else further(kind, state, rng)
        found.append(score(kind, made))
        return made, found[-1]

    algorithm = tq.ABMCTSA()
    tree = algorithm.init_tree()
    for _ in range(steps):
        tree = algorithm.step(tree, {"draw": generate})
    return max(found)


if __name__ == "__main__":
    import numpy as np

    treequest = import_module("treequest")
    seeds, steps = int(sys.argv[1]), int(sys.argv[2])
    out: dict[str, list[float]] = {}
    for kind in ("wide", "deep"):
        out[kind] = []
        for seed in range(seeds):
            np.random.seed(seed)
            random.seed(seed)
            out[kind].append(best(treequest, kind, seed, steps))
    print(json.dumps(out))
