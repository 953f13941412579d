"""Collect trees, train on them, measure: the command line's three words, from Python, on a tiny run.

    python examples/train.py FOLDER

`train.estimator` names your own function here; leave it out, and `train.allow_biased` too, for the default, split_loo.
metrics.jsonl in the run's folder has what each update measured; `--set track.trackers=tensorboard` sends it on. Each
checkpoint's manifest says which trees it came from.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TREEWRIGHT = [sys.executable, "-m", "treewright"]


def typed(*words: str, folder: Path) -> None:
    print("$ treewright", *words, flush=True)
    subprocess.run(
        [*TREEWRIGHT, *words, "--name", "example", "--set", f"folder={folder}"], check=True, cwd=Path(__file__).parent
    )


def main(folder: Path) -> None:
    typed("collect", "--suites", "kg", "--tasks", "6", "--set", "search.root_draws=6", folder=folder)
    mine = ["--set", "train.estimator=own_estimator:above_average", "--set", "train.allow_biased=true"]
    typed("train", *mine, folder=folder)
    typed("eval", "--tasks", "6", folder=folder)
    newest = sorted((folder / "checkpoints").glob("step-*/manifest.json"))[-1]
    saved = json.loads(newest.read_text())
    print(f"step {saved['step']} has weights {saved['version']}, made of {len(saved['consumed'])} trees")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example").resolve())
