"""Optimizers, schedules and precision by name: what they do to weights, and what is refused."""

from __future__ import annotations

import copy
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from search_trees import random_tree, tiny_model

from treewright.envs.errors import TreewrightError
from treewright.training import checkpoint
from treewright.training.manifest import CheckpointError
from treewright.training.optim import SCHEDULES, _transformers_factor, rate_factor, state_bytes
from treewright.training.optimizer import flatten
from treewright.training.precision import computing
from treewright.training.settings import LoraSettings, bytes_of
from treewright.training.step import Trainer, TrainSettings

SMALL: dict[str, Any] = {"minibatches": 2, "max_tokens": 60}


def trained(batches: int = 2, seed: int = 0, **settings: Any) -> Trainer:
    trainer = Trainer(tiny_model(seed, torch.float32), TrainSettings(**SMALL, **settings))
    for b in range(batches):
        trainer.update([random_tree(10 * b + s) for s in range(3)])
    return trainer


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_each_optimizer_trains_and_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    ends = {}
    for name in ("adamw", "adamw_fused", "muon"):
        straight = trained(3, optimizer=name)
        saved = checkpoint.save(trained(2, optimizer=name), tmp_path / name)
        other = Trainer(tiny_model(9, torch.float32), TrainSettings(**SMALL, optimizer=name))
        checkpoint.restore(other, saved)
        other.update([random_tree(20 + s) for s in range(3)])
        assert torch.equal(weights(straight), weights(other)), name
        ends[name] = weights(straight)
    assert torch.allclose(ends["adamw"], ends["adamw_fused"], atol=1e-6)
    assert not torch.allclose(ends["adamw"], ends["muon"], atol=1e-4)
    assert not torch.equal(weights(trained(1)), weights(trained(1, optimizer_options={"betas": [0.5, 0.5]})))


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    saved = checkpoint.save(trained(1, optimizer="muon"), tmp_path)
    with pytest.raises(CheckpointError, match=r"set train\.optimizer=muon, or begin another run"):
        checkpoint.restore(trained(0), saved)


def test_muon_keeps_one_moment_for_matrices_and_two_for_the_rest() -> None:
    trainer = trained(1, optimizer="muon")
    inner = sum(p.numel() for n, p in trainer.model.named_parameters() if p.dim() == 2 and "embed" not in n)
    rest = sum(p.numel() for p in trainer.model.parameters()) - inner
    assert abs(state_bytes(trainer.optimizer) - 4 * inner - 8 * rest) < 200  # and counters


def test_eight_bit_takes_the_library_that_is_installed_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim", "torchao", "torchao.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TreewrightError, match="pip install bitsandbytes"):
        trained(1, optimizer="adamw_8bit")
    package: Any = types.ModuleType("torchao")
    module: Any = types.ModuleType("torchao.optim")
    module.AdamW8bit = lambda params, lr, betas, weight_decay: torch.optim.SGD(params, lr=lr)
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.optim", module)
    assert isinstance(trained(1, optimizer="adamw_8bit").optimizer, torch.optim.SGD)


def test_schedules_rise_to_the_rate_and_fall_from_it_and_no_step_has_none() -> None:
    def rates(steps: int = 12, **settings: Any) -> list[Any]:
        factor = rate_factor(TrainSettings(**settings))
        return [factor(i) for i in range(steps)]

    assert rates(4) == [1.0] * 4
    library = _transformers_factor(SCHEDULES["constant"], 4, None)
    assert rates(5, warmup=3) == [0.25, 0.5, 0.75, 1.0, 1.0] == [library(i + 1) for i in range(5)]
    for name in ("linear", "cosine", "polynomial"):
        found = rates(schedule=name, schedule_steps=12, warmup=3)
        assert found[:4] == [0.25, 0.5, 0.75, 1.0] and found[3:] == sorted(found[3:], reverse=True), name
        assert 0 < found[-1] < 0.2, name
    assert 0 < rates(schedule="inverse_sqrt", warmup=3)[-1] < 1
    trainer = trained(2, schedule="linear", schedule_steps=4, lr=0.5)
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [pytest.approx(0.5 * 0.25)]


def test_a_batch_of_fewer_steps_than_a_schedule_counts_on_is_told_with_what_to_type() -> None:
    def update(**settings: Any) -> None:
        Trainer(tiny_model(), TrainSettings(**settings)).update([random_tree(0)])

    with pytest.warns(UserWarning, match=r"fewer steps \(1\), and train.schedule = linear ends after 12 of them"):
        update(schedule="linear", schedule_steps=12, minibatches=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(minibatches=4)
        update(schedule="linear", schedule_steps=12, minibatches=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"optimizer_options": {"momentun": 1}}, "no option 'momentun'"),
        ({"schedule": "cosin", "schedule_steps": 3}, "did you mean 'cosine'"),
        ({"schedule": "cosine"}, "train.schedule_steps=N"),
        ({"schedule": "cosine", "schedule_steps": 2, "warmup": 4}, "leaves nothing"),
        ({"precision": "bfloat15"}, "did you mean 'bfloat16'"),
        ({"memory": "lots"}, "write 20GiB"),
        ({"lora": {"dropout": 0.1}}, "leave it at 0"),
        ({"lora": {"rank": -1}}, "or 0 to train all weights"),
    ],
)
def test_what_is_not_known_is_refused_with_what_to_type(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TreewrightError, match=said):
        lora = {"lora": LoraSettings(**settings["lora"])} if "lora" in settings else {}
        trained(1, **{**settings, **lora})


def test_amounts_of_memory_are_read_as_people_write_them() -> None:
    assert bytes_of("20GiB") == 20 << 30 and bytes_of("900 MB") == 900_000_000 and bytes_of("1.5KiB") == 1536


def test_half_precision_computes_in_bfloat16_and_leaves_float32_weights_behind() -> None:
    model = tiny_model(dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    with computing(model, torch.bfloat16):
        out = model(torch.tensor([[1, 2, 3]])).logits
        assert out.dtype == torch.bfloat16 and model.lm_head.weight is model.model.embed_tokens.weight
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
        out.float().sum().backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32} == {p.grad.dtype for p in model.parameters()}
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    trainer = trained(2, precision="bfloat16", kl_coef=0.1)
    assert {s["exp_avg"].dtype for s in trainer.optimizer.state.values()} == {torch.float32}
    assert next(trainer.reference.parameters()).dtype == torch.bfloat16


def test_layers_that_drop_out_are_not_checkpointed() -> None:
    model = tiny_model(dtype=torch.float32)
    model.config.hidden_dropout = 0.1
    with pytest.raises(TreewrightError, match=r"hidden_dropout = 0\.1"):
        Trainer(model, TrainSettings(checkpointing=True))


def test_what_is_saved_of_an_optimizer_is_its_own_memory_and_what_slots_share_is_saved_for_each(tmp_path: Path) -> None:
    optimizer = trained(1).optimizer
    tensors, _ = flatten(optimizer)
    own = {value.data_ptr() for slots in optimizer.state.values() for value in slots.values()}
    assert tensors and all(value.data_ptr() in own for value in tensors.values())
    first, second, *_ = optimizer.state.values()
    table = torch.arange(4.0)  # as optimizers of 8 bits hold one for all
    first["table"], second["table"] = table, table
    save_file(flatten(optimizer)[0], tmp_path / "slots.safetensors")
    found = load_file(tmp_path / "slots.safetensors")
    assert [k for k, v in found.items() if k.endswith("table") and torch.equal(v, table)] == ["0.table", "1.table"]
