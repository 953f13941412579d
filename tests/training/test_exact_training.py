"""Every way to take a step gives the gradient of plain rows: whole, in several packs, chunked, checkpointed, adapted.

For decoders shaped like Llama, Qwen3 and gpt-oss, with a loss of clipped tokens and one of whole draws; float64
throughout, and bfloat16 within a bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from not_none import not_none
from search_trees import random_tree

from treewright.training.loss import LossOptions
from treewright.training.packed import PackedBatch

if TYPE_CHECKING:
    from torch.nn import Module


transformers = pytest.importorskip("transformers")

from treewright.training.credit import estimate  # noqa: E402
from treewright.training.credit.trees import tree_arrays  # noqa: E402
from treewright.training.decoders.check import doubled, running  # noqa: E402
from treewright.training.decoders.tiny import tiny_model  # noqa: E402
from treewright.training.lora import attach  # noqa: E402
from treewright.training.pack import pack_trees, rows_of  # noqa: E402
from treewright.training.precision import rounded  # noqa: E402
from treewright.training.settings import LoraSettings  # noqa: E402
from treewright.training.step import Trainer, TrainSettings  # noqa: E402

KINDS = ("Llama", "Qwen3", "GptOss")
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "accumulated": {"max_tokens": 30},
    "chunked": {"chunk_tokens": 23},
    "checkpointed": {"checkpointing": True},
    "checkpointed chunks": {"checkpointing": True, "chunk_tokens": 23},
}
LOSSES = {"clipped": "token", "gspo": "draw"}
BF16 = 0.05
"""Largest relative difference of a bfloat16 gradient from that of rows in float32; rows in bfloat16 stay within it."""


@pytest.fixture
def float64() -> Iterator[None]:
    """Models compute parts in float32, which would blur the comparison."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with doubled():
        yield
    torch.set_default_dtype(before)


TREES = [random_tree(seed, window=seed % 2 == 1, expansions=4) for seed in range(3)]
ARRAYS = tree_arrays(TREES)
CREDIT = estimate("split_loo", ARRAYS)


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> Module:
    made = getattr(transformers, f"{kind}ForCausalLM")
    return tiny_model(made, made.config_class(), dtype=dtype)


def options_of(loss: Any) -> LossOptions:
    return TrainSettings(loss=loss, clip=0.05).loss_settings(False)


def by_rows(model: Module, pack: PackedBatch) -> tuple[Any, ...]:
    """Log-probs and entropies [M] of a pack's targets, from one plain run for each path."""
    logp, entropy = {}, {}
    with running(model, "eager"):
        for path, positions, index in rows_of(pack):
            ids = torch.from_numpy(pack.ids[path])
            scores = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0].double(), -1)
            for at, which in zip(positions, index, strict=True):
                logp[which] = scores[at - 1, ids[at]]
                entropy[which] = -(scores[at - 1].exp() * scores[at - 1]).sum()
    return tuple(torch.stack([x[i] for i in range(len(pack.target))]) for x in (logp, entropy))


def packs_of(settings: TrainSettings, loss: str) -> list[PackedBatch]:
    return pack_trees(TREES, ARRAYS, CREDIT, settings.max_tokens, terms=LOSSES[loss])


def before(logp: Any) -> Any:
    """Log-probs before the update: near enough for ratios to matter, far enough for some to be clipped."""
    noise = np.random.default_rng(0).normal(0, 0.1, len(logp))
    return logp.detach() + torch.from_numpy(noise).to(logp)


def surrogate(
    trainer: Trainer, pack: PackedBatch, old: torch.Tensor | None, trees: float
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]:
    """The trainer's loss of a pack's log-probs."""
    return trainer._surrogate(pack, old, trees, trainer.settings.loss_settings(False), trainer.reference_logprobs(pack))


