"""docs/cluster.md: its lines do what they say, one after another in an empty folder, each in processes of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
from speed import patient

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"^<!-- run by [^\n]*\n```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
SMALL = ("--set", "search.expansions=2", "--set", "train.minibatches=1")
TORCHRUN = [sys.executable, "-P", "-m", "torch.distributed.run"]


def typed(line: Any, folder: Path, store: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line.replace("$STORE", store))
    small = SMALL if {"loop", "train", "collect"} & set(words) else ()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONSAFEPATH": "1"}
    if words[0] == "treewright":
        return forked.treewright([*words[1:], *small], folder, env, 300)
    return subprocess.run([*TORCHRUN, *words[1:], *small], cwd=folder, env=env, capture_output=True, text=True,
                          timeout=patient(300))  # fmt: skip


def test_every_line_of_the_page_works_in_order(tmp_path: Path, new_database: Callable[[], str]) -> None:
    store, said = new_database(), {}
    for line in LINES:
        done = typed(line, tmp_path, store)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[line] = done.stdout
    assert len(LINES) == 9
    steps = sorted(p.name for p in (tmp_path / "runs" / "big" / "checkpoints").glob("step-*"))
    shards = list((tmp_path / "runs" / "big" / "checkpoints" / steps[-1] / "state").glob("*.safetensors"))
    assert len(shards) == 2 and int(steps[-1].removeprefix("step-")) >= 3
    (many,) = [text for line, text in said.items() if "torchrun" in line]
    assert "iteration 3" in many and "iteration 2" not in many  # it went on from what two processes had done
    (told,) = [text for line, text in said.items() if "collector --name" in line]
    assert "the loop has ended" in told
    (plan,) = [text for line, text in said.items() if "--model 9b" in line]
    assert "GLM-4-9B, 9.4 billion weights" in plan and "published" in plan and "assumed" in plan
