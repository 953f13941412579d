"""A script for the maze that takes its time, so that a worker can be caught at work."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from walker import TABLE

if TYPE_CHECKING:
    from treewright.envs.types import Task, Turn


def make(task: Task, turns: Any, tools: Any, rng: Random) -> Any:
    time.sleep(float(os.environ.get("SLOW_WALKER", "0")))
    texts, weights = zip(*TABLE, strict=True)
    return rng.choices(texts, weights)[0]


def reward(task: Task, history: Sequence[Turn]) -> float:
    return 0.25
