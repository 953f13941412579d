"""A model with experts in the real vLLM: the experts that it tells are those that its log-probs come from."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM; make test-vllm builds a venv with it")

import torch
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.kernels import TreePlan
from treewright.search.routes import decode_routes
from treewright.training.decoders.replay import replaying
from treewright.training.model import prepare, tree_logprobs

GAP = 1e-3  # nats, float32
CANNOT = r"Model Runner V2|cannot say which experts|not supported with|No supported MoE router"
"""What a build of vLLM says that does not record experts on this machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model whose first layer has no experts, in `save_pretrained` layout."""
    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, num_experts=8, num_experts_per_tok=2,
        mlp_only_layers=[0], max_position_embeddings=512, norm_topk_prob=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("experts")
    Qwen3MoeForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


async def test_told_experts_give_the_log_probs_of_the_draws(folder: Path) -> None:
    try:
        policy = await asyncio.to_thread(
            open_policy, f"vllm:{folder}", routes=True, engine={"max_model_len": 256, "seed": 0}
        )
    except TreewrightError as error:
        if re.search(CANNOT, str(error)):
            pytest.skip(str(error))
        raise
    try:
        tools = (ToolSpec("search", "look up", {"properties": {"entity": {"type": "string"}}}),)
        context = policy.context(Task("kg", "1", "Who is ada's mother?"), tools, Observation("start"), (), ())
        draws = await policy.draw(context, range(4), 24)
    finally:
        await policy.close()
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prepare(model)
    for done in draws:
        ids = torch.tensor([*context.ids, *done.token_ids])
        found = torch.from_numpy(decode_routes(done.routes))
        assert found.shape == (len(ids) - 1, 2, 2), "every token that was read, both layers that have experts"
        given = torch.cat([found, torch.full((1, 2, 2), -1, dtype=torch.int16)])
        rows = torch.arange(len(context.ids) - 1, len(ids) - 1)
        with torch.no_grad(), replaying(model, given) as replay:
            logp, _ = tree_logprobs(model, ids, TreePlan.from_segments([-1], [len(ids)]), rows, ids[rows + 1])
        assert (logp - torch.tensor(done.logprobs)).abs().max() < GAP
        assert replay is not None and replay.apart <= 0.05 * replay.given
