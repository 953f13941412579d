from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.trees import inputs, outputs_and_gradients, random_parents
from treewright.kernels import TreePlan, dispatch, tree_attention
from treewright.kernels.reference import dense_attention, relative_error

GATE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def plans() -> Iterator[TreePlan]:
    """Forests, cuts of them, long runs with short ones, single-token segments, padding."""
    rng = np.random.default_rng(3)
    shapes = [(1, 0.0, 0.0), (70, 0.9, 0.1), (300, 0.05, 0.02), (400, 0.4, 0.0), (500, 0.008, 0.0)]
    for n, branch, roots in shapes:
        plan = TreePlan.from_parents(random_parents(n, rng, branch, roots))
        yield plan
        start = int(rng.integers(0, n))
        yield plan.cut(start, int(rng.integers(start, n)) + 1)
    yield TreePlan.from_segments([-1] + [0] * 6, [300] + [40] * 6).pad_to(600)


def truth(plan: TreePlan, window: int | None, *tensors: Any) -> tuple[Any, Any, Any, Any, Any]:
    parts: list[Any] = [None if x is None else x.double() for x in tensors]
    return outputs_and_gradients(lambda q, k, v: dense_attention(q, k, v, plan, window=window), *parts)


@pytest.mark.parametrize("backend", ["sdpa", "dense"])
@pytest.mark.parametrize("dtype", GATE)
def test_outputs_and_gradients_agree_with_float64(backend: str, dtype: torch.dtype) -> None:
    for i, plan in enumerate(plans()):
        tensors = inputs(plan, [(4, 4), (4, 2), (4, 1)][i % 3], [64, 32][i % 2], dtype, seed=i)
        d_lse = tensors[-1] if i % 2 else None
        window = [None, 9, None, 150][i % 4]

        def attention(
            q: torch.Tensor, k: Any, v: torch.Tensor, plan: TreePlan = plan, window: int | None = window
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return tree_attention(q, k, v, plan, window=window, return_lse=True, backend=backend)

        expected = truth(plan, window, *tensors[:-1], d_lse)
        found = outputs_and_gradients(attention, *tensors[:-1], d_lse)
        for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), found, expected, strict=True):
            if b.norm() > 1e-6:
                assert relative_error(a, b) <= GATE[dtype], (name, i, plan.n_queries)
            assert torch.isfinite(a).all()


VARIANTS = [
    {"value_width": 16},
    {"value_width": 48},
    {"chunk": 11},
    {"softcap": 0.7},
    {"chunk": 40, "window": 9, "softcap": 2.0, "value_width": 8},
]


@pytest.mark.parametrize("backend", ["sdpa", "dense"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_other_value_widths_chunks_and_soft_caps_agree_with_float64(
    backend: str, variant: Any, dtype: torch.dtype
) -> None:
    options = {name: value for name, value in variant.items() if name != "value_width"}
    for i, plan in enumerate(plans()):
        tensors = inputs(plan, [(4, 4), (4, 2), (4, 1)][i % 3], 32, dtype, i, variant.get("value_width"))
        found = outputs_and_gradients(
            lambda q, k, v, plan=plan: tree_attention(q, k, v, plan, return_lse=True, backend=backend, **options),
            *tensors,
        )
        exact = [x.double() for x in tensors]
        expected = outputs_and_gradients(lambda q, k, v, plan=plan: dense_attention(q, k, v, plan, **options), *exact)
        for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), found, expected, strict=True):
            if b.norm() > 1e-6:
                assert relative_error(a, b) <= 4 * GATE[dtype], (name, i, plan.n_queries)  # sums of up to 48 terms


def test_the_reference_hides_other_chunks_and_bends_scores_as_written_out() -> None:
    plan = TreePlan.from_segments([-1, 0, 0], [5, 3, 2])
    q, k, v, *_ = inputs(plan, (2, 2), 8, torch.float64, value_width=4)
    out, _ = dense_attention(q, k, v, plan, 0.5, chunk=4, softcap=1.5)
    parent, depth = plan.parent.tolist(), plan.depth.tolist()
    for i in range(plan.n_queries):
        path, at = [], i
        while at >= 0 and depth[at] // 4 == depth[i] // 4:
            path.append(at)
            at = parent[at]
        scores = 1.5 * torch.tanh((k[:, path] @ q[:, i, :, None])[..., 0] * 0.5 / 1.5)
        expected = (scores.softmax(-1)[..., None] * v[:, path]).sum(1)
        assert relative_error(out[:, i], expected) < 1e-13


@pytest.mark.parametrize("backend", ["sdpa", "dense"])
def test_sinks_take_their_share_and_get_their_gradient(backend: str) -> None:
    plan = TreePlan.from_segments([-1, 0, 0], [5, 3, 2])
    q, k, v, d_out, _ = inputs(plan, (4, 2), 16, torch.float64)
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    out, lse = tree_attention(q, k, v, plan, sinks=sinks, return_lse=True, backend=backend)
    (d_sinks,) = torch.autograd.grad((out * d_out).sum(), sinks)

    scores = q @ k.repeat_interleave(2, 0).transpose(1, 2) / 4
    scores = scores.masked_fill(~plan.dense_mask(), -math.inf)
    with_sink = torch.cat([scores, sinks[:, None, None].expand(-1, plan.n_queries, 1)], -1)
    expected = with_sink.softmax(-1)[..., :-1] @ v.repeat_interleave(2, 0)
    (d_expected,) = torch.autograd.grad((expected * d_out).sum(), sinks)
    assert relative_error(out.detach(), expected.detach()) < 1e-13
    assert relative_error(lse.detach(), torch.logsumexp(with_sink, -1).detach()) < 1e-13
    assert relative_error(d_sinks, d_expected) < 1e-12


