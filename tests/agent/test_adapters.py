"""Adapters from the command line: trained in a loop, acted with, handed to engines, merged; bases that do not fit."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from not_none import not_none
from search_trees import tiny_model
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.policies.engine import EnginePolicy
from treewright.agent.policies.opening import open_policy, serve_weights
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.policies.prompts import template_for
from treewright.agent.policies.weights import folder_version
from treewright.envs.errors import TreewrightError
from treewright.training import checkpoint
from treewright.training.lora import attach, load_model
from treewright.training.manifest import latest
from treewright.training.settings import LoraSettings
from treewright.training.step import Trainer, TrainSettings

from .fake_engine import FakeEngine

pytest.importorskip("peft")


def call(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, args)
    if done.exit_code != code and not isinstance(done.exception, TreewrightError):
        raise AssertionError(done.output) from done.exception
    return f"{done.output}{done.exception or ''}"


def test_a_loop_trains_an_adapter_acts_with_it_and_merges_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SEEDLING, "base", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    sets = ("loop.tasks=4", "search.expansions=2", "train.lora.rank=4", "train.precision=bfloat16")
    line = ["loop", "-n", "l", "--policy", "hf:base", "--suites", "kg", *(w for s in sets for w in ("--set", s))]
    call(*line, "--set", "loop.iterations=2")
    saved = latest(tmp_path / "runs/l/checkpoints")
    assert not_none(saved).step >= 2 and (not_none(saved).path / "adapter_model.safetensors").is_file()
    assert "going on from" in call("loop", "-n", "l", "--set", "loop.iterations=3", "--set", "train.lora.alpha=32")
    saved = latest(tmp_path / "runs/l/checkpoints")
    assert "acting with" in call("eval", "-n", "l", "--suites", "kg", "--tasks", "2")
    assert "a reward model is trained whole" in call("train", "prm", "-n", "l", code=1)
    call("merge", "plain", "-n", "l")
    model, merged = load_model(not_none(saved).path), load_model("plain")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), merged.parameters(), strict=True))
    policy = open_policy(f"hf:{not_none(saved).path}")
    assert policy.version == folder_version(not_none(saved).path)
    asyncio.run(policy.close())
    assert "exists already" in call("merge", "plain", "-n", "l", code=1)
    weights = load_model("base")
    with torch.no_grad():
        next(weights.parameters()).add_(0.01)
    weights.save_pretrained("base")
    assert "trained on other weights than those in" in call("eval", "-n", "l", "--suites", "kg", "--tasks", "2", code=1)
    shutil.move("base", "elsewhere")
    assert "policy.options.base=FOLDER" in call("eval", "-n", "l", "--suites", "kg", "--tasks", "2", code=1)


def test_an_engine_is_given_the_adapter_and_not_a_model(tmp_path: Path) -> None:
    lora = LoraSettings(rank=2)
    model = attach(tiny_model(dtype=torch.float32), lora, tmp_path)
    saved = checkpoint.save(Trainer(model, TrainSettings(lora=lora)), tmp_path / "c")
    local: Any = open_policy("seedling")
    engine = FakeEngine(local)
    policy = EnginePolicy(engine, template_for(local.tokenizer, None, None), name="vllm:base", version="base")

    async def served() -> str:
        version = await serve_weights(policy, saved.path)
        await local.close()
        return version

    assert asyncio.run(served()) == folder_version(saved.path) == policy.version
    assert engine.calls == [("adapter", str(saved.path.resolve()))]
    with pytest.raises(TreewrightError, match="holds an adapter; serve its base, --policy vllm:"):
        open_policy(f"vllm:{saved.path}")
