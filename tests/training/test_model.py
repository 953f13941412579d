from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from closeness import assert_near  # noqa: E402

from treewright.kernels import BranchCache, PromptCache, TreePlan  # noqa: E402
from treewright.training.decoders.experts import routing_flips  # noqa: E402
from treewright.training.decoders.plans import plan_in  # noqa: E402
from treewright.training.model import (  # noqa: E402
    UnsupportedModel,
    branch_logits,
    chunked_backward,
    chunked_logprobs,
    prepare,
    refuse_unsupported,
    tree_attention_in,
    tree_hidden,
    tree_logprobs,
)

PARENT_SEGMENT, LENGTHS = [-1, 0, 1, 1, 0, -1, 5, 5], [6, 3, 4, 1, 5, 2, 3, 1]
SHAPE = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
)  # fmt: skip


def llama(**more: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE | more))


def qwen3(**more: Any) -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE | more))


def sliding_qwen3() -> Any:
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    return qwen3(use_sliding_window=True, sliding_window=4, layer_types=types)


@pytest.fixture(autouse=True)
def float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm computes in float32, which would floor float64 comparisons at 1e-7."""

    def forward(self: Any, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for name in ("llama.modeling_llama.LlamaRMSNorm", "qwen3.modeling_qwen3.Qwen3RMSNorm"):
        monkeypatch.setattr(f"transformers.models.{name}.forward", forward)


def trajectories(plan: TreePlan) -> list[list[int]]:
    """Token indices of every root-to-leaf path."""
    parent = plan.parent.tolist()
    paths = []
    for leaf in sorted(set(range(len(parent))) - set(parent)):
        path = []
        while leaf >= 0:
            path.append(leaf)
            leaf = parent[leaf]
        paths.append(path[::-1])
    return paths


def rows_of_tree(model: Any, ids: torch.Tensor, plan: TreePlan) -> tuple[Any, ...]:
    """(hidden, logp, entropy) from one ordinary run per trajectory, put back in tree order."""
    model.set_attn_implementation("sdpa")
    hidden, logp, entropy = {}, {}, {}
    for path in trajectories(plan):
        index = torch.tensor(path)
        out = model.model(ids[index][None], use_cache=False).last_hidden_state[0]
        log_probs = torch.log_softmax(model.lm_head(out), -1)
        for at, token in enumerate(path):
            hidden[token] = out[at]
            if at:
                logp[token] = log_probs[at - 1, ids[token]]
                entropy[token] = -(log_probs[at - 1].exp() * log_probs[at - 1]).sum()
    in_order = (torch.stack([d[t] for t in sorted(d)]) for d in (hidden, logp, entropy))
    return tuple(in_order)


def gradients(model: Any, loss: torch.Tensor) -> list[Any]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("build", [llama, qwen3, sliding_qwen3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_on_a_tree_equal_those_of_each_trajectory_alone(
    build: Callable[..., Any], checkpointing: bool
) -> None:
    torch.manual_seed(0)
    model = build().double().train()
    plan = TreePlan.from_segments(PARENT_SEGMENT, LENGTHS).pad_to(28)
    ids = torch.randint(0, 97, (28,))
    trained = torch.nonzero(plan.parent >= 0).flatten()
    weights, bonus = torch.randn(len(trained)).double(), torch.randn(len(trained)).double()

    hidden, logp, entropy = rows_of_tree(model, ids, plan)
    expected = gradients(model, (logp * weights).sum() + (entropy * bonus).sum())

    prepare(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    got_hidden = tree_hidden(model, ids, plan)
    rows, targets = plan.parent[trained].long(), ids[trained]
    got_logp, got_entropy = tree_logprobs(model, ids, plan, rows, targets, chunk=7)
    found = gradients(model, (got_logp * weights).sum() + (got_entropy * bonus).sum())

    for a, b in [(got_hidden, hidden), (got_logp, logp), (got_entropy, entropy), *zip(found, expected, strict=True)]:
        assert (a - b).norm() <= 1e-9 * b.norm()


@pytest.mark.parametrize("build", [llama, qwen3, sliding_qwen3])
@pytest.mark.parametrize("cuts", [5, 1, [0, 3, 9, 10, 23]])
def test_chunks_give_the_gradient_of_the_whole_for_a_loss_that_ties_all_tokens(
    build: Callable[..., Any], cuts: int | list[int]
) -> None:
    torch.manual_seed(0)
    model = build().double().train()
    prepare(model)
    plan = TreePlan.from_segments(PARENT_SEGMENT, LENGTHS)
    ids = torch.randint(0, 97, (plan.n_queries,))
    trained = torch.nonzero(plan.parent >= 0).flatten()
    rows, targets = plan.parent[trained].long(), ids[trained]

    def loss(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        return (logp.sum() / 9).exp() + (logp * entropy).pow(2).mean()

    logp, entropy = tree_logprobs(model, ids, plan, rows, targets)
    whole = loss(logp, entropy)
    expected = gradients(model, whole)
    model.zero_grad()
    if cuts == 5:
        model.gradient_checkpointing_enable()
    value, chunked_logp, chunked_entropy = chunked_backward(model, ids, plan, rows, targets, loss, cuts, chunk=6)
    assert (value - whole).abs() <= 1e-9 * whole.abs()
    assert torch.allclose(chunked_logp, logp, rtol=1e-9) and torch.allclose(chunked_entropy, entropy, rtol=1e-9)
    for p, b in zip(model.parameters(), expected, strict=True):
        assert (p.grad - b).norm() <= 1e-9 * b.norm()


def test_chunks_without_trained_tokens_still_pass_gradients_on() -> None:
    torch.manual_seed(0)
    model = qwen3().double()
    prepare(model)
    plan = TreePlan.from_segments([-1], [12])
    ids = torch.randint(0, 97, (12,))
    rows, targets = torch.tensor([10]), ids[11:]
    logp, _ = tree_logprobs(model, ids, plan, rows, targets)
    expected = gradients(model, logp.sum())
    model.zero_grad()
    chunked_backward(model, ids, plan, rows, targets, lambda logp, entropy: logp.sum(), 4)
    for p, b in zip(model.parameters(), expected, strict=True):
        assert (p.grad - b).norm() <= 1e-9 * b.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("build", [llama, sliding_qwen3])
def test_nothing_of_a_pack_outlives_its_passes(build: Callable[..., Any], checkpointing: bool) -> None:
    model = build().train()
    prepare(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    plan = TreePlan.from_segments(PARENT_SEGMENT, LENGTHS)
    ids = torch.randint(0, 97, (plan.n_queries,))
    trained = torch.nonzero(plan.parent >= 0).flatten()
    given = (model, ids, plan, plan.parent[trained].long(), ids[trained])

    def passes() -> None:
        chunked_logprobs(*given, 5)
        chunked_backward(*given, lambda logp, entropy: logp.sum(), 5)
        tree_logprobs(*given)[0].sum().backward()  # type: ignore[no-untyped-call]

    passes()  # whose gradients and caches stay
    gc.collect()
    gc.disable()  # a reference cycle would be found late, with the keys and values of many packs in it
    try:
        known = {id(x) for x in gc.get_objects() if isinstance(x, torch.Tensor)}
        passes()
        assert not [x.shape for x in gc.get_objects() if isinstance(x, torch.Tensor) and id(x) not in known]
    finally:
        gc.enable()


@pytest.mark.parametrize("build", [llama, qwen3, sliding_qwen3])
def test_branches_decode_as_if_each_had_its_own_cache(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = build().double()
    texts = [torch.randint(0, 97, (n,)).tolist() for n in (7, 5, 2)]  # a prompt, one that continues it, another
    paths, whole, found = [], [], []

    def grow(ids: list[Any], path: list[Any], before: list[Any]) -> list[Any]:
        cache = PromptCache(path, len(ids))
        found.append((before + ids, branch_logits(model, torch.tensor([ids]), cache)[0]))
        return [*path, cache.stretch()]

    with tree_attention_in(model):
        first = grow(texts[0], [], [])
        paths = [first, grow(texts[1], first, texts[0]), grow(texts[2], [], [])]
        whole = [texts[0], texts[0], texts[0] + texts[1], texts[0] + texts[1], texts[2]]
        cache = BranchCache(paths, [2, 2, 1], room=6, pays=1)
        assert cache.shared_tokens == 7 + 5
        for step in range(6):
            if step == 3:
                cache.keep(torch.tensor([0, 2, 3]))
                whole = [whole[i] for i in (0, 2, 3)]
            new = torch.randint(0, 97, (len(whole), 1))
            whole = [text + ids for text, ids in zip(whole, new.tolist(), strict=True)]
            found += zip(whole, branch_logits(model, new, cache), strict=True)
    for text, logits in found:
        expected = model(torch.tensor([text]), use_cache=False).logits[0, -1]
        assert torch.allclose(logits, expected, atol=1e-10)


@pytest.mark.parametrize("build", [llama, qwen3])
def test_autocast_works_forward_and_backward(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = build()
    prepare(model)
    plan = TreePlan.from_segments(PARENT_SEGMENT, LENGTHS)
    ids = torch.randint(0, 97, (plan.n_queries,))
    trained = torch.nonzero(plan.parent >= 0).flatten()
    exact, _ = tree_logprobs(model, ids, plan, plan.parent[trained].long(), ids[trained])
    with torch.autocast("cpu", torch.bfloat16):
        logp, _ = tree_logprobs(model, ids, plan, plan.parent[trained].long(), ids[trained])
    assert_near(logp.float(), exact, 0.01)
    assert all(torch.isfinite(g).all() for g in gradients(model, logp.sum()))


def test_float32_needs_no_patch_to_stay_close() -> None:
    torch.manual_seed(0)
    model = llama()
    plan = TreePlan.from_segments(PARENT_SEGMENT, LENGTHS)
    ids = torch.randint(0, 97, (plan.n_queries,))
    hidden, *_ = rows_of_tree(model, ids, plan)
    prepare(model)
    assert (tree_hidden(model, ids, plan) - hidden).norm() <= 1e-5 * hidden.norm()


def test_attention_dropout_is_refused_with_what_to_set() -> None:
    with pytest.raises(UnsupportedModel, match=r"attention dropout 0\.1 \(set config\.attention_dropout = 0\)"):
        refuse_unsupported(llama(attention_dropout=0.1))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_that_change_with_length_run_up_to_where_they_change(kind: str) -> None:
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    model = llama(rope_parameters=rope)
    prepare(model)
    fits, beyond = (TreePlan.from_segments([-1, 0], [n, 4]) for n in (60, 61))
    assert tree_hidden(model, torch.arange(64), fits).shape == (64, 32)
    with pytest.raises(UnsupportedModel, match=f"65 tokens: beyond 64 the {kind} rotary embedding"):
        tree_hidden(model, torch.arange(65), beyond)


def test_misuse_says_what_to_do_next() -> None:
    model = llama()
    plan = TreePlan.from_segments([-1], [4])
    ids = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="prepare"):
        tree_hidden(model, ids, plan)
    prepare(model)
    with pytest.raises(ValueError, match="plan has 4"):
        tree_hidden(model, ids[:3], plan)
    with pytest.raises(ValueError, match="set_attn_implementation"):
        model(ids[None])
    with pytest.raises(ValueError, match="call tree_hidden"):
        model.model(ids[None], tree=plan)
    with plan_in(model, plan):
        with pytest.raises(ValueError, match="plan is the mask"):
            model.model(ids[None], attention_mask=torch.ones(1, 1, 4, 4))
        with pytest.raises(ValueError, match="KV cache"):
            cache = transformers.DynamicCache(config=model.config)
            model.model(ids[None, :4], past_key_values=cache, use_cache=True)
            model.model(ids[None, :4], past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="a batch of 2"):
            model.model(ids[None].expand(2, -1))
    with pytest.raises(ValueError, match="predicted by nothing"):
        tree_logprobs(model, ids, plan, torch.tensor([-1, 0]), torch.tensor([0, 0]))


def test_the_decoding_example_of_the_kernels_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "branch_logits(" in b]
    torch.manual_seed(0)
    model = qwen3(max_position_embeddings=256)
    names = {"model": model, "ids": torch.randint(0, 97, (100,)), "tokens": torch.arange(8)}
    exec(block, names)
    whole = torch.cat([names["ids"].expand(8, -1), torch.arange(8)[:, None]], 1)
    assert_near(names["logits"], model(whole, use_cache=False).logits[:, -1])


def test_a_sampler_in_half_precision_routes_some_tokens_otherwise() -> None:
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**SHAPE, num_local_experts=8, num_experts_per_tok=2)
    model = transformers.GptOssForCausalLM(config).eval()
    plan = TreePlan.from_segments([-1, 0, 0], [200, 40, 60])
    ids = torch.randint(0, 97, (300,))
    assert routing_flips(model, ids, plan, torch.float32) == 0
    assert 0 < routing_flips(model, ids, plan) < 0.5
