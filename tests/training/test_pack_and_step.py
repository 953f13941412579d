"""Packed trees give the gradient of weighted rows; bad numbers never reach the weights; checkpoints come back whole."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from not_none import not_none
from search_trees import random_tree, tiny_model

from treewright.envs.errors import TreewrightError
from treewright.training import checkpoint, step
from treewright.training.credit import estimate
from treewright.training.credit.arrays import Credit, TreeArrays
from treewright.training.credit.trees import tree_arrays
from treewright.training.loss import clipped_surrogate
from treewright.training.pack import TokenRow, TokenTrie, pack_rows, pack_trees, rows_of
from treewright.training.packed import filled
from treewright.training.step import Trainer, TrainSettings
from treewright.training.versions import StaleTrees, weights_version


@pytest.fixture(autouse=True)
def float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm computes in float32, which would floor float64 comparisons at 1e-7."""

    def forward(self: Any, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr("transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm.forward", forward)


def credited(seeds: range | list[Any], **options: Any) -> tuple[list[Any], TreeArrays, Credit]:
    trees = [random_tree(s, **options) for s in seeds]
    arrays = tree_arrays(trees)
    return trees, arrays, estimate("split_loo", arrays)


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def row_gradient(model: Any, trees: list[Any], arrays: TreeArrays, credit: Credit) -> torch.Tensor:
    """The plain way: every leaf's whole trajectory as a row of its own, straight from the trees.

    An edge's coefficient is split evenly over the rows that run through it.
    """
    model = copy.deepcopy(model)
    model.set_attn_implementation("sdpa")
    start = 0
    for tree in trees:
        leaves = [i for i in range(len(tree)) if not tree.children[i]]
        rows_through = np.zeros(len(tree))
        for leaf in leaves:
            rows_through[tree.path(leaf)] += 1
        for leaf in leaves:
            for node in tree.path(leaf)[1:]:
                prompt, said = tree.context_ids(tree.parent[node]), tree.ids[node]
                ids = torch.tensor([[*prompt, *said]])
                logits = model(ids).logits[0, len(prompt) - 1 : -1]
                logp = torch.log_softmax(logits, -1)[torch.arange(len(said)), torch.tensor(said)]
                weight = credit.coef[start + node] / rows_through[node]
                (-logp.sum() * weight / len(trees)).backward()
        start += len(tree)
    return gradient(model)


@pytest.mark.parametrize("window", [False, True])
def test_gradient_of_the_packed_tree_equals_that_of_weighted_rows(window: bool) -> None:
    for seed in range(3):
        trees, arrays, credit = credited(range(10 * seed, 10 * seed + 3), window=window)
        model = tiny_model(seed)
        rows = row_gradient(model, trees, arrays, credit)
        trainer = Trainer(model)
        for pack in pack_trees(trees, arrays, credit, max_tokens=120):
            logp, _ = trainer.logprobs(pack)
            loss, _ = clipped_surrogate(logp, logp.detach(), torch.from_numpy(pack.coef), logp.detach(), len(trees))
            loss.backward()  # type: ignore[no-untyped-call]
        packed = gradient(model)
        assert float(rows.norm()) > 1e-3
        assert float((packed - rows).norm() / rows.norm()) <= 1e-9


def test_no_token_of_a_pack_stands_twice_on_the_same_path() -> None:
    trees, arrays, credit = credited(range(6), window=True)
    for pack in pack_trees(trees, arrays, credit, max_tokens=200):
        roots = pack.parent < 0
        pairs = list(zip(pack.parent[~roots], pack.ids[~roots], strict=True))
        assert len(pairs) == len(set(pairs))
        assert (pack.parent < np.arange(len(pack))).all()


def test_rows_cover_every_target_once_and_spell_the_contexts() -> None:
    trees, arrays, credit = credited([4])
    (pack,) = pack_trees(trees, arrays, credit)
    seen = np.concatenate([index for _, _, index in rows_of(pack)])
    assert sorted(seen) == list(range(len(pack.target)))
    for path, positions, index in rows_of(pack):
        assert (path[positions] == pack.target[index]).all()


def test_packs_count_the_trees_that_carry_no_gradient() -> None:
    trees = [random_tree(s) for s in range(8)]
    for tree in trees[:3]:
        tree._truth[:] = [0.0] * len(tree)
    arrays = tree_arrays(trees)
    credit = estimate("split_loo", arrays, root_baseline=0.0)
    packs = pack_trees(trees, arrays, credit, max_tokens=60)
    assert sum(p.trees for p in packs) == 8
    assert len(packs) > 1


def test_a_trie_stores_equal_continuations_once() -> None:
    trie = TokenTrie()
    first = trie.extend([], [1, 2, 3])
    second = trie.extend(first[:2], [3, 4])
    assert second[0] == first[2] and len(trie.ids) == 4


def test_credit_of_other_trees_is_refused() -> None:
    trees, arrays, credit = credited([1, 2])
    with pytest.raises(TreewrightError, match="credit the same trees"):
        pack_trees(trees[:1], arrays, credit)


def test_an_update_makes_better_than_average_actions_likelier() -> None:
    trees = [random_tree(s, task=f"t{s}") for s in range(6)]
    trainer = Trainer(tiny_model(dtype=torch.float32), TrainSettings(lr=3e-3))
    arrays = tree_arrays(trees)
    packs = pack_trees(trees, arrays, estimate("split_loo", arrays))

    def value() -> float:
        terms = (trainer.logprobs(p)[0].detach().double() * torch.from_numpy(p.coef) for p in packs)
        return sum(float(term.sum()) for term in terms)

    before = value()
    stats = trainer.update(trees)
    assert value() > before
    assert stats["trees"] == 6 and stats["grad_norm"] > 0


@pytest.mark.parametrize("chunk", [23, 64])
def test_packs_in_chunks_give_the_gradient_of_whole_packs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minibatches, so that the ratio to the old log-probs matters and some of it is clipped."""
    trees = [random_tree(s, window=True) for s in range(4)]
    step, gradients, runs = Trainer._step, [], {}

    def noted(t: Trainer) -> Any:
        gradients.append(gradient(t.model).clone())
        return step(t)

    monkeypatch.setattr(Trainer, "_step", noted)
    for size in (None, chunk):
        settings = TrainSettings(lr=0.1, minibatches=2, max_tokens=130, chunk_tokens=size, clip=0.01, grad_clip=1e9)
        sizes: list[Any]
        trainer, sizes = Trainer(tiny_model(3), settings), []
        trainer.model.model.register_forward_pre_hook(
            lambda _, args, more, n=sizes: n.append(more["input_ids"].numel()), with_kwargs=True
        )
        stats = trainer.update(trees)
        runs[size] = gradients[-2:], stats, sizes
    assert len(gradients) == 4
    (whole, stats, long), (parts, same, short) = runs[None], runs[chunk]
    assert stats["clipped"] > 0
    for a, b in zip(whole, parts, strict=True):
        assert float(a.norm()) > 1e-3 and float((a - b).norm() / a.norm()) <= 1e-9
    assert max(short) <= chunk < max(long)
    assert all(abs(same[k] - v) <= 1e-9 * max(1, abs(v)) for k, v in stats.items())


def test_old_log_probs_of_chunked_packs_are_the_same_bits_as_those_they_are_compared_with() -> None:
    trees, arrays, credit = credited(range(4))
    trainer = Trainer(tiny_model(dtype=torch.float32), TrainSettings(chunk_tokens=20))
    (pack,) = pack_trees(trees, arrays, credit)
    old, _ = trainer.logprobs(pack)
    stats = trainer._backward(pack, trainer._surrogate(pack, old, len(trees), trainer.settings.loss_settings(False)))
    assert stats["kl"] == 0 and stats["clipped"] == 0 and not old.requires_grad


def test_trees_are_consumed_once() -> None:
    trees = [random_tree(s) for s in range(3)]
    trainer = Trainer(tiny_model())
    trainer.update(trees)
    with pytest.raises(TreewrightError, match="trained on before"):
        trainer.update(trees)


def test_consumed_trees_of_weights_that_no_update_takes_are_forgotten_and_stay_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step, "REMEMBERED", 3)
    monkeypatch.setattr(step, "FORGETS", 1)
    model = tiny_model()
    trainer = Trainer(model, TrainSettings(max_staleness=2), versions=[weights_version(model)])
    batches = []
    for number in range(6):
        tree = random_tree(number)
        tree.header = replace(tree.header, policy_version=trainer.version())
        trainer.update([tree])
        batches.append(tree)
    assert {name for name, _ in trainer.consumed} == {tree.tree_id for tree in batches[-2:]}
    with pytest.raises(StaleTrees, match="more than 2 updates ago"):
        trainer.update(batches[:1])
    with pytest.raises(TreewrightError, match="trained on before"):
        trainer.update(batches[-1:])
    with pytest.raises(TreewrightError, match=r"max_staleness = 3: it must be below 3"):
        Trainer(model, TrainSettings(max_staleness=3))


@pytest.mark.parametrize("poison", ["reward", "logprob", "weight", "gradient"])
def test_what_is_not_finite_is_refused_and_changes_no_weight(poison: str) -> None:
    trees = [random_tree(s) for s in range(4)]
    model = tiny_model()
    trainer = Trainer(model)
    if poison == "reward":
        trees[0]._truth[trees[0].leaves()[0]] = float("inf")
    elif poison == "logprob":
        node = next(i for i in range(1, len(trees[0])) if trees[0].ids[i])
        for tree in trees:
            tree.logprobs[node] = (float("nan"),) * len(tree.ids[node])
    elif poison == "gradient":  # with a loss that is finite
        model.model.layers[0].mlp.up_proj.weight.register_hook(lambda grad: grad * float("inf"))
    else:
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TreewrightError):
        trainer.update(trees)
    for name, value in model.state_dict().items():
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(before[name]))
    assert trainer.steps == 0


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def batches() -> list[Any]:
        return [[random_tree(10 * b + s) for s in range(3)] for b in range(4)]

    straight = Trainer(tiny_model(), TrainSettings(minibatches=2, max_tokens=60))
    losses = [straight.update(b)["loss"] for b in batches()]
    first = Trainer(tiny_model(), TrainSettings(minibatches=2, max_tokens=60))
    for b in batches()[:2]:
        first.update(b)
    saved = checkpoint.save(first, tmp_path, extra={"iteration": 2})
    second = Trainer(tiny_model(seed=9), TrainSettings(minibatches=2, max_tokens=60))
    assert checkpoint.restore(second, not_none(checkpoint.latest(tmp_path))) == {"iteration": 2}
    assert second.consumed == first.consumed and saved.version
    assert [second.update(b)["loss"] for b in batches()[2:]] == losses[2:]
    for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_equal_trees_move_the_weights_alike_in_whichever_step_and_pack_those_without_gradient_are_counted(
    minibatches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = pack_rows([[TokenRow(context=(1, 2, 3), response=(4, 5, 6))]])
    packs = filled([one, one, *[None] * 8], max_tokens=1)
    assert [pack.trees for pack in packs] == [1, 9]
    norms, clipped = [], Trainer._clipped_norm

    def noted(self: Trainer) -> float:
        norms.append(clipped(self))
        return norms[-1]

    monkeypatch.setattr(Trainer, "_clipped_norm", noted)
    settings = TrainSettings(lr=1e-9, minibatches=minibatches, grad_clip=1e9, loss="unclipped", max_kl=0)
    stats = Trainer(tiny_model(), settings).descend_surrogate(packs)
    assert len(norms) == minibatches and norms == pytest.approx([norms[0]] * minibatches, rel=1e-4)
    whole = Trainer(tiny_model(), replace(settings, minibatches=1)).descend_surrogate(packs)
    assert norms[0] == pytest.approx(norms[-1], rel=1e-4) and stats["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert whole["grad_norm"] == pytest.approx(stats["grad_norm"], rel=1e-4), "a step is worth the mean over all trees"


def test_an_incomplete_checkpoint_does_not_count_and_old_ones_go(tmp_path: Path) -> None:
    trainer = Trainer(tiny_model())
    for b in range(5):
        trainer.update([random_tree(10 * b)])
        checkpoint.save(trainer, tmp_path, checkpoints=2)
    assert len(list(tmp_path.glob("step-*"))) == 2
    newest = checkpoint.latest(tmp_path)
    (not_none(newest).path / "manifest.json").unlink()
    assert not_none(checkpoint.latest(tmp_path)).step == not_none(newest).step - 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    trainer = Trainer(tiny_model())
    trainer.update([random_tree(0)])
    saved = checkpoint.save(trainer, tmp_path)
    weights = saved.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(checkpoint.CheckpointError, match=r"model\.safetensors"):
        checkpoint.restore(trainer, saved)


def test_bad_weights_never_push_out_good_ones(tmp_path: Path) -> None:
    trainer = Trainer(tiny_model())
    trainer.update([random_tree(0)])
    checkpoint.save(trainer, tmp_path, checkpoints=1)
    trainer.model.model.norm.weight.data[0] = float("inf")
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.save(trainer, tmp_path, checkpoints=1)
    assert not_none(checkpoint.latest(tmp_path)).step == 1
    assert json.loads((not_none(checkpoint.latest(tmp_path)).path / "manifest.json").read_text())["step"] == 1


def test_losses_refuse_shapes_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="one shape"):
        clipped_surrogate(torch.zeros(2), torch.zeros(3), torch.zeros(2), torch.zeros(2), 1)
