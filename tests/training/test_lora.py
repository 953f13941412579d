"""Adapters: only they are saved, they know their base by its content, and a save leaves all or nothing."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from not_none import not_none
from search_trees import random_tree, tiny_model

from treewright.envs.errors import TreewrightError
from treewright.training import checkpoint
from treewright.training.lora import adapter_off, attach
from treewright.training.manifest import CheckpointError, latest, read_manifest
from treewright.training.optim import make_optimizer, state_bytes
from treewright.training.settings import LoraSettings
from treewright.training.step import Trainer, TrainSettings

peft = pytest.importorskip("peft")
RANK = LoraSettings(rank=2)


def adapted(folder: Path, seed: int = 0, lora: LoraSettings = RANK, **settings: Any) -> Trainer:
    model = attach(tiny_model(seed, torch.float32), lora, folder, 5)
    return Trainer(model, TrainSettings(minibatches=2, max_tokens=60, lora=lora, **settings), versions=["first"])


def batch(b: int) -> list[Any]:
    return [t for s in range(3) if (t := random_tree(10 * b + s))]


def known(trainer: Trainer, trees: list[Any]) -> list[Any]:
    not_none(trainer.versions)[0] = "v1"
    for tree in trees:
        trainer.aliases[tree.header.policy_version] = not_none(trainer.versions)[-1]
    return trees


def test_training_an_adapter_goes_on_from_its_checkpoint_which_holds_nothing_else(tmp_path: Path) -> None:
    straight, first = adapted(tmp_path), adapted(tmp_path)
    losses = [straight.update(known(straight, batch(b)))["loss"] for b in range(3)]
    for b in range(2):
        first.update(known(first, batch(b)))
    saved = checkpoint.save(first, tmp_path / "c")
    assert not (saved.path / "model.safetensors").exists() and not (saved.path / "README.md").exists()
    assert read_manifest(saved.path)["base"]["model"] == str(tmp_path)
    second = adapted(tmp_path)
    checkpoint.restore(second, saved)
    assert second.versions == first.versions
    assert second.update(known(second, batch(2)))["loss"] == losses[2]
    assert len(set(not_none(straight.versions))) == len(not_none(straight.versions)) == 4
    base = tiny_model(0, torch.float32)
    with adapter_off(second.model):
        ids = torch.tensor([[1, 2, 3]])
        second.model.set_attn_implementation("sdpa")
        assert torch.equal(second.model(ids).logits, base(ids).logits)


def test_a_checkpoint_of_something_else_is_refused_in_a_sentence(tmp_path: Path) -> None:
    saved = checkpoint.save(adapted(tmp_path), tmp_path / "adapter")
    whole = checkpoint.save(Trainer(tiny_model(0, torch.float32)), tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"adapter for .*but the base here is .*version"):
        checkpoint.restore(adapted(tmp_path, seed=1), saved)
    with pytest.raises(CheckpointError, match="holds an adapter, but this run trains all weights"):
        checkpoint.restore(Trainer(tiny_model(0, torch.float32)), saved)
    with pytest.raises(CheckpointError, match="holds all weights, but this run trains an adapter"):
        checkpoint.restore(adapted(tmp_path), whole)
    with pytest.raises(CheckpointError, match=r"another architecture .*lora_A.* is \(2, 32\) there and \(3, 32\) here"):
        checkpoint.restore(adapted(tmp_path, lora=LoraSettings(rank=3)), saved)
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
                                         num_attention_heads=2))  # fmt: skip
    with pytest.raises(CheckpointError, match="another architecture than LlamaForCausalLM"):
        checkpoint.restore(Trainer(other), whole)
    with pytest.raises(TreewrightError, match="linear layers here: down_proj"):
        attach(tiny_model(), LoraSettings(rank=2, targets=("q_projection",)), tmp_path)


def test_a_save_that_the_disk_ends_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    trainer = adapted(tmp_path)
    first = checkpoint.save(trainer, tmp_path / "c")
    trainer.update(known(trainer, batch(0)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"not saved: .*make room and type the same line again"):
            checkpoint.save(trainer, tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (tmp_path / "c").iterdir()] == [first.path.name]
    checkpoint.restore(adapted(tmp_path), not_none(latest(tmp_path / "c")))
    assert checkpoint.save(trainer, tmp_path / "c").step == trainer.steps


def test_the_optimizer_of_an_adapter_on_a_06b_model_takes_less_than_a_fiftieth() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    taken = []
    for rank in (0, 16):
        with torch.device("meta"):
            model = Qwen3ForCausalLM(config)
            if rank:
                model = peft.get_peft_model(
                    model, peft.LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
                )
        optimizer = make_optimizer(TrainSettings(), model, 1e-4)
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        optimizer.step()
        taken.append(state_bytes(optimizer))
    assert 8 * 590e6 < taken[0] < 8 * 600e6 and taken[1] <= 0.02 * taken[0]
