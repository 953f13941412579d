"""Draws that have said the same so far are one row of the batch; what each of them says is what it says alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from closeness import assert_near
from transformers import GPTJConfig, GPTJForCausalLM, Mamba2Config, Mamba2ForCausalLM

from treewright.agent.policies.runners import BranchRunner, CacheRunner, ModelRunner, runner_for
from treewright.agent.policies.sampling import Cut, Drawn, Request, Rows, generate
from treewright.agent.policies.slim import SlimRunner
from treewright.kernels.decode import Path
from treewright.training.decoders.tiny import tiny_model

from .small import prompt, qwen3

STOP = (3,)


class Counting:
    """A runner that counts the rows of each step."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.shares, self.device = runner, runner.shares, runner.device
        self.prefill = runner.prefill
        self.steps = list[int]()

    def rows(self, paths: Sequence[Path], repeats: Sequence[int], room: int, most: Sequence[int]) -> Any:
        rows, steps = self.runner.rows(paths, repeats, room, most), self.steps

        class Counted:
            select = rows.select

            def step(self, tokens: torch.Tensor) -> torch.Tensor:
                steps.append(len(tokens))
                logits: torch.Tensor = rows.step(tokens)
                return logits

        counted: Rows = Counted()
        return counted


def slim() -> Any:
    return qwen3()


def branches() -> Any:
    return qwen3(layer_types=["full_attention", "sliding_attention"], sliding_window=8, use_sliding_window=True)


def copies() -> Any:
    return tiny_model(GPTJForCausalLM, GPTJConfig(), dtype=torch.float32)


def states() -> Any:
    return tiny_model(Mamba2ForCausalLM, Mamba2Config(), dtype=torch.float32)


RUNNERS = {slim: SlimRunner, branches: BranchRunner, copies: ModelRunner, states: CacheRunner}


def drawn(runner: Any, requests: Sequence[Request]) -> list[list[Drawn]]:
    with torch.inference_mode():
        parts = [runner.prefill(request.ids, ()) for request in requests]
        return generate(runner, requests, [([part], logits) for part, logits in parts], STOP)


def distinct(requests: Sequence[Request], found: Sequence[Sequence[Drawn]], step: int) -> int:
    """How many different beginnings of step + 1 tokens draws go on from."""
    return sum(
        len({one.ids[: step + 1] for one in draws if len(one.ids) > step + 1})
        for request, draws in zip(requests, found, strict=True)
    )


@pytest.mark.parametrize("make", RUNNERS)
@pytest.mark.parametrize("temperature", [0.0, 0.15, 1.0])
def test_each_draw_is_what_it_is_alone_and_each_beginning_is_run_once(
    make: Callable[[], Any], temperature: float
) -> None:
    torch.set_num_threads(1)
    runner = Counting(runner_for(make()))
    assert type(runner.runner) is RUNNERS[make]
    requests = [
        Request(
            tuple(token % 60 + 4 for token in prompt(i, 20 + i)), tuple(range(9 * i, 9 * i + 8)), limit, temperature
        )
        for i, limit in enumerate((12, 5, 1, 9))
    ]
    found = drawn(runner, requests)
    if temperature == 0.15:  # else there is nothing to see
        parted = [distinct(requests, found, step) for step in range(9)]
        assert max(parted) > parted[0] and max(parted) < sum(len(r.seeds) for r in requests)
    for step, rows in enumerate(runner.steps):
        least = distinct(requests, found, step)
        assert least <= rows <= max(least / 0.75, *runner.steps[:step], 0)
    for request, draws in zip(requests, found, strict=True):
        for seed, draw in zip(request.seeds, draws, strict=True):
            ((want,),) = drawn(runner, [replace(request, seeds=(seed,))])
            assert draw.ids == want.ids
            assert_near(draw.logprobs, want.logprobs)


def test_twelve_draws_of_a_sure_model_cost_one_row() -> None:
    runner = Counting(runner_for(slim()))
    drawn(runner, [Request(prompt(0, 20), tuple(range(12)), 10, 1e-4)])
    assert runner.steps and set(runner.steps) == {1}


@pytest.mark.parametrize(
    "cut", [Cut(2, "entropy", 4.9), Cut(1, "surprisal", 2.5), Cut(2, over=lambda ids: ids[-1] % 3 == 0)]
)
def test_draws_that_share_rows_are_cut_where_they_would_be_alone(cut: Cut) -> None:
    runner = runner_for(slim())
    request = Request(prompt(0, 20), tuple(range(16)), 14, 0.3, cut)
    ((*found,),) = drawn(runner, [request])
    assert {one.cut for one in found} == {True, False} or len({len(one.ids) for one in found}) > 1
    for seed, draw in zip(request.seeds, found, strict=True):
        ((want,),) = drawn(runner, [replace(request, seeds=(seed,))])
        assert draw.ids == want.ids and draw.cut == want.cut
