"""The walk's terminal notices what would stop a newcomer. The walk itself is `make firstweek`."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none

spec = importlib.util.spec_from_file_location("firstweek_terminal", Path(__file__).with_name("terminal.py"))
terminal = importlib.util.module_from_spec(not_none(spec))
sys.modules[not_none(spec).name] = terminal
not_none(not_none(spec).loader).exec_module(terminal)


@pytest.fixture
def t(tmp_path: Path) -> Any:
    return terminal.Terminal(tmp_path / "empty")


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def test_what_is_printed_comes_back_without_colours(t: Any) -> None:
    assert t.type(python("print('\\033[31mred\\033[0m'); print(2)")) == "red\n2\n"


@pytest.mark.parametrize(
    "code, why",
    [
        ("1/0", "a traceback"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import time; time.sleep(60)", "nothing was printed"),
    ],
)
def test_tracebacks_wrong_ends_and_silence_stop_the_walk(
    code: str, why: str, t: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "SILENCE", 1.0)
    with pytest.raises(terminal.Stopped, match=why):
        t.type(python(code))


def test_next_lines_are_typed_and_a_false_one_stops_the_walk(t: Any) -> None:
    t.write(
        "treewright", f"#!{sys.executable}\nimport sys\nprint('typed', sys.argv[1:])\nsys.exit(sys.argv[1] == 'bad')\n"
    )
    (t.folder / "treewright").chmod(0o755)
    t.environment["PATH"] = f"{t.folder}:{t.environment['PATH']}"
    assert "typed ['good', '--name', 'a b']" in t.follow("stored; next: treewright good --name 'a b'   (a remark)\n")
    with pytest.raises(terminal.Stopped, match="exit code 1"):
        t.follow("stored; next: treewright bad\n")
    with pytest.raises(terminal.Stopped, match="no `next:` line"):
        terminal.next_line("stored\n")


def test_an_interrupted_line_says_how_to_go_on(t: Any) -> None:
    code = "import time\ntry:\n print('3/30', flush=True)\n time.sleep(60)\n"
    code += "except KeyboardInterrupt:\n print('Go on with:\\n  treewright x')\n raise SystemExit(130)"
    assert terminal.go_on_line(t.type(python(code), code=130, stop_after="3/30")) == "treewright x"
