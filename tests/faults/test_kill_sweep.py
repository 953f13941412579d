"""An irreversible action happens at most once, wherever the process dies: two hundred real deaths."""

from __future__ import annotations

from .kill_sweep import POSITIONS, Kill, prepare, run, sweep


def test_the_positions_are_all_events_of_one_commit(tmp_path):
    kill = Kill()
    run(tmp_path, prepare(tmp_path), kill)
    assert kill.events == POSITIONS


def test_two_hundred_kills_never_show_a_duplicate_in_the_ledger_outside():
    counts = sweep(200, plain=True)
    assert counts["duplicates"] == 0 and counts["killed"] == 200
    assert counts["in doubt"] >= 5 and counts["done"] >= 5


def test_kills_at_every_position_with_the_journal_of_the_store():
    counts = sweep(2 * POSITIONS)  # every other one, at least, dies at a position
    assert counts["duplicates"] == 0 and counts["trials"] >= 2 * POSITIONS
