"""Families of decoders on trees against rows: outputs, gradients, chunks, checkpointing, adapters; what is refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from treewright.kernels import TreePlan  # noqa: E402
from treewright.training.decoders.check import doubled, fit_of, running  # noqa: E402
from treewright.training.decoders.experts import expert_load, has_experts, routes, routing_flips  # noqa: E402
from treewright.training.decoders.plans import states_on  # noqa: E402
from treewright.training.decoders.tiny import tiny_model  # noqa: E402
from treewright.training.model import (  # noqa: E402
    UnsupportedModel,
    chunked_backward,
    prepare,
    refuse_unsupported,
    tree_hidden,
    tree_logprobs,
)

RECURRENT = {
    "Qwen3_5": {},  # Gated DeltaNet
    "Qwen3Next": {},  # the same, with experts
    "KimiLinear": {},  # KDA and latent attention
    "GraniteMoeHybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},  # Mamba-2
    "NemotronH": {},
    "FalconH1": {},
    "MiniMax": {},  # Lightning attention
    "Lfm2": {"layer_types": ["conv", "full_attention"] * 16},  # short convolutions
    "Jamba": {},  # Mamba-1
}
ATTENTION = {
    "DeepseekV3": {},  # values narrower than queries
    "Gemma2": {},  # soft caps, of attention and of logits
    "Llama4": {},  # chunks
    "Cohere2": {},  # a scale of logits
    "Phi": {"attention_dropout": 0.0},  # a bias of the output layer
    "Phimoe": {},  # a window of which only the mask knows
    "GptOss": {},  # sinks
    "SeedOss": {"attention_dropout": 0.0},
    "Afmoe": {},
    "JetMoe": {},
    "Moshi": {},
    "Nemotron": {"num_key_value_heads": 4},
}
WHOLE = {"Doge": {"attention_dropout": 0.0}, "GPTJ": {}, "DeepseekV32": {}}
"""Those with attention of their own, which get a mask of the whole pack."""

FAMILIES: Any = RECURRENT | ATTENTION | WHOLE


@pytest.fixture(autouse=True)
def all_float64() -> Iterator[None]:
    """Models compute parts in float32, which would blur the comparison."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with doubled():
        yield
    torch.set_default_dtype(before)


def model_of(name: str, **more: Any) -> Any:
    kind = getattr(transformers, f"{name}ForCausalLM")
    return tiny_model(kind, kind.config_class(**FAMILIES[name] | more))


def tree(branching: int = 3, depth: int = 6, length: int = 3) -> TreePlan:
    """One segment of each level branches again: one path is as long as the tree is deep."""
    up: list[int] = []
    lengths: list[int] = []

    def grow(parent: int, level: int) -> None:
        here = len(up)
        up.append(parent)
        lengths.append(length + (here % 3))
        for child in range(branching if level < depth else 0):
            if child == 1:
                grow(here, level + 1)
            else:
                up.append(here)
                lengths.append(1 + child)

    grow(-1, 1)
    return TreePlan.from_segments(up, lengths)


def problem(model: nn.Module, plan: TreePlan) -> tuple[torch.Tensor, Any, torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 90, (plan.n_queries,), generator=torch.Generator().manual_seed(0))
    trained = torch.nonzero(plan.parent >= 0).flatten()
    weight = torch.randn(2, len(trained), generator=torch.Generator().manual_seed(1))
    return ids, plan.parent[trained].long(), ids[trained], weight


def row_results(model: nn.Module, ids: torch.Tensor, plan: TreePlan, weight: torch.Tensor) -> tuple[Any, ...]:
    """logp and entropy of every token that has one before it, from plain rows, and gradients of their weighted sum."""
    parent = plan.parent.tolist()
    logp, entropy = {}, {}
    model.zero_grad()
    with running(model, "eager"):
        for leaf in sorted(set(range(len(parent))) - set(parent)):
            path = [leaf]
            while parent[path[-1]] >= 0:
                path.append(parent[path[-1]])
            path.reverse()
            logits = model(input_ids=ids[path][None], use_cache=False).logits[0].double()
            scores = torch.log_softmax(logits, -1)
            for at, token in list(enumerate(path))[1:]:
                logp[token] = scores[at - 1, ids[token]]
                entropy[token] = -(scores[at - 1].exp() * scores[at - 1]).sum()
    found = [torch.stack([x[t] for t in sorted(x)]) for x in (logp, entropy)]
    (found[0] * weight[0] + found[1] * weight[1]).sum().backward()  # type: ignore[no-untyped-call]
    return *(x.detach() for x in found), grads(model)


