"""BrowserGym on MiniWoB's pages, timed. Run by the interpreter of its own environment; imports nothing of this package.

    PEER_PYTHON peer_browsergym.py CHROMIUM PAGES SECONDS TASK…

Prints one line of JSON: steps, seconds in `step`, resets, seconds in `reset`. Steps are clicks at the same points as
in our own measurement. BrowserGym's own wait before each observation (0.5 s) stays as it is by default; a second
round is timed without it.
"""

import json
import os
import sys
import time

POINTS = ((80, 120), (40, 90), (120, 160))


def measure(gym, tasks, seconds, delay):
    found = {"steps": 0, "step_s": 0.0, "resets": 0, "reset_s": 0.0}
    began = time.monotonic()
    for task in tasks:
        if time.monotonic() - began > seconds:
            break
        options = {} if delay is None else {"pre_observation_delay": delay}
        env = gym.make(f"browsergym/miniwob.{task}", headless=True, **options)
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


def main():
    chromium, pages, seconds, *tasks = sys.argv[1:]
    os.environ["MINIWOB_URL"] = pages
    import browsergym.miniwob  # noqa: F401, registers the tasks
    import gymnasium as gym
    from browsergym.core.action.highlevel import HighLevelActionSet
    from playwright.sync_api import BrowserType

    launch = BrowserType.launch

    def launch_system(self, **options):
        """The system's Chromium instead of the one that this old Playwright would download."""
        extra = ["--no-sandbox"] if os.geteuid() == 0 else []
        return launch(self, **{**options, "executable_path": chromium, "args": [*(options.get("args") or []), *extra]})

    BrowserType.launch = launch_system
    actions = HighLevelActionSet(["coord", "bid"])
    make = gym.make
    gym.make = lambda name, **options: make(name, action_mapping=actions.to_python_code, **options)
    print(json.dumps({"default": measure(gym, tasks, float(seconds), None), "no_delay": measure(gym, tasks, float(seconds), 0.0)}))


if __name__ == "__main__":
    main()
