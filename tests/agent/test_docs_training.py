"""docs/training.md: its lines do what they say, one after another in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from treewright.agent.cli.main import app

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
LINES = [
    line for body in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in body.splitlines()
    if line.startswith("treewright ") and " bench " not in line and " compare " not in line
]  # fmt: skip


def test_every_line_of_the_page_works_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    said = {}
    for line in LINES:
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0 and done.exception is None, f"{line}\n{done.output}\n{done.exception!r}"
        said[line] = done.output
    torch.set_num_threads(threads)
    assert len(LINES) >= 8 and (tmp_path / "adapted-model" / "model.safetensors").is_file()
    (told,) = [text for line, text in said.items() if "train.memory" in line]
    assert re.search(r"train.memory = 1GiB: packs of \d+ tokens without gradient checkpointing", told)