def grads(model: nn.Module) -> dict[str, Any]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def agree(found: dict[str, Any], expected: Any, limit: float = 1e-9) -> None:
    for name, b in expected.items():
        if b.norm() > 1e-9:
            assert name in found and (found[name] - b).norm() <= limit * b.norm(), name
    assert all(x.norm() <= 1e-6 for name, x in found.items() if name not in expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_on_a_tree_what_it_gives_on_rows(name: str) -> None:
    model, plan = model_of(name), tree()
    ids, rows, targets, weight = problem(model, plan)
    logp, entropy, expected = row_results(model, ids, plan, weight)
    prepare(model)
    assert model.treewright_fit.attention == ("eager" if name in WHOLE else "treewright")
    found = tree_logprobs(model, ids, plan, rows, targets, chunk=17)
    for a, b in zip(found, (logp, entropy), strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()
    model.zero_grad()
    (found[0] * weight[0] + found[1] * weight[1]).sum().backward()  # type: ignore[no-untyped-call]
    agree(grads(model), expected)


def checkpointed(model: Any, reentrant: bool) -> None:
    """Gradient checkpointing as usual; what is run again while gradients flow is in float64 too."""
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})

    def again(function: Any) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            with doubled():
                return function(*args, **more)

        return run

    for module in model.modules():
        if "_gradient_checkpointing_func" in vars(module):
            own = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = lambda fn, *args, own=own: own(again(fn), *args)


@functools.lru_cache(maxsize=1)
def small_problem(name: str) -> tuple[Any, TreePlan, tuple[Any, ...], dict[str, Any]]:
    """A model as it was made, a tree, what is asked of it, and the gradient by rows, for the tests of one family."""
    model, plan = model_of(name), tree(depth=3)
    given = problem(model, plan)
    *_, expected = row_results(copy.deepcopy(model), given[0], plan, given[3])
    return model, plan, given, expected


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("name", [*RECURRENT, "DeepseekV3", "Llama4", "Gemma2"])
def test_chunks_and_gradient_checkpointing_give_the_gradient_of_rows(name: str, checkpointing: bool | None) -> None:
    made, plan, (ids, rows, targets, weight), expected = small_problem(name)
    model = copy.deepcopy(made)
    prepare(model)
    if checkpointing is not None:
        checkpointed(model, checkpointing)
    model.zero_grad()
    if checkpointing is False:
        logp, entropy = tree_logprobs(model, ids, plan, rows, targets)
        (logp * weight[0] + entropy * weight[1]).sum().backward()
    else:
        chunked_backward(
            model, ids, plan, rows, targets, lambda p, e: (p * weight[0] + e * weight[1]).sum(), 10, chunk=7
        )
    agree(grads(model), expected)


@pytest.mark.parametrize("name", ["Qwen3_5", "KimiLinear", "NemotronH", "MiniMax", "Lfm2"])
def test_an_adapter_on_every_projection_learns_the_same(name: str) -> None:
    peft = pytest.importorskip("peft")
    model, plan = model_of(name), tree(depth=3)
    linear = {n.rpartition(".")[2] for n, m in model.named_modules() if type(m) is nn.Linear} - {"lm_head", "gate"}
    linear -= {"out_proj"} if name == "NemotronH" else set()  # peft refuses it for Mamba layers
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=sorted(linear), init_lora_weights=False))
    wrapped.to(torch.float64)
    ids, rows, targets, weight = problem(model, plan)
    *_, expected = row_results(model, ids, plan, weight)
    assert sum("lora" in n for n in expected) >= 8
    prepare(wrapped)
    model.zero_grad()
    logp, entropy = tree_logprobs(wrapped, ids, plan, rows, targets)
    (logp * weight[0] + entropy * weight[1]).sum().backward()  # type: ignore[no-untyped-call]
    agree(grads(model), expected)


