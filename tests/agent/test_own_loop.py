"""Own tasks in `loop`, and what an earlier run in a live world left unanswered, from the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path

from typing_lines import next_line, typed

from treewright.search.store import TreeStore

TOML = """
[worlds]
suites = ["maze"]
tasks_file = "tasks.jsonl"
reward = "ownloop:even"
[loop]
iterations = 2
tasks = 3
[search]
expansions = 1
"""
REWARD = """
def even(task, history):
    return float(len(history) % 2)
"""
DESK = """
effects = {}

class Desk:
    def send(self, to: str) -> str:
        with open("ledger", "a") as file:
            file.write(to + "\\n")
        return "sent"

def reward(task, history):
    return 1.0

def clerk(task, turns, tools, rng):
    return 'send {"to": "ada"}'

def yes(task, action):
    return True
"""


def test_own_tasks_of_a_toml_are_looped_over_also_where_they_are_fewer_than_a_round(tmp_path: Path) -> None:
    (tmp_path / "ownloop.py").write_text(REWARD)
    tasks = "".join(f'{{"id": "{name}", "goal": "walk", "horizon": 3}}\n' for name in "ab")
    (tmp_path / "tasks.jsonl").write_text(tasks)
    (tmp_path / "own.toml").write_text(TOML)
    out = typed(["loop", "--name", "l", "--config", "own.toml"], tmp_path)
    assert "iteration 1: own" in out and "iteration 2: own" in out and next_line(out)[0] == "eval"
    with TreeStore.open(tmp_path / "runs/l/trees.sqlite", read_only=True) as store:
        rows = store.trees(status="done")
    assert len(rows) == 6 and {row.task_id for row in rows} == {"a", "b"}


def test_what_was_sent_and_never_answered_is_told_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "desk.py").write_text(DESK)
    (tmp_path / "mails.jsonl").write_text('{"id": "m", "goal": "send one mail", "horizon": 1, "split": "test"}\n')
    line = ["run", "desk:Desk/m", "--tasks-file", "mails.jsonl", "--reward", "desk:reward", "--policy",
            "scripted:desk:clerk", "--expansions", "2", "--name", "mail"]  # fmt: skip
    assert "never answered" not in typed([*line, "--approve", "never"], tmp_path)
    assert not (tmp_path / "ledger").exists()

    async def killed_while_sending() -> None:
        with TreeStore.open(tmp_path / "runs/mail/trees.sqlite") as store:
            (row,) = store.trees()
            key = '[{"arguments":{"to":"bob"},"name":"send"}]'
            await store.journal.dispatched(await store.journal.intent(row.tree_id, 1, 0, key))

    asyncio.run(killed_while_sending())
    for _ in range(2):
        out = typed([*line, "--approve", "desk:yes"], tmp_path)
        assert "never answered" in out and "bob" in out
    assert (tmp_path / "ledger").read_text().split() == ["ada", "ada"]  # one for each approval, and never bob
