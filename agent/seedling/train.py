"""Supervised training of the seedling from random weights: next-token loss on demonstrated actions, on CPU.

Hidden matrices are trained by Muon (Jordan et al. 2024, orthogonalised momentum), embeddings and norms by AdamW.
Steps take turns among the suites. Where there are demonstrations without mistakes, they come first: the model learns
what is right before it learns how often the demonstrator does it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from treewright.agent.seedling.text import Encoder, Example
from treewright.envs.types import seed_of

__all__ = ["Recipe", "begin_from", "new_model", "rate_at", "train", "turns_of"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and schedule.

    steps        optimizer steps, each on one suite's batch of about `batch_tokens` tokens, padding included
    shares       how often each suite takes a step, relative; 1 where not named
    gentle       the first part of the steps, in which suites that have demonstrations without mistakes use those
    lr, muon_lr  learning rates of AdamW and Muon after 50 steps of warm-up; in the last `cool` of the steps they
                 fall to 2 % in a straight line
    average      decay of the running mean of the weights, which is what the training returns
    seen_weight  loss weight of observation tokens, which teaches copying early
    """

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    vocab: int = 2048
    steps: int = 4500
    batch_tokens: int = 2560
    shares: Mapping[str, float] = field(default_factory=dict)
    lr: float = 3e-3
    muon_lr: float = 1.5e-2
    seen_weight: float = 0.15
    gentle: float = 0.35
    cool: float = 0.35
    average: float = 0.98
    seed: int = 0


def new_model(recipe: Recipe, encoder: Encoder) -> Qwen3ForCausalLM:
    """The network with random weights."""
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=recipe.vocab,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        intermediate_size=recipe.mlp,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=encoder.end,
        pad_token_id=encoder.pad,
    )
    return Qwen3ForCausalLM(config)


@torch.no_grad()
def begin_from(model: Qwen3ForCausalLM, encoder: Encoder, folder: Path) -> None:
    """Puts in the weights of a model of the same sizes with another tokenizer.

    A token gets the embedding of the token of the same text, or the mean of those that its text had there.
    """
    old = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = Encoder(AutoTokenizer.from_pretrained(folder))
    known, rows = before.tokenizer.get_vocab(), old.get_input_embeddings().weight
    here = model.get_input_embeddings().weight
    for token, place in encoder.tokenizer.get_vocab().items():
        if token in known:
            here[place] = rows[known[token]]
        elif pieces := before.piece(encoder.tokenizer.decode([place])):
            here[place] = rows[pieces].mean(0)
    kept = {name: value for name, value in old.state_dict().items() if "embed" not in name and "lm_head" not in name}
    missing = model.load_state_dict(kept, strict=False).missing_keys
    if any("layers" in name for name in missing):
        raise ValueError(f"{folder} holds other layers than the recipe: {missing[:3]} are missing")


class Batches:
    """Endless batches of one suite: rows of similar length, drawn at random from all."""

    def __init__(self, rows: Sequence[Example], tokens: int, pad: int, seed: int) -> None:
        self.rows, self.tokens, self.pad = rows, tokens, pad
        self.rng = random.Random(seed)
        self.queue: list[list[Example]] = []

    def next(self) -> tuple[Tensor, Tensor]:
        """Token ids and kinds, both [rows, longest] int64, padded on the right."""
        if not self.queue:
            self.queue = list(self._epoch())
        rows = self.queue.pop()
        longest = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        kinds = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            kinds[i, : len(row.kinds)] = torch.tensor(row.kinds)
        return ids, kinds

    def _epoch(self) -> Iterator[list[Example]]:
        ordered = sorted(self.rows, key=lambda row: len(row.ids) * self.rng.uniform(0.9, 1.1))
        batches: list[list[Example]] = [[]]
        longest = 0
        for row in ordered:
            longest = max(longest, len(row.ids))
            if batches[-1] and longest * (len(batches[-1]) + 1) > self.tokens:
                batches.append([])
                longest = len(row.ids)
            batches[-1].append(row)
        self.rng.shuffle(batches)
        yield from batches


