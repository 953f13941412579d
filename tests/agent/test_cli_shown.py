"""Names, tasks and paths are printed as they are: words between colons are no pictures, brackets are no markup."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from view_trees import Growth, write_store

from treewright.agent.cli import main as cli
from treewright.agent.cli import options

ODD = [":fire:", "deliver :package: to :house:", "[red]alert[/]"]


def call(*words: str) -> str:
    done = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(cli.app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options.console, "width", 300)  # read from the terminal when it was made
    (tmp_path / "runs" / "odd").mkdir(parents=True)
    write_store(tmp_path / "runs" / "odd" / "trees.sqlite", [Growth(task=name, run=name).grow(1) for name in ODD])
    return tmp_path


@pytest.mark.parametrize("odd", ODD)
def test_the_list_of_trees_and_the_path_of_a_file_are_shown_as_they_are(here: Path, odd: str) -> None:
    assert odd in call("show", "--name", "odd")
    name = odd.replace("/", " ")
    assert name in call("view", "odd", "--html", f"{name}.html") and (here / f"{name}.html").is_file()


@pytest.mark.parametrize("odd", ODD)
def test_the_words_of_a_progress_bar_are_shown_as_they_are(odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    with options.bar(odd, 2) as advance:
        advance(None)
    assert odd in capsys.readouterr().out


def test_an_error_shows_a_name_as_it_is(here: Path) -> None:
    command = [sys.executable, "-P", "-c", "from treewright.agent.cli.main import main; main()"]
    done = subprocess.run([*command, "view", ":fire:[red]x[/]"], cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and ":fire:[red]x[/]" in done.stderr
