#!/bin/bash
# Gymnasium: `spec` does not know every id that `make` takes, a Text space has no blank unless it is told so, and a
# float32 Box does not contain Python's own float of its bound. Exits 1 where that has changed.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv; venv/bin/python -m pip install -q --disable-pip-version-check gymnasium==1.4.0
cat > mygame.py <<'P'
import gymnasium
class Game(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)
gymnasium.register(id="my/Game-v0", entry_point="mygame:Game")
P
PYTHONPATH=. venv/bin/python -W ignore - <<'P'
import sys

import gymnasium
import numpy as np
from gymnasium import spaces


def takes(function, id):
    try:
        function(id)
    except gymnasium.error.Error as error:
        return type(error).__name__
    return "taken"


print("gymnasium", gymnasium.__version__)
low, high = np.zeros(1, np.float32), np.full(1, 0.7, np.float32)
seen = {
    "spec('mygame:my/Game-v0')": takes(gymnasium.spec, "mygame:my/Game-v0"),
    "make('mygame:my/Game-v0')": takes(lambda id: gymnasium.make(id, disable_env_checker=True), "mygame:my/Game-v0"),
    "spec('CartPole')": takes(gymnasium.spec, "CartPole"),
    "make('CartPole')": takes(gymnasium.make, "CartPole"),
    "Text(20) contains 'go north'": "go north" in spaces.Text(20),
    "Box(0, 0.7, float32) contains the float64 array of 0.7": np.array([0.7]) in spaces.Box(low, high),
    "float(high)": float(high[0]),
}
for what, how in seen.items():
    print(f"{what}: {how}")
as_before = [how not in ("taken",) for what, how in seen.items() if what.startswith("spec")]
as_before += [how == "taken" for what, how in seen.items() if what.startswith("make")]
as_before += [seen["Text(20) contains 'go north'"] is False, float(high[0]) != 0.7]
as_before += [seen["Box(0, 0.7, float32) contains the float64 array of 0.7"] is False]
sys.exit(0 if all(as_before) else 1)
P
