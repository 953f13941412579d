"""Commit: approval, journal, at most once, and what is reported after trouble."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from commit_parts import TASK, FileJournal, Kill, Live, a_move, chain, pressed
from not_none import not_none
from speed import patient

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import Action, Divergence, EnvFault, Restore, TreewrightError
from treewright.envs.types import Effect, Observation, Snapshot, StepResult, Task
from treewright.search.commit import Next, commit, continue_from, open_approval, recover
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.store import JournalState, TreeStore
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

KILLS = 20


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def journal(tmp_path: Path) -> FileJournal:
    return FileJournal(tmp_path / "journal")


def yes(task: Task, action: Any) -> bool:
    return True


def live(ledger: Path, size: int = 1, **options: Any) -> Pool:
    async def opened() -> Live:
        return Live(ledger, **options)

    return Pool(opened, size, deadline=patient(1.0))


async def grown(ledger: Path, *texts: str) -> tuple[Any, int]:
    """A tree grown in the live world: its last action waits for commit."""
    tree = await chain(*texts, env=Live(ledger))
    return tree, len(tree) - 1


def states(journal: FileJournal) -> list[Any]:
    return [entry.state for entry in journal.entries()]


# -- the plain way --------------------------------------------------------------------------------------------------


async def test_a_waiting_action_is_executed_once_and_journalled(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, a_move(), "press {}")
    assert tree.status[leaf] is NodeStatus.DRAFT and pressed(ledger) == []
    result = await commit(tree, leaf, live(ledger), approve=yes, journal=journal)
    assert (result.next, result.committed, result.reached) == (Next.CONTINUE, (leaf,), leaf)
    assert pressed(ledger) == [str(tree.key(leaf))] and result.approved == (Action.of("press").key,)
    assert states(journal) == [JournalState.DONE] and journal.pending() == []
    (entry,) = journal.entries()
    assert (entry.tree_id, entry.node, entry.action_key) == (tree.tree_id, leaf, Action.of("press").key)
    assert tree.status[leaf] is NodeStatus.COMMITTED and tree.observation[leaf].text == result.observation.text


@pytest.mark.parametrize("ways", [{Restore.REPLAY}, {Restore.STATE}, {Restore.FORK, Restore.REPLAY}])
async def test_a_whole_path_of_a_sandbox_is_done_for_real_step_by_step(
    ledger: Path, journal: FileJournal, ways: set[Restore]
) -> None:
    tree = await chain("press {}", a_move(), "press {}", "stop {}")
    result = await commit(tree, 4, live(ledger, ways=frozenset(ways)), approve=yes, journal=journal)
    assert (result.next, result.committed, result.reward) == (Next.DONE, (1, 3, 4), 0.0)
    assert pressed(ledger) == [str(tree.key(1)), str(tree.key(3))]
    assert [tree.status[i] for i in (1, 3, 4)] == [NodeStatus.COMMITTED] * 3
    assert tree.status[2] is NodeStatus.EXPANDED


async def test_invalid_output_on_the_path_executes_nothing(ledger: Path, journal: FileJournal) -> None:
    tree = await chain("dance {}", "stop {}")
    pool = live(ledger)
    result = await commit(tree, 2, pool, approve="never", journal=journal)
    assert (result.next, result.committed) == (Next.DONE, (2,))
    assert env_of(pool).steps == ["stop {}"]


async def test_a_path_without_irreversible_actions_needs_no_approval(ledger: Path, journal: FileJournal) -> None:
    tree = await chain(a_move(), "stop {}")
    result = await commit(tree, 2, live(ledger), journal=journal)
    assert result.next is Next.DONE and journal.entries() == []


async def test_a_session_that_stands_there_is_used_without_steps(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, a_move(), "press {}")
    pool = live(ledger)
    async with pool.lease(tree.tree_id) as session:
        await session.env.reset(TASK, tree.key(0))
        await session.env.step(tree.action[1], tree.key(1))
        session.tree, session.at = tree.tree_id, tree.seed[1]
        cast(Live, session.env).steps.clear()
    await commit(tree, leaf, pool, approve=yes, journal=journal)
    assert env_of(pool).steps == ["press {}"]


def env_of(pool: Pool) -> Live:
    (place, *_) = pool._idle
    return cast(Live, place.env)


# -- approval -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [False, None, 1, "yes", "never"])
async def test_only_true_approves(ledger: Path, journal: FileJournal, answer: bool | int | str | None) -> None:
    tree, leaf = await grown(ledger, a_move(), "press {}")
    approve: Any = answer if answer == "never" else lambda task, action: answer
    result = await commit(tree, leaf, live(ledger), approve=approve, journal=journal)
    assert (result.next, result.refused, result.committed) == (Next.APPROVE, leaf, ())
    assert pressed(ledger) == [] and journal.entries() == []
    assert tree.status[leaf] is NodeStatus.DRAFT
    later = await commit(tree, leaf, live(ledger), approve=yes, journal=journal)
    assert later.committed == (leaf,) and len(pressed(ledger)) == 1


async def test_an_approval_binds_to_the_exact_action_and_never_sees_truth(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, "press {}")
    tree.header = replace(tree.header, task=replace(TASK, truth={"canary": "s3cret"}))
    asked = []

    async def sly(task: Task, action: Any) -> bool:
        asked.append((action.key, dict(task.truth)))
        action.calls[0].arguments["where"] = "elsewhere"
        tree.action[leaf].calls[0].arguments["where"] = "elsewhere"
        return True

    pool = live(ledger)
    await commit(tree, leaf, pool, approve=sly, journal=journal)
    assert asked == [(Action.of("press").key, {})]
    assert env_of(pool).steps == ["press {}"]
    assert [entry.action_key for entry in journal.entries()] == [Action.of("press").key]


async def test_asking_shows_the_action_without_escapes_and_takes_only_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for typed, allowed in (("yes", True), ("y", False), ("", False)):
        monkeypatch.setattr("builtins.input", lambda prompt, typed=typed: typed)
        task = replace(TASK, goal="\x1b[2Jgoal")
        ask: Any = open_approval("ask")
        assert await ask(task, Action.of("send", to="a\x1b[31m\u202eb")) is allowed
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown and '"to": "a\\u001b[31m\\u202eb"' in shown


@pytest.mark.parametrize(
    ("approve", "message"),
    [
        ("ask", "standard input is no terminal"),
        ("always", "must be 'never', 'ask', 'module:function'"),
        ("json:dumbs", "did you mean 'dumps'"),
        ("json:__name__", "not a function"),
    ],
)
def test_an_approval_that_cannot_be_asked_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, approve: str, message: str
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(TreewrightError, match=message):
        open_approval(approve)


async def test_only_a_commit_status_can_be_marked_and_what_the_search_saw_stays() -> None:
    tree = await chain(a_move(), "stop {}")
    seen = not_none(tree.observation[1])
    tree.mark(1, NodeStatus.COMMITTED, replace(seen, text="other"), 1.0)
    assert tree.observation[1] == seen and tree.reward(1) == 0.0
    with pytest.raises(TreewrightError, match="not pruned"):
        tree.mark(1, NodeStatus.PRUNED)


# -- trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trouble", "times"), [("before", 0), ("after", 1)])
async def test_a_fault_after_dispatch_is_in_doubt_and_never_retried(
    ledger: Path, journal: FileJournal, trouble: str, times: int
) -> None:
    tree, leaf = await grown(ledger, a_move(), "press {}")
    result = await commit(tree, leaf, live(ledger, trouble=trouble), approve=yes, journal=journal)
    assert (result.next, result.committed) == (Next.SETTLE, ())
    assert [(e.node, e.state) for e in result.in_doubt] == [(leaf, JournalState.IN_DOUBT)]
    assert tree.status[leaf] is NodeStatus.IN_DOUBT and math.isnan(result.reward)
    again = await commit(tree, leaf, live(ledger), approve=yes, journal=journal)
    assert again.next is Next.SETTLE and len(pressed(ledger)) == times


async def test_a_settled_doubt_lets_the_action_be_done_or_stay_done(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, "press {}")
    for state, expected in ((JournalState.FAILED, Next.CONTINUE), (JournalState.DONE, Next.CONTINUE)):
        journal.path.unlink(missing_ok=True)
        await commit(tree, leaf, live(ledger, trouble="before"), approve=yes, journal=journal)
        await journal.outcome(1, state)
        result = await commit(tree, leaf, live(ledger), approve=yes, journal=journal)
        assert result.next is expected and tree.status[leaf] is NodeStatus.COMMITTED
    assert len(pressed(ledger)) == 1


async def test_a_committed_action_is_not_done_again(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, "press {}")
    await commit(tree, leaf, live(ledger), approve=yes, journal=journal)
    again = await commit(tree, leaf, live(ledger), approve=yes, journal=journal)
    assert again.next is Next.CONTINUE and "committed before" in again.reason
    assert (again.reached, again.committed, again.approved) == (leaf, (leaf,), ())
    assert len(pressed(ledger)) == 1


async def test_two_commits_at_once_send_it_once(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, "press {}")
    asking = asyncio.Barrier(2)

    async def together(task: Task, action: Any) -> bool:
        await asking.wait()
        return True

    both = await asyncio.gather(*(commit(tree, leaf, live(ledger), approve=together, journal=journal) for _ in "ab"))
    assert len(pressed(ledger)) == 1
    assert {result.next for result in both} == {Next.CONTINUE, Next.SETTLE}


async def test_a_world_that_changed_stops_the_commit_before_anything_irreversible(
    ledger: Path, journal: FileJournal
) -> None:
    tree, leaf = await grown(ledger, a_move(), "press {}")
    result = await commit(tree, leaf, live(ledger, trouble="wander"), approve=yes, journal=journal)
    assert result.next is Next.SEARCH and Divergence.__name__ in result.reason
    assert pressed(ledger) == [] and journal.entries() == []


async def test_a_refusal_of_the_world_is_journalled_as_failed(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, a_move(), "press {}")
    tree.action[leaf] = Action.of("pull")
    result = await commit(tree, leaf, live(ledger), approve=yes, journal=journal)
    assert result.next is Next.SEARCH and "refused" in result.reason and states(journal) == [JournalState.FAILED]


async def test_a_cancelled_commit_is_in_doubt(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, "press {}")
    sent = asyncio.Event()

    class Slow(Live):
        async def step(self, action: Action, key: int) -> StepResult:
            sent.set()
            await asyncio.Event().wait()
            raise AssertionError("nothing ends this wait")

    async def opened() -> Any:
        return Slow(ledger)

    job = asyncio.create_task(commit(tree, leaf, Pool(opened), approve=yes, journal=journal))
    await sent.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert states(journal) == [JournalState.IN_DOUBT]


async def test_a_fault_before_dispatch_leaves_nothing_in_doubt(ledger: Path, journal: FileJournal) -> None:
    tree, leaf = await grown(ledger, a_move(), "press {}")

    class Dead(Live):
        async def effect(self, action: Action) -> Effect:
            raise EnvFault("nobody there")

    async def opened() -> Any:
        return Dead(ledger)

    result = await commit(tree, leaf, Pool(opened), approve=yes, journal=journal)
    assert result.next is Next.SEARCH and "nobody there" in result.reason and journal.entries() == []


# -- kills ----------------------------------------------------------------------------------------------------------


def killed_commit(tree: Tree, leaf: int, ledger: Path, path: Path, at: int) -> bool:
    """Runs the commit in a child process that kills itself at event `at`; True if it did die."""
    child = os.fork()
    if child == 0:
        try:
            kill = Kill(at)
            journal = FileJournal(path, kill)
            asyncio.run(commit(tree, leaf, live(ledger, kill=kill), approve=yes, journal=journal))
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_kills_around_dispatch_never_duplicate_and_every_unknown_is_reported(tmp_path: Path) -> None:
    deaths = doubts = 0
    for at in range(KILLS):
        tree = asyncio.run(chain("press {}", a_move(), "press {}", "stop {}"))
        folder = tmp_path / f"{at}"
        folder.mkdir()
        ledger, path = folder / "ledger", folder / "journal"
        deaths += killed_commit(tree, 4, ledger, path, at)
        before, journal = pressed(ledger), FileJournal(path)
        sent = [e.node for e in journal.entries() if e.state is JournalState.DISPATCHED]
        done = [e.node for e in journal.entries() if e.state is JournalState.DONE]
        result = asyncio.run(commit(tree, 4, live(ledger), approve=yes, journal=journal))
        assert [entry.node for entry in result.in_doubt] == sent, at
        assert {str(tree.key(i)) for i in (*sent, *done)} >= set(before), at
        if sent or done:
            assert pressed(ledger) == before, at
            assert result.next is (Next.SETTLE if sent else Next.CONTINUE)
            assert tree.status[(sent or done)[0]] is (NodeStatus.IN_DOUBT if sent else NodeStatus.COMMITTED)
        else:
            assert before == [] and result.next is Next.DONE
        assert len(set(pressed(ledger))) == len(pressed(ledger)), at
        doubts += bool(sent)
    assert deaths == KILLS and doubts >= 5


async def test_recover_reports_the_doubts_of_the_whole_journal(ledger: Path, journal: FileJournal) -> None:
    one = await journal.intent("t1", 3, 0, "[]")
    two = await journal.intent("t2", 4, 0, "[]")
    await journal.dispatched(two)
    assert [entry.tree_id for entry in await recover(journal)] == ["t2"]
    assert states(journal) == [JournalState.FAILED, JournalState.IN_DOUBT]
    assert [entry.id for entry in await recover(journal)] == [two] and one == 1


# -- with the store, and going on -----------------------------------------------------------------------------------


async def test_the_journal_of_the_store_gives_a_loaded_tree_its_statuses(tmp_path: Path, ledger: Path) -> None:
    with TreeStore.open(tmp_path / "trees.db") as store:
        tree = await chain(a_move(), "press {}", env=Live(ledger), store=store)
        result = await commit(tree, 2, live(ledger), approve=yes, journal=store.journal)
        assert result.committed == (2,)
    with TreeStore.open(tmp_path / "trees.db") as store:
        loaded = store.load(tree.tree_id)
        assert await recover(store.journal, loaded) == ()
        assert (
            loaded.status[2] is NodeStatus.COMMITTED and not_none(loaded.observation[2]).text == result.observation.text
        )
        again = await commit(loaded, 2, live(ledger), approve=yes, journal=store.journal)
        assert again.next is Next.CONTINUE and len(pressed(ledger)) == 1


async def test_search_goes_on_from_the_state_after_the_commit_in_a_linked_tree(
    ledger: Path, journal: FileJournal
) -> None:
    tree, leaf = await grown(ledger, a_move(), "press {}")

    async def opened() -> Live:
        return Live(ledger)

    result = await commit(tree, leaf, Pool(opened), approve=yes, journal=journal)
    assert result.task.horizon == TASK.horizon - 2
    following = await search(
        result.task, Pool(continue_from(opened, result)), ScriptedPolicy(lambda *_: "stop {}"),
        settings=Settings(attempt=1), continues=result.continues,
    )  # fmt: skip
    assert following.header.continues == (tree.tree_id, leaf)
    assert following.tree_id != tree.tree_id
    assert following.observation[0] == result.observation
    assert len(pressed(ledger)) == 1


async def test_after_two_commits_the_way_back_leads_past_the_first_ones_state(
    ledger: Path, journal: FileJournal
) -> None:
    """In a shared world that state no longer exists: whoever went there on the way would never arrive."""
    restored = []

    class Shared(Live):
        async def restore(self, snapshot: Snapshot) -> Observation:
            restored.append(snapshot)
            return await super().restore(snapshot)

    async def opened() -> Any:
        return Shared(ledger)

    pool, task, results = Pool(opened), TASK, []
    for attempt in range(2):
        tree = await search(task, pool, ScriptedPolicy(lambda *_: "press {}"), settings=Settings(attempt=attempt))
        results.append(await commit(tree, 1, pool, approve=yes, journal=journal))
        task, pool = results[-1].task, Pool(continue_from(pool.open, results[-1]))
    restored.clear()
    last = await search(task, pool, ScriptedPolicy(lambda *_: "stop {}"), settings=Settings(attempt=2))
    assert len(pressed(ledger)) == 2 and last.observation[0] == results[1].observation
    assert {s.fingerprint for s in restored} == {not_none(results[1].snapshot).fingerprint}
    assert not_none(results[0].snapshot).fingerprint != not_none(results[1].snapshot).fingerprint
