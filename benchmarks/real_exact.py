"""Whether a real model is trained right: log-probs of sampler, trainer and transformers, the gradient of an update
against plain rows, and how far one step of Adam moves the policy at several rates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treewright.agent.policies.hf import HFPolicy
from treewright.agent.runs.collect import collect, open_worlds
from treewright.agent.runs.loop import model_folder, tasks_for
from treewright.search.engine import Settings
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget
from treewright.training.credit.arrays import Credit, TreeArrays
from treewright.training.credit.trees import tree_arrays
from treewright.training.model import prepare
from treewright.training.pack import PackedBatch, pack_trees
from treewright.training.region import divergence
from treewright.training.step import Trainer, TrainSettings

__all__ = ["RATES", "exact_figures", "plain_gaps"]

SPEC = "hf:smollm2"
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)

Figures = dict[str, tuple[float, str]]


def exact_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Every draw gets a credit of +1 or −1 by lot, so that each of its tokens counts: what is compared is linear in the
    credit, and what a step of noise does to a policy is what a rate must not let it do."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(spec)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trees = asyncio.run(_grown(model, AutoTokenizer.from_pretrained(folder), 8 if quick else 50))
    arrays = tree_arrays(trees)
    lot = np.random.default_rng(0).choice([-1.0, 1.0], len(arrays))
    coef = np.where(arrays.trainable, lot, 0.0)
    trainer = Trainer(model, TrainSettings(max_tokens=1024, minibatches=1, grad_clip=1e9, max_kl=0.0))
    packs = pack_trees(trees, arrays, _credit(arrays, coef), 1024)
    with torch.no_grad():
        olds = [trainer.logprobs(pack)[0] for pack in packs]
    sampler = max(float((old - torch.from_numpy(p.behaviour)).abs().max()) for old, p in zip(olds, packs, strict=True))
    gradient = _packed_gradient(trainer, packs)
    plain, rows = _plain_gradient(model, trees, arrays, coef)
    norm = float(torch.stack([g.double().square().sum() for g in rows]).sum().sqrt())
    apart = float(
        torch.stack([(a - b).double().square().sum() for a, b in zip(gradient, rows, strict=True)]).sum().sqrt()
    )
    steps = {f"step_kl/{rate:g}": found for rate, found in _steps(trainer, gradient, packs, olds).items()}
    return {
        "exact/trees": (float(len(trees)), "trees"),
        "exact/tokens": (float(sum(len(p.target) for p in packs)), "tokens"),
        "exact/sampler_and_trainer": (sampler, "nats"),
        "exact/sampler_and_plain_rows": (plain, "nats"),
        "exact/gradient_of_plain_rows": (apart / norm, "relative"),
        "real_logprob_gap_max": (max(sampler, plain), "nats"),
        **{name: (value, "nats per token") for name, value in steps.items()},
    }


async def _grown(model: Any, tokenizer: Any, count: int) -> list[Tree]:
    policy = HFPolicy(model, tokenizer)
    try:
        async with open_worlds(["kg"]) as worlds:
            return await collect(
                tasks_for(worlds, "train", 0, count), worlds, policy, rule=best_first(root_draws=3, draws=2),
                budget=Budget(expansions=1), settings=Settings(run="exact", seed=0, max_tokens=24, close=False),
            )  # fmt: skip
    finally:
        await policy.close()


def _credit(arrays: TreeArrays, coef: np.ndarray[Any, Any]) -> Credit:
    from dataclasses import replace

    from treewright.training.credit import estimate

    return replace(estimate("split_loo", arrays, allow_biased=True), coef=coef)


def _packed_gradient(trainer: Trainer, packs: Sequence[PackedBatch]) -> list[Tensor]:
    """Of the update's loss, as a step of length 0 leaves it."""
    trainer.fixed_rate = 0.0
    trainer.descend_surrogate(packs)
    trainer.fixed_rate = None
    return [p.grad.clone() for p in trainer.model.parameters()]


def plain_gaps(model: Any, tree: Tree, wanted: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each wanted node its log-probs [T] by transformers' own forward on the row of its prompt and response,
    differentiable, and those that were sampled."""
    prompts = {0: tuple(tree.delta[0])}
    for i in range(1, len(tree)):
        above, said = prompts[tree.parent[i]], tuple(tree.ids[i])
        prompts[i] = (above + said)[: tree.keep[i]] + tuple(tree.delta[i])
        if i in wanted:
            logits = model(torch.tensor([above + said]), use_cache=False).logits[0, len(above) - 1 : -1]
            yield i, logits.log_softmax(-1)[range(len(said)), said], torch.tensor(tree.logprobs[i])


def _plain_gradient(
    model: Any, trees: Sequence[Tree], arrays: TreeArrays, coef: np.ndarray[Any, Any]
) -> tuple[float, list[Tensor]]:
    """REINFORCE on every draw's own row: the largest gap of log-probs, and the gradient of −Σ coef·log π / trees."""
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    start, gap = 0, 0.0
    for tree in trees:
        wanted = [i for i in range(1, len(tree)) if arrays.trainable[start + i]]
        for i, logp, sampled in plain_gaps(model, tree, wanted):
            gap = max(gap, float((logp.detach() - sampled).abs().max()))
            loss = -float(coef[start + i]) * logp.sum() / len(trees)
            loss.backward()  # type: ignore[no-untyped-call]
        start += len(tree)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    prepare(model)
    return gap, found


def _steps(
    trainer: Trainer, gradient: Sequence[Tensor], packs: Sequence[PackedBatch], olds: Sequence[Tensor]
) -> dict[float, float]:
    """By rate, KL(before ‖ after) of a fresh AdamW's first step along this gradient."""
    weights, out = list(trainer.model.parameters()), dict[float, float]()
    start = [p.detach().clone() for p in weights]
    for rate in RATES:
        optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        for p, g in zip(weights, gradient, strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            out[rate] = divergence(torch.cat(list(olds)), torch.cat([trainer.logprobs(p)[0] for p in packs]))
            for p, old in zip(weights, start, strict=True):
                p.copy_(old)
    return out
