"""A stored tree is taken for a task only where it is one of that very task: the id alone does not say so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from walker import Walker

from treewright.envs import TreewrightError
from treewright.envs.maze import SUITE
from treewright.envs.types import Task
from treewright.search.engine import Settings, search
from treewright.search.offered import differences
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget

TASK = SUITE.tasks("train", 2)[1]
CHANGED: dict[str, dict[str, Any]] = {
    "goal": {"goal": "another goal"},
    "data": {"data": {**TASK.data, "more": 1}},
    "truth": {"truth": {**TASK.truth, "more": 1}},
    "horizon": {"horizon": TASK.horizon + 1},
    "seed": {"seed": TASK.seed + 1},
    "split": {"split": "test"},
}


class Stop(Exception):
    pass


async def grow(store: TreeStore, task: Task = TASK, stop: int = 99, **settings: Any) -> Tree:
    def count(tree: Tree, new: Any) -> None:
        if len(tree.pops) == stop:
            raise Stop

    return await search(
        task, SUITE, Walker(), budget=Budget(expansions=4), settings=Settings(**settings), store=store,
        on_expansion=count,
    )  # fmt: skip


@pytest.mark.parametrize("begun", [2, 99], ids=["interrupted", "finished"])
@pytest.mark.parametrize("what", CHANGED)
async def test_a_tree_of_another_task_is_refused_with_what_differs(tmp_path: Path, what: str, begun: int) -> None:
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        with suppress(Stop):
            await grow(store, stop=begun)
        with pytest.raises(TreewrightError, match=f"maze/{TASK.id} of run 'run' is stored as another task") as told:
            await grow(store, replace(TASK, **CHANGED[what]))
        assert f"its {what} " in str(told.value) and str(told.value).count("its ") == 1
        assert f"treewright store delete {tmp_path}" in str(told.value) and f"task_id={TASK.id}" in str(told.value)
        assert (await grow(store)).task.goal == TASK.goal


async def test_world_and_reward_are_compared_where_both_sides_know_them(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        await grow(store, origin={"world": "m:A", "reward": "m:r"})
        for origin in (None, {"world": "m:A"}, {"world": "m:A", "reward": "m:r", "later": "x"}):
            await grow(store, origin=origin)
        with pytest.raises(TreewrightError, match="its reward was 'm:r' and is 'm:s' now; take"):
            await grow(store, origin={"world": "m:A", "reward": "m:s"})
        old = await grow(store, attempt=1)  # as stores of older versions have it
        assert "origin" not in old.header.settings
        await grow(store, attempt=1, origin={"world": "m:B"})


@pytest.mark.parametrize(
    "data",
    [
        {"pair": (1, 2), "by": {1: "one", 2.5: "more", None: "none"}},
        {"text": "half \ud800, nul \0", "deep": [{"b": 1, "a": [1.0, -0.0, float("inf"), float("nan")]}]},
        {"raw": b"bytes"},
    ],
)
async def test_what_a_store_writes_otherwise_is_the_same_task(tmp_path: Path, data: Mapping[str, Any]) -> None:
    task = replace(TASK, data=data)
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        await grow(store, task)
        assert differences(store.header((await grow(store, task)).tree_id), task, None) == ""


async def test_a_secret_in_a_task_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "very-secret-key-123")
    task = replace(TASK, goal="log in with very-secret-key-123 now", data={"key": "very-secret-key-123", "n": 1})
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        grown = await grow(store, task)
        assert "very-secret" not in store.header(grown.tree_id).task.goal
        await grow(store, task)
        with pytest.raises(TreewrightError, match=r"its goal was .* its data differs"):
            await grow(store, replace(task, goal="log in with very-secret-key-123 then", data={**task.data, "n": 2}))
