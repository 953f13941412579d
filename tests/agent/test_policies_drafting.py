"""Drafting changes how fast draws are made and nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from closeness import assert_near

from treewright.agent.policies.drafting import Drafter, DraftingPolicy, DraftTree, allowed, drafted, fuse
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.runners import ModelRunner
from treewright.agent.policies.sampling import Request
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task
from treewright.search.types import Context

from .small import compact, qwen3

TASK = Task("kg", "1", "Who is ada's mother?")


def context(policy: HFPolicy | DraftingPolicy) -> Context:
    return policy.context(TASK, (), Observation("start"), (), ())


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
async def test_draws_are_those_of_the_plain_sampler_and_repeated_ones_take_few_passes(temperature: float) -> None:
    plain = HFPolicy(qwen3(), compact(), temperature=temperature)
    fast = DraftingPolicy(qwen3(), compact(), temperature=temperature)
    want = await plain.draw(context(plain), range(6), 24)
    for _ in range(2):
        fast.passes = fast.checked = 0
        got = await fast.draw(context(fast), range(6), 24)
        for a, b in zip(got, want, strict=True):
            assert (a.token_ids, a.finish_reason, a.trainable) == (b.token_ids, b.finish_reason, temperature == 1.0)
            assert_near(a.logprobs, b.logprobs)
    assert fast.checked == sum(len(c.token_ids) - 1 for c in want) and fast.tokens_per_pass > 1.2
    assert fast.sampling["drafted_by"] == "recycled tokens and siblings"
    await plain.close()
    await fast.close()


class Fixed(Drafter):
    """Guesses the same first tokens always, each with a child that is never right."""

    def __init__(self, vocabulary: int, guesses: list[Any], wrong: int) -> None:
        super().__init__(vocabulary)
        self.tree = DraftTree((*guesses, *[wrong] * len(guesses)), (*[-1] * len(guesses), *range(len(guesses))))

    def guess(self, said: Sequence[int]) -> DraftTree:
        return self.tree


@torch.no_grad()
def test_the_distribution_is_the_model_s_and_guesses_are_accepted_with_their_whole_mass() -> None:
    """Two tokens, drawn 600 times, against exact probabilities; recursive rejection's acceptance beside it."""
    model, runner = qwen3(), ModelRunner(qwen3())
    ids = (5, 9, 300, 17)
    stretch, last = runner.prefill(ids, ())
    prompt = ((stretch,), last)
    first = last.softmax(-1)
    guesses = first.topk(3).indices.tolist()
    drafter, draws, accepted, expected = Fixed(400, guesses, 399), 600, 0, 0.0
    count: Counter[tuple[int, ...]] = Counter()
    for seed in range(draws):
        done, passes = drafted(model, Request(ids, (seed,), 3), seed, prompt, (), drafter)
        count[done.ids[:2]] += 1
        accepted += passes == 1  # the second token was guessed, so one pass gave the second and the third
    second = torch.stack([model(input_ids=torch.tensor([[*ids, t]])).logits[0, -1].softmax(-1) for t in range(400)])
    for place, exact in enumerate((first, first @ second)):
        seen = Counter(ids[place] for ids in count.elements())
        for token in exact.topk(6).indices.tolist():
            p = float(exact[token])
            assert abs(seen[token] / draws - p) < 4 * math.sqrt(p * (1 - p) / draws)
    for row, p in zip(second.tolist(), first.tolist(), strict=True):
        left, rejected = 1.0, 1.0
        for g in guesses:  # each guess against what is left of the distribution after those before it
            rejected *= 1 - row[g] / left
            left -= row[g]
        assert 1 - rejected == pytest.approx(sum(row[g] for g in guesses), rel=1e-4)
        expected += p * (1 - rejected)
    assert abs(accepted / draws - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)


def test_sources_are_fused_by_prefix_and_cut_to_the_likeliest() -> None:
    a: dict[int, Any] = {7: (0.5, {8: (0.9, {}), 9: (0.1, {})}), 1: (0.4, {})}
    b: dict[int, Any] = {7: (0.6, {8: (0.2, {5: (1.0, {})})})}
    tree = fuse([a, b], 5)
    paths = set()
    for i, token in enumerate(tree.tokens):
        path, at = [token], tree.parents[i]
        assert at < i
        while at >= 0:
            path.insert(0, tree.tokens[at])
            at = tree.parents[at]
        paths.add(tuple(path))
    assert paths == {(7,), (7, 8), (7, 8, 5), (1,), (7, 9)} and tree.tokens[0] == 7
    assert fuse([a, b], 2).tokens == (7, 8) and fuse([{}, {}], 4).tokens == ()


def test_the_drafter_learns_from_logits_and_siblings_and_forgets() -> None:
    drafter = Drafter(50, nodes=6, successors=2, remembered=40)
    assert drafter.guess([3]).tokens == ()
    logits = torch.full((1, 50), -9.0)
    logits[0, 11], logits[0, 12] = 5.0, 4.0
    drafter.learn([3], logits)
    assert drafter.guess([3]).tokens[:2] == (11, 12)
    drafter.remember([3, 20, 21, 22])
    guess = drafter.guess([3])
    assert {11, 20, 21} <= set(guess.tokens) and guess.tokens.index(20) < guess.tokens.index(21)
    for i in range(30):
        drafter.remember([i, i + 1])
    assert len(drafter.said) <= 40
    with pytest.raises(TreewrightError, match="at least 1"):
        Drafter(50, nodes=0)


async def test_the_spec_of_a_policy_asks_for_it() -> None:
    from treewright.agent.policies.policy import SEEDLING

    policy = open_policy(f"hf:{SEEDLING}", speculate=True)
    assert (
        isinstance(policy, DraftingPolicy)
        and len(await policy.draw(Context(keep=0, delta=(5, 6), ids=(5, 6)), [1], 4)) == 1
    )
    await policy.close()
    pytest.importorskip("llguidance")
    both: Any = open_policy(f"hf:{SEEDLING}", speculate=True, grammar=True)
    assert both.sampling.keys() == {"grammar", "drafted_by", "draft_nodes"}
    await both.close()


class Odd:
    """Allows odd tokens after even ones and the other way round."""

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    def allows(self, tokens: Sequence[int]) -> bool:
        return all((a + b) % 2 for a, b in zip((self.last, *tokens), tokens, strict=False))

    def take(self, token: int) -> None:
        raise AssertionError


def test_forbidden_guesses_are_left_out_with_what_stands_below_them() -> None:
    tree = DraftTree((3, 4, 5, 6, 7, 8), (-1, -1, 0, 0, 1, 3))  # 3: [5, 6: [8]], 4: [7]
    assert allowed(tree, Odd(0)) == DraftTree((3, 6), (-1, 0))
    assert allowed(tree, Odd(1)) == DraftTree((4, 7), (-1, 0))
