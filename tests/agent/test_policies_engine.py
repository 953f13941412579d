"""The line in front of a server, and a policy on an engine: a fake one with a small local model behind it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from closeness import assert_near
from not_none import not_none
from numpy.typing import NDArray
from speed import patient

from treewright.agent.config import load_config
from treewright.agent.policies.engine import SETTLED, EnginePolicy, Told
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.line import PATIENCE, PrefixLine, shared
from treewright.agent.policies.opening import open_policy, serve_weights
from treewright.agent.policies.policy import Policy
from treewright.agent.policies.routed import routes_told
from treewright.agent.policies.vllm_engine import _why
from treewright.agent.policies.weights import OPTIMIZER, folder_version, served_folder
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.routes import decode_routes
from treewright.search.segments import Segments
from treewright.search.types import Context, PolicyFault

from .fake_engine import FakeEngine
from .small import compact, qwen3

TASK = Task("kg", "1", "Who is ada's mother?")
TOOLS = (ToolSpec("search", "look up", {"properties": {"entity": {"type": "string"}}}),)
FIRST = Observation("start")


# -- the line -------------------------------------------------------------------------------------------------------


async def served(line: PrefixLine, prompts: list[Any]) -> list[int]:
    """The order in which draws that arrive in the order of `prompts` get a place."""
    order, open_gate = [], asyncio.Event()

    async def hold() -> None:
        async with line.place(prompts[0]):
            order.append(0)
            await open_gate.wait()

    async def one(i: int) -> None:
        async with line.place(prompts[i]):
            order.append(i)

    jobs = [asyncio.create_task(hold())]
    await asyncio.sleep(0)
    jobs += [asyncio.create_task(one(i)) for i in range(1, len(prompts))]
    await asyncio.sleep(0)
    open_gate.set()
    await asyncio.gather(*jobs)
    return order


async def test_siblings_go_first_then_cousins_and_arrival_breaks_ties() -> None:
    prompts = [(1, 2, 3), (9, 9), (1, 5), (1, 2, 3), (9, 9), (1, 2, 7), (1, 5)]
    assert await served(PrefixLine(1), prompts) == [0, 3, 5, 2, 6, 1, 4]
    assert await served(PrefixLine(1, "arrival"), prompts) == list(range(7))


async def test_a_request_is_passed_over_a_bounded_number_of_times() -> None:
    prompts = [(1,), (9,), *[(1,)] * (2 * PATIENCE)]
    order = await served(PrefixLine(1), prompts)
    assert 1 < order.index(1) <= PATIENCE + 2


async def test_never_more_than_the_limit_and_cancelled_ones_leave_the_line() -> None:
    line, now, most = PrefixLine(3), 0, 0

    async def one(i: int) -> None:
        nonlocal now, most
        async with line.place((i % 4,)):
            now += 1
            most = max(most, now)
            try:
                await asyncio.sleep(0)
            finally:
                now -= 1

    jobs = [asyncio.create_task(one(i)) for i in range(40)]
    await asyncio.sleep(0)
    for job in jobs[::3]:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    assert most == 3 and (line.now, line.waiting) == (0, 0)
    for wrong in ({"limit": 0}, {"limit": 1, "order": "random"}):
        with pytest.raises(TreewrightError):
            PrefixLine(**wrong)


async def test_alone_waits_for_the_others_and_keeps_new_ones_out() -> None:
    line, log = PrefixLine(2), []

    async def one(name: str) -> None:
        async with line.place():
            log.append(f"{name} in")
            await asyncio.sleep(0.01)
            log.append(f"{name} out")

    async def exchange() -> None:
        async with line.alone():
            log.append("alone")
            with pytest.raises(TreewrightError, match="being exchanged"):
                async with line.alone():
                    pass
            await asyncio.sleep(0.01)
            log.append("done")

    first = asyncio.create_task(one("a"))
    await asyncio.sleep(0)
    await asyncio.gather(first, exchange(), one("b"))
    assert log == ["a in", "a out", "alone", "done", "b in", "b out"]


def test_common_prefixes_are_measured_exactly() -> None:
    for a, b in (
        ((), ()),
        ((1,), ()),
        ((1, 2, 3), (1, 2, 4)),
        ((1, 2), (1, 2, 3)),
        ((5,), (6,)),
        ((1,) * 99, (1,) * 98),
    ):
        slow = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert shared(a, b) == shared(b, a) == slow


# -- the policy -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def local() -> AsyncIterator[HFPolicy]:
    policy = HFPolicy(qwen3(), compact(), batch_requests=False)
    yield policy
    await policy.close()


@pytest.fixture
def made(local: HFPolicy) -> EnginePolicy:
    return EnginePolicy(FakeEngine(local, 300), local.template, name="fake", version="v1", concurrency=3)


def fake_of(policy: EnginePolicy) -> Any:
    return policy.engine


def root(policy: Policy) -> Context:
    return policy.context(TASK, TOOLS, FIRST, (), ())


async def test_an_engine_s_draws_are_those_of_its_model(local: HFPolicy, made: EnginePolicy) -> None:
    assert isinstance(made, Policy)
    context = root(made)
    assert context == root(local)
    got, want = await made.draw(context, [4, 9, 2, 5], 12), await local.draw(context, [4, 9, 2, 5], 12)
    for a, b in zip(got, want, strict=True):
        assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
        assert_near(a.logprobs, b.logprobs)
    assert all(c.trainable and c.policy_version == "v1" for c in got)
    assert made.stats.cached_tokens == 8 and made.stats.prompt_tokens == 4 * (len(context.ids) - 2)
    assert fake_of(made).most == 3 and made.stats.seconds > 0
    made.temperature = 0.5
    assert made.sampling == {"temperature": 0.5}
    assert not (await made.draw(context, [4], 12))[0].trainable


def experts(tokens: int) -> NDArray[Any]:
    """[tokens, 3, 2] of which each names its token."""
    return np.arange(tokens)[:, None, None] % 200 + np.arange(2) + np.zeros((1, 3, 1), np.int64)


async def test_experts_that_the_engine_tells_are_kept_of_what_the_draw_added(made: EnginePolicy) -> None:
    assert [done.routes for done in await made.draw(root(made), [4], 5)] == [""]
    fake_of(made).routes = lambda ask, drawn: experts(len(ask.ids) + drawn - 1)
    first = root(made)
    (done,) = await made.draw(first, [4], 5)
    found = decode_routes(done.routes)
    assert (found == experts(len(first.ids) + len(done.token_ids) - 1)).all(), "the first prompt is new as a whole"
    context = Context(keep=len(first.ids) + 5, delta=(3, 4), ids=(*first.ids, 5, 6, 7, 8, 9, 3, 4))
    cut = 0
    for segments in (None, Segments(by="delimiter", delimiter="e", length=8)):
        for one in await made.draw_segment(context, range(6), 12, (), segments):
            read = len(context.ids) + len(one.token_ids) - 1
            assert (decode_routes(one.routes) == experts(read)[-2 - len(one.token_ids) :]).all()
            cut += one.hidden
    assert cut, "some draws were cut"
    fake_of(made).again = 4
    (done,) = await made.draw(context, [4], 5)
    most = 4 + 2 + len(done.token_ids)
    assert len(decode_routes(done.routes)) == most, "what was computed anew was routed anew"
    fake_of(made).routes = lambda ask, drawn: experts(3)
    (done,) = await made.draw(context, [4], 5)
    assert len(decode_routes(done.routes)) == 3
    fake_of(made).routes = lambda ask, drawn: experts(len(ask.ids) + drawn)
    with pytest.raises(PolicyFault, match=r"experts of \d+ tokens, but \d+ were read"):
        await made.draw(context, [4], 5)


def vllm_output(routed: NDArray[Any] | None, prompt: NDArray[Any] | None = None) -> SimpleNamespace:
    return SimpleNamespace(outputs=[SimpleNamespace(routed_experts=routed)], prompt_routed_experts=prompt)


def test_what_vllm_says_of_experts_is_read_without_layers_that_have_none() -> None:
    told = np.array([[[0, 0], [1, 0]], [[0, 0], [2, 3]], [[0, 0], [0, 1]]], np.uint8)
    assert not_none(routes_told(vllm_output(told))).tolist() == [[[1, 0]], [[2, 3]], [[0, 1]]]
    assert not_none(routes_told(vllm_output(told[1:], told[:1]))).tolist() == [[[1, 0]], [[2, 3]], [[0, 1]]]
    missed = np.concatenate([told[:2], np.zeros_like(told[:1]), told[2:]])
    assert not_none(routes_told(vllm_output(missed))).tolist() == [[[0, 1]]], "before it a token was not recorded"
    assert not_none(routes_told(vllm_output(told[..., 1:]))).tolist() == told[..., 1:].tolist(), (
        "one expert may be number 0"
    )
    for nothing in (None, told[:0], np.zeros_like(told)):
        assert routes_told(vllm_output(nothing)) is None
    assert routes_told(SimpleNamespace(outputs=[SimpleNamespace()])) is None, "a vLLM that knows nothing of it"
    with pytest.raises(PolicyFault, match=r"experts of the form float64 \(2, 2\)"):
        routes_told(vllm_output(np.zeros((2, 2))))


def test_what_vllm_refuses_is_told_by_the_line_that_says_why() -> None:
    wrapped = "1 validation error for VllmConfig\n  Value error, set VLLM_USE_V2_MODEL_RUNNER=1. [type=value_error, x]"
    assert _why(ValueError(wrapped)) == "Value error, set VLLM_USE_V2_MODEL_RUNNER=1."
    assert _why(OSError("no such folder\nat all")) == "no such folder" and _why(RuntimeError()) == "RuntimeError"


async def test_new_weights_wait_for_draws_under_way_and_serve_those_that_wait(
    made: EnginePolicy, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / OPTIMIZER).write_bytes(b"moments")
    gate = fake_of(made).gate = asyncio.Event()
    early = asyncio.create_task(made.draw(root(made), [1], 3))
    await asyncio.sleep(0.01)
    load = asyncio.create_task(serve_weights(made, tmp_path))
    await asyncio.sleep(0.05)
    late = asyncio.create_task(made.draw(root(made), [1], 3))
    await asyncio.sleep(0.01)
    assert made.version == "v1" and fake_of(made).now == 1 and made.line.waiting == 1
    gate.set()
    assert (await early)[0].policy_version == "v1"
    version = await load
    assert (await late)[0].policy_version == version == made.version == folder_version(tmp_path) != "v1"
    kind, folder = fake_of(made).calls[-1]
    names = {p.name for p in (tmp_path / "served").iterdir()}
    assert (kind, folder) == ("weights", str(tmp_path / "served")) and names == {"model.safetensors"}
    assert served_folder(tmp_path / "served") == folder  # links to weights alone
    with pytest.raises(TreewrightError, match="it holds no"):
        await serve_weights(made, tmp_path / "none")
    assert made.version == version


async def test_tensors_adapters_and_sleep_reach_the_engine_and_change_the_version(
    made: EnginePolicy, tmp_path: Path
) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"a")
    assert await made.load_state({"w": 1}, "v2") == made.version == "v2"
    adapted = await made.load_adapter(tmp_path)
    assert adapted.startswith("v2+") and await made.load_adapter(tmp_path) == adapted == made.version
    assert await made.sleep() is True
    waits = asyncio.create_task(made.draw(root(made), [1], 3))
    await asyncio.sleep(0.01)
    assert made.line.waiting == 1 and fake_of(made).now == 0
    await made.wake()
    await made.wake()
    assert len(await waits) == 1
    await made.close()
    await made.close()
    assert [c[0] for c in fake_of(made).calls] == ["state", "adapter", "adapter", "sleep", "wake", "close"]
    with pytest.raises(PolicyFault, match="closed"):
        await made.draw(root(made), [1], 3)


async def test_late_too_long_and_garbled_draws_are_faults_and_leave_nothing_behind(made: EnginePolicy) -> None:
    context = root(made)
    fake_of(made).gate, made.deadline = asyncio.Event(), 0.05
    with pytest.raises(PolicyFault, match="no answer within"):
        await made.draw(context, range(9), 3)
    assert (fake_of(made).now, made.line.now, made.line.waiting, made.stats.faults) == (0, 0, 0, 1)
    with pytest.raises(PolicyFault, match="do not fit the 300 positions"):
        await made.draw(context, [1], 300)
    fake_of(made).gate, made.deadline = None, patient(20)

    async def garbled(ask: Any) -> Told:
        return Told((1, 2), (0.0,), "stop")

    fake_of(made).generate = garbled
    with pytest.raises(PolicyFault, match="2 token ids with 1 log-probs"):
        await made.draw(context, [1, 2], 3)
    with pytest.raises(TreewrightError, match="max_tokens >= 1"):
        await made.draw(context, [1], 0)


# -- deaths ---------------------------------------------------------------------------------------------------------


async def test_an_engine_that_dies_is_started_once_and_its_draws_are_made_again_with_their_seeds(
    local: HFPolicy, made: EnginePolicy
) -> None:
    context, seeds = root(made), range(12)
    want = [c.token_ids for c in await local.draw(context, seeds, 12)]
    fake_of(made).dies_after = 5
    several = await asyncio.gather(*(made.draw(context, [seed], 12) for seed in seeds))
    assert [c.token_ids for (c,) in several] == want
    assert fake_of(made).calls == [("restart",)] and made.stats.restarts == 1 and made.stats.faults == 0
    assert 1 <= made.stats.retries <= 3 and made.version == "v1"  # those that were under way


async def test_an_engine_that_keeps_dying_is_given_up_and_counted_anew_once_it_has_worked(made: EnginePolicy) -> None:
    context = root(made)
    for _ in range(made.restarts):
        fake_of(made).dies_after = 0
        await made.draw(context, [1], 2)
    fake_of(made).dies_after = 0
    with pytest.raises(PolicyFault, match="started again 2 times, no more"):
        await made.draw(context, [1], 2)
    with pytest.raises(PolicyFault, match="no more"):
        await made.draw(context, [1], 2)
    fake_of(made).dead = False
    await made.draw(context, [1] * SETTLED, 1)
    fake_of(made).dies_after = 0
    await made.draw(context, [1], 2)
    assert made.stats.restarts == 3 and made.stats.faults == 2


async def test_a_draw_that_kills_the_engine_twice_is_a_fault(made: EnginePolicy) -> None:
    plain = fake_of(made).generate

    async def deadly(ask: Any) -> Told:
        if ask.seed == 13:
            fake_of(made).dead = True
        told: Told = await plain(ask)
        return told

    fake_of(made).generate, context = deadly, root(made)
    with pytest.raises(PolicyFault, match="died"):
        await made.draw(context, [13], 2)
    assert made.stats.restarts == 1
    assert len(await made.draw(context, [14], 2)) == 1 and made.stats.restarts == 2


async def test_a_restart_that_fails_is_a_fault_and_a_late_one_serves_those_who_still_wait(made: EnginePolicy) -> None:
    context, fake_of(made).dead, fake_of(made).trouble = root(made), True, "no memory left"
    with pytest.raises(PolicyFault, match="no memory left"):
        await made.draw(context, [1], 2)
    fake_of(made).trouble, made.deadline, made._deaths = None, 0.001, 0
    with pytest.raises(PolicyFault, match="no answer within"):
        await made.draw(context, [1], 2)
    made.deadline = patient(20)
    assert len(await made.draw(context, [1], 2)) == 1 and made.stats.restarts == 1
    fake_of(made).dead = True
    dying = asyncio.create_task(made.draw(context, [1], 2))
    await asyncio.sleep(0.001)
    await made.close()
    assert [call[0] for call in fake_of(made).calls][-1] == "close"
    with pytest.raises(PolicyFault):
        await dying
        await made.draw(context, [1], 2)


async def test_new_weights_and_sleep_reach_an_engine_that_died_meanwhile(made: EnginePolicy, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    fake_of(made).dead = True
    assert await serve_weights(made, tmp_path) == made.version == folder_version(tmp_path)
    fake_of(made).dead = True
    assert await made.sleep() is True
    fake_of(made).dead, made._deaths = True, 0
    await made.wake()
    assert [c[0] for c in fake_of(made).calls] == ["restart", "weights", "restart", "sleep", "restart", "wake"]
    assert len(await made.draw(root(made), [1], 2)) == 1


def stand_in(monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any]) -> None:
    """What `open_vllm` imports of vLLM, keeping the arguments that the engine is started with."""

    class Args:
        def __init__(self, **given: Any) -> None:
            seen.update(given)

    class Llm:
        model_config, errored = SimpleNamespace(max_model_len=300), False
        vllm_config = SimpleNamespace(cache_config=SimpleNamespace(block_size=16))

        @classmethod
        def from_engine_args(cls, args: Any) -> Any:
            return cls()

        def shutdown(self, timeout: Any = None) -> None:
            pass

    parts: dict[str, dict[str, Any]] = {
        "vllm": {"AsyncEngineArgs": Args},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: False)},
        "vllm.v1": {}, "vllm.v1.engine": {}, "vllm.v1.engine.async_llm": {"AsyncLLM": Llm},
    }  # fmt: skip
    for name, inside in parts.items():
        module = ModuleType(name)
        module.__dict__.update(inside)
        monkeypatch.setitem(sys.modules, name, module)


async def test_how_vllm_itself_drafts_is_passed_on_and_told_by_the_trees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    qwen3().save_pretrained(tmp_path)
    compact().save_pretrained(tmp_path)
    seen: dict[str, Any] = {}
    stand_in(monkeypatch, seen)
    told = '{"method": "ngram", "num_speculative_tokens": 3}'
    options = load_config(settings=[f"policy.options.engine.speculative_config={told}"]).policy.options
    policy: Any = open_policy(f"vllm:{tmp_path}", **options)
    drafts = {"method": "ngram", "num_speculative_tokens": 3}
    assert seen["speculative_config"] == drafts and seen["logprobs_mode"] == "processed_logprobs"
    assert policy.sampling == {"drafted_by": drafts}
    await policy.close()
    seen.clear()
    plain: Any = open_policy(f"vllm:{tmp_path}")
    assert "speculative_config" not in seen and plain.sampling == {}
    await plain.close()
