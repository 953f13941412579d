"""A policy on vLLM's server, against a fake one with a local model behind it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from closeness import assert_near
from numpy.typing import NDArray
from starlette.responses import Response

from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.opening import open_policy, serve_weights
from treewright.agent.policies.vllm_client import BLOCK, VLLMPolicy
from treewright.envs.errors import TreewrightError
from treewright.search.routes import decode_routes
from treewright.search.types import Context, PolicyFault

from .fake_server import FIRST, TASK, TOOLS, Server, root, serving
from .small import compact, qwen3

if TYPE_CHECKING:
    from starlette.datastructures import State
    from starlette.requests import Request


class FakeVLLM(Server):
    """Speaks vLLM's completions with token ids, a local model behind it."""

    def __init__(self, local: HFPolicy, **changes: Any) -> None:
        super().__init__(self.complete)
        self.local, self.changes = local, changes

    async def complete(self, body: Any) -> dict[str, Any]:
        ids = tuple(body["prompt"])
        (done,) = await self.local.draw(Context(keep=0, delta=ids, ids=ids), [body["seed"]], body["max_tokens"])
        choice = {
            "text": "decoded by the server",
            "finish_reason": done.finish_reason,
            "token_ids": list(done.token_ids),
            "logprobs": {"token_logprobs": list(done.logprobs)},
        } | self.changes
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "prompt_tokens_details": None}}


@pytest.fixture
async def local() -> AsyncIterator[HFPolicy]:
    policy = HFPolicy(qwen3(), compact(), batch_requests=False)
    yield policy
    await policy.close()


async def test_vllm_takes_and_returns_token_ids_like_a_local_model(local: HFPolicy) -> None:
    server = FakeVLLM(local)
    async with serving(server) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), version="v1")
        context = root(policy)
        assert context == local.context(TASK, TOOLS, FIRST, (), ())
        got, want = await policy.draw(context, [4, 9, 2], 12), await local.draw(context, [4, 9, 2], 12)
        await policy.close()
    for a, b in zip(got, want, strict=True):
        assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
        assert_near(a.logprobs, b.logprobs)
    assert all(c.trainable and c.policy_version == "v1" for c in got)
    path, body = server.seen[0]
    assert path == "/v1/completions" and tuple(body["prompt"]) == context.ids and "n" not in body
    assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, 1.0, -1, 1.0)
    assert body["return_token_ids"] and body["stop_token_ids"] == sorted(policy.template.stop_ids)


def npy(rows: NDArray[Any]) -> str:
    with io.BytesIO() as file:
        np.save(file, rows)
        return base64.b64encode(file.getvalue()).decode()


class Routing(FakeVLLM):
    """Names experts as vLLM 0.32 does: of prompt, from a start on, and answer without its last token; layer 0 has none.

    Each token's expert is its place.
    """

    ignores_start = False

    async def complete(self, body: Any) -> dict[str, Any]:
        answer = await super().complete(body)
        (choice,) = answer["choices"]
        start = 0 if self.ignores_start else body["routed_experts_prompt_start"]
        place = np.arange(start, len(body["prompt"]) + len(choice["token_ids"]) - 1) % 200
        rows = np.stack([np.zeros((len(place), 2)), place[:, None] + np.arange(2)], 1)
        choice["routed_experts"] = npy(rows.astype(np.uint8)) if place.size else None
        return answer


@pytest.mark.parametrize("ignores_start", [False, True])
async def test_a_server_s_experts_are_kept_of_what_a_draw_added_and_a_block_before(
    local: HFPolicy, ignores_start: bool
) -> None:
    server = Routing(local)
    server.ignores_start = ignores_start
    async with serving(server) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), routes=True)
        first = root(policy)
        (done,) = await policy.draw(first, [4], 5)
        later = Context(keep=len(first.ids) + 5, delta=(3, 4), ids=(*first.ids, 5, 6, 7, 8, 9, 3, 4))
        (after,) = await policy.draw(later, [4], 5)
        await policy.close()
    for one, context, kept in ((done, first, len(first.ids)), (after, later, BLOCK + 1 + 2)):
        read = len(context.ids) + len(one.token_ids) - 1
        found = decode_routes(one.routes)
        assert found.shape == (kept + len(one.token_ids) - 1, 1, 2), "the layer without experts is left out"
        assert found[:, 0, 0].tolist() == [place % 200 for place in range(read - len(found), read)]


