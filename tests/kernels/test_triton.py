"""The Triton backends against float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import numpy as np
import pytest
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to check")

from tests.kernels.trees import inputs, outputs_and_gradients, random_parents  # noqa: E402
from treewright.kernels import TreePlan, tree_attention, triton_backend  # noqa: E402
from treewright.kernels.reference import dense_attention, relative_error  # noqa: E402

tree_attention_module = importlib.import_module("treewright.kernels.tree_attention")
DEVICE = "cuda" if ON_GPU else "cpu"
GATE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BACKENDS = ["triton_ptr", "triton"]
if ON_GPU and torch.cuda.get_device_capability() < (9, 0):
    BACKENDS.remove("triton")


def forest(seed: int, n: int = 150) -> TreePlan:
    rng = np.random.default_rng(seed)
    return TreePlan.from_parents(random_parents(n, rng, [0.04, 0.3][seed % 2], [0.0, 0.05][seed // 2 % 2]))


PLANS = {
    "forest": forest(0),
    "many short segments": forest(3),
    "rectangular cut": forest(0).cut(70, 145),
    "leaf ending at an inner node": TreePlan.from_segments([-1, 0, 1, 0], [70, 1, 30, 45]),
    "single tokens and padding": TreePlan.from_segments([-1, 0, 1, 2, 2, 0, 5, 6], [1] * 8).pad_to(12),
    "one chain with a branch": TreePlan.from_segments([-1, 0, 0], [130, 40, 35]),
}


def check(
    plan: TreePlan,
    backend: str,
    dtype: torch.dtype,
    heads: tuple[int, int],
    width: int,
    *,
    with_lse: bool = True,
    deterministic: bool = False,
    seed: int = 0,
    value_width: Any = None,
    **options: Any,
) -> None:
    tensors = inputs(plan, heads, width, dtype, seed, value_width)
    q, k, v, d_out, d_lse = (x.to(DEVICE) for x in tensors)
    d_lse = d_lse if with_lse else None

    def attention(q: Any, k: Any, v: Any) -> Any:
        return tree_attention(q, k, v, plan, return_lse=True, backend=backend, deterministic=deterministic, **options)

    found = outputs_and_gradients(attention, q, k, v, d_out, d_lse)
    exact: list[Any] = [None if x is None else x.double() for x in (q, k, v, d_out, d_lse)]
    expected = outputs_and_gradients(lambda q, k, v: dense_attention(q, k, v, plan, **options), *exact)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), found, expected, strict=True):
        assert relative_error(a, b) <= GATE[dtype], name
        assert torch.isfinite(a).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLANS)
def test_every_kind_of_plan_agrees_with_float64(backend: str, name: str) -> None:
    check(PLANS[name], backend, torch.float32, (2, 1), 64, with_lse=len(name) % 2 == 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("heads", "width"), [((1, 1), 128), ((4, 2), 32), ((4, 1), 64), ((1, 1), 256)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_head_layout_agrees_in_half_precision(
    backend: str, heads: tuple[int, int], width: int, dtype: torch.dtype
) -> None:
    check(PLANS["forest"], backend, dtype, heads, width)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["forest", "rectangular cut"])
@pytest.mark.parametrize(
    "options",
    [
        {"value_width": 64},
        {"chunk": 20},
        {"softcap": 0.8},
        {"value_width": 32, "window": 30, "chunk": 50, "softcap": 3.0},
    ],
    ids=str,
)
def test_value_widths_chunks_and_soft_caps_agree_with_float64(backend: str, name: str, options: dict[str, Any]) -> None:
    check(PLANS[name], backend, torch.float32, (2, 1), 64 if options.get("value_width") == 32 else 32, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["forest", "rectangular cut"])
def test_a_sliding_window_counts_depth(backend: str, name: str) -> None:
    check(PLANS[name], backend, torch.float32, (2, 1), 32, window=17)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_columns_are_split_and_add_up(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = TreePlan.from_segments([-1, 0, 0], [130, 30, 20])
    monkeypatch.setattr(triton_backend, "_split", lambda *_: 2)
    assert plan.columns(32, 32, 2).split
    check(plan, backend, torch.float32, (1, 1), 32)
    check(plan, backend, torch.float32, (1, 1), 32, deterministic=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "window"), [("forest", None), ("rectangular cut", 17)])
def test_query_gradients_added_in_the_pass_over_keys_are_the_same(
    backend: str, name: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = triton_backend.triton_attention
    monkeypatch.setattr(tree_attention_module, "triton_attention", functools.partial(plain, fused=True))
    monkeypatch.setattr(triton_backend, "_split", lambda *_: 2)
    launched = []
    launch = triton_backend._launch

    def counted(n: Any, *args: Any, **options: Any) -> Any:
        launched.append(n)
        return launch(n, *args, **options)

    monkeypatch.setattr(triton_backend, "_launch", counted)
    check(PLANS[name], backend, torch.float32, (4, 2), 32, window=window)
    assert launched == ["forward_kernel", "columns_kernel"]
    check(PLANS[name], backend, torch.bfloat16, (2, 1), 64, window=window)
    for width, options in ((32, {"deterministic": True}), (256, {})):
        launched.clear()
        check(PLANS["single tokens and padding"], backend, torch.float32, (1, 1), width, **options)
        assert "queries_kernel" in launched, "no atomics where bits must repeat, nor where registers do not suffice"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLANS)
def test_the_bit_mask_baseline_computes_the_same(name: str, dtype: torch.dtype) -> None:
    from treewright.benchmarks.bitmask import bitmask_attention, packed_mask

    plan = PLANS[name].to(DEVICE)
    q, k, v, *_ = (x.to(DEVICE) for x in inputs(PLANS[name], (4, 2), 64, dtype))
    words = packed_mask(plan, rows=37)  # type: ignore[no-untyped-call]
    bits = (words[:, :, None] >> torch.arange(32, device=DEVICE)) & 1
    assert torch.equal(bits.flatten(1)[:, : plan.n_keys].bool(), plan.dense_mask())
    expected, _ = dense_attention(q.double(), k.double(), v.double(), plan)
    found = bitmask_attention(q, k, v, words, plan.q_offset)  # type: ignore[no-untyped-call]
    assert relative_error(found, expected) <= GATE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_deterministic_gradients_have_the_same_bits(backend: str) -> None:
    plan = PLANS["one chain with a branch"]
    tensors = [x.to(DEVICE) for x in inputs(plan, (2, 1), 32, torch.float32)]

    def attention(q: Any, k: Any, v: Any) -> Any:
        return tree_attention(q, k, v, plan, return_lse=True, backend=backend, deterministic=True)

    first, second = (outputs_and_gradients(attention, *tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_that_was_not_written_is_never_read(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> torch.Tensor:
        made = empty(*args, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    check(PLANS["rectangular cut"], backend, torch.float32, (2, 1), 32)
    plan = PLANS["forest"]
    longer = [torch.full((2, 200, 32), float("nan"), device=DEVICE) for _ in range(3)]
    views = [x[:, : plan.n_queries] for x in longer]  # what follows the pack in memory is NaN too
    for view in views:
        view.normal_()
    assert torch.isfinite(tree_attention(views[0], views[1], views[2], plan, backend=backend)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_heads_are_read_in_place(backend: str) -> None:
    plan = PLANS["many short segments"]
    q, k, v, *_ = (x.to(DEVICE) for x in inputs(plan, (4, 2), 32, torch.float32))
    a, b, c = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
    found = tree_attention(a, b, c, plan, backend=backend)
    assert torch.equal(found, tree_attention(q, k, v, plan, backend=backend))


def test_unsupported_types_and_sizes_are_refused_with_the_remedy() -> None:
    plan = PLANS["single tokens and padding"]
    for width, dtype in ((48, torch.float32), (64, torch.float64)):
        q, k, v, *_ = (x.to(DEVICE) for x in inputs(plan, (1, 1), width, dtype))
        with pytest.raises(ValueError, match="no Triton kernel"):
            tree_attention(q, k, v, plan, backend="triton_ptr")
