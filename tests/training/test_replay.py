"""Routing replay: a model's routers take given experts, on packed trees as on rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from replayed import FAMILIES, PLAN, by_rows, grads, model_of, near, places, problem, routers, some_routes

from treewright.envs.errors import TreewrightError
from treewright.training.decoders.check import doubled
from treewright.training.decoders.experts import routes as routes_of
from treewright.training.decoders.replay import replaying
from treewright.training.lora import attach
from treewright.training.model import (
    UnsupportedModel,
    chunked_backward,
    chunked_logprobs,
    prepare,
    tree_logprobs,
)
from treewright.training.settings import LoraSettings

pytestmark = pytest.mark.usefixtures("one_thread", "all_float64")


# -- one pack ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_replayed_experts_give_log_probs_and_gradients_of_rows_that_were_routed_so(name: str) -> None:
    model = model_of(name)
    ids, rows, targets, weight = problem(model)
    given = some_routes(len(ids), len(routers(model)))
    logp, wanted = by_rows(model, ids, given, weight, FAMILIES[name])
    prepare(model)
    plain = tree_logprobs(model, ids, PLAN, rows, targets)[0]
    assert float((plain - logp).norm()) > 1e-3 * float(logp.norm()), "the experts matter"
    model.zero_grad()
    with replaying(model, given) as replay:
        found, _ = tree_logprobs(model, ids, PLAN, rows, targets)
        (found * weight).sum().backward()  # type: ignore[no-untyped-call]
    near(found.detach(), logp)
    near(grads(model), wanted)
    known = int((given[..., 0] >= 0).sum())
    assert replay is not None and replay.given == known and known // 2 < replay.apart <= known

    model.zero_grad()
    with replaying(model, given):
        chunked_backward(model, ids, PLAN, rows, targets, lambda p, e: (p * weight).sum(), 10, chunk=7)
        again, _ = chunked_logprobs(model, ids, PLAN, rows, targets, 10, chunk=7)
    near(grads(model), wanted)
    near(again, logp)


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is run again while gradients flow is in float64 too."""

    def run(*args: Any, **more: Any) -> Any:
        with doubled():
            return function(*args, **more)

    return run


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_checkpointing_runs_again_take_the_same_experts(reentrant: bool) -> None:
    model = model_of("Mixtral")
    ids, rows, targets, weight = problem(model)
    given = some_routes(len(ids), 2)
    _, wanted = by_rows(model, ids, given, weight, FAMILIES["Mixtral"])
    prepare(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for module in model.modules():
        if "_gradient_checkpointing_func" in vars(module):
            own = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = lambda fn, *args, own=own: own(in_float64(fn), *args)
    model.zero_grad()
    if not reentrant:
        with replaying(model, given):
            logp = tree_logprobs(model, ids, PLAN, rows, targets)[0]
        (logp * weight).sum().backward()  # type: ignore[no-untyped-call]  # layers run again when the block is over
        near(grads(model), wanted)
        model.zero_grad()
    with replaying(model, given):
        chunked_backward(model, ids, PLAN, rows, targets, lambda p, e: (p * weight).sum(), 10, chunk=7)
    near(grads(model), wanted)


def test_an_adapter_learns_the_same_with_replayed_experts(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = attach(model_of("Qwen3Moe"), LoraSettings(rank=2, targets=("q_proj", "v_proj", "o_proj")), tmp_path)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    model.to(torch.float64)
    ids, rows, targets, weight = problem(model)
    given = some_routes(len(ids), 2)
    logp, wanted = by_rows(model.get_base_model(), ids, given, weight, FAMILIES["Qwen3Moe"])
    prepare(model)
    model.zero_grad()
    with replaying(model, given):
        found = tree_logprobs(model, ids, PLAN, rows, targets)[0]
        (found * weight).sum().backward()  # type: ignore[no-untyped-call]
    near(found.detach(), logp)
    near(grads(model), wanted)


@pytest.mark.parametrize("name", [*FAMILIES, "grouped", "GlmMoeDsa"])
def test_the_model_s_own_experts_change_nothing(name: str) -> None:
    model = model_of(name)
    ids, rows, targets, weight = problem(model)
    prepare(model)
    own = torch.stack(list(routes_of(model, ids, PLAN).values()), 1)
    found = []
    for given in (None, own):
        model.zero_grad()
        with replaying(model, given) as replay:
            logp = tree_logprobs(model, ids, PLAN, rows, targets)[0]
            (logp * weight).sum().backward()  # type: ignore[no-untyped-call]
        found.append((logp.detach(), grads(model)))
    assert torch.equal(found[0][0], found[1][0])
    near(found[1][1], found[0][1], 1e-12)
    assert replay is not None and (replay.given, replay.apart) == (own[..., 0].numel(), 0)


def test_half_precision_takes_the_experts_too(single: None) -> None:
    model = model_of("Mixtral").to(torch.float32)
    ids, rows, targets, _ = problem(model)
    prepare(model)
    given = some_routes(len(ids), 2, unknown=0)
    with replaying(model, given), torch.autocast("cpu", torch.bfloat16):
        low = tree_logprobs(model, ids, PLAN, rows, targets)[0]
    with replaying(model, given):
        high = tree_logprobs(model, ids, PLAN, rows, targets)[0]
    assert float((low - high).abs().max()) < 0.1
    low.sum().backward()  # type: ignore[no-untyped-call]
    assert float(routers(model)[0].weight.grad.norm()) > 0, "routers learn under autocast"


def test_experts_of_groups_that_the_model_would_not_choose_get_their_own_weights() -> None:
    model = model_of("grouped")
    ids, rows, targets, weight = problem(model)
    given = some_routes(len(ids), 1, experts=8, unknown=0)
    assert len({tuple(pair // 2) for pair in given.reshape(-1, 2)}) > 8, "of all groups"
    logp, wanted = by_rows(model, ids, given, weight, FAMILIES["DeepseekV3"])
    prepare(model)
    model.zero_grad()
    with replaying(model, given):
        found = tree_logprobs(model, ids, PLAN, rows, targets)[0]
        (found * weight).sum().backward()  # type: ignore[no-untyped-call]
    near(found.detach(), logp)
    near(grads(model), wanted)


class MaskedRouter(torch.nn.Module):
    """Weights from masked scores: zero outside of the chosen groups."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.weight = inner.weight

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = F.linear(x.reshape(-1, x.shape[-1]), self.weight)
        scores = logits.softmax(-1)
        groups = scores.view(-1, 2, 2).max(-1).values.topk(1, -1)[1]
        open_ = torch.zeros(len(scores), 2, dtype=torch.bool).scatter_(1, groups, True).repeat_interleave(2, 1)
        weights, index = scores.masked_fill(~open_, 0.0).topk(2, -1, sorted=False)
        return logits, weights, index


def masked(model: Any) -> Any:
    for layer in model.model.layers:
        layer.mlp.gate = MaskedRouter(layer.mlp.gate)
    return model


def test_masked_scores_are_opened_for_the_groups_of_the_given_experts_and_only_so_many() -> None:
    model = masked(model_of("Mixtral"))
    ids, rows, targets, weight = problem(model)
    group = np.random.default_rng(0).integers(0, 2, (len(ids), 2, 1))
    given = (2 * group + [0, 1]).astype(np.int16)
    how = (lambda router, x, index: F.softmax(F.linear(x, router.weight), -1).gather(-1, index)), places("l", "w", "i")
    logp, _ = by_rows(model, ids, given, weight, how)
    prepare(model)
    with replaying(model, given):
        near(tree_logprobs(model, ids, PLAN, rows, targets)[0].detach(), logp)
    given[3, 1] = (0, 3)
    words = r"more groups than MaskedRouter \(model\.layers\.1\.mlp\.gate\) takes"
    with pytest.raises(TreewrightError, match=words), replaying(model, given):
        tree_logprobs(model, ids, PLAN, rows, targets)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r[:, :1], r"routes of 1 layers, but MixtralForCausalLM has 2 with experts"),
        (lambda r: r[..., :1], r"routes have 1 experts a token, but MixtralTopKRouter .* takes 2"),
        (lambda r: r + 1, r"experts that MixtralTopKRouter \(model\.layers\.0\.mlp\.gate\) has not \(4 of them"),
        (lambda r: r * 0, "the same expert twice"),
        (lambda r: np.where([True, False], r, -1), "all its experts in a layer, or −1"),
        (lambda r: r[:-1], "31 tokens"),
    ],
)
def test_routes_of_another_model_are_refused(change: Callable[[Any], Any], words: str) -> None:
    model = model_of("Mixtral")
    ids, rows, targets, _ = problem(model)
    prepare(model)
    given = change(some_routes(len(ids), 2, unknown=0))
    with pytest.raises((TreewrightError, UnsupportedModel), match=words), replaying(model, given):
        tree_logprobs(model, ids, PLAN, rows, targets)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Phimoe", r"PhimoeTopKRouter \(model\.layers\.0\.mlp\.router\) does not choose its experts by topk"),
        ("JetMoe", r"JetMoeTopKGating \(.*\) of JetMoeForCausalLM does not say"),
        ("Llama4", "no part of Llama4ForCausalLM says which experts"),
        ("Llama", "no part of LlamaForCausalLM says which experts"),
    ],
)
def test_a_model_whose_experts_cannot_be_given_is_refused_by_name(name: str, words: str) -> None:
    model = model_of(name)
    ids, rows, targets, _ = problem(model)
    prepare(model)
    with pytest.raises(UnsupportedModel, match=words), replaying(model, some_routes(len(ids), 2)):
        tree_logprobs(model, ids, PLAN, rows, targets)


def test_a_router_that_goes_its_own_way_is_found_out_when_the_block_ends() -> None:
    class Stubborn(MaskedRouter):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits = F.linear(x.reshape(-1, x.shape[-1]), self.weight)
            weights, index = logits.softmax(-1).topk(2, -1)
            return logits, weights, torch.where(index == 0, index, logits.argsort(-1, descending=True)[:, :2])

    model = model_of("Mixtral")
    model.model.layers[1].mlp.gate = Stubborn(model.model.layers[1].mlp.gate)
    ids, rows, targets, _ = problem(model)
    prepare(model)
    words = r"Stubborn \(model\.layers\.1\.mlp\.gate\) did not take the experts"
    with pytest.raises(UnsupportedModel, match=words), replaying(model, some_routes(len(ids), 2)):
        tree_logprobs(model, ids, PLAN, rows, targets)


def test_a_router_that_several_layers_share_is_refused() -> None:
    model = model_of("Mixtral")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    ids, rows, targets, _ = problem(model)
    prepare(model)
    words = r"MixtralTopKRouter \(model\.layers\.0\.mlp\.gate\) runs more than once"
    with pytest.raises(UnsupportedModel, match=words), replaying(model, some_routes(len(ids), 1)):
        tree_logprobs(model, ids, PLAN, rows, targets)


def test_layers_without_experts_may_be_among_the_routes() -> None:
    model = model_of("DeepseekV3")
    assert len(routers(model)) == 1 and model.config.num_hidden_layers == 2
    ids, rows, targets, _ = problem(model)
    prepare(model)
    given = some_routes(len(ids), 1)
    every = np.concatenate([np.full_like(given, -1), given], 1)
    found = []
    for routes in (given, every):
        with replaying(model, routes):
            found.append(tree_logprobs(model, ids, PLAN, rows, targets)[0])
    assert torch.equal(*found)
