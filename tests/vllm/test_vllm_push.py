"""Weights sent by vLLM's own weight transfer to real servers: over gloo on CPUs, over NCCL where there are GPUs.

`make test-vllm` runs the first, `make gpu-push` the second, on a machine with two GPUs at least.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("vllm", reason="needs vLLM; make test-vllm builds a venv with it")

import torch
from gloo_transfer import gloo_sender, plugged
from not_none import not_none
from speed import patient
from transformers import AutoModelForCausalLM

from treewright.agent.config import load_config
from treewright.agent.policies.many import ManyPolicy
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.policies.vllm_client import VLLMPolicy
from treewright.agent.policies.vllm_server import vllm_server
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.loop import Learner, make_trainer, run_loop
from treewright.agent.runs.pushing import push_for, serve_from
from treewright.envs.errors import TreewrightError
from treewright.search.types import Context

pytestmark = pytest.mark.asyncio(loop_scope="module")
GPUS = torch.cuda.device_count()
NCCL = GPUS >= 2
GAP = 0.05 if NCCL else 1e-3  # nats; float32, on a GPU with products in TensorFloat-32
PROMPT = tuple(range(20, 60))


@dataclass
class Served:
    """Servers of the packaged model, and what says which of them is to die within the next transfer."""

    each: list[VLLMPolicy]
    dies: Path

    @property
    def many(self) -> ManyPolicy:
        return ManyPolicy(self.each, rest=3600.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """Two servers; with GPUs each has one of the last ones, and the trainer the first."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("plugged")
    arguments = [
        "--max-model-len",
        "512",
        "--weight-transfer-config",
        json.dumps({"backend": "nccl" if NCCL else "gloo"}),
    ]
    arguments += ["--dtype", "float32", "--gpu-memory-utilization", "0.3"] if NCCL else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", plugged(folder / "plugin"))
        patch.setenv("TREEWRIGHT_DIE", str(folder / "dies"))
        async with AsyncExitStack() as stack:
            starting = []
            for number in range(min(2, GPUS - 1) if NCCL else 2):
                if NCCL:
                    patch.setenv("CUDA_VISIBLE_DEVICES", str(GPUS - 1 - number))
                server = vllm_server(SEEDLING, arguments, cpu=not NCCL, deadline=patient(300))
                starting.append(asyncio.create_task(stack.enter_async_context(server)))
                await asyncio.sleep(0)  # it has read the environment
            patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            urls = await asyncio.gather(*starting)
            each: list[Any] = [open_policy(f"vllm:{SEEDLING}@{url}", extended=True, backoff=0.05) for url in urls]
            yield Served(each, folder / "dies")
            for policy in each:
                await policy.close()


async def gap(policy: VLLMPolicy, folder: Path | None) -> float:
    """How far the server's greedy log-probs are from transformers' with a checkpoint; the tokens are the same."""
    model = AutoModelForCausalLM.from_pretrained(not_none(folder), dtype=torch.float32)
    policy.temperature = 0.0
    try:
        (done,) = await policy.draw(Context(keep=0, delta=PROMPT, ids=PROMPT), [1], 12)
    finally:
        policy.temperature = 1.0
    ids = torch.tensor(done.token_ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*PROMPT, *done.token_ids]])).logits[0].detach()
    own = logits[len(PROMPT) - 1 : -1].log_softmax(-1)
    assert NCCL or torch.equal(own.argmax(-1), ids)
    return float((own[torch.arange(len(ids)), ids] - torch.tensor(done.logprobs)).abs().max())


def changed(learner: Learner) -> Path:
    """Other weights in the trainer, and their checkpoint."""
    with torch.no_grad():
        for p in learner.trainer.model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    learner.trainer.steps += 1
    saved = learner.save({}).path
    assert isinstance(saved, Path)
    return saved


async def pushing(served: Served, folder: Path) -> Learner:
    spec = f"vllm:{SEEDLING}@{served.each[0].wire.base_url}"
    config = load_config(None, [f"folder={folder}", "loop.push=nccl"], {"policy.spec": spec})
    learner = Learner(make_trainer(config, SEEDLING), folder / "checkpoints")
    opened: Callable[..., Any] | None = None if NCCL else gloo_sender
    learner.push = not_none(await push_for(config, learner.trainer, served.many, print, opened))
    return learner


async def test_after_each_push_the_servers_draw_what_transformers_draws_with_the_new_weights(
    served: Served, tmp_path: Path
) -> None:
    learner, many = await pushing(served, tmp_path), served.many
    for number in (1, 2):
        saved = changed(learner)
        before = [await gap_or_more(policy, saved) for policy in served.each]
        version = await serve_from(learner, many, saved)
        for policy, was in zip(served.each, before, strict=True):
            assert policy.version == version == (await policy.ask("/weight_info"))["weight_version"]
            assert await gap(policy, saved) < GAP < was
        assert not_none(learner.push).pushes == number
    await not_none(learner.push).close()


async def gap_or_more(policy: VLLMPolicy, folder: Path) -> float:
    try:
        return await gap(policy, folder)
    except AssertionError:  # other tokens
        return 1.0


async def test_a_loop_pushes_after_every_round_and_its_trees_are_of_the_weights_that_drew_them(
    served: Served, tmp_path: Path
) -> None:
    learner, many = await pushing(served, tmp_path), served.many
    settings = [f"folder={tmp_path}", "loop.iterations=2", "loop.tasks=4", "search.expansions=2", "loop.behind=0"]
    async with open_worlds(["kg"]) as worlds:
        await run_loop(load_config(None, settings), worlds, many, learner)
    assert [done.trained for done in learner.rounds][-1] == many.version
    assert all(done.stats["sampler_gap"] < GAP and done.stats["push_s"] > 0 for done in learner.rounds)
    assert not_none(learner.push).pushes == 3, "before the first round, whose weights nobody knew, and after each"
    for policy in served.each:
        assert await gap(policy, learner.saved) < GAP
    await not_none(learner.push).close()


@pytest.mark.skipif(NCCL, reason="a NCCL group whose member dies holds the others; the run stops (docs/cluster.md)")
async def test_where_a_server_dies_within_a_push_the_other_is_mended_and_draws_rightly_from_the_files(
    served: Served, tmp_path: Path
) -> None:
    learner, many = await pushing(served, tmp_path), served.many
    saved = changed(learner)
    served.dies.write_text("2")
    version = await serve_from(learner, many, saved)
    served.dies.unlink()
    good, dead = served.each
    assert good.version == version == many.version != dead.version
    assert await gap(good, saved) < GAP
    again = changed(learner)
    version = await serve_from(learner, many, again)
    assert good.version == version and await gap(good, again) < GAP
    assert not_none(learner.push).pushes == 1, "over a group without the dead one"
    with pytest.raises(TreewrightError):
        await dead.ask("/weight_info")
    await not_none(learner.push).close()
