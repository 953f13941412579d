"""An irreversible action happens at most once, wherever the process dies: real deaths at every position.

`make kill-sweep` makes 10,000 of them; here, each position once and some random moments.
"""

from __future__ import annotations

from pathlib import Path

from commit_parts import Kill

from .kill_sweep import POSITIONS, prepare, run, sweep


def test_the_positions_are_all_events_of_one_commit(tmp_path: Path) -> None:
    kill = Kill()
    run(tmp_path, prepare(tmp_path), kill)
    assert kill.events == POSITIONS


def test_kills_at_every_position_and_at_random_never_show_a_duplicate_in_the_ledger_outside() -> None:
    counts = sweep(2 * POSITIONS, plain=True)
    assert counts["duplicates"] == 0 and counts["killed"] == 2 * POSITIONS
    assert counts["killed at positions"] >= POSITIONS
    assert counts["in doubt"] >= 2 and counts["done"] >= 2


def test_kills_at_every_position_with_the_journal_of_the_store() -> None:
    counts = sweep(POSITIONS + 2, every=9)  # one of nine at a random moment
    assert counts["duplicates"] == 0 and counts["killed at positions"] >= POSITIONS
