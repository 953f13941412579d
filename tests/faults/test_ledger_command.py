"""The same promise through the command line: a mail server over stdio, approvals by a function, a ledger in a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import forked
import pytest
from ledger_worlds import SERVER, lines

ACTS = """
import os

def walker(task, turns, tools, rng):
    step = len(turns)
    if step >= TURNS:
        return 'done {"answer": "sent"}'
    return [f'look {{"to": "{rng.randrange(3)}"}}', f'send {{"to": "{step // 2}"}}'][step % 2]

def yes(task, action):
    with open("approved", "a") as file:
        file.write(action.arguments["to"] + "\\n")
    return True
"""
SERVERS = {
    "effects": 'effects = {look = "read", send = "irreversible"}',
    "nothing declared": 'effects = {look = "read"}',
    "not fresh": 'effects = {look = "read", send = "irreversible"}\nfresh = false',
    "a folder": 'effects = {look = "read", send = "irreversible"}\nfolder = "start"\ncwd = "{folder}"',
}


def run(folder: Path, *words: str) -> str:
    here = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "80", "NO_COLOR": "1"}
    line = ["run", *words, "--policy", "scripted:acts:walker"]
    line += ["--expansions", "6", "--approve", "acts:yes", "--set", "search.max_tokens=64"]
    done = forked.treewright(line, folder, here)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "a").write_text("1")
    # The suite's one task has 12 turns: five looks and five mails, then the end.
    (tmp_path / "acts.py").write_text(ACTS.replace("TURNS", "10"))
    return tmp_path


@pytest.mark.parametrize("declared", SERVERS)
def test_five_approvals_over_stdio_are_five_mails(place: Path, declared: str) -> None:
    server = f"command = '{sys.executable} -S -E {place / 'server.py'} {place / 'ledger'}'\n{SERVERS[declared]}\n"
    (place / "mail.toml").write_text(server)
    shown = run(place, "mcp:mail.toml/0")
    mails = lines(place / "ledger")
    assert mails == lines(place / "approved") == list("01234")[: len(mails)]
    if declared != "not fresh":  # there the first branch that is left cannot be reached again, and the search may end
        assert len(mails) == 5 and "commit: done" in shown
    assert shown.count("approved:") == len(mails) > 0
