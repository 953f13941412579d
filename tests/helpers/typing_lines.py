"""Types command lines as a person would, in this process or in one of their own, and reads the line they end with."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.envs.errors import TreewrightError

HELPERS = str(Path(__file__).parent)


def environment() -> dict[str, Any]:
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    more = {"PYTHONPATH": os.pathsep.join([*path, HELPERS]), "COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **more}


def typed(words: list[str], cwd: Path, code: int = 0) -> str:
    """What a command prints; it must end with `code` and never with a traceback. In this process: torch loads once."""
    with contextlib.chdir(cwd):
        done = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(app, words)
    out, got = done.output, done.exit_code
    if isinstance(done.exception, TreewrightError):  # `main` prints it and ends with 2
        out, got = f"{out}error: {done.exception}", 2
    elif done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert got == code, f"{shlex.join(words)}\n{out}"
    return out


def parsed(words: Sequence[str]) -> Any:
    """The context that a command makes of the words behind `treewright`; raises where one is missing or unknown."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
        command = command.get_command(typer.Context(command), rest.pop(0))
    return command.make_context(command.name, rest)


def next_line(out: str) -> list[str]:
    """The command after `next:` as words, `treewright` and a remark in parentheses left out."""
    (line,) = re.findall(r"next: treewright (.*)", out)
    return shlex.split(re.sub(r"   \(.*\)$", "", line))


def main_said(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Any, str]:
    """The exit code of the command's own `main` and all that it prints, never a traceback; in this process."""
    from treewright.agent.cli import main as cli

    monkeypatch.setattr(sys, "argv", ["treewright", *words])
    code: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    told = "".join(capsys.readouterr())
    assert "Traceback" not in told
    return code, told
