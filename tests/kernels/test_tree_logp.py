from __future__ import annotations

import pytest
import torch
from not_none import not_none

from treewright.kernels import tree_logp
from treewright.kernels.reference import dense_logp, relative_error
from treewright.kernels.tree_logp import tree_logp_dot, tree_logp_grad


def problem(
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(50, 16, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(33, 16, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    row = torch.randint(0, 50, (80,), generator=generator)
    target = torch.randint(0, 33, (80,), generator=generator)
    g_logp, g_entropy = torch.randn(80, generator=generator).double(), torch.randn(50, generator=generator).double()
    return h, weight, row, target, g_logp, g_entropy


@pytest.mark.parametrize(("dtype", "gate"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_values_and_gradients_agree_with_float64(dtype: torch.dtype, gate: float, chunk: int) -> None:
    h, weight, row, target, g_logp, g_entropy = problem(dtype)
    found = tree_logp(h, weight, row, target, chunk)
    ((found[0] * g_logp).sum() + (found[1] * g_entropy).sum()).backward()  # type: ignore[no-untyped-call]
    true_h, true_weight = (x.detach().double().requires_grad_() for x in (h, weight))
    expected = dense_logp(true_h, true_weight, row, target)
    ((expected[0] * g_logp).sum() + (expected[1] * g_entropy).sum()).backward()  # type: ignore[no-untyped-call]
    pairs = [*zip(found, expected, strict=True), (h.grad, true_h.grad), (weight.grad, true_weight.grad)]
    for a, b in pairs:
        assert relative_error(not_none(a).detach(), not_none(b).detach()) <= gate


@pytest.mark.parametrize("softcap", [None, 1.3])
@pytest.mark.parametrize("second_pass", [False, True])
def test_a_bias_and_a_soft_cap_of_the_output_layer_agree_with_float64(softcap: float | None, second_pass: bool) -> None:
    h, weight, row, target, g_logp, g_entropy = problem(torch.float64)
    bias = torch.linspace(-1, 1, 33, dtype=torch.float64).requires_grad_()
    if second_pass:
        tree_logp_dot(h, weight, row, target, g_logp, g_entropy, 9, bias, softcap).backward()  # type: ignore[no-untyped-call]
    else:
        logp, entropy = tree_logp(h, weight, row, target, 7, bias, softcap)
        ((logp * g_logp).sum() + (entropy * g_entropy).sum()).backward()  # type: ignore[no-untyped-call]
    found = [x.grad for x in (h, weight, bias)]
    true = [x.detach().clone().requires_grad_() for x in (h, weight, bias)]
    logits = true[0] @ true[1].T + true[2]
    log_probs = torch.log_softmax(logits if softcap is None else softcap * torch.tanh(logits / softcap), -1)
    ((log_probs[row, target] * g_logp).sum() - ((log_probs.exp() * log_probs).sum(-1) * g_entropy).sum()).backward()  # type: ignore[no-untyped-call]
    for a, b in zip(found, [x.grad for x in true], strict=True):
        assert relative_error(not_none(a), not_none(b)) <= 1e-12


def test_known_gradient_needs_no_first_pass() -> None:
    h, weight, row, target, g_logp, _ = problem(torch.float64)
    logp, _ = tree_logp(h, weight, row, target)
    (logp * g_logp).sum().backward()  # type: ignore[no-untyped-call]
    d_h, d_weight, _ = tree_logp_grad(h.detach(), weight.detach(), row, target, g_logp, chunk=9)
    assert (
        relative_error(d_h, not_none(h.grad)) < 1e-13
        and relative_error(not_none(d_weight), not_none(weight.grad)) < 1e-13
    )


def test_no_pairs_give_empty_results() -> None:
    h, weight, *_ = problem(torch.float32)
    empty = torch.zeros(0, dtype=torch.long)
    logp, entropy = tree_logp(h, weight, empty, empty)
    assert logp.shape == (0,) and entropy.shape == (50,)
    logp, entropy = tree_logp(h[:0], weight, empty, empty)
    assert entropy.shape == (0,)


def test_wrong_input_is_refused() -> None:
    h, weight, row, target, *_ = problem(torch.float32)
    with pytest.raises(ValueError, match=r"\[N, H\]"):
        tree_logp(h[:, :5], weight, row, target)
    with pytest.raises(ValueError, match="two index vectors"):
        tree_logp(h, weight, row[:3], target)
    with pytest.raises(ValueError, match=r"target runs from .* outside 0\.\.32"):
        tree_logp(h, weight, row, target + 33)


def test_dot_with_a_known_gradient_backpropagates_it() -> None:
    h, weight, row, target, g_logp, g_entropy = problem(torch.float64)
    logp, entropy = tree_logp(h, weight, row, target)
    expected = torch.autograd.grad((logp * g_logp).sum() + (entropy * g_entropy).sum(), (h, weight))
    found = torch.autograd.grad(tree_logp_dot(h, weight, row, target, g_logp, g_entropy, 9), (h, weight))
    assert all(relative_error(a, b) < 1e-13 for a, b in zip(found, expected, strict=True))