def test_a_frozen_copy_follows_its_own_plan() -> None:
    model, plan = model_of("Qwen3_5"), tree(depth=3)
    prepare(model)
    twin = copy.deepcopy(model)
    ids = problem(model, plan)[0]
    with torch.no_grad():
        next(twin.parameters()).mul_(1.5)
        assert not torch.allclose(tree_hidden(twin, ids, plan), tree_hidden(model, ids, plan))
    with pytest.raises(ValueError, match="no tree given"):
        twin(ids[None])
    twin.set_attn_implementation("sdpa")
    assert twin(ids[None]).logits.shape == (1, len(ids), 97)


@pytest.mark.parametrize("name", ["Qwen3_5", "GraniteMoeHybrid"])
def test_a_qwen35_shaped_toy_trained_on_trees_has_the_weights_of_training_on_rows(name: str) -> None:
    by_tree, by_row = model_of(name), model_of(name)
    prepare(by_tree)
    plan = tree(depth=3, branching=3)
    rate: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.99)}
    optimizers = [torch.optim.AdamW(m.parameters(), **rate) for m in (by_tree, by_row)]
    for step in range(8 if name == "Qwen3_5" else 5):
        ids = torch.randint(4, 90, (plan.n_queries,), generator=torch.Generator().manual_seed(step))
        trained = torch.nonzero(plan.parent >= 0).flatten()
        weight = torch.randn(2, len(trained), generator=torch.Generator().manual_seed(step))
        row_results(by_row, ids, plan, weight)
        by_tree.zero_grad()
        logp, entropy = tree_logprobs(by_tree, ids, plan, plan.parent[trained].long(), ids[trained])
        (logp * weight[0] + entropy * weight[1]).sum().backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    for (n, a), b in zip(by_tree.named_parameters(), by_row.parameters(), strict=True):
        assert (a - b).norm() <= 1e-8 * b.norm(), n


def test_a_window_that_only_the_mask_knows_is_kept() -> None:
    model = model_of("Phimoe", sliding_window=9)
    assert model.config.sliding_window == 9
    plan = TreePlan.from_segments([-1, 0, 0], [30, 8, 5])
    ids, rows, targets, weight = problem(model, plan)
    logp, *_ = row_results(model, ids, plan, weight)
    prepare(model)
    found, _ = tree_logprobs(model, ids, plan, rows, targets)
    assert (found - logp).abs().max() <= 1e-9
    wide = model_of("Phimoe", sliding_window=None)
    prepare(wide)
    assert (tree_logprobs(wide, ids, plan, rows, targets)[0] - logp).abs().max() > 0.01, "the window counts"


class Mixer(nn.Module):
    """A layer of tomorrow: a running mean over all tokens before."""

    def forward(self, x: Any) -> Any:
        return x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class Norm(nn.Module):
    """Another one, which treats each token alone."""

    def forward(self, x: Any) -> Any:
        return x / (1 + x.abs())


def test_an_unknown_layer_is_refused_by_what_it_does_not_by_its_name() -> None:
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    for layer in (Mixer, Norm):
        model = transformers.LlamaForCausalLM(config).double()
        model.model.layers[1].mlp.act_fn = layer()
        if layer is Norm:
            prepare(model)
        else:
            with pytest.raises(UnsupportedModel, match=r"Mixer \(model\.layers\.1\.mlp\.act_fn\) gives another result"):
                prepare(model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Bloom", r"BloomAttention \(transformer\.h\.0\.self_attention\).*takes no position ids"),
        ("RecurrentGemma", r"RecurrentGemmaRecurrentBlock \(model\.layers\.0\.temporal_block\) gives another result"),
        ("DeepseekV4", "the plan is the mask"),
        ("T5", "not a causal decoder"),
    ],
)
def test_what_is_refused_is_named(name: str, words: str) -> None:
    kind = getattr(transformers, f"{name}ForCausalLM", None) or transformers.T5ForConditionalGeneration
    with pytest.raises(UnsupportedModel, match=words):
        refuse_unsupported(tiny_model(kind, kind.config_class()))


