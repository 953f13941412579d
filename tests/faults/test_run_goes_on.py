"""`treewright run`, killed at every moment of a live episode: typed again it goes on, and sends nothing twice."""

from __future__ import annotations

import collections
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import typer
from commit_parts import Kill
from ledger_worlds import lines
from live_desk import ACTS, MAILS

from treewright.agent.cli.main import main
from treewright.agent.cli.options import resumable
from treewright.agent.policies import langgraph, scripted  # noqa: F401 - loaded once, not in every child
from treewright.agent.runs import collect, episode, loop, newest  # noqa: F401
from treewright.agent.view import report  # noqa: F401
from treewright.search.store.journal import Journal
from treewright.search.store.tree_store import TreeStore

EVENTS = MAILS * (2 + 3 + 6) + 1  # for a mail a tree, its end, its pops, six rows of the journal; the end of all
LINE = [
    "run",
    "live_desk_acts:desk/mails",
    "--approve",
    "live_desk_acts:yes",
    "--expansions",
    "3",
    "--set",
    "search.max_tokens=64",
]
POLICIES = {"a script": "scripted:live_desk_acts:walker", "a LangGraph agent": "langgraph:live_desk_acts:agent"}


def typed(folder: Path, *words: str, kill: Kill = Kill(), background: bool = False) -> tuple[Any, bool]:
    """The command line in a process of its own, which `kill` may end at any row of its store; (printed, was killed).

    background  as a shell begins it behind an `&`: Ctrl-C is not for it
    """
    child = os.fork()
    if child == 0:
        status: Any = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            out = os.open("out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
            os.environ |= {"COLUMNS": "200", "NO_COLOR": "1"}
            watch(kill)
            sys.argv = ["treewright", *LINE, *words]
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
            (folder / "events").write_text(str(kill.events))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    printed = (folder / "out").read_text()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, printed
    assert "Traceback" not in printed
    return printed, os.WIFSIGNALED(status)


def watch(kill: Kill) -> None:
    """A chance to die before and after every row of the journal, and before a tree or the episode begins and ends."""

    def around(kind: type[Journal], name: str) -> None:
        whole = getattr(kind, name)

        async def call(self: Any, *given: Any, **more: Any) -> Any:
            kill()
            done = await whole(self, *given, **more)
            kill()
            return done

        setattr(kind, name, call)

    def before(kind: type[TreeStore], name: str) -> None:
        whole = getattr(kind, name)

        def call(self: Any, *given: Any, **more: Any) -> Any:
            kill()
            return whole(self, *given, **more)

        setattr(kind, name, call)

    for name in ("intent", "dispatched", "outcome"):
        around(Journal, name)
    for name in ("create", "append_nowait", "finish", "end_run"):
        before(TreeStore, name)


def at_most_once(folder: Path) -> tuple[int, int]:
    approved, sent = (collections.Counter(lines(folder / name)) for name in ("approved", "ledger"))
    assert sent <= approved, (sent, approved)
    return sent.total(), approved.total()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "live_desk_acts.py").write_text(ACTS)
    return tmp_path


def words(policy: str, sessions: int) -> list[Any]:
    return ["--policy", POLICIES[policy], "--set", f"worlds.sessions={sessions}"]


def goes_on(folder: Path, *given: Any) -> Any:
    """Types the line until the episode is over, telling what the ledger says of a call in doubt; what was printed."""
    sent, _ = at_most_once(folder)
    printed, _ = typed(folder, *given)
    if "commit: settle" in printed:
        assert at_most_once(folder)[0] == sent, "nothing may be sent while a call is in doubt"
        asked = lines(folder / "approved")[-1]
        told = "happened" if asked in lines(folder / "ledger") else "never"
        printed, _ = typed(folder, *given, "--in-doubt", told)
    return printed