def test_float64_gradients_pass_gradcheck() -> None:
    plan = TreePlan.from_segments([-1, 0, 1, 0], [2, 2, 1, 2])
    q, k, v, *_ = (x.requires_grad_() for x in inputs(plan, (2, 1), 8, torch.float64))
    assert torch.autograd.gradcheck(lambda q, k, v: tree_attention(q, k, v, plan, return_lse=True), (q, k, v))


def test_repeated_runs_give_the_same_bits() -> None:
    plan = TreePlan.from_parents(random_parents(300, np.random.default_rng(0), 0.1))
    tensors = inputs(plan, (4, 2), 32, torch.float32)

    def attention(q: Any, k: Any, v: Any) -> Any:
        return tree_attention(q, k, v, plan, return_lse=True, deterministic=True)

    first, second = (outputs_and_gradients(attention, *tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_tree_does_not_read_another_even_where_it_is_nan() -> None:
    plan = TreePlan.from_segments([-1, 0, -1, 2], [40, 30, 50, 20])
    q, k, v, d_out, _ = inputs(plan, (2, 2), 32, torch.float32)
    clean = outputs_and_gradients(lambda q, k, v: tree_attention(q, k, v, plan.cut(0, 70), return_lse=True),
                                  q[:, :70], k[:, :70], v[:, :70], d_out[:, :70], None)  # fmt: skip
    assert all(torch.isfinite(x).all() for x in clean)
    packed = outputs_and_gradients(lambda q, k, v: tree_attention(q, k, v, plan, return_lse=True), q, k, v, d_out, None)
    for a, b in zip(packed, clean, strict=True):
        assert relative_error(a[:, :70], b) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[None], k, v, {}), "no batch axis"),
        (lambda q, k, v: (q[:3], k, v, {}), "no multiple"),
        (lambda q, k, v: (q[:, :4], k, v, {}), "another pack's plan"),
        (lambda q, k, v: (q.half(), k, v, {}), "one dtype"),
        (lambda q, k, v: (q, k, v, {"window": 0}), "hide a token from itself"),
        (lambda q, k, v: (q, k, v, {"sinks": torch.zeros(3)}), "one logit per query head"),
        (lambda q, k, v: (q, k, v, {"backend": "best"}), "no attention backend is called 'best'"),
    ],
)
def test_wrong_input_is_refused_with_what_to_give(change: Callable[[Any, Any, Any], Any], message: str) -> None:
    plan = TreePlan.from_segments([-1, 0], [3, 4])
    q, k, v, *_ = inputs(plan, (4, 2), 16, torch.float32)
    q, k, v, options = change(q, k, v)
    with pytest.raises(ValueError, match=message):
        tree_attention(q, k, v, plan, **options)


def test_the_choice_of_backend_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._automatic.cache_clear()
    plan = TreePlan.from_segments([-1], [3])
    q, k, v, *_ = inputs(plan, (2, 2), 16, torch.float32)
    with caplog.at_level(logging.INFO, "treewright.kernels"):
        tree_attention(q, k, v, plan)
        tree_attention(q, k, v, plan)
    assert [r.getMessage() for r in caplog.records] == [
        "tree attention on cpu in float32, head size 16: backend sdpa (per run over its root path)"
    ]


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "triton", "backend"),
    [
        ((9, 0), torch.bfloat16, 128, True, "triton"),
        ((8, 0), torch.bfloat16, 64, True, "triton_ptr"),
        ((7, 5), torch.float16, 64, True, "flex"),
        ((9, 0), torch.bfloat16, 80, True, "flex"),
        ((9, 0), torch.float64, 64, True, "sdpa"),
        ((9, 0), torch.bfloat16, 64, False, "sdpa"),
    ],
)
def test_gpus_get_the_backend_that_suits_them(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    width: int,
    triton: bool,
    backend: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: triton or None)
    assert dispatch._reasoned("cuda", 0, dtype, width)[0] == backend


def test_memory_that_was_not_written_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(create: Any) -> Callable[..., Any]:
        return lambda *a, **o: create(*a, **o).fill_(math.nan)

    plans = [TreePlan.from_parents(random_parents(300, np.random.default_rng(i), 0.05)).cut(40, 290) for i in range(3)]
    data = [inputs(plan, (4, 2), 32, torch.float32, seed=1) for plan in plans]
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for plan, tensors in zip(plans, data, strict=True):
        found = outputs_and_gradients(lambda q, k, v, p=plan: tree_attention(q, k, v, p, return_lse=True), *tensors)
        assert all(torch.isfinite(x).all() for x in found)


def test_an_empty_plan_gives_an_empty_result() -> None:
    plan = TreePlan.from_segments([], [])
    q, k, v, *_ = inputs(plan, (4, 2), 16, torch.float32)
    for backend in ("sdpa", "dense"):
        assert tree_attention(q, k, v, plan, backend=backend).shape == (4, 0, 16)
