"""Trees that come as columns are the trees that would have been grown."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from not_none import not_none
from stored_columns import columns_of, header_of

from treewright.envs.types import Action
from treewright.search.store import Redactor, StoreError, TreeStore, bulk
from treewright.search.store.bulk import load_trees


def test_columns_come_back_as_a_whole_tree(store_url: str) -> None:
    headers = [header_of("a"), header_of("b")]
    assert load_trees(store_url, [(h, columns_of()) for h in headers]) == 10
    with TreeStore.open(store_url) as store:
        assert store.check() == []
        assert [(row.status, row.nodes) for row in store.trees()] == [("interrupted", 5)] * 2
        tree = store.load(headers[1].tree_id)
        tree.reveal()
        assert tree.parent == [-1, 0, 0, 1, 1] and tree.share == [1.0, 0.75, 0.25, 0.5, 0.5]
        assert tree.ids == [(), (0, 1, 2), (), (3, 4), (5, 6, 7, 8)] and tree.logprobs[3] == (-0.375, -0.5)
        assert tree.text[1:] == ["go", "né", "stop", "go on"] and tree.action[1] == Action.of("go", to=1)
        assert [s.value for s in tree.status] == ["expanded", "expanded", "draft", "terminal", "open"]
        assert tree.rewards()[3:].tolist() == [1.0, 0.5] and not_none(tree.observation[3]).text == "done"
        arrays = store.arrays([headers[1].tree_id])
        assert arrays["n_tokens"].tolist() == [0, 3, 0, 2, 4] and math.isnan(arrays["reward"][2])


def test_many_trees_are_summed_up_by_a_process_and_are_whole(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ROWS_PER_TRANSACTION", 1)
    load_trees(store_url, [(header_of(f"t{i}"), columns_of()) for i in range(5)])
    with TreeStore.open(store_url, read_only=True) as store:
        assert store.check() == [] and len(store.trees()) == 5


def test_columns_that_do_not_fit_are_refused_by_name(store_url: str) -> None:
    with pytest.raises(StoreError, match="column seed has 3 entries, parent has 4"):
        columns_of(seed=np.arange(3))
    with pytest.raises(StoreError, match="older than their children"):
        columns_of(parent=np.array([0, 2, 2, 3]))
    with pytest.raises(StoreError, match="add up to 9 tokens; ids has 2"):
        columns_of(ids=np.arange(2))
    load_trees(store_url, [(header_of("a"), columns_of())])
    with pytest.raises(StoreError, match="already"):
        load_trees(store_url, [(header_of("a"), columns_of())])


def test_secrets_in_columns_are_redacted(store_url: str) -> None:
    told = columns_of(text=["say hunter2-hunter2", "b", "c", "d"])
    load_trees(store_url, [(header_of("a"), told)], Redactor(["hunter2-hunter2"]))
    with TreeStore.open(store_url, read_only=True) as store:
        assert store.load(header_of("a").tree_id).text[1] == "say [redacted]"
        assert store.check() == []


def test_nothing_is_loaded_while_another_process_writes(store_url: str) -> None:
    with TreeStore.open(store_url), pytest.raises(StoreError, match="is being written by"):
        load_trees(store_url, [(header_of("a"), columns_of())])


def test_the_benchmark_measures_what_it_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from treewright.benchmarks import store_load as bench

    monkeypatch.delenv(bench.POSTGRES, raising=False)
    monkeypatch.setattr(bench, "LOOKUPS", 50)
    monkeypatch.setattr(bench, "TREE", 40)
    monkeypatch.setattr(bench, "_apart", lambda *asked: {"seconds": 1.0, "resident_mb": 1.0})
    assert bench._measure(str(tmp_path / "t.db"), 200)["arrays_nodes"] == (200.0, "nodes")
    bench._gate(tmp_path / "gate.db")


def test_every_way_into_a_store_leaves_the_same_trees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_database: Callable[[], str]
) -> None:
    from treewright.benchmarks import store_load, store_ways

    monkeypatch.setattr(store_load, "TREE", 30)
    places = [str(tmp_path / name) for name in ("loaded", "appended")]
    for place in places:
        Path(place).mkdir()
    loaded, appended = store_ways.load(places[0], 30), store_ways.append(places[1], 30)
    database = store_ways.load(new_database(), 30)
    assert loaded.digest == appended.digest == database.digest and loaded.seconds > 0
    assert store_ways.arrays(places[1] + "/..", 30).digest == store_ways.arrays(new_database(), 30).digest