@pytest.mark.parametrize(
    ("policy", "sessions", "every"), [("a script", 1, 3), ("a script", 8, 8), ("a LangGraph agent", 1, 8)]
)
def test_typed_again_after_a_kill_it_goes_on_from_the_committed_node(
    tmp_path: Path, policy: str, sessions: int, every: int
) -> None:
    deaths = 0
    for at in range(every // 2, EVENTS, every):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        (folder / "live_desk_acts.py").write_text(ACTS)
        given = words(policy, sessions)
        deaths += typed(folder, *given, kill=Kill(at))[1]
        before = len(lines(folder / "ledger"))
        printed = goes_on(folder, *given)
        assert "commit: done" in printed and at_most_once(folder)[0] == MAILS, (at, printed)
        if before and "was committed before" in printed:
            assert f"going on after {before} committed call(s)" in printed
    assert deaths == len(range(every // 2, EVENTS, every))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_call_in_doubt_is_settled_on_the_command_line(place: Path, moment: str) -> None:
    given = words("a script", 1)
    (place / f"kill {moment}").touch()
    assert typed(place, *given)[1]
    (place / f"kill {moment}").unlink()
    printed, _ = typed(place, *given)
    assert "commit: settle" in printed and "--in-doubt happened, or --in-doubt never" in printed
    assert "in doubt: " in printed and at_most_once(place)[0] == (moment == "after")
    printed, _ = typed(place, *given, "--in-doubt", "never" if moment == "before" else "happened")
    assert "commit: done" in printed and at_most_once(place) == (MAILS, MAILS + (moment == "before"))


def test_an_episode_that_ended_by_itself_is_not_gone_on_with(place: Path) -> None:
    for count in (1, 2):
        printed, killed = typed(place, *words("a script", 1))
        assert not killed and "going on" not in printed and at_most_once(place)[0] == count * MAILS
    assert int((place / "events").read_text()) == EVENTS, "every moment is one of the kills above"


class Stop(Kill):
    """SIGTERM instead, which is heard while the row is on its way."""

    def __call__(self) -> None:
        if self.events == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.events += 1


@pytest.mark.parametrize("background", [False, True])
def test_a_command_that_is_stopped_while_it_writes_that_all_is_over_ends_and_says_what_was_done(
    place: Path, background: bool
) -> None:
    printed, _ = typed(place, *words("a script", 1), kill=Stop(EVENTS - 1), background=background)
    assert "commit: done" in printed and "Go on with" not in printed, "the same line would begin another episode"
    assert at_most_once(place) == (MAILS, MAILS)


def test_who_stops_what_is_over_is_told_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    with resumable("all", lambda: True):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == ""
    with pytest.raises(typer.Exit) as ended, resumable("all", lambda: False):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130 and "Go on with" in capsys.readouterr().out


@pytest.mark.parametrize("sessions", [1, 8])
def test_what_was_done_is_told_before_the_episode_ends_and_again_after_a_kill_in_between(
    place: Path, sessions: int
) -> None:
    """Ended before it was told, the same line would begin another episode and send more."""
    given = words("a script", sessions)
    printed, killed = typed(place, *given, kill=Kill(EVENTS - 1))
    assert killed and "commit: done" in printed
    printed, killed = typed(place, *given)
    assert not killed and "commit: done" in printed and f"going on after {MAILS} committed call(s)" in printed
    assert at_most_once(place) == (MAILS, MAILS)


def test_the_policy_alone_acts_in_a_live_world_too(place: Path) -> None:
    printed, _ = typed(place, *words("a script", 1), "--expansions", "0")
    assert "commit: done" in printed and lines(place / "ledger") == [str(i) for i in range(MAILS)]


@pytest.mark.parametrize(("told", "why"), [("maybe", "it is happened or never"), ("never", "no call of this")])
def test_a_settlement_of_nothing_is_refused(place: Path, told: str, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        typed(place, *words("a script", 1), "--in-doubt", told)
    assert lines(place / "ledger") == []