def test_an_encoder_is_seen_not_to_be_causal() -> None:
    model = tiny_model(transformers.BertLMHeadModel, transformers.BertConfig())
    with pytest.raises(UnsupportedModel, match="depends on tokens after it"):
        refuse_unsupported(model)
    decoder = tiny_model(transformers.BertLMHeadModel, transformers.BertConfig(is_decoder=True))
    assert fit_of(decoder).gap <= 1e-9


@pytest.mark.parametrize("name", ["Qwen3_5", "Gemma3"])
def test_text_of_multimodal_classes_runs_and_their_image_tokens_are_refused(name: str) -> None:
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    model: Any = tiny_model(kind, kind.config_class())
    prepare(model)
    plan = tree(depth=3)
    ids = problem(model, plan)[0]
    assert torch.isfinite(tree_hidden(model, ids, plan)).all()
    ids[4] = model.config.image_token_id
    with pytest.raises(UnsupportedModel, match=r"image_token_id\) stands for an image"):
        tree_hidden(model, ids, plan)


def test_packs_too_large_for_a_whole_mask_say_what_to_unset() -> None:
    model = model_of("GPTJ")
    prepare(model)
    plan = tree(depth=3)
    ids, rows, targets, _ = problem(model, plan)
    with pytest.raises(UnsupportedModel, match=r"unset train\.chunk_tokens"):
        chunked_backward(model, ids, plan, rows, targets, lambda p, e: p.sum(), 7)


def test_a_layer_that_attends_twice_keeps_its_parts_apart_in_chunks() -> None:
    kind = transformers.DiffLlamaForCausalLM
    model: Any = tiny_model(kind, kind.config_class())
    plan = tree(depth=3)
    ids, rows, targets, weight = problem(model, plan)
    *_, expected = row_results(model, ids, plan, weight)
    prepare(model)
    assert model.treewright_fit.chunks
    checkpointed(model, False)
    model.zero_grad()
    chunked_backward(model, ids, plan, rows, targets, lambda p, e: (p * weight[0] + e * weight[1]).sum(), 10)
    agree(grads(model), expected)


def test_states_before_the_output_layer_cost_no_logits() -> None:
    model = model_of("Gemma2")
    prepare(model)
    plan, seen = tree(depth=2), []
    model.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.numel()))
    states = states_on(model, plan, problem(model, plan)[0][None])
    assert states.shape == (1, plan.n_queries, 64) and seen == [0]


def test_experts_are_the_same_on_a_tree_and_load_counts_trajectories() -> None:
    model, plan = model_of("GptOss"), TreePlan.from_segments([-1, 0, 0, 0], [8, 2, 3, 1])
    ids = problem(model, plan)[0]
    prepare(model)
    found = routes(model, ids, plan)
    assert has_experts(model) and len(found) == 2 and all(x.shape == (14, 2) for x in found.values())
    rows = [list(range(8)) + tail for tail in ([8, 9], [10, 11, 12], [13])]
    counts = {name: torch.zeros(4) for name in found}
    for row in rows:
        chain = TreePlan.from_segments([-1], [len(row)])
        for name, chosen in routes(model, ids[row], chain).items():
            assert torch.equal(chosen.sort(-1).values, found[name][row].sort(-1).values)
            counts[name] += torch.bincount(chosen.flatten(), minlength=4)
    for name, (once, each) in expert_load(model, ids, plan).items():
        assert torch.allclose(each, counts[name][: len(each)] / counts[name].sum())
        assert torch.allclose(once, torch.bincount(found[name].flatten()) / 28)
    assert routing_flips(model, ids, plan, torch.float64) == 0 and not has_experts(model_of("Phi"))
