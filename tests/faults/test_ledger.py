"""One approval, one mail: what happened is read from a ledger outside the process, in every kind of live world."""

from __future__ import annotations

import collections
import os
import random
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commit_parts import Kill
from ledger_worlds import WORLDS, lines, run

from treewright.search.commit import Next

MAILS = 12


def forked(world: str, folder: Path, kill: Kill, after: float | None = None, **options: Any) -> bool:
    """An episode in a process of its own, killed from outside after that many seconds; True if it died of a SIGKILL."""
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(ended)
            run(world, folder, kill, **options)
            status = 0
        finally:
            os._exit(status)
    os.close(alive)
    if after is not None and not select.select([ended], [], [], after)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the process failed; its error stands above"
    return os.WIFSIGNALED(status)


def at_most_once(folder: Path) -> tuple[int, int]:
    """Every mail was approved, and as often as it was sent; none was sent twice for one approval."""
    approved, sent = (collections.Counter(lines(folder / name)) for name in ("approved", "ledger"))
    assert sent <= approved, (sent, approved)
    return sent.total(), approved.total()


@pytest.mark.parametrize(("sessions", "eager"), [(1, True), (1, False), (8, True), (8, False)])
@pytest.mark.parametrize("world", WORLDS)
def test_twelve_approvals_are_twelve_mails(tmp_path: Path, world: str, sessions: int, eager: bool) -> None:
    result = run(world, tmp_path, Kill(), sessions=sessions, eager=eager, mails=MAILS)
    assert result.next is Next.DONE, result.reason
    assert lines(tmp_path / "ledger") == lines(tmp_path / "approved") == [str(i) for i in reversed(range(MAILS))]


@pytest.mark.parametrize("world", WORLDS)
def test_no_kill_at_any_moment_sends_an_approved_mail_twice(tmp_path: Path, world: str) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    kill, began = Kill(), time.monotonic()
    run(world, whole, kill, mails=2)
    took, deaths, rng = time.monotonic() - began, 0, random.Random(world)
    events = range(kill.events)
    moments = sorted(rng.sample(events, min(10, len(events)))) + [None] * 3
    for i, at in enumerate(moments):
        folder = tmp_path / f"{i}"
        folder.mkdir()
        sessions = 8 if i % 4 == 0 else 1
        deaths += forked(
            world, folder, Kill(at), rng.random() * took if at is None else None, mails=2, sessions=sessions
        )
        at_most_once(folder)
        for _ in range(2):  # taken up again, and once more
            assert not forked(world, folder, Kill(), mails=2, sessions=sessions)
            sent, _ = at_most_once(folder)
            assert sent <= 2
        shutil.rmtree(folder)
    assert deaths >= 10
