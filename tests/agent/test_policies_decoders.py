"""Drawing from decoders of every kind: what the policy says of its draws is what plain rows say."""

from __future__ import annotations

import pytest
import torch
from not_none import not_none

transformers = pytest.importorskip("transformers")

from treewright.agent.policies.prefixes import PrefixCache  # noqa: E402
from treewright.agent.policies.runners import BranchRunner, CacheRunner, ModelRunner, runner_for  # noqa: E402
from treewright.agent.policies.sampling import Request, generate  # noqa: E402
from treewright.training.decoders.tiny import tiny_model  # noqa: E402

FAMILIES = {
    "Qwen3_5": CacheRunner,
    "KimiLinear": CacheRunner,
    "NemotronH": CacheRunner,
    "FalconH1": CacheRunner,
    "MiniMax": CacheRunner,
    "Lfm2": CacheRunner,
    "Mamba2": CacheRunner,
    "Gemma4": CacheRunner,  # heads of two sizes
    "DeepseekV3": BranchRunner,  # values narrower than queries
    "Phimoe": BranchRunner,
    "GptOss": BranchRunner,  # sinks
    "Llama4": BranchRunner,  # chunks
    "Gemma2": BranchRunner,  # soft caps
    "GPTJ": ModelRunner,  # attention of its own
}
OPTIONS = {"Lfm2": {"layer_types": ["conv", "full_attention"] * 16}}
SHARED = tuple(range(5, 25))
PROMPTS = (SHARED, (*SHARED, 30, 31, 32), (*SHARED[:13], 40, 41), (50, 51))


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_have_the_log_probs_of_plain_rows(name: str) -> None:
    torch.set_num_threads(1)
    kind = getattr(transformers, f"{name}ForCausalLM", None)
    config = (
        transformers.Gemma4TextConfig() if name == "Gemma4" else not_none(kind).config_class(**OPTIONS.get(name, {}))
    )
    model = tiny_model(kind, config, dtype=torch.float32)
    runner = runner_for(model)
    assert type(runner) is FAMILIES[name]
    cache = PrefixCache(1 << 30)
    prompts = []
    with torch.inference_mode():
        for ids in PROMPTS:
            path, _ = cache.longest(ids)
            length = sum(part.length for part in path)
            stretch, logits = runner.prefill(ids[length:], path)
            cache.put(ids, stretch, logits)
            prompts.append(logits)
        sizes = zip(PROMPTS, (2, 3, 1, 2), (4, 7, 5, 2), strict=True)
        requests = [Request(ids, tuple(range(n)), most) for ids, n, most in sizes]
        given = [(cache.path(ids), x) for ids, x in zip(PROMPTS, prompts, strict=True)]
        drawn = generate(runner, requests, given, [3])
    for request, draws in zip(requests, drawn, strict=True):
        for draw in draws:
            row = torch.tensor([*request.ids, *draw.ids])
            with torch.no_grad():
                scores = model(input_ids=row[None], use_cache=False).logits[0].log_softmax(-1)
            first = len(request.ids)
            true = scores[torch.arange(first - 1, len(row) - 1), row[first:]]
            assert (torch.tensor(draw.logprobs) - true).abs().max() < 1e-4 * true.abs().max()
