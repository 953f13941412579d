"""A draft model changes how many passes a draw takes; what is drawn has the distribution of the target."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_near
from numpy.typing import NDArray

from treewright.agent.policies import speculative
from treewright.agent.policies.drafting import DraftingPolicy
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import Policy
from treewright.agent.policies.sampling import Request
from treewright.agent.policies.speculative import ModelDrafter, beam, drafted_by_model, taken_or_drawn
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task
from treewright.search.types import Context

from .small import compact, qwen3, tokenizer

TASK = Task("kg", "1", "Who is ada's mother?")
P = np.array([0.5, 0.2, 0.2, 0.1])
Q = np.array([0.1, 0.5, 0.15, 0.25])


def context(policy: HFPolicy | Policy) -> Context:
    return policy.context(TASK, (), Observation("start"), (), ())


def ordered(q: NDArray[Any], k: int) -> Iterator[tuple[Any, float]]:
    """Every way to draw k without replacement, with its probability."""
    for drawn in itertools.permutations(range(len(q)), k):
        p, left = 1.0, 1.0
        for c in drawn:
            p, left = p * q[c] / left, left - q[c]
        yield drawn, p


def enumerated(p: NDArray[Any], q: NDArray[Any], k: int) -> tuple[NDArray[Any], float]:
    """Distribution of what recursive rejection gives over all draws of k guesses, and how often a guess is taken."""
    out, taken = np.zeros(len(p)), 0.0
    for guesses, chance in ordered(q, k):
        left, here, rest = p.copy(), q.copy(), chance
        for c in guesses:
            accept = min(1.0, left[c] / here[c])
            out[c] += rest * accept
            taken += rest * accept
            rest *= 1 - accept
            residual = np.maximum(left - here, 0.0)
            if residual.sum() > 0:
                left = residual / residual.sum()
            here[c] = 0.0
            here = here / here.sum() if here.sum() > 0 else here
        out += rest * left
    return out, taken


def fits(count: Counter[Any], expected: dict[Any, Any]) -> bool:
    """Pearson's χ² over cells of at least 5 expected draws, the rest together, within 4 deviations."""
    total, few = sum(count.values()), [0.0, 0.0]
    cells: list[tuple[float, Any]] = []
    for key, p in expected.items():
        n, e = count[key], p * total
        if e >= 5:
            cells.append((n, e))
        else:
            few = [few[0] + n, few[1] + e]
    cells += [(few[0], few[1])] if few[1] else []
    square, free = sum((n - e) ** 2 / e for n, e in cells), len(cells) - 1
    return bool(square < free + 4 * math.sqrt(2 * free) + 4)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_what_is_taken_or_drawn_has_the_target_s_distribution_and_the_acceptance_that_enumeration_gives(k: int) -> None:
    want, acceptance = enumerated(P, Q, k)
    np.testing.assert_allclose(want, P, atol=1e-12)
    rng, taken, draws = np.random.default_rng(k), 0, 4000
    count: Counter[int] = Counter()
    for _ in range(draws):
        guesses = rng.choice(4, k, replace=False, p=Q).tolist()
        token, which = taken_or_drawn(P, Q, guesses, rng)
        assert which < 0 or guesses[which] == token
        count[token] += 1
        taken += which >= 0
    assert fits(count, dict(enumerate(P)))
    assert abs(taken / draws - acceptance) < 4 * math.sqrt(acceptance * (1 - acceptance) / draws)


def test_more_guesses_are_taken_more_often_and_equal_models_always() -> None:
    taken = [enumerated(P, Q, k)[1] for k in (1, 2, 3)]
    assert taken[0] == pytest.approx(np.minimum(P, Q).sum()) and taken == sorted(taken) and taken[2] > taken[0] + 0.2
    rng = np.random.default_rng(0)
    assert all(taken_or_drawn(P, P, [int(rng.choice(4, p=P))], rng)[1] == 0 for _ in range(200))


def test_a_beam_s_level_is_drawn_without_replacement_in_order() -> None:
    rng = np.random.default_rng(3)
    count: Counter[tuple[int, ...]] = Counter()
    for _ in range(4000):
        count[tuple(token for _, token, _, _ in beam([(-1, 0.0, 0.0, np.log(Q))], 2, rng))] += 1
    assert fits(count, dict(ordered(Q, 2)))


def test_two_levels_of_a_beam_are_sequences_without_replacement() -> None:
    """The order of two whole sequences, against drawing them from their joint table."""
    second = np.array([[0.7, 0.3], [0.2, 0.8]])
    joint = np.array([0.4 * 0.7, 0.4 * 0.3, 0.6 * 0.2, 0.6 * 0.8])
    rng = np.random.default_rng(4)
    count: Counter[tuple[int, ...]] = Counter()
    for _ in range(4000):
        first = beam([(-1, 0.0, 0.0, np.log([0.4, 0.6]))], 2, rng)
        above = {i: row for i, row in enumerate(first)}
        rows = [(i, row[2], row[3], np.log(second[row[1]])) for i, row in above.items()]
        count[tuple(2 * above[i][1] + token for i, token, _, _ in beam(rows, 2, rng))] += 1
    assert fits(count, dict(ordered(joint, 2)))


class Chain:
    """A model whose next token depends on the one before: logits [V, V]."""

    def __init__(self, seed: int, size: int = 4) -> None:
        self.table = torch.from_numpy(np.random.default_rng(seed).normal(0, 1.2, (size, size)))
        self.config = type("Config", (), {"get_text_config": lambda self: type("T", (), {"vocab_size": size})()})()

    def eval(self) -> Chain:
        return self


