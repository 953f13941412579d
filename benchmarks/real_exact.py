"""Whether a real model is trained right: log-probs of sampler, trainer and transformers, the gradient of an update
against plain rows, and how far one step of Adam moves the policy at several rates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treewright.agent.policies.hf import HFPolicy
from treewright.agent.runs.collect import collect, open_worlds
from treewright.agent.runs.loop import model_folder, tasks_for
from treewright.benchmarks.real_parts import Figures, kept, size_of
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

__all__ = ["RATES", "exact_figures", "packed_gradient", "packs_by_lot", "plain_gaps"]

SPEC = "hf:smollm2"
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)


def exact_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Every draw gets a credit of +1 or −1 by lot, so that each of its tokens counts: what is compared is linear in the
    credit, and what a step of noise does to a policy is what a rate must not let it do."""
    size = size_of(quick)
    of = {"part": "exact", "spec": spec, "trees": size.trees, "gradients": size.gradients}
    return kept(of, partial(_exact, spec, size.trees, min(size.gradients, size.trees)))


def _exact(spec: str, count: int, gradients: int) -> Figures:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(spec)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trees = asyncio.run(_grown(model, AutoTokenizer.from_pretrained(folder), count))
    sampler = tokens = 0.0
    trainer = _trainer(model)
    for pack in packs_by_lot(trees):
        with torch.no_grad():
            logp = trainer.logprobs(pack)[0]
        sampler, tokens = max(sampler, _gap(logp, pack)), tokens + len(pack.target)
    few = trees[:gradients]
    packs = packs_by_lot(few)
    with torch.no_grad():
        olds = [trainer.logprobs(pack)[0] for pack in packs]
    gradient = packed_gradient(trainer, packs)
    plain, rows = _plain_gradient(model, few)
    plain = max([plain, *(_plain_gap(model, tree) for tree in trees[gradients:])])
    norm = float(torch.stack([g.double().square().sum() for g in rows]).sum().sqrt())
    apart = float(
        torch.stack([(a - b).double().square().sum() for a, b in zip(gradient, rows, strict=True)]).sum().sqrt()
    )
    del rows
    prepare(model)
    out: Figures = {
        "exact/trees": (float(len(trees)), "trees"),
        "exact/tokens": (tokens, "tokens"),
        "exact/sampler_and_trainer": (sampler, "nats"),
        "exact/sampler_and_plain_rows": (plain, "nats"),
        "exact/gradient_of_plain_rows": (apart / norm, "relative"),
        "exact/trees_with_gradient": (float(len(few)), "trees"),
        "gradient_norm": (norm, ""),
        "real_logprob_gap_max": (max(sampler, plain), "nats"),
    }
    for rate, (moved, outside) in _steps(trainer, gradient, packs, olds).items():
        out[f"step_kl/{rate:g}"] = (moved, "nats per token")
        out[f"step_outside_clip/{rate:g}"] = (outside, "share of tokens")
    return out


def _trainer(model: Any) -> Trainer:
    return Trainer(model, TrainSettings(max_tokens=1024, minibatches=1, grad_clip=1e9, max_kl=0.0))


def _coefficients(trees: Sequence[Tree]) -> tuple[TreeArrays, np.ndarray[Any, Any]]:
    arrays = tree_arrays(trees)
    lot = np.random.default_rng(0).choice([-1.0, 1.0], len(arrays))
    return arrays, np.where(arrays.trainable, lot, 0.0)


def packs_by_lot(trees: Sequence[Tree]) -> list[PackedBatch]:
    """The trees in packs of 1,024 tokens, with a credit of +1 or −1 by lot on every draw that is trained."""
    arrays, coef = _coefficients(trees)
    return pack_trees(trees, arrays, _credit(arrays, coef), 1024)


def _gap(logp: Tensor, pack: PackedBatch) -> float:
    return float((logp - torch.from_numpy(pack.behaviour)).abs().max())


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


def packed_gradient(trainer: Trainer, packs: Sequence[PackedBatch]) -> list[Tensor]:
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
            row = torch.tensor([above + said])
            logits = model(row, use_cache=False, logits_to_keep=len(said) + 1).logits[0, :-1]
            yield i, logits.log_softmax(-1)[range(len(said)), said], torch.tensor(tree.logprobs[i])


def _plain_gradient(model: Any, trees: Sequence[Tree]) -> tuple[float, list[Tensor]]:
    """REINFORCE on every draw's own row: the largest gap of log-probs, and the gradient of −Σ coef·log π / trees."""
    arrays, coef = _coefficients(trees)
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
    return gap, found


@torch.no_grad()
def _plain_gap(model: Any, tree: Tree) -> float:
    wanted = [i for i in range(1, len(tree)) if tree_arrays([tree]).trainable[i]]
    return max(float((logp - sampled).abs().max()) for _, logp, sampled in plain_gaps(model, tree, wanted))


def _steps(
    trainer: Trainer, gradient: Sequence[Tensor], packs: Sequence[PackedBatch], olds: Sequence[Tensor]
) -> dict[float, tuple[float, float]]:
    """By rate, of a fresh AdamW's first step along this gradient: KL(before ‖ after), and the share of tokens whose
    ratio leaves 1 ± .2."""
    weights, out = list(trainer.model.parameters()), dict[float, tuple[float, float]]()
    before = torch.cat(list(olds))
    start = [p.detach().clone() for p in weights]
    for rate in RATES:
        optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        for p, g in zip(weights, gradient, strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            after = torch.cat([trainer.logprobs(p)[0] for p in packs])
            outside = float((((after - before).exp() - 1).abs() > 0.2).double().mean())
            out[rate] = divergence(before, after), outside
            for p, old in zip(weights, start, strict=True):
                p.copy_(old)
    return out
