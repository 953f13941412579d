"""Stores are merged, repaired, compacted and emptied without a tree being changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from databases import execute

from treewright.envs.types import Action, Observation, Task
from treewright.search.store import JournalState, StoreError, TreeStore
from treewright.search.store.copying import merge, repair
from treewright.search.store.sqlite import PAGE_BYTES
from treewright.search.store.upkeep import compact, delete_trees, stats
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent


def header_of(name: str, run: str = "r") -> TreeHeader:
    root = Outcome(Observation(f"root of {name} " * 20), NodeStatus.OPEN)
    return TreeHeader(
        run=run,
        task=Task("kg", name, "g", data={"picture": b"\x89PNG" + name.encode()}),
        attempt=0,
        seed=1,
        policy_version="v1",
        settings={},
        root=root,
    )


def pop(name: str, seq: int) -> Expansion:
    parts = ({"type": "image", "png": f"{name} {seq}".encode() * 30},)
    seen = Outcome(Observation(f"page {seq} of {name} " * 30, "f", parts=parts), NodeStatus.OPEN)
    done = Completion("go", (1, 2, 3), (-1.0, -0.5, -0.1), policy_version="v1")
    drafts = tuple(
        Draft(after=0, slot=i, mult=1, share=0.5, seed=seq, completion=done, action=Action.of("go", to=i), outcome=seen)
        for i in range(2)
    )
    return Expansion(
        seq=seq,
        node=0,
        closing=False,
        drawn=2,
        outcome=None,
        drafts=drafts,
        spent=Spent(expansions=1, policy_tokens=6, judge_tokens=0, env_steps=2),
    )


async def grow(store: TreeStore, name: str, pops: int, run: str = "r", done: bool = True) -> tuple[str, str]:
    tree = Tree.start(header_of(name, run))
    known = 0
    if store.status(tree.tree_id):
        known = len(store.expansions(tree.tree_id))
    else:
        store.create(tree.header)
    for seq in range(pops):
        if seq >= known:
            await store.append(tree.tree_id, pop(name, seq), len(tree))
        tree.apply(pop(name, seq))
    if done:
        tree.chosen = 1
        await store.finish(tree)
    return tree.tree_id, tree.digest()


async def filled(url: Any, names: str = "abc", **more: Any) -> dict[str, Any]:
    with TreeStore.open(url) as store:
        return dict([await grow(store, name, 3, **more) for name in names])


def digests(url: Any) -> dict[str, Any]:
    with TreeStore.open(url, read_only=True) as store:
        assert store.check() == []
        return {row.tree_id: store.load(row.tree_id).digest() for row in store.trees()}


async def test_a_merge_brings_every_tree_once_whatever_database_it_is_in(
    tmp_path: Path, store_url: str, new_database: Callable[[], str]
) -> None:
    here, there = tmp_path / "here.db", new_database()
    expected = await filled(store_url, "ab") | await filled(here, "bc") | await filled(there, "cd")
    assert [one.how for one in merge(store_url, [here, there])] == ["present", "copied", "present", "copied"]
    assert digests(store_url) == expected and len(expected) == 4
    assert [one.how for one in merge(store_url, [there])] == ["present", "present"]
    with pytest.raises(StoreError, match="cannot be copied into itself"):
        list(merge(store_url, [store_url]))


async def test_a_tree_that_went_on_elsewhere_is_extended_and_another_one_is_left_alone(
    tmp_path: Path, store_url: str
) -> None:
    other = tmp_path / "other.db"
    with TreeStore.open(store_url) as store:
        await grow(store, "a", 1, done=False)
        await grow(store, "b", 2, done=False)
    with TreeStore.open(other) as store:
        longer = await grow(store, "a", 3)
        await store.create(header_of("b"))
        await store.append(header_of("b").tree_id, pop("something else", 0), 1)
    extended, differs = merge(store_url, [other])
    assert (extended.how, extended.expansions) == ("extended", 3)
    assert (differs.how, differs.why) == ("differs", "the target has another tree of this name")
    assert digests(store_url)[longer[0]] == longer[1]
    with TreeStore.open(store_url, read_only=True) as store:
        assert [row.status for row in store.trees()] == ["done", "interrupted"]


DAMAGES = {
    "UPDATE nodes SET text = 'x' WHERE tree = 2 AND id = 3": ("cut", 1),
    "UPDATE trees SET seed = 9 WHERE key = 2": ("lost", 0),
    "DELETE FROM expansions WHERE tree = 2 AND seq = 2": ("cut", 2),
    "UPDATE trees SET chosen = 99 WHERE key = 2": ("cut", 3),
}


@pytest.mark.parametrize(("statement", "found"), DAMAGES.items())
async def test_a_repair_keeps_everything_before_the_damage(
    tmp_path: Path, store_url: str, statement: str, found: tuple[str, int]
) -> None:
    before = await filled(store_url)
    execute(store_url, statement)
    new = tmp_path / "new.db"
    first, damaged, last = repair(store_url, new)
    assert (first.how, last.how) == ("copied", "copied") and (damaged.how, damaged.expansions) == found and damaged.why
    saved = digests(new)
    assert saved.items() >= {k: v for k, v in before.items() if k != damaged.tree_id}.items()
    if damaged.how == "cut":
        with TreeStore.open(new) as store:
            assert store.status(damaged.tree_id) == "interrupted"
            await grow(store, "b", 3)
        assert digests(new) == before
    with pytest.raises(StoreError, match="has trees already"):
        list(repair(store_url, new))


async def test_a_file_with_broken_pages_gives_the_trees_that_can_be_read(tmp_path: Path) -> None:
    path, new = tmp_path / "t.db", tmp_path / "new.db"
    before = await filled(path, "abcdefgh")
    raw = bytearray(path.read_bytes())
    for page in range(len(raw) // PAGE_BYTES - 4, len(raw) // PAGE_BYTES):
        raw[page * PAGE_BYTES : page * PAGE_BYTES + 4000] = b"\xa5" * 4000
    path.write_bytes(raw)
    done = {one.tree_id: one for one in repair(path, new)}
    saved = digests(new)
    whole = {k: before[k] for k, one in done.items() if one.how == "copied"}
    assert saved.items() >= whole.items() and len(whole) < len(before)
    with TreeStore.open(path, read_only=True) as store:
        assert store.check()


async def test_deleted_trees_free_their_contents_and_doubtful_ones_stay(store_url: str) -> None:
    kept = await filled(store_url, "ab", run="new") | await filled(store_url, "c", run="old")
    with TreeStore.open(store_url) as store:
        doubtful = header_of("d", "old").tree_id
        await grow(store, "d", 1, run="old")
        entry = await store.journal.intent(doubtful, 1, 0, "[]")
        await store.journal.dispatched(entry)
    assert delete_trees(store_url, {"run": "old"}, dry=True)[0] == [header_of("c", "old").tree_id]
    gone, stay = delete_trees(store_url, {"run": "old"})
    assert gone == [header_of("c", "old").tree_id] and list(stay) == [doubtful]
    with TreeStore.open(store_url) as store:
        await store.journal.outcome(entry, JournalState.FAILED)
    assert delete_trees(store_url, {"run": "old"}) == ([doubtful], {})
    before = stats(store_url)
    freed, _, _ = compact(store_url)
    after = stats(store_url)
    assert freed > 0 and before.rows["blobs"] - after.rows["blobs"] == freed and after.rows["trees"] == 2
    assert compact(store_url)[0] == 0
    assert digests(store_url) == {k: v for k, v in kept.items() if k not in gone}
    with pytest.raises(StoreError, match="nothing says which"):
        delete_trees(store_url, {})


async def test_stats_count_what_is_there(store_url: str) -> None:
    await filled(store_url)
    with TreeStore.open(store_url) as store:
        await grow(store, "z", 1, run="other", done=False)
    found = stats(store_url)
    assert found.groups == {("other", "kg", "interrupted"): (1, 0), ("r", "kg", "done"): (3, 0)}
    assert found.rows | {"blobs": 0} == {
        "trees": 4, "expansions": 10, "nodes": 24, "blobs": 0, "journal": 0, "tasks": 0,
    }  # fmt: skip
    assert found.tokens == 60 and found.bytes > found.blob_bytes > 0 and found.pending == 0
