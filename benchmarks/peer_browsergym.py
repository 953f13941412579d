"""BrowserGym on MiniWoB's pages, timed. Run by the interpreter of its own environment; imports nothing of this package.

    PEER_PYTHON peer_browsergym.py CHROMIUM PAGES SECONDS TASK…

Prints one line of JSON: steps, seconds in `step`, resets, seconds in `reset`. Steps are clicks at the same points as
in our own measurement. BrowserGym's own wait before each observation (0.5 s) stays as it is by default; a second
round is timed without it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

POINTS = ((80, 120), (40, 90), (120, 160))


def measure(make: Callable[..., Any], tasks: Sequence[str], seconds: float, delay: float | None) -> dict[str, float]:
    found: dict[str, float] = {"steps": 0.0, "step_s": 0.0, "resets": 0.0, "reset_s": 0.0}
    began = time.monotonic()
    for task in tasks:
        if time.monotonic() - began > seconds:
            break
        options = {} if delay is None else {"pre_observation_delay": delay}
        env = make(f"browsergym/miniwob.{task}", headless=True, **options)
        try:
            start = time.monotonic()
            env.reset(seed=1)
            found["reset_s"] += time.monotonic() - start
            found["resets"] += 1
            for x, y in POINTS:
                start = time.monotonic()
                _, _, terminated, truncated, _ = env.step(f"mouse_click({x}, {y})")
                found["step_s"] += time.monotonic() - start
                found["steps"] += 1
                if terminated or truncated:
                    break
        finally:
            env.close()
    return found


def main() -> None:
    chromium, pages, seconds, *tasks = sys.argv[1:]
    os.environ["MINIWOB_URL"] = pages
    import gymnasium
    from playwright.sync_api import BrowserType

    import_module("browsergym.miniwob")  # registers the tasks
    actions = import_module("browsergym.core.action.highlevel").HighLevelActionSet(["coord", "bid"])
    launch = BrowserType.launch

    def launch_system(self: BrowserType, **options: Any) -> Any:
        """The system's Chromium instead of the one that this old Playwright would download."""
        extra = ["--no-sandbox"] if os.geteuid() == 0 else []
        return launch(self, **{**options, "executable_path": chromium, "args": [*(options.get("args") or []), *extra]})

    setattr(BrowserType, "launch", launch_system)  # noqa: B010, a method of somebody else's class
    make = partial(gymnasium.make, action_mapping=actions.to_python_code)
    # Five of the pages are no tasks there.
    tasks = [task for task in tasks if f"browsergym/miniwob.{task}" in gymnasium.registry]
    rounds = {"default": None, "no_delay": 0.0}
    print(json.dumps({name: measure(make, tasks, float(seconds), delay) for name, delay in rounds.items()}))


if __name__ == "__main__":
    main()
