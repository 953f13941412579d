"""Ctrl-C in commands that keep nothing before their end: they say so, and that their line begins anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from treewright.agent.cli import main as cli
from treewright.agent.runs import evaluate
from treewright.training import scorer, treehop
from treewright.training.recipes import prm

PASSAGES = """{"id": "1", "title": "Ada", "text": "Ada wrote to Charles."}
{"id": "2", "title": "Charles", "text": "He answered."}
"""
STOPPED = {
    "eval": (evaluate, "evaluate", ["eval", "--suites", "kg", "--tasks", "1", "--policy", "seedling"]),
    "scorer": (scorer, "fit", ["train", "scorer", "--name", "first"]),
    "prm": (prm, "train_prm", ["train", "prm", "--name", "first", "--set", "train.allow_biased=true"]),
    "treehop": (treehop, "train_gate", ["train", "treehop", "hop", "--corpus", "p.jsonl"]),
}


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["treewright", *words])
    code: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize("what", STOPPED)
def test_what_begins_anew_after_ctrl_c_is_said_to(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "p.jsonl").write_text(PASSAGES)
    if "first" in STOPPED[what][2]:
        few = ["--set", "search.expansions=2", "--set", "search.max_tokens=16"]
        line = ["collect", "--name", "first", "--suites", "kg", "--tasks", "1", "--policy", "seedling", *few]
        assert typed(monkeypatch, capsys, line)[0] == 0
    place, name, words = STOPPED[what]

    def stop(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, stop)
    code, told = typed(monkeypatch, capsys, words)
    assert code == 130, told
    assert "nothing is kept of this before its end: the same line begins it anew" in told
    assert f"treewright {' '.join(words)}" in told and "is stored" not in told and "Traceback" not in told
