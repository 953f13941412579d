"""A loop of two ranks and two collectors: killed at random, it learns what one that is not killed does.

TREEWRIGHT_RANK_KILLS says how often; `make kill-ranks` takes 200.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from ranks_learning import agreeing
from ranks_loop import SETTINGS, alone, curves, sweep
from speed import patient, slowness

from treewright.agent.config import load_config
from treewright.agent.runs.collectors import Crew
from treewright.agent.runs.rounds import untold
from treewright.envs.errors import TreewrightError
from treewright.training.track import read_metrics

KILLS = int(os.environ.get("TREEWRIGHT_RANK_KILLS", "20"))


@pytest.fixture(scope="module")
def whole(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The loop that nobody kills, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return sweep(folder, new_database(), 0, seconds=patient(300)), folder


def test_a_loop_that_is_killed_again_and_again_has_the_losses_of_one_that_is_not(
    new_database: Callable[[], str], tmp_path: Path, whole: tuple[dict[str, Any], Path]
) -> None:
    wanted, folder = whole
    assert sorted(wanted["losses"]) == [1, 2, 3] and len(set(wanted["versions"].values())) == 3 and wanted["begun"] == 1
    deaths: list[str] = []
    while len(deaths) < KILLS:  # one loop, but where it was through before all of them were made
        place = tmp_path / str(len(deaths))
        place.mkdir()
        killed = sweep(
            place, new_database(), KILLS - len(deaths), 8 + len(deaths), seconds=patient(600), slow=slowness()
        )
        deaths += killed["deaths"]
        for key in ("losses", "versions", "successes"):
            assert killed[key] == wanted[key], (key, killed["deaths"])
    assert len(deaths) == KILLS and set(deaths) == {"rank 0", "rank 1", "collector"}
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    assert [row["oldest"] for row in rows] == [0, 1, 1]  # with collectors the loop is one step behind
    assert all(word in wanted["said"] for word in ("loss", "KL", "entropy", "gap", "tokens/s", "left"))
    assert "[begun]" in (folder / "run" / "run.toml").read_text()


def test_two_ranks_with_collectors_learn_what_one_process_learns_from_the_same_seed(
    tmp_path: Path, whole: tuple[dict[str, Any], Path]
) -> None:
    """The same trees, summed up in another order; `make learn-ranks` asks for more rounds, and for success after."""
    wanted, _ = whole
    alone(tmp_path, [s for s in SETTINGS if "collectors" not in s] + ["loop.behind=1"])
    found = curves(tmp_path)
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-3, abs=1e-4)
    assert found["successes"] == wanted["successes"]
    assert agreeing(found["losses"], wanted["losses"]) == 3 and agreeing({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.1}) == 1


def test_what_a_kill_kept_from_the_metrics_is_added_from_the_checkpoint(tmp_path: Path) -> None:
    saved = tmp_path / "step-000004"
    saved.mkdir()
    extra = {"iteration": 2, "stats": {"loss": 0.5}, "success": {"kg": 0.25}, "drawn_by": "w1"}
    manifest = {"step": 4, "version": "f00", "files": {}, "extra": extra}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    line = not_none(untold(tmp_path, ["w1", "w2"])).line()
    assert (line["step"], line["iteration"], line["loss"], line["policy_version"]) == (4, 2, 0.5, "w2")
    (saved / "manifest.json").write_text(json.dumps({**manifest, "extra": {"iteration": 2}}))
    assert untold(tmp_path, None) is None and untold(tmp_path / "nothing", None) is None


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (("loop", "--gpus", "2"), {}, "write --processes 2 to train on its CPUs"),
        (("loop", "--gpus", "2", "--processes", "2"), {}, "both given"),
        (("loop", "--processes", "3"), {"WORLD_SIZE": "2", "RANK": "0"}, "torchrun started 2 processes"),
        (("train", "--processes", "2", "dpo"), {}, "train dpo trains in one process"),
        (("loop", "--set", "loop.collectors=2"), {}, "store=postgresql://"),
        (("collector", "--name", "none"), {}, "has no PostgreSQL store"),
    ],
)
def test_bad_numbers_of_processes_are_told_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    from typer.testing import CliRunner

    from treewright.agent.cli.main import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TreewrightError, match=said):
        found = CliRunner().invoke(app, list(words))
        raise not_none(found.exception)
    with pytest.raises(TreewrightError, match=r"PostgreSQL|postgresql"):
        Crew(load_config(None, [*SETTINGS, "store=trees.sqlite"]))