async def test_experts_that_cannot_be_read_are_malformed_and_missing_ones_are_told(
    local: HFPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    for wrong, words in ((npy(np.zeros((2, 2))), "form float64"), ("aGVsbG8=", "no .npy file")):
        async with serving(FakeVLLM(local, routed_experts=wrong)) as url:
            policy = VLLMPolicy("m", url, tokenizer=compact(), routes=True, backoff=60, deadline=3)
            with pytest.raises(PolicyFault, match=words):
                await policy.draw(root(policy), [1], 5)
            await policy.close()
    async with serving(FakeVLLM(local)) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), routes=True)
        assert (await policy.draw(root(policy), [1], 5))[0].routes == ""
        await policy.close()
    assert "--enable-return-routed-experts" in caplog.text


async def test_without_token_ids_or_with_changed_sampling_a_draw_acts_but_is_not_trained_on(
    local: HFPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(FakeVLLM(local, token_ids=None, text="look {}")) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact())
        (done,) = await policy.draw(root(policy), [1], 5)
        await policy.close()
    assert (done.text, done.token_ids, done.trainable) == ("look {}", (), False)
    assert "no token ids" in caplog.text
    async with serving(FakeVLLM(local)) as url:
        for options in ({"temperature": 0.0}, {"extra": {"top_p": 0.9}}):
            policy = VLLMPolicy("m", url, tokenizer=compact(), **options)
            assert not (await policy.draw(root(policy), [1], 5))[0].trainable
            await policy.close()


async def test_ids_and_log_probs_that_do_not_match_are_malformed(local: HFPolicy) -> None:
    async with serving(FakeVLLM(local, logprobs={"token_logprobs": [-1.0] * 99})) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), backoff=60, deadline=9)
        with pytest.raises(PolicyFault, match=r"malformed answer: .* with 99 log-probs"):
            await policy.draw(root(policy), [1], 5)
        await policy.close()


def test_a_missing_tokenizer_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match="pass tokenizer=FOLDER"):
        open_policy(f"vllm:{tmp_path}@http://127.0.0.1:1/v1")


async def test_vllm_is_sent_the_grammar_and_such_draws_are_trained_on_only_with_masked_log_probs(
    local: HFPolicy,
) -> None:
    server = FakeVLLM(local)
    async with serving(server) as url:
        for exact in (False, True):
            policy = VLLMPolicy("m", url, tokenizer=compact(), grammar=True, masked_exact=exact)
            (done,) = await policy.draw(root(policy), [1], 5)
            assert done.trainable is exact and "search" in server.seen[-1][1]["structured_outputs"]["grammar"]
            await policy.close()


async def test_weights_adapters_and_sleep_of_a_server(tmp_path: Path, local: HFPolicy) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"new")
    calls, statuses = [], [200]

    async def control(request: Request[State]) -> Response:
        body = await request.body()
        calls.append((request.url.path, dict(request.query_params), json.loads(body) if body else None))
        return Response(status_code=statuses[-1])

    fake = FakeVLLM(local)
    async with serving(fake, control) as url:
        policy = VLLMPolicy("m", url, tokenizer=compact(), version="v1", colocated=True, extended=True)
        assert await policy.sleep() is True
        waits = asyncio.create_task(policy.draw(root(policy), [1], 3))
        await asyncio.sleep(0.05)
        assert not waits.done() and not fake.seen
        version = await serve_weights(policy, tmp_path)
        assert (await waits)[0].policy_version == version == policy.version != "v1"
        assert (await policy.load_adapter(tmp_path)).startswith(version + "+") and policy.model != "m"
        assert [c[0] for c in calls] == [
            "/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version",
            "/v1/load_lora_adapter", "/update_weight_version",
        ]  # fmt: skip
        assert [calls[i][2] for i in (4, 6)] == [{"new_version": name} for name in (version, policy.version)]
        assert calls[2][2] == {"method": "take_folder", "kwargs": {"folder": str(tmp_path)}}
        for status, says in ((404, "VLLM_SERVER_DEV_MODE"), (500, "HTTP 500")):
            statuses.append(status)
            with pytest.raises(TreewrightError, match=says):
                await policy.load_weights(tmp_path)
        await policy.close()
    with pytest.raises(TreewrightError, match="weight_info failed: ConnectError"):
        await policy.load_weights(tmp_path)
    await policy.close()
