"""Trees that come as columns are the trees that would have been grown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from treewright.envs.types import Action, Observation, Task
from treewright.search.store import Redactor, StoreError, TreeStore, bulk
from treewright.search.store.bulk import Columns, load_trees
from treewright.search.tree import TreeHeader
from treewright.search.types import NodeStatus, Outcome


def header_of(name):
    return TreeHeader(
        run="r",
        task=Task("kg", name, "find"),
        attempt=0,
        seed=1,
        policy_version="v1",
        settings={},
        root=Outcome(Observation("root"), NodeStatus.OPEN),
    )


def columns_of(sizes=(3, 0, 2, 4), **changes):
    n, total = len(sizes), sum(sizes)
    values = {
        "parent": np.array([0, 0, 1, 1][:n]),
        "text": ["go", "né", "stop", "go on"][:n],
        "sizes": np.array(sizes),
        "ids": np.arange(total),
        "logprobs": -np.arange(total, dtype=np.float32) / 8,
        "seed": np.arange(n) + 2**40,
        "mult": np.array([3, 1, 1, 1][:n]),
        "action": [Action.of("go", to=1).key, None, Action.of("stop").key, None][:n],
        "pages": [Observation("a page", "f1"), Observation("done", "f2")],
        "seen": np.array([0, -1, 1, 0][:n]),
        "reward": np.array([0.0, 0.0, 1.0, 0.5][:n]),
        "status": ["open", "open", "terminal", "open"][:n],
    }
    return Columns(**(values | changes))


def test_columns_come_back_as_a_whole_tree(store_url):
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
        assert tree.rewards()[3:].tolist() == [1.0, 0.5] and tree.observation[3].text == "done"
        arrays = store.arrays([headers[1].tree_id])
        assert arrays["n_tokens"].tolist() == [0, 3, 0, 2, 4] and math.isnan(arrays["reward"][2])


def test_many_trees_are_summed_up_by_a_process_and_are_whole(store_url, monkeypatch):
    monkeypatch.setattr(bulk, "ROWS_PER_TRANSACTION", 1)
    load_trees(store_url, [(header_of(f"t{i}"), columns_of()) for i in range(5)])
    with TreeStore.open(store_url, read_only=True) as store:
        assert store.check() == [] and len(store.trees()) == 5


def test_columns_that_do_not_fit_are_refused_by_name(store_url):
    with pytest.raises(StoreError, match="column seed has 3 entries, parent has 4"):
        columns_of(seed=np.arange(3))
    with pytest.raises(StoreError, match="older than their children"):
        columns_of(parent=np.array([0, 2, 2, 3]))
    with pytest.raises(StoreError, match="add up to 9 tokens; ids has 2"):
        columns_of(ids=np.arange(2))
    load_trees(store_url, [(header_of("a"), columns_of())])
    with pytest.raises(StoreError, match="already"):
        load_trees(store_url, [(header_of("a"), columns_of())])


def test_secrets_in_columns_are_redacted(store_url):
    told = columns_of(text=["say hunter2-hunter2", "b", "c", "d"])
    load_trees(store_url, [(header_of("a"), told)], Redactor(["hunter2-hunter2"]))
    with TreeStore.open(store_url, read_only=True) as store:
        assert store.load(header_of("a").tree_id).text[1] == "say [redacted]"
        assert store.check() == []


def test_nothing_is_loaded_while_another_process_writes(store_url):
    with TreeStore.open(store_url), pytest.raises(StoreError, match="is being written by"):
        load_trees(store_url, [(header_of("a"), columns_of())])


def test_the_benchmark_measures_what_it_checked(monkeypatch, tmp_path):
    from treewright.benchmarks import store_load as bench

    monkeypatch.delenv(bench.POSTGRES, raising=False)
    monkeypatch.setattr(bench, "LOOKUPS", 50)
    monkeypatch.setattr(bench, "TREE", 40)
    assert bench._measure(str(tmp_path / "t.db"), 200)["arrays_nodes"] == (200.0, "nodes")
    bench._gate(tmp_path / "gate.db")