@pytest.mark.parametrize(("width", "depth"), [(2, 2), (3, 1)])
def test_whole_draws_have_the_target_s_distribution(monkeypatch: pytest.MonkeyPatch, width: int, depth: int) -> None:
    """Three tokens over a vocabulary of four, all 64 outcomes; trees of guesses included."""
    nothing: Callable[[int], Any] = lambda n: [(torch.zeros(1, 1, n, 1), torch.zeros(1, 1, n, 1))]  # noqa: E731
    monkeypatch.setattr(speculative, "checked", lambda m, kv, ids, up: (m.table[list(ids)], nothing(len(ids))))
    monkeypatch.setattr(speculative, "joined", lambda path: nothing(1))
    monkeypatch.setattr(ModelDrafter, "begin", lambda self, ids: nothing(1))
    target, drafter = Chain(1), ModelDrafter(Chain(2), width=width, depth=depth)
    p = target.table.softmax(-1).numpy()
    first = p[0]
    exact: dict[tuple[int, ...], Any] = {
        (a, b, c): first[a] * p[a, b] * p[b, c] for a, b, c in itertools.product(range(4), repeat=3)
    }
    passes, draws = 0, 1500
    count: Counter[tuple[int, ...]] = Counter()
    for seed in range(draws):
        done, n = drafted_by_model(target, Request((0,), (seed,), 3), seed, ((), target.table[0]), (), drafter)
        count[done.ids] += 1
        passes += n
        assert math.isclose(sum(done.logprobs), math.log(exact[done.ids]), rel_tol=1e-9)
    assert fits(count, exact) and draws < passes < 2 * draws * 0.95


# -- with models ------------------------------------------------------------------------------------------------------


def drafting(model: torch.nn.Module, other: Any, **options: Any) -> DraftingPolicy:
    drafter = ModelDrafter(other, width=options.pop("width", 3), depth=options.pop("depth", 3), name="other")
    return DraftingPolicy(model, compact(), draft_model=drafter, **options)


async def test_greedy_draws_are_those_of_the_plain_sampler() -> None:
    plain, fast = HFPolicy(qwen3(), compact(), temperature=0), drafting(qwen3(), qwen3(seed=1), temperature=0)
    (want,), (got,) = await plain.draw(context(plain), [1], 20), await fast.draw(context(fast), [1], 20)
    assert got.token_ids == want.token_ids and got.finish_reason == want.finish_reason
    assert_near(got.logprobs, want.logprobs)
    await plain.close()
    await fast.close()


async def test_a_model_that_drafts_for_itself_is_always_right_and_log_probs_are_the_target_s() -> None:
    fast = drafting(qwen3(), qwen3(), width=1, depth=3)
    ids = context(fast).ids
    done = await fast.draw(context(fast), range(3), 13)
    for one in done:
        assert one.trainable
        with torch.no_grad():
            logits = fast.model(input_ids=torch.tensor([[*ids, *one.token_ids]])).logits[0].log_softmax(-1)
        rows = logits[len(ids) - 1 : -1]
        assert_near(one.logprobs, [float(rows[i, t]) for i, t in enumerate(one.token_ids)])
    sizes = [len(c.token_ids) for c in done]
    assert max(sizes) > 5 and fast.passes == sum(-(-(n - 1) // 4) for n in sizes)  # three guesses and one more a pass
    again = await fast.draw(context(fast), [0, 1, 2], 13)
    assert [c.token_ids for c in again] == [c.token_ids for c in done], "a draw depends on its seed alone"
    assert fast.sampling == {"drafted_by": "other", "draft_width": 1, "draft_depth": 3}
    await fast.close()


async def test_the_spec_of_a_policy_names_the_draft_model_which_must_have_its_tokens(tmp_path: Path) -> None:
    for name, seed, words in (("big", 0, compact()), ("small", 1, compact()), ("alien", 1, tokenizer(("<x>", "<y>")))):
        qwen3(seed=seed, vocab=420 if name == "small" else 400).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    policy: Any = open_policy(f"hf:{tmp_path}/big", draft_model=f"hf:{tmp_path}/small", draft_depth=2)
    assert policy.sampling == {"drafted_by": f"hf:{tmp_path}/small", "draft_width": 4, "draft_depth": 2}
    assert len(await policy.draw(context(policy), [1, 2], 6)) == 2 and policy.passes
    await policy.close()
    with pytest.raises(TreewrightError, match=r"draft_model = .*alien': its tokens are not those"):
        open_policy(f"hf:{tmp_path}/big", draft_model=f"hf:{tmp_path}/alien")
    with pytest.raises(TreewrightError, match=r"draft_model = .*nowhere': cannot load it"):
        open_policy(f"hf:{tmp_path}/big", draft_model=f"{tmp_path}/nowhere")
    with pytest.raises(TreewrightError, match="draft_depth = 0; it must be at least 1"):
        open_policy(f"hf:{tmp_path}/big", draft_model=f"hf:{tmp_path}/small", draft_depth=0)


async def test_a_grammar_holds_for_drafted_draws_too() -> None:
    pytest.importorskip("llguidance")
    from treewright.agent.policies.grammar import DraftingGrammarPolicy
    from treewright.envs.types import ToolSpec

    tool = ToolSpec("search", "", {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]})
    made = DraftingGrammarPolicy(qwen3(), compact(), draft_model=ModelDrafter(qwen3(seed=1), width=2, depth=2))
    for one in await made.draw(made.context(TASK, (tool,), Observation("start"), (), ()), range(4), 60):
        assert one.text in ('search {"n": 1}', 'search {"n": 2}') and one.trainable
    await made.close()
