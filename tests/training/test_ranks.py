"""Two processes train as one: equal gradients, nothing from bad numbers, checkpoints for any number of ranks."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from not_none import not_none
from ranks_child import FEW, Two, together
from search_trees import random_tree, tiny_model

from treewright.envs.errors import TreewrightError
from treewright.training import checkpoint
from treewright.training.manifest import complete
from treewright.training.parallel.launched import launched
from treewright.training.settings import TrainSettings
from treewright.training.step import Trainer


def told(folder: Path, name: str = "out.json") -> Any:
    return json.loads((folder / name).read_text())


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    together("gradients", tmp_path)
    found = told(tmp_path)
    assert len(found) == 9
    for name, one in found.items():
        assert one["gap"] <= 1e-9, name
        assert one["steps"][0] == one["steps"][1] > 0
        assert one["loss"][0] == pytest.approx(one["loss"][1], rel=1e-9), name
        assert one["norm"][0] == pytest.approx(one["norm"][1], rel=1e-9), name
        many, alone = one["routing"]
        assert many == pytest.approx(alone, rel=1e-9) if name.startswith("gpt") else many == alone == [None, None], name
        freed, packs = one["freed"]
        assert packs > one["steps"][0] and freed == (one["steps"][0] if one["whole"] else packs), name
        assert one["at rest"], f"{name}: neither the model nor its reference stays gathered after an update"


def test_what_is_not_finite_on_one_rank_changes_no_weight_on_any(tmp_path: Path) -> None:
    together("poisoned", tmp_path)
    found = told(tmp_path)
    assert found.pop("fresh")["same"], "the good update is that of a trainer which refused nothing"
    for name, one in found.items():
        if name.startswith("-1"):
            assert one["said"] == "trained" and not one["same"] and one["steps"] == 2
        else:
            assert "not finite" in one["said"] and one["same"] and one["steps"] == 0, name


def test_checkpoints_go_from_two_processes_to_one_and_from_one_to_two(tmp_path: Path) -> None:
    together("saving", tmp_path)
    (saved,) = complete(tmp_path / "two")
    full = told(tmp_path, "after.json")
    assert "not saved" in full["said"] and "make room and type the same line again" in full["said"]
    assert full["left"] == [saved.path.name] and full["again"] == 2, "the last good one stays, and the ranks go on"
    through = full["streamed"]
    assert through["same"] and through["again"] and through["begun"] == 3, "weights one by one, as they are in files"
    assert through["most"] < 0.9, "they are never whole together"
    assert sorted(p.name for p in (saved.path / "state").iterdir())[0].startswith("shard-00001")
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(saved.path, dtype=torch.float32)
    alone = Trainer(tiny_model(2, torch.float32), TrainSettings(lr=0.01), versions=["v1"])
    extra = checkpoint.restore(alone, saved)
    assert extra == {"iteration": 1} and alone.steps == 1 and len(alone.consumed) == 3
    for (name, mine), there in zip(alone.model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, there), name
    not_none(alone.versions)[-1] = "v1"
    alone.update([random_tree(s) for s in range(3, 6)])

    first = Trainer(tiny_model(0, torch.float32), TrainSettings(lr=0.01), versions=["v1"])
    first.update([random_tree(s) for s in range(3)])
    checkpoint.save(first, tmp_path / "one", extra={"iteration": 1})
    written = first.version()
    not_none(first.versions)[-1] = "v1"
    first.update([random_tree(s) for s in range(3, 6)])
    together("resuming", tmp_path)
    found = told(tmp_path, "resumed.json")
    assert found["one"]["restored"] == written and found["one"]["steps"] == found["two"]["steps"] == 2
    for end, weights in ((first, found["one"]["weights"]), (alone, found["two"]["weights"])):
        for name, value in end.model.state_dict().items():
            assert_near(torch.tensor(weights[name]), value, 1e-4)


def test_a_rank_that_is_killed_ends_the_other_with_a_clear_line(tmp_path: Path) -> None:
    for victim in (1, 0):
        folder = tmp_path / str(victim)
        folder.mkdir()
        two = Two("waiting", folder)
        end = time.monotonic() + 120
        while not all((folder / f"pid{r}").exists() for r in (0, 1)):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(not_none(two.ranks[victim].pid), signal.SIGKILL)
        killed = time.monotonic()
        codes = two.join(60)
        assert time.monotonic() - killed < 30
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1
        said = (folder / f"error{1 - victim}").read_text()
        assert said.startswith("RankLost: ") and "goes on from the last" in said


def test_ranks_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("2", "first"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(TreewrightError, match="torchrun"):
            launched()
    monkeypatch.setenv("RANK", "1")
    assert launched() == (1, 2) and FEW
