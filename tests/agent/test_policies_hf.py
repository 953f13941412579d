"""Draws from transformers models: exact log-probs, and nothing that depends on the company a request is in."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from treewright.agent.policies import slim as slim_module
from treewright.agent.policies.hf import HFPolicy, weights_version
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import Policy
from treewright.agent.policies.prefixes import PrefixCache
from treewright.agent.policies.runners import BranchRunner, CacheRunner, ModelRunner, runner_for
from treewright.agent.policies.sampling import Request, Runner, generate, pick, uniforms
from treewright.agent.policies.slim import SlimRunner
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task
from treewright.kernels import BranchCache, Stretch, decode
from treewright.search.types import Exchange, PolicyFault

from .small import chatml, compact, context, prompt, qwen3, randomised

torch.set_num_threads(1)
TOKENIZER = compact()
TASK = Task("kg", "1", "Who is ada's mother?")


def policy(model: Any = None, **options: Any) -> HFPolicy:
    return HFPolicy(model or qwen3(), TOKENIZER, **options)


def llama(**changes: Any) -> Any:
    shape = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    return randomised(LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, **changes)))


def qwen2() -> Any:
    shape = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    return randomised(Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2)))


def gpt2() -> Any:
    return randomised(GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=512)))


def reference(model: Any, ids: tuple[int, ...], response: tuple[int, ...]) -> Any:
    """log-probs of `response` after `ids` by one plain forward."""
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *response]])).logits[0, len(ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


# -- random numbers and sampling ------------------------------------------------------------------------------------


def test_random_numbers_are_splitmix64_of_seed_and_position() -> None:
    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    seeds = [0, 1, 2**63 - 1, -5]
    got = uniforms(seeds, 3)
    for i, seed in enumerate(seeds):
        for t in range(3):
            want = mix((mix(seed % 2**64) + (t + 1) * 0x9E3779B97F4A7C15) % 2**64)
            assert got[i, t] == (want >> 11) * 2.0**-53
    many = uniforms(range(20_000), 2)
    assert abs(many.mean() - 0.5) < 0.005 and abs((many[:, 0] * many[:, 1]).mean() - 0.25) < 0.005


def test_draws_follow_the_softmax_and_never_take_an_impossible_token() -> None:
    logits, same = torch.tensor([[1.0, -torch.inf, 0.0, 2.0, -torch.inf]]), torch.zeros(20_000, dtype=torch.long)
    tokens, logprobs = pick(logits, torch.from_numpy(uniforms(range(20_000), 1)[:, 0]), 1.0, same)
    share = torch.bincount(tokens, minlength=5) / 20_000
    assert torch.allclose(share, logits[0].softmax(-1), atol=0.01) and share[1] == share[4] == 0
    assert_near(logprobs, logits[0].log_softmax(-1)[tokens])
    edge, _ = pick(logits, torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64), 1.0, same[:2])
    assert edge.tolist() == [0, 3]
    warm, lp = pick(logits, torch.from_numpy(uniforms(range(20_000), 1)[:, 0]), 2.0, same)
    assert_near(lp, (logits[0] / 2).log_softmax(-1)[warm])


# -- runners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        qwen3,
        lambda: qwen3(attention_bias=True, tie_word_embeddings=False),
        llama,
        lambda: llama(mlp_bias=True, attention_bias=True),
        lambda: llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
        qwen2,
    ],
)
@pytest.mark.parametrize("packs", [1, 1 << 40], ids=["packed", "plain"])
def test_the_slim_forward_equals_the_models_own(
    make: Callable[..., Any], packs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slim_module, "PACKS", packs)
    model = make()
    assert isinstance(runner_for(model), SlimRunner)
    slim, own = SlimRunner(model), ModelRunner(model)
    packed = packs == 1 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    assert slim.head is not None and slim.head.is_mkldnn == slim.layers[0].down.is_mkldnn == packed
    runners: tuple[Any, ...] = (slim, own)
    prompts, steps = [prompt(i, n) for i, n in enumerate((5, 23, 90))], torch.arange(30).view(5, 6) + 7
    with torch.inference_mode():
        first = [(slim.prefill(ids, ()), own.prefill(ids, ())) for ids in prompts]
        for (_, a), (_, b) in first:
            assert_near(a, b)
        rows = [r.rows([[pair[i][0]] for pair in first], [1, 2, 3], 8, [1, 2, 3]) for i, r in enumerate(runners)]
        for t, tokens in enumerate(steps):
            if t == 3:
                keep = torch.tensor([1, 2, 5])
                for r in rows:
                    r.select(keep)
            a, b = (r.step(tokens[:3] if t >= 3 else tokens) for r in rows)
            assert_near(a, b)
        for runner in (slim, own):
            part, _ = runner.prefill(prompts[2][:40], ())
            _, logits = runner.prefill(prompts[2][40:], [part])
            assert_near(logits, first[2][1][1])


def sliding(**changes: Any) -> Any:
    return qwen3(
        layer_types=["full_attention", "sliding_attention"], sliding_window=8, use_sliding_window=True, **changes
    )


def paths_of(
    runner: SlimRunner | BranchRunner | Runner, prompts: list[Any]
) -> tuple[list[Sequence[Stretch]], list[Any]]:
    """Paths and last logits of prompts through a trie of their prefixes."""
    cache, last = PrefixCache(1 << 30), []
    for ids in prompts:
        path, _ = cache.longest(ids)
        stretch, logits = runner.prefill(ids[sum(s.length for s in path) :], path)
        cache.put(ids, stretch, logits)
        last.append(logits)
    return [cache.path(ids) for ids in prompts], last


@pytest.mark.parametrize("make", [qwen3, sliding, gpt2, llama])
def test_draws_over_shared_prefixes_are_those_of_rows_with_a_copy_each(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    monkeypatch.setattr(decode, "PAYS", 1)
    shared = prompt(0, 40)
    prompts = [
        shared,
        shared + prompt(1, 20),
        shared + prompt(1, 20) + prompt(2, 5),
        shared + prompt(3, 9),
        prompt(4, 12),
    ]
    requests = [Request(ids, tuple(range(7 * i, 7 * i + 3)), 9 - i) for i, ids in enumerate(prompts)]
    tree, plain = runner_for(model), ModelRunner(model)
    assert isinstance(tree, SlimRunner if make in (qwen3, llama) else BranchRunner)
    with torch.inference_mode():
        paths, last = paths_of(tree, prompts)
        assert paths[0][0] is paths[1][0] is paths[2][0] is paths[3][0] and paths[1][1] is paths[2][1]
        assert BranchCache(paths, [3] * 5, 9).shared_tokens == 40 + 20 + 5 + 9 + 12
        found = generate(tree, requests, list(zip(paths, last, strict=True)), [])
        whole = [plain.prefill(ids, ()) for ids in prompts]
        expected = generate(plain, requests, [([stretch], logits) for stretch, logits in whole], [])
    for ids, draws, wanted in zip(prompts, found, expected, strict=True):
        for draw, want in zip(draws, wanted, strict=True):
            assert draw.ids == want.ids
            assert_near(draw.logprobs, want.logprobs)
            assert_near(draw.logprobs, reference(model, ids, draw.ids))


def test_a_shared_prefix_is_kept_once_however_many_draw_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PAYS", 1)
    runner: Any = runner_for(qwen3())
    shared = prompt(0, 300)
    with torch.inference_mode():
        paths, _ = paths_of(runner, [shared + prompt(i, 10) for i in range(6)])
        few, many = (runner.rows(paths, [n] * 6, 5, [n] * 6).cache for n in (1, 8))
    assert many.shared_tokens == 300 + 6 * 10
    assert many.nbytes <= 8 * few.nbytes and few.nbytes < paths[0][0].nbytes


def test_every_kind_of_model_has_one_way_to_run() -> None:
    for model in (gpt2(), sliding(), qwen3().to(torch.bfloat16)):
        assert isinstance(runner_for(model), BranchRunner)
        assert model.config._attn_implementation != "treewright"
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert isinstance(runner_for(llama(rope_parameters=dynamic)), CacheRunner)
    assert isinstance(runner_for(llama(attention_dropout=0.1).to(torch.bfloat16)), ModelRunner)


def test_a_model_whose_attention_sees_more_than_positions_is_not_shared() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = randomised(BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)))
    assert isinstance(runner_for(model), ModelRunner)


# -- the policy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [qwen3, gpt2, sliding, lambda: llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})],
)
async def test_draws_carry_the_log_probs_of_a_plain_forward(make: Callable[..., Any]) -> None:
    model = make()
    one = policy(model)
    assert isinstance(one, Policy) and one.version == weights_version(model)
    contexts = [context(prompt(i, n)) for i, n in enumerate((7, 31, 60))]
    drawn = await asyncio.gather(*(one.draw(c, range(i, i + 4), 12) for i, c in enumerate(contexts)))
    for c, done in zip(contexts, drawn, strict=True):
        assert len({d.token_ids for d in done}) > 1
        for d in done:
            assert_near(d.logprobs, reference(model, c.ids, d.token_ids))
            assert d.trainable and d.policy_version == one.version
            assert (d.finish_reason == "stop") == (d.token_ids[-1] in one.stop_ids) and len(d.token_ids) <= 12
    assert one.stats.requests == 3 and one.stats.draws == 12
    assert one.stats.sampled_tokens == sum(len(d.token_ids) for done in drawn for d in done)
    await one.close()


async def test_a_draw_does_not_depend_on_other_draws_or_requests() -> None:
    asked = [(context(prompt(i, 5 + 9 * i)), [i, i + 100, 7], 4 + 3 * (i % 3)) for i in range(6)]
    for options in ({}, {"batch_requests": False}, {"max_batch_tokens": 100}):
        together, alone = policy(**options), policy(**options)
        many = await asyncio.gather(*(together.draw(*a) for a in asked))
        for (c, seeds, most), done in zip(asked, many, strict=True):
            for seed, d in zip(seeds, done, strict=True):
                (single,) = await alone.draw(c, [seed], most)
                assert single.token_ids == d.token_ids
                assert all(math.isclose(x, y, abs_tol=1e-5) for x, y in zip(single.logprobs, d.logprobs, strict=True))
        again = [await alone.draw(*a) for a in asked]
        if "batch_requests" in options:
            assert again == many  # to the last bit
        await together.close()
        await alone.close()


async def test_requests_that_wait_together_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    one = policy()
    sizes = []
    run = one._run

    def counted(requests: Any) -> Any:
        sizes.append(len(requests))
        return run(requests)

    monkeypatch.setattr(one, "_run", counted)
    await asyncio.gather(*(one.draw(context(prompt(i, 9)), [1, 2], 3) for i in range(5)))
    one.max_batch_tokens = 30  # a request of 2 draws costs 9 + 6
    await asyncio.gather(*(one.draw(context(prompt(i, 9)), [1, 2], 3) for i in range(5)))
    assert sizes == [5, 2, 2, 1]
    await one.close()


async def test_the_event_loop_goes_on_while_the_model_runs() -> None:
    one, beats = policy(), 0
    task = asyncio.ensure_future(one.draw(context(prompt(1, 200)), range(8), 60))
    while not task.done():
        beats += 1
        await asyncio.sleep(0.001)
    assert beats > 3
    await one.close()


async def test_later_prompts_reuse_what_was_computed_for_earlier_ones() -> None:
    fresh, reusing = policy(cache_bytes=0), policy()
    ids = prompt(3, 80)
    for step in range(4):
        (a,), (b,) = await fresh.draw(context(ids), [step], 6), await reusing.draw(context(ids), [step], 6)
        assert a.token_ids == b.token_ids
        ids = ids + a.token_ids + prompt(step, 10)
    assert fresh.stats.cached_tokens == 0
    assert reusing.stats.cached_tokens > 200 and reusing.stats.prompt_tokens < 140
    (again,) = await reusing.draw(context(ids), [9], 6)
    before = reusing.stats.prompt_tokens
    assert await reusing.draw(context(ids), [9], 6) == [again] and reusing.stats.prompt_tokens == before


def held(cache: PrefixCache, *prompts: Any) -> None:
    """Puts prompts, one number per token as keys and values, then trims."""
    for ids in prompts:
        path, _ = cache.longest(ids)
        at = sum(s.length for s in path)
        numbers = torch.tensor(ids[at:], dtype=torch.float32).view(1, 1, -1, 1)
        cache.put(ids, Stretch(at, numbers, numbers), torch.tensor([float(len(ids))]))
    cache.trim()


def spelled(path: list[Stretch]) -> tuple[Any, ...]:
    return tuple(int(x) for s in path for x in s.keys.flatten())


def test_the_prefix_cache_holds_what_prompts_share_once() -> None:
    prompts: list[Any]
    rng, cache, prompts = random.Random(0), PrefixCache(1 << 30), []
    for _ in range(200):
        known = rng.choice(prompts) if prompts else ()
        prompts.append(
            known[: rng.randrange(len(known) + 1)] + tuple(rng.randrange(3) for _ in range(rng.randrange(1, 6)))
        )
        held(cache, prompts[-1])
    for ids in prompts:
        path, logits = cache.longest(ids)
        assert spelled(path) == ids and [s.start for s in path] == [
            sum(s.length for s in path[:i]) for i in range(len(path))
        ]
        assert logits is None or logits.item() == len(ids)
    prefixes = {ids[:n] for ids in prompts for n in range(1, len(ids) + 1)}
    stored = {id(s): s.length for ids in prompts for s in cache.path(ids)}
    assert sum(stored.values()) == len(prefixes)


def test_the_prefix_cache_keeps_to_its_bytes_and_drops_what_was_unused_longest() -> None:
    cache = PrefixCache(8 * 30 + 12)
    held(cache, (1,) * 10, (2,) * 10)
    assert spelled(cache.longest((1,) * 12)[0]) == (1,) * 10 and len(spelled(cache.longest((1,) * 9)[0])) == 9
    held(cache, (3,) * 15)
    assert cache.size <= 8 * 30 + 12 and not cache.longest((2,) * 10)[0] and spelled(cache.longest((1,) * 10)[0])
    held(cache, (1,) * 10 + (4,) * 8)
    assert spelled(cache.longest((1,) * 10 + (4,) * 9)[0]) == (1,) * 10 + (4,) * 8, (
        "a prefix outlives what continues it"
    )
    held(cache, (5,) * 99)
    assert cache.size == 0


async def test_greedy_and_warm_draws_act_but_are_not_trained_on() -> None:
    greedy, warm = policy(temperature=0), policy(temperature=1.7)
    a, b = await greedy.draw(context(prompt(1, 9)), [1, 2], 8)
    assert a.token_ids == b.token_ids and not a.trainable and a.temperature == 0
    assert_near(a.logprobs, reference(greedy.model, prompt(1, 9), a.token_ids))
    (c,) = await warm.draw(context(prompt(1, 9)), [1], 8)
    assert not c.trainable and c.temperature == 1.7
    with pytest.raises(TreewrightError, match="negative"):
        policy(temperature=-1)


async def test_new_weights_change_the_version_and_the_draws(tmp_path: Path) -> None:
    one, other = policy(qwen3(seed=0)), qwen3(seed=1)
    ask = (context(prompt(1, 40)), range(6), 8)
    before, version = await one.draw(*ask), one.version
    other.save_pretrained(tmp_path / "next")
    assert one.load_weights(tmp_path / "next") == one.version == weights_version(other) != version
    after = await one.draw(*ask)
    assert after == await policy(other).draw(*ask) and after != before
    assert one.load_weights(tmp_path / "next", version="step-2") == "step-2"
    with pytest.raises(TreewrightError, match="cannot load weights"):
        one.load_weights(tmp_path / "nothing")
    qwen3(vocab=500).save_pretrained(tmp_path / "wide")
    with pytest.raises(TreewrightError, match="do not fit"):
        one.load_weights(tmp_path / "wide")
    await one.close()


async def test_a_saved_model_is_opened_by_its_folder_and_walks_through_a_task(tmp_path: Path) -> None:
    qwen3().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    for spec in (f"hf:{tmp_path}", f"seedling:{tmp_path}"):
        one: Any = open_policy(spec, device="cpu", version="v0")
        root = one.context(TASK, (), Observation("start"), (), ())
        (said,) = await one.draw(root, [3], 10)
        told = [Exchange(said.text, None, Observation("next"))]
        below = one.context(TASK, (), Observation("start"), told, root.ids + said.token_ids)
        assert below.keep == len(root.ids + said.token_ids) and said.policy_version == "v0"
        assert said.text == one.template.encoder.text([i for i in said.token_ids if i not in one.stop_ids])
        await one.close()
    with pytest.raises(TreewrightError, match="there is no folder"):
        open_policy(f"hf:{tmp_path / 'none'}")


async def test_the_models_end_tokens_end_a_draw_too() -> None:
    model = qwen3()
    model.generation_config.eos_token_id = [50, 60]
    one = HFPolicy(model, chatml())
    assert {50, 60} < set(one.stop_ids)
    model.lm_head.weight.data[50] *= 30
    one.refresh()
    done = await one.draw(context(prompt(2, 9)), range(8), 30)
    assert any(d.token_ids[-1] == 50 and d.finish_reason == "stop" for d in done)
    await one.close()


async def test_what_the_model_cannot_do_is_a_fault_and_the_next_request_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = policy()
    with pytest.raises(PolicyFault, match="do not fit the 512 positions"):
        await one.draw(context(prompt(1, 500)), [1], 20)
    step = one.runner.prefill
    monkeypatch.setattr(one.runner, "prefill", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(PolicyFault, match="RuntimeError"):
        await one.draw(context(prompt(1, 9)), [1], 4)
    monkeypatch.setattr(one.runner, "prefill", step)
    assert len(await one.draw(context(prompt(1, 9)), [1], 4)) == 1 and one.stats.faults == 1
    assert await one.draw(context(prompt(1, 9)), [], 4) == []
    await one.close()
    await one.close()
    with pytest.raises(PolicyFault, match="closed"):
        await one.draw(context(prompt(1, 9)), [1], 4)


async def test_cancelled_requests_are_not_run() -> None:
    one = policy()
    first = asyncio.ensure_future(one.draw(context(prompt(1, 9)), [1], 40))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(one.draw(context(prompt(2, 9)), [1], 4))
    second.cancel()
    third = await one.draw(context(prompt(3, 9)), [1], 4)
    assert (await first) and third and second.cancelled() and one.stats.requests == 2
    await one.close()