def gradient(model: Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def of_rows(model: Module, loss: str, more: dict[str, Any] | None = None) -> tuple[Any, dict[tuple[Any, ...], Any]]:
    """The gradient of plain rows; the whole batch is one pack, whose old log-probs come from rows too."""
    settings = TrainSettings(minibatches=1, max_tokens=10**6, loss=loss, clip=0.05, **(more or {}))
    trainer = Trainer(copy.deepcopy(model), settings)
    (pack,) = packs_of(settings, loss)
    logp, entropy = by_rows(trainer.model, pack)
    old = {tuple(x): v for x, v in zip(spelt(pack), before(logp), strict=True)}
    loss_of = surrogate(trainer, pack, before(logp), pack.trees)
    value, seen = loss_of(logp, entropy)
    value.backward()  # type: ignore[no-untyped-call]
    assert seen["clipped"] > 0.02
    return gradient(trainer.model), old


def spelt(pack: PackedBatch) -> list[tuple[int, ...]]:
    """A name for every target that does not depend on the pack: its path's tokens, and which tree it stands in."""
    tree = np.cumsum(pack.parent < 0)
    names = []
    for token in pack.target:
        path, at = [], int(token)
        while at >= 0:
            path.append(int(pack.ids[at]))
            at = int(pack.parent[at])
        names.append((*path, -int(tree[token])))
    return names


def taken(
    model: Module, loss: str, monkeypatch: pytest.MonkeyPatch, old: dict[tuple[Any, ...], Any] | None, **more: Any
) -> tuple[Any, int, Trainer]:
    """The gradient of a step that the trainer takes, and the trainer."""
    settings = TrainSettings(**{"minibatches": 1, "max_tokens": 10**6, "loss": loss, "clip": 0.05, **more})
    trainer = Trainer(copy.deepcopy(model), settings)
    for module in trainer.model.modules():  # what runs again in the backward pass is in float64 too
        if "_gradient_checkpointing_func" in vars(module) and torch.get_default_dtype() == torch.float64:
            own = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = lambda fn, *args, own=own: own(again(fn), *args)
    packs, first = packs_of(settings, loss), 0
    known = {}
    for pack in packs:
        names = [(*name[:-1], name[-1] - first) for name in spelt(pack)]
        known[id(pack)] = None if old is None else torch.stack([old[name] for name in names])
        first += int((pack.parent < 0).sum())
    monkeypatch.setattr(Trainer, "_step", lambda trainer: 0.0)
    trainer.descend(packs, lambda p, trees: surrogate(trainer, p, known[id(p)], trees))
    return gradient(trainer.model), len(packs), trainer


def again(function: Any) -> Callable[..., Any]:
    def run(*args: Any, **more: Any) -> Any:
        with doubled():
            return function(*args, **more)

    return run


def apart(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    one, other = not_none(found), not_none(expected)
    assert float(other.norm()) > 1e-4
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_take_a_step_gives_the_gradient_of_rows(
    kind: str, loss: str, float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind)
    expected, old = of_rows(model, loss)
    for way, more in WAYS.items():
        found, packs, _ = taken(model, loss, monkeypatch, old, **more)
        assert (packs > 2) == (way == "accumulated")
        assert apart(found, expected) <= 1e-9, way


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_what_it_learns_on_rows_and_its_base_is_the_reference(
    kind: str, float64: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = model_of(kind)
    model = attach(copy.deepcopy(plain), LoraSettings(rank=2), tmp_path)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    model = model.double()
    more = {"lora": LoraSettings(rank=2), "kl_coef": 0.3}
    trained = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    for loss, ways in (("gspo", ("whole", "accumulated")), ("clipped", ("whole", "chunked", "checkpointed chunks"))):
        expected, old = of_rows(model, loss, more)
        for way in ways:
            found, _, trainer = taken(model, loss, monkeypatch, old, **more, **WAYS[way])
            assert apart(found, expected) <= 1e-9, (loss, way)
            assert len(found) == trained and trainer.reference is None
    (pack,) = packs_of(trainer.settings, "clipped")
    reference, own = trainer.reference_logprobs(pack), trainer.logprobs(pack)[0]
    assert apart(reference, by_rows(plain, pack)[0].detach()) <= 1e-9 and apart(own.detach(), reference) > 1e-3


@pytest.mark.parametrize(
    ("loss", "ways"), [("clipped", ("whole", "accumulated", "checkpointed chunks")), ("gspo", ("whole",))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_within_its_bound_and_no_further_off_than_rows(
    kind: str, loss: str, ways: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the policy that drew, where all ratios are 1: elsewhere rounding decides what is clipped."""
    model = model_of(kind, torch.float32)
    found = {}
    for name, dtype in (("exact", None), ("half", torch.bfloat16)):
        rows = copy.deepcopy(model)
        rounded(rows, dtype)
        trainer = Trainer(rows, TrainSettings(loss=loss))
        (pack,) = packs_of(TrainSettings(max_tokens=10**6), loss)
        surrogate(trainer, pack, None, pack.trees)(*by_rows(rows, pack))[0].backward()  # type: ignore[no-untyped-call]
        found[name] = gradient(rows)
    assert apart(found["half"], found["exact"]) <= BF16
    for way in ways:
        own, _, trainer = taken(model, loss, monkeypatch, None, precision="bfloat16", **WAYS[way])
        assert {p.grad.dtype for p in trainer.model.parameters() if p.grad is not None} == {torch.float32}
        assert 1e-4 < apart(own, found["exact"]) <= BF16, way
