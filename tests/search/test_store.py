"""What a store promises to those who use it in one process."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from databases import execute
from not_none import not_none
from sqlalchemy import Connection, Engine, event

from treewright.envs.types import Action, Effect, Observation, Task
from treewright.search.store import JournalState, Redactor, StoreError, TreeStore
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

NORMAL, FULL = 1, 2  # PRAGMA synchronous


def header_of(name: str = "t1", **changes: Any) -> TreeHeader:
    root = Outcome(Observation("the root", "f0"), NodeStatus.OPEN, delta=(1, 2))
    values = {"run": "r", "task": Task("kg", name, "find it"), "attempt": 0, "seed": 1, "policy_version": "v1"}
    return TreeHeader(**(values | {"settings": {"width": 4}, "root": root} | changes))  # type: ignore[arg-type]


def draft(slot: int, text: str = "go", seen: str | None = "a page", reward: float = 0.0, after: int = 0) -> Draft:
    outcome = None if seen is None else Outcome(Observation(seen, "f"), NodeStatus.OPEN, reward=reward, steps=1)
    done = Completion(text, (5, 6, 7), (-0.5, -0.25, -1.0), policy_version="v1")
    return Draft(
        after=after,
        slot=slot,
        mult=1,
        share=0.5,
        seed=slot + 10,
        completion=done,
        action=Action.of("go", to=text),
        outcome=outcome,
    )


def pop(seq: int, node: int, *drafts: Draft, outcome: Outcome | None = None) -> Expansion:
    return Expansion(
        seq=seq,
        node=node,
        closing=False,
        drawn=len(drafts),
        outcome=outcome,
        drafts=drafts,
        spent=Spent(
            expansions=1,
            policy_tokens=6,
            judge_tokens=0,
            env_steps=2,
            seconds=0.5,
            money=0.0,
            closing_tokens=0,
            closing_steps=0,
        ),
    )


async def grow(store: TreeStore, header: TreeHeader, expansions: list[Expansion]) -> Tree:
    tree = Tree.start(header)
    await store.create(header)
    for expansion in expansions:
        await store.append(header.tree_id, expansion, len(tree))
        tree.apply(expansion)
    return tree


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "trees.db"


async def test_a_finished_tree_comes_back_unsealed_with_its_choice_and_late_statuses(store_url: str) -> None:
    won = Outcome(Observation("done", "f9"), NodeStatus.TERMINAL, reward=1.0)
    with TreeStore.open(store_url) as store:
        tree = await grow(store, header_of(), [pop(0, 0, draft(0), draft(1, seen=None)), pop(1, 2, outcome=won)])
        tree.chosen, tree.stopped_by = 2, "solved"
        tree.status[1], tree.keep_prob[1], tree.kept[1] = NodeStatus.PRUNED, 0.25, False
        tree.inexact("pruned by hand")
        await store.finish(tree)
        again = store.load(tree.tree_id)
        assert again.digest() == tree.digest() and again.revealed
        assert (again.chosen, again.stopped_by, again.reasons) == (2, "solved", ["pruned by hand"])
        assert again.kept == tree.kept and again.rewards().tolist()[2] == 1.0
        (row,) = store.trees(run="r", suite="kg", split="train", success=True, policy_version="v1", status="done")
        assert (row.nodes, row.outcome, row.exact, row.spent) == (3, 1.0, False, tree.spent)
        assert store.trees(success=False) == []
        assert store.arrays([tree.tree_id])["keep_prob"].tolist() == [1.0, 0.25, 1.0]
        with pytest.raises(StoreError, match="done and cannot grow"):
            await store.append(tree.tree_id, pop(2, 1), 3)


async def test_a_resumed_search_goes_on_where_it_was_acknowledged(store_url: str) -> None:
    first, second = pop(0, 0, draft(0), draft(1)), pop(1, 1, draft(0))
    with TreeStore.open(store_url) as store:
        await grow(store, header_of(), [first])
        await store.interrupt(header_of().tree_id)
        assert [row.status for row in store.trees()] == ["interrupted"]
        assert store.status(header_of().tree_id) == "interrupted"
    with TreeStore.open(store_url) as store:
        tree = store.load(header_of().tree_id)
        await store.append(tree.tree_id, second, len(tree))
        tree.apply(second)
        (row,) = store.trees()
        assert (row.status, row.nodes, row.spent.expansions) == ("running", 4, 2)
        assert store.load(tree.tree_id).digest() == tree.digest()
    with TreeStore.open(store_url) as store:
        assert [row.status for row in store.trees()] == ["interrupted"]


async def test_an_expansion_out_of_order_is_refused_and_harms_nothing_else(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        tree = await grow(store, header_of(), [pop(0, 0, draft(0))])
        other = await grow(store, header_of("t2"), [])
        wrong = [
            store.append_nowait(tree.tree_id, pop(2, 0), 2),
            store.append_nowait(tree.tree_id, pop(1, 0), 5),
            store.append_nowait(tree.tree_id, pop(1, 0, draft(2**70)), 2),
            store.append_nowait("00" * 16, pop(0, 0), 1),
            store.create(header_of()),
            store.finish(Tree.start(header_of())),
        ]
        good = store.append_nowait(other.tree_id, pop(0, 0, draft(0)), 1)
        results = await asyncio.gather(*wrong, good, return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results[:-1]) and results[-1] is None
        assert "expansion 1 with first node 2 comes next" in str(results[0])
        assert "is in" in str(results[4]) and "append every expansion" in str(results[5])
        assert len(store.expansions(other.tree_id)) == 1 and store.check() == []
        with pytest.raises(StoreError, match="comes next"):
            await store.flush()
        await store.flush()


async def test_an_acknowledged_expansion_is_seen_by_a_reader_at_once(store_url: str) -> None:
    with TreeStore.open(store_url) as store, TreeStore.open(store_url, read_only=True) as reader:
        tree = await grow(store, header_of(), [pop(0, 0, draft(0))])
        for seq in range(1, 6):
            await store.append(tree.tree_id, pop(seq, 0, draft(0)), seq + 1)
            assert len(reader.expansions(tree.tree_id)) == seq + 1
        with pytest.raises(StoreError, match="opened read-only"):
            await reader.append(tree.tree_id, pop(6, 0), 7)


async def test_waiting_expansions_share_transactions_and_only_the_journal_is_forced_to_disk(path: Path) -> None:
    levels = []

    def note(connection: Connection) -> None:
        levels.append(connection.connection.cursor().execute("PRAGMA synchronous").fetchone()[0])

    with TreeStore.open(path) as store:
        tree = await grow(store, header_of(), [])
        event.listen(Engine, "commit", note)
        try:
            futures = [store.append_nowait(tree.tree_id, pop(i, 0, draft(0)), i + 1) for i in range(300)]
            await store.flush()
            assert all(future.done() for future in futures)
            assert 5 <= len(levels) < 100 and set(levels) == {NORMAL}
            levels.clear()
            await store.journal.dispatched(await store.journal.intent(tree.tree_id, 1, 0, "[]"))
            assert levels == [FULL, FULL]
        finally:
            event.remove(Engine, "commit", note)


async def test_many_clients_share_one_writer_and_every_wait_ends(store_url: str) -> None:
    async def client(name: str) -> str:
        tree = await grow(store, header_of(name), [pop(i, 0, draft(0), draft(1)) for i in range(40)])
        return tree.digest()

    with TreeStore.open(store_url) as store:
        digests = await asyncio.gather(*(client(f"t{i}") for i in range(8)))
        assert [store.load(row.tree_id).digest() for row in store.trees()] == digests
        assert store.check() == []


async def test_texts_are_kept_once(path: Path) -> None:
    with TreeStore.open(path) as store:
        page = "the same long page " * 500
        await grow(store, header_of(), [pop(i, 0, *(draft(j, seen=page) for j in range(4))) for i in range(50)])
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM blobs").fetchone()[0] == 4  # page, root, task, settings
    used, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    assert used * size < 600_000


def test_a_second_writer_is_refused_with_the_pid_of_the_first(path: Path) -> None:
    with TreeStore.open(path):
        with pytest.raises(StoreError, match="read_only=True"):
            TreeStore.open(path)
        code = f"from treewright.search.store import TreeStore; TreeStore.open({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"is being written by process {os.getpid()};" in other.stderr
    TreeStore.open(path).close()


def test_files_that_are_no_store_or_are_too_new_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello, this is not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        TreeStore.open(tmp_path / "text.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE songs (name)")
    other.close()
    with pytest.raises(StoreError, match="not a store of trees"):
        TreeStore.open(tmp_path / "other.db")
    with pytest.raises(StoreError, match="there is no store"):
        TreeStore.open(tmp_path / "none.db", read_only=True)
    begun = sqlite3.connect(tmp_path / "begun.db")  # what a process leaves that is killed before its first transaction
    begun.execute("PRAGMA journal_mode=WAL")
    begun.close()
    with pytest.raises(StoreError, match="is empty: what began it ended before its first tree; type that line again"):
        TreeStore.open(tmp_path / "begun.db", read_only=True)
    TreeStore.open(tmp_path / "begun.db").close()
    with pytest.raises(StoreError, match="kept in SQLite"):
        TreeStore.open("mysql://user:pw@host/db")
    TreeStore.open(tmp_path / "new.db").close()
    new = sqlite3.connect(tmp_path / "new.db")
    new.execute("PRAGMA user_version=7")
    new.execute("UPDATE meta SET value='9.1.0' WHERE name='treewright'")
    new.commit()
    new.close()
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"schema 7, written by treewright 9\.1\.0.*pip install 'treewright>=9"):
            TreeStore.open(tmp_path / "new.db", read_only=read_only)


DAMAGES = {
    "UPDATE blobs SET data = '00' WHERE codec = 'zlib'": "blob [0-9a-f]{32} is damaged",
    "UPDATE blobs SET data = 'xx' WHERE codec = 'raw'": "blob [0-9a-f]{32} is damaged",
    "UPDATE nodes SET text = 'other' WHERE id = 2": "expansion 0 is damaged",
    "UPDATE nodes SET share = 0.75 WHERE id = 3": "expansion 1 is damaged",
    "UPDATE nodes SET reward = 1.0 WHERE id = 1": "expansion 0 is damaged",
    "UPDATE expansions SET drawn = 9 WHERE seq = 1": "expansion 1 is damaged",
    "DELETE FROM nodes WHERE id = 3": "expansion 1 is damaged",
    "DELETE FROM expansions WHERE seq = 0": "expansion 0 is damaged",
    "UPDATE nodes SET reward = 1.0 WHERE id = 0": "header or root is damaged",
    "UPDATE trees SET seed = 5": "header or root is damaged",
    "UPDATE nodes SET n_tokens = 9 WHERE id = 2": "node 2 has another number of tokens",
}


@pytest.mark.parametrize(("statement", "message"), DAMAGES.items())
async def test_damage_is_named_by_check_and_never_loaded(store_url: str, statement: str, message: str) -> None:
    with TreeStore.open(store_url) as store:
        page = "page " * 100
        tree = await grow(store, header_of(), [pop(0, 0, draft(0, seen=page), draft(1)), pop(1, 1, draft(0))])
    execute(store_url, statement)
    with TreeStore.open(store_url, read_only=True) as store:
        if "n_tokens" not in statement:  # derived: not a part of the tree
            with pytest.raises(StoreError, match=message):
                store.load(tree.tree_id)
        report = "\n".join(store.check())
        assert re.search(message, report)


async def leaks(path: Path, secret: str, redact: Redactor) -> list[bytes]:
    """Puts a secret, plain and encoded, into every text of a tree and returns what of it can be found again."""
    raw = secret.encode()
    forms = [secret, quote(raw, safe=""), raw.hex(), json.dumps(secret)[1:-1], html.escape(secret)]
    forms += [encode(raw).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    inside = [base64.b64encode(b"user:" + b"x" * shift + raw + b"!").decode() for shift in range(3)]
    said = " | ".join([*forms, *inside])
    seen = Observation(said, provenance=said, parts=({"type": "text", "text": said, "raw": said.encode()},))
    won = Outcome(seen, NodeStatus.OPEN, error=said, fault=said)
    done = Completion(said, (1,), (-1.0,), finish_reason=said)
    told = Draft(
        after=0,
        slot=0,
        mult=1,
        share=1.0,
        seed=0,
        completion=done,
        action=Action.of("log_in", password=said, deep=[{said: said}]),
        error=said,
        outcome=won,
    )
    task = Task("kg", "t", said, data={"a": said}, truth={said: 1})
    header = header_of(task=task, settings={"key": said}, root=won)
    with TreeStore.open(path, redact=redact) as store:
        tree = await grow(store, header, [pop(0, 0, told)])
        tree.stopped_by = said
        tree.inexact(said)
        entry = await store.journal.intent(header.tree_id, 1, 0, not_none(told.action).key)
        await store.journal.dispatched(entry)
        await store.journal.outcome(entry, JournalState.DONE, seen)
        await store.finish(tree)
        assert store.check() == []
        back = store.load(header.tree_id)
        texts = [back.observation[1], back.action[1], store.header(header.tree_id), store.journal.entries()]
    # Blobs are compressed in the file: what can be read out of them is searched as well.
    kept = b"".join(file.read_bytes() for file in path.parent.iterdir()) + repr(texts).encode()
    return [form for form in (*(f.encode() for f in forms), *(f[12:-4].encode() for f in inside)) if form in kept]


async def test_secrets_of_the_environment_never_reach_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-α/9+x&y<zQWERTY"
    monkeypatch.setenv("SOME_API_KEY", secret)
    assert await leaks(path, secret, Redactor()) == []
    assert len(await leaks(path.parent.parent / "open" / "t.db", secret, Redactor([]))) == 10


async def test_a_secret_in_the_name_of_a_run_is_refused(store_url: str) -> None:
    with TreeStore.open(store_url, redact=Redactor(["hunter2-hunter2"])) as store:
        header = header_of(run="run of hunter2-hunter2")
        with pytest.raises(StoreError, match="holds a secret"):
            await store.create(header)
        assert store.status(header.tree_id) is None


def test_only_secret_looking_names_with_long_values_count_as_secrets() -> None:
    environ = {
        "HOME": "/home/someone",
        "MY_TOKEN": "abcdefgh-1",
        "API_KEY": "short",
        "TOKENIZERS_PARALLELISM": "whatever",
    }
    redact = Redactor(environ=environ)
    assert redact.text("a abcdefgh-1 short /home/someone whatever") == "a [redacted] short /home/someone whatever"


async def test_the_journal_keeps_each_step_and_refuses_impossible_ones(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        tree = await grow(store, header_of(), [pop(0, 0, draft(0))])
        journal = store.journal
        buy = Action.of("buy", item="é").key
        first, second = await journal.intent(tree.tree_id, 1, 0, buy), await journal.intent(tree.tree_id, 1, 1, buy)
        with pytest.raises(StoreError, match="is intent, it cannot become done"):
            await journal.outcome(first, JournalState.DONE)
        await journal.dispatched(first)
        with pytest.raises(StoreError, match="cannot become dispatched"):
            await journal.dispatched(first)
        await journal.dispatched(second)
        await journal.outcome(second, JournalState.IN_DOUBT)
        assert [(e.id, e.state) for e in journal.pending(tree.tree_id)] == [(first, "dispatched"), (second, "in_doubt")]
        seen = Observation("bought", "f", provenance="tool")
        await journal.outcome(first, JournalState.DONE, seen)
        await journal.outcome(second, JournalState.FAILED)
        assert journal.pending() == []
        entry = journal.entries(tree.tree_id)[0]
        assert (entry.node, entry.call, entry.action_key, entry.observation) == (1, 0, buy, seen)
        with pytest.raises(StoreError, match="does not exist"):
            await journal.dispatched(99)
        with pytest.raises(StoreError, match="not in this store"):
            await journal.intent("00" * 16, 1, 0, buy)


async def test_arrays_of_several_trees_stand_one_after_the_other(store_url: str) -> None:
    with TreeStore.open(store_url) as store:
        ids = []
        for name in ("a", "b"):
            tree = await grow(store, header_of(name), [pop(0, 0, draft(0), draft(1, seen=None))])
            ids.append(tree.tree_id)
        columns = store.arrays(ids)
        assert columns["tree"].tolist() == [0, 0, 0, 1, 1, 1]
        assert columns["parent"].tolist() == [-1, 0, 0] * 2
        assert columns["drawn"].tolist() == [2, 0, 0] * 2
        assert [math.isnan(r) for r in columns["reward"]] == [False, False, True] * 2
        assert all(len(column) == 0 for column in store.arrays([]).values())
        with pytest.raises(StoreError, match="not in this store"):
            store.arrays(["00" * 16])


async def test_a_closed_store_refuses_new_work_and_keeps_queued_work(store_url: str) -> None:
    store = TreeStore.open(store_url)
    await grow(store, header_of(), [])
    for seq in range(100):
        store.append_nowait(header_of().tree_id, pop(seq, 0, draft(0)), seq + 1)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        await store.flush()
    with TreeStore.open(store_url, read_only=True) as reader:
        assert len(reader.load(header_of().tree_id)) == 101


async def test_effects_before_and_after_executing_are_both_kept(store_url: str) -> None:
    seen = Outcome(Observation("x"), NodeStatus.OPEN, effect=Effect.REVERSIBLE)
    made = Draft(
        after=0,
        slot=0,
        mult=1,
        share=1.0,
        seed=3,
        completion=Completion("x"),
        action=None,
        error="no call found",
        effect=Effect.UNKNOWN,
        score=math.nan,
        outcome=seen,
    )
    with TreeStore.open(store_url) as store:
        await grow(store, header_of(), [pop(0, 0, made)])
        (back,) = store.expansions(header_of().tree_id)
        assert (back.drafts[0].effect, back.drafts[0].outcome) == (Effect.UNKNOWN, seen)
