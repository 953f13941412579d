"""A script for the maze that takes its time, so that a worker can be caught at work."""

from __future__ import annotations

import os
import time

from walker import TABLE


def make(task, turns, tools, rng):
    time.sleep(float(os.environ.get("SLOW_WALKER", "0")))
    texts, weights = zip(*TABLE, strict=True)
    return rng.choices(texts, weights)[0]


def reward(task, history):
    return 0.25
