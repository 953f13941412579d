"""An update that is stopped goes on where it was last saved and ends with the same weights, bit for bit."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file
from speed import patient
from typing_lines import environment, next_line, typed

from treewright.agent.config import load_config
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.runs.loop import make_trainer
from treewright.search.store import TreeStore
from treewright.training import checkpoint
from treewright.training.progress import FILE, Progress
from treewright.training.step import Trainer

SMALL = ["--set", "train.max_tokens=300", "--set", "train.save_every=0"]


class Killed(BaseException):
    """As a kill: nothing of the process is used afterwards."""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("grown")
    typed(["collect", "--name", "first", "--suites", "kg", "--tasks", "8", "--set", "search.expansions=6"], home)
    return home / "runs"


@pytest.fixture(scope="module")
def trees(grown: Path) -> list[Any]:
    with TreeStore.open(grown / "first/trees.sqlite", read_only=True) as store:
        return [store.load(row.tree_id) for row in store.trees()]


def trainer_of(folder: Path, **settings: Any) -> tuple[Any, list[Any]]:
    given = {"max_tokens": 300, "minibatches": 2, **settings}
    cfg = load_config(None, [f"train.{name}={value}" for name, value in given.items()])
    told: list[Any]
    trainer, told = make_trainer(cfg, SEEDLING), []
    trainer.progress = Progress(folder, 0.0, told.append)
    return trainer, told


def weights(trainer: Trainer) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("max_kl", [0, 1e-5])
@pytest.mark.parametrize(("minibatches", "stops"), [(1, (2, 4)), (2, (2, 3, 4))])
def test_stopped_after_some_packs_it_equals_an_update_that_was_not(
    trees: list[Any], tmp_path: Path, minibatches: int, stops: tuple[int, ...], max_kl: float
) -> None:
    """Within the packs of one optimizer step, and between two of them; a bound on the step is measured on all of them,
    also on those that were done before the stop."""
    torch.set_num_threads(1)
    given = {"minibatches": minibatches, "max_kl": max_kl}
    alone, _ = trainer_of(tmp_path / "alone", **given)
    alone.progress, seen = None, []
    want = alone.update(trees, lambda done, total: seen.append(done))
    assert seen == list(range(1, len(seen) + 1)) and len(seen) >= 4

    for at in stops:
        trainer, _ = trainer_of(tmp_path, **given)

        def note(done: Any, total: Any, at: int = at) -> None:
            if done == at:  # the one before it was saved
                raise Killed

        with pytest.raises(Killed):
            trainer.update(trees, note)
        assert not list(tmp_path.glob("step-*"))
    trainer, told = trainer_of(tmp_path, **given)
    rest = []
    got = trainer.update(trees, lambda done, total: rest.append(done))
    assert rest == list(range(stops[-1], len(seen) + 1))
    assert told == [f"going on with the update that was stopped: {stops[-1] - 1} packs were done"]
    assert same(weights(alone), weights(trainer)) and trainer.versions == alone.versions
    assert got == pytest.approx(want, nan_ok=True) and trainer.steps == alone.steps
    assert trainer.consumed == alone.consumed and trainer.baselines == alone.baselines
    saved = checkpoint.save(trainer, tmp_path)
    assert checkpoint.latest(tmp_path) == saved and not (tmp_path / FILE).exists()


@pytest.mark.parametrize("change", ["settings", "weights", "damage"])
def test_another_update_never_takes_it_up(trees: list[Any], tmp_path: Path, change: str) -> None:
    def stop(done: Any, total: Any) -> None:
        if done == 3:
            raise Killed

    trainer, _ = trainer_of(tmp_path)
    with pytest.raises(Killed):
        trainer.update(trees, stop)
    assert (tmp_path / FILE).is_file()
    other, told = trainer_of(tmp_path, **({"clip": 0.3} if change == "settings" else {}))
    alone, _ = trainer_of(tmp_path / "alone", **({"clip": 0.3} if change == "settings" else {}))
    if change == "weights":
        for one in (other, alone):
            one.versions[:] = ["others"]
            one.aliases = {trees[0].header.policy_version: "others"}
    if change == "damage":
        (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:1000])
    other.update(trees)
    alone.update(trees)
    assert same(weights(other), weights(alone))
    said = {"damage": ["cannot be read"], "weights": []}.get(change, ["begins anew"])
    assert len(told) == len(said) and all(a in b for a, b in zip(said, told, strict=True))


@pytest.mark.parametrize(
    ("words", "how"),
    [([], signal.SIGINT), (["dpo", "--min-gap", "0.01", "--epochs", "2"], signal.SIGKILL)],
)
def test_a_command_that_is_stopped_in_one_long_update_goes_on_with_the_same_line(
    grown: Path, tmp_path: Path, words: list[str], how: signal.Signals
) -> None:
    for name in ("whole", "stopped"):
        shutil.copytree(grown, tmp_path / name / "runs")
    line = ["train", *words, "--name", "first", *SMALL]
    typed(line, tmp_path / "whole")
    child = forked.Child([forked.COMMAND, *line], tmp_path / "stopped", environment())
    kept, end = tmp_path / "stopped/runs/first/checkpoints" / FILE, time.monotonic() + patient(120)
    while not kept.exists() and time.monotonic() < end and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(how)
    out, _ = child.communicate(timeout=300)
    assert kept.exists(), "the update was over before it was stopped"
    if how is signal.SIGINT:
        assert child.returncode == 130 and "Go on with:" in out and "goes on from where it was last saved" in out
    again = typed(line, tmp_path / "stopped")
    assert "going on with the update that was stopped" in again and next_line(again)[0] == "eval"
    assert not kept.exists()
    states = [load_file(next((tmp_path / n).glob("runs/first/checkpoints/step-*/model.safetensors"))) for n in
              ("whole", "stopped")]  # fmt: skip
    assert same(*states)
