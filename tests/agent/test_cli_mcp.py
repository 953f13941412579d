"""MCP servers from the command line: names with slashes and commas, odd answers in a live world, what is said."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from raw_server import RAW
from typer.testing import CliRunner, Result

from treewright.agent.cli import main as cli
from treewright.envs import TreewrightError

# One word in an argument that holds a comma; `send` writes into a file outside and answers with no JSON.
SHOP = (
    RAW
    + """
def call(name, arguments):
    if name == "send":
        print(arguments["q"], file=open("ledger", "a"), flush=True)
        return {"content": [{"type": "text", "text": "sent"}], "structuredContent": {"score": float("nan")}}
    if name == "save":
        print(arguments["q"], file=open("kept", "a"), flush=True)
        return "saved"
    return open("kept").read() if name == "list_all" and os.path.exists("kept") else f"found {sys.argv[1:]}"

query = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
score = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}
serve([{"name": "find", "inputSchema": query, "annotations": {"readOnlyHint": True}},
       {"name": "list_all", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}},
       {"name": "send", "inputSchema": query, "outputSchema": score, "annotations": {"destructiveHint": True}},
       {"name": "save", "inputSchema": query, "annotations": {"destructiveHint": False}}], call)
"""
)
ACTS = """
def act(name, turns):
    return f'{name} {{"q": "x"}}' if len(turns) == 0 else 'done {"answer": "x"}'

def finder(task, turns, tools, rng):
    return act("find", turns)

def sender(task, turns, tools, rng):
    return act("send" if task.horizon == 12 else "done", turns) if not turns else 'done {"answer": "x"}'

def saver(task, turns, tools, rng):
    return 'save {"q": "%s"}' % rng.choice("abcdef") if not turns else 'done {"answer": "x"}'

def yes(task, action):
    return True
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "acts.py").write_text(ACTS)
    command = shlex.join([sys.executable, "shop.py"])
    (tmp_path / "shop.toml").write_text(f"command = {command!r}\ntrust_hints = true\nsandboxed = true\n")
    return tmp_path


def call(*words: str) -> Result:
    done = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(cli.app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.parametrize("task", ["mcp:shop.toml/0", "mcp:./shop.toml", "mcp:{here}/shop.toml/test-explore"])
def test_run_takes_a_server_file_whatever_slashes_lead_to_it(task: str, here: Path) -> None:
    done = call("run", task.format(here=here), "--policy", "scripted:acts:finder", "--expansions", "2")
    assert "find x" in done.output and done.exit_code == 0


def test_run_takes_a_command_with_slashes_and_collect_one_with_commas(here: Path) -> None:
    line = f"mcp:--trust-hints --sandboxed {sys.executable} shop.py a,b"
    done = call("run", f"{line}/0", "--policy", "scripted:acts:finder", "--expansions", "2")
    assert "find x" in done.output
    done = call(
        "collect", "--suites", f"{line},maze", "--tasks", "1", "--name", "one", "--policy", "scripted:acts:finder"
    )
    assert "no suite" not in done.output and (here / "runs" / "one" / "trees.sqlite").exists()


def test_a_committed_call_whose_answer_does_not_fit_is_done_and_not_in_doubt(here: Path) -> None:
    line = f"mcp:--trust-hints {sys.executable} shop.py/0"
    done = call("run", line, "--policy", "scripted:acts:sender", "--expansions", "3", "--approve", "acts:yes")
    assert (here / "ledger").read_text() == "x\n"
    assert "doubt" not in done.output and "approved" in done.output


def test_a_live_world_in_which_nothing_may_be_explored_says_why(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = f"mcp:{sys.executable} shop.py live/0"
    call("run", line, "--policy", "scripted:acts:finder", "--expansions", "2")
    (said,) = [record.getMessage() for record in caplog.records if "nothing is explored" in record.getMessage()]
    assert "(find, list_all, send, save)" in said
    assert all(way in said for way in ("[effects]", "--trust-hints", "--sandboxed", "--approve ask"))


def test_a_server_whose_state_outlives_a_restart_ends_the_run_with_one_sentence(here: Path) -> None:
    with pytest.raises(TreewrightError, match=r"is not fresh: what was written outlives a restart\. list_all"):
        call("run", "mcp:shop.toml/0", "--policy", "scripted:acts:saver", "--expansions", "6")
    assert (here / "kept").exists()