def loss_of(model: Any, ids: Tensor, kinds: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean next-token loss in nats; `weights` [3] by kind. Only positions that count reach the vocabulary."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    weight = weights[kinds[:, 1:]]
    counts = weight > 0
    logits = model.lm_head(hidden[counts])
    losses = F.cross_entropy(logits, ids[:, 1:][counts], reduction="none")
    return (losses * weight[counts]).sum() / weight.sum()


def _optimizers(model: Any, recipe: Recipe) -> list[Any]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def turns_of(recipe: Recipe, suites: Sequence[str]) -> list[str]:
    """Which suite takes each step, spread evenly by their shares."""
    due = {name: 0.0 for name in suites}
    whole = sum(recipe.shares.get(name, 1.0) for name in suites)
    turns = []
    for _ in range(recipe.steps):
        for name in suites:
            due[name] += recipe.shares.get(name, 1.0) / whole
        name = max(suites, key=due.__getitem__)
        due[name] -= 1.0
        turns.append(name)
    return turns


def rate_at(recipe: Recipe, step: int) -> float:
    """The factor on the learning rates: warm-up, plateau, straight descent."""
    left = 1.0 - step / recipe.steps
    return min(1.0, (step + 1) / 50, 0.02 + 0.98 * left / recipe.cool)


def train(
    rows: Mapping[str, Sequence[Example]],
    encoder: Encoder,
    recipe: Recipe,
    *,
    gentle: Mapping[str, Sequence[Example]] | None = None,
    begin: Path | None = None,
    checkpoint: Path | None = None,
    save_every: float = 120.0,
    say: Callable[[str], None] = print,
) -> Qwen3ForCausalLM:
    """Trains from random weights, those in `begin`, or `checkpoint` where that file exists; saves it every `save_every`
    seconds.

    `gentle` holds rows without mistakes for some of the suites. Returns the model with the averaged weights.
    """
    model = new_model(recipe, encoder)
    if begin is not None:
        begin_from(model, encoder, begin)
    optimizers = _optimizers(model, recipe)
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    first = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, mean = state["step"], state["mean"]
        say(f"goes on from step {first} of {checkpoint}")
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    early, late = (
        {
            name: Batches(found, recipe.batch_tokens, encoder.pad, seed_of(part, recipe.seed, name, first))
            for name, found in source.items()
        }
        for part, source in (("gentle", {**rows, **(gentle or {})}), ("noisy", rows))
    )
    turns = turns_of(recipe, list(rows))
    started = saved_at = time.monotonic()
    losses: dict[str, list[float]] = {}
    tokens = 0
    model.train()
    for step in range(first, recipe.steps):
        for group, peak in zip(groups, (recipe.muon_lr, recipe.lr), strict=True):
            group["lr"] = peak * rate_at(recipe, step)
        batches = early if step < recipe.gentle * recipe.steps else late
        ids, kinds = batches[turns[step]].next()
        loss = loss_of(model, ids, kinds, torch.tensor([0.0, recipe.seen_weight, 1.0]))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for name, value in model.state_dict().items():
            mean[name].lerp_(value, 1.0 - recipe.average)
        tokens += ids.numel()
        losses.setdefault(turns[step], []).append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            shown = " ".join(f"{name} {sum(seen) / len(seen):.3f}" for name, seen in losses.items())
            say(f"step {step + 1}/{recipe.steps}  loss {shown}  {tokens / seconds:.0f} tokens/s  {seconds:.0f} s")
            losses.clear()
        if checkpoint is not None and time.monotonic() - saved_at > save_every:
            saved_at = time.monotonic()
            _save(checkpoint, model, optimizers, mean, step + 1)
    if checkpoint is not None:
        _save(checkpoint, model, optimizers, mean, recipe.steps)
    model.load_state_dict(mean)
    return model.eval()


def _save(path: Path, model: Any, optimizers: Sequence[Any], mean: Mapping[str, Tensor], step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(
        {"model": model.state_dict(), "optimizers": saved, "mean": mean, "step": step}, path.with_suffix(".part")
    )
    os.replace(path.with_suffix(".part"), path)
