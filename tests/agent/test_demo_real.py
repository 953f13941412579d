"""`treewright demo --model`: imitation first, then the demo; here with the packaged model in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.runs.demo_real import REAL_QUICK, fetched_spec, real_demo_config, run_real_demo
from treewright.envs.errors import TreewrightError
from treewright.envs.registry import suite
from treewright.search.store import TreeStore


async def test_it_imitates_then_searches_and_trains_from_there(tmp_path: Path) -> None:
    spec = f"hf:{shutil.copytree(SEEDLING, tmp_path / 'model')}"
    home = tmp_path / "demo"
    config = real_demo_config(home, spec, REAL_QUICK.settings)
    with (tmp_path / "out").open("w") as out:
        figures = await run_real_demo(config, REAL_QUICK, Console(file=out, width=200))
    told = (tmp_path / "out").read_text()
    assert "the untouched model solves" in told and "held-out success" in told and "round 1" in told
    parts = ("policy_untouched", "policy_before", "policy_after", "search_after")
    assert {f"{name}.{part}" for name in ("kg", "stdlib") for part in parts} <= figures.keys()
    assert json.loads((home / "figures.json").read_text())["figures"]["kg.policy_untouched"]["unit"] == "%"
    (begun,) = (home / "begun").glob("step-*/manifest.json")
    (after,) = (home / "checkpoints").glob("step-*/manifest.json")
    imitated = json.loads(begun.read_text())
    assert imitated["extra"]["recipe"] == "sft" and imitated["step"] == 2
    assert json.loads(after.read_text())["extra"]["drawn_by"] in (imitated["versions"][-1], imitated["version"])
    assert "<svg" in (home / "report.html").read_text()
    demos = REAL_QUICK.demos
    with TreeStore.open(home / "trees.sqlite", read_only=True) as store:
        for name in ("kg", "stdlib"):
            others = {task.id for task in suite(name).tasks("train", demos + 2)[demos:]}
            assert {tree.task_id for tree in store.trees(suite=name) if tree.split == "train"} == others


def test_a_known_model_is_fetched_and_an_encoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("treewright.agent.policies.fetch.fetch", lambda name, say: asked.append(name))
    assert fetched_spec("smollm2", print) == "hf:smollm2" and asked == ["smollm2"]
    assert fetched_spec("some/model", print) == "hf:some/model" and asked == ["smollm2"]
    with pytest.raises(TreewrightError, match="cannot act"):
        fetched_spec("minilm", print)


def test_a_model_in_the_demos_own_folder_is_not_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "demo/checkpoints/step-000001"
    model.mkdir(parents=True)
    done = CliRunner().invoke(app, ["demo", "--model", str(model), "--folder", "demo"])
    assert done.exit_code and model.is_dir() and "give it another --folder" in str(done.exception or done.output)
