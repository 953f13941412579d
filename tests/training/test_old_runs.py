"""A checkpoint and trees written by version 0.1.0 train on as they did there."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from not_none import not_none
from search_trees import tiny_model

from treewright.search.store import TreeStore
from treewright.training import checkpoint
from treewright.training.credit import arrays_of, estimate, tree_arrays
from treewright.training.step import Trainer, TrainSettings

OLD = Path(__file__).parents[1] / "data" / "schema2"
MADE = json.loads((OLD / "made.json").read_text())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TreeStore]:
    (tmp_path / "trees.store").write_bytes(gzip.decompress((OLD / "trees.store.gz").read_bytes()))
    with TreeStore.open(tmp_path / "trees.store") as store:
        yield store


def test_an_old_checkpoint_is_restored_and_its_next_update_is_the_one_it_had_then(
    store: TreeStore, tmp_path: Path
) -> None:
    shutil.copytree(OLD / "step-000001", tmp_path / "run" / "step-000001")
    found = checkpoint.latest(tmp_path / "run")
    assert {"step": not_none(found).step, "version": not_none(found).version} == MADE["checkpoint"]
    trees = [store.load(name) for name in MADE["run"]]
    trainer = Trainer(tiny_model(9), TrainSettings(lr=1e-2, minibatches=1))
    checkpoint.restore(trainer, not_none(found))
    assert trainer.consumed == {(tree.tree_id, "v1") for tree in trees[:3]}
    trainer.versions = None
    stats = trainer.update(trees)
    for name, value in MADE["next"].items():
        assert stats[name] == pytest.approx(value, rel=1e-6), name
    weights = sum(p.detach().abs().sum().item() for p in trainer.model.parameters())
    assert weights == pytest.approx(MADE["weights"], rel=1e-9)


def test_estimators_take_the_columns_of_a_store_as_they_are(store: TreeStore) -> None:
    names = [*MADE["run"], *MADE["done"]]
    columns = store.arrays(names)
    trees = tree_arrays([store.load(name) for name in names])
    found = arrays_of(columns)
    for name in (n for n in trees.__slots__ if n not in ("reasons", "more")):
        np.testing.assert_array_equal(getattr(found, name), getattr(trees, name), err_msg=name)
    assert found.reasons == trees.reasons and found.more.keys() == trees.more.keys()
    for name, column in trees.more.items():
        np.testing.assert_array_equal(found.more[name], column, err_msg=name)
    for estimator in ("split_loo", "gigpo", "treerl"):
        credit = estimate(estimator, columns)
        np.testing.assert_array_equal(credit.coef, estimate(estimator, trees).coef)
        assert np.any(credit.coef != 0)


def test_the_trees_of_an_interrupted_search_are_inexact_for_estimators(store: TreeStore) -> None:
    (name,) = MADE["cut"]
    assert "the tree is not finished" in arrays_of(store.arrays([name])).reasons[0]


def test_a_pack_has_one_plan_however_often_it_is_run(store: TreeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.kernels.tree_plan import TreePlan

    made = []
    plain: Any = TreePlan.from_parents.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, parent: Any) -> Any:
        made.append(len(parent))
        return plain(cls, parent)

    monkeypatch.setattr(TreePlan, "from_parents", classmethod(counted))
    torch.set_num_threads(1)
    trainer = Trainer(tiny_model(1), TrainSettings(lr=1e-3, minibatches=2, max_tokens=100, kl_coef=0.1))
    stats = trainer.update([store.load(name) for name in MADE["run"]])
    assert sum(made) == stats["tokens"] and len(made) > 1
