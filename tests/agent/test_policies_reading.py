"""Prompts that are read together: what they share is run once, and nobody sees another's tokens."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treewright.agent.policies import reading
from treewright.agent.policies.prefixes import PrefixCache
from treewright.agent.policies.reading import levels, read, read_all
from treewright.agent.policies.slim import SlimRunner

from .small import qwen3

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=12)


def counts() -> Any:
    return SimpleNamespace(prompt_tokens=0, cached_tokens=0)


class Counted:
    """A runner that notes how many tokens and parts each call had."""

    def __init__(self, runner: SlimRunner) -> None:
        self.runner, self.calls = runner, list[list[int]]()

    def prefill(self, ids: Any, path: Any) -> Any:
        return self.prefill_many([(ids, path)])[0]

    def prefill_many(self, parts: Any) -> Any:
        self.calls.append([len(ids) for ids, _ in parts])
        return self.runner.prefill_many(parts)


@given(PROMPTS)
def test_each_level_goes_on_from_the_one_before_and_shares_nothing_more(prompts: list[tuple[int, ...]]) -> None:
    found = levels(prompts)
    assert {ids for level in found for ids in level} >= set(prompts)
    above: list[tuple[int, ...]] = [()]
    for level in found:
        begun = [max((a for a in above if ids[: len(a)] == a), key=len) for ids in level]
        firsts = [(a, ids[len(a)]) for a, ids in zip(begun, level, strict=True)]
        assert len(set(level)) == len(level) == len(set(firsts))  # no two of a level go on with the same token
        above = level


@settings(deadline=None, max_examples=25)
@given(PROMPTS, PROMPTS, st.sampled_from([3, 2048]))
def test_logits_are_those_of_prompts_read_one_by_one(
    first: list[tuple[int, ...]], then: list[tuple[int, ...]], together: int
) -> None:
    runner, alone, many = Counted(RUNNER), PrefixCache(1 << 30), PrefixCache(1 << 30)
    one, all_ = counts(), counts()
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(reading, "TOGETHER", together)
        for prompts in (first, then):
            expected = [read(RUNNER_ALONE, alone, ids, one) for ids in prompts]
            found = read_all(runner, many, prompts, all_)
            for a, b in zip(expected, found, strict=True):
                assert float((a - b).abs().max()) < 1e-5 * float(a.abs().max())
    assert one.prompt_tokens + one.cached_tokens == all_.prompt_tokens + all_.cached_tokens
    assert sum(map(sum, runner.calls)) == all_.prompt_tokens <= one.prompt_tokens + len(first) + len(then)


def test_what_many_prompts_share_is_run_first_and_the_rest_at_once() -> None:
    made = random.Random(0)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(made.randrange(3, 60) for _ in range(count))

    shared = drawn(30)
    prompts = [(*shared, i, *drawn(9)) for i in range(8)]
    runner, cache, seen = Counted(RUNNER), PrefixCache(1 << 30), counts()
    with torch.inference_mode():
        read_all(runner, cache, prompts, seen)
        read_all(runner, cache, [(*ids, *drawn(4)) for ids in prompts], seen)
    assert runner.calls == [[30], [10] * 8, [4] * 8] and seen.prompt_tokens == 30 + 80 + 32


def test_what_runs_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TOGETHER", 25)
    made = random.Random(1)
    prompts = [(i, *(made.randrange(60) for _ in range(n))) for i, n in enumerate((9, 9, 9, 40, 4))]
    runner = Counted(RUNNER)
    with torch.inference_mode():
        read_all(runner, PrefixCache(1 << 30), prompts, counts())
    assert runner.calls == [[10, 10], [10], [41], [5]]


RUNNER = SlimRunner(qwen3())
RUNNER_ALONE = SimpleNamespace(prefill=RUNNER.prefill)
