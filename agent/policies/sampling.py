"""Drawing from a causal language model: one prompt, many draws, each with random numbers of its own.

The sampler computes a prompt once, shares its keys and values among the draws and steps all rows of all requests
together. Token t of a draw is the inverse of the cumulative distribution at u(seed, t), where u is a counter-based
generator: what a draw says does not depend on its neighbours, its place in the batch or how many there are (up to the
rounding of batched arithmetic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treewright.kernels.decode import Path, Stretch

__all__ = ["Drawn", "Request", "Rows", "Runner", "generate", "uniforms"]

COMPACT_AT = 0.75  # rows are dropped when at most this share of them still runs


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the draws asked of it. temperature 0 takes the likeliest token."""

    ids: tuple[int, ...]
    seeds: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """[T] sampled ids and their log-probabilities, in nats, under the distribution they were sampled from."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Rows(Protocol):
    """A batch of prompts that are being continued, one row for each draw."""

    def step(self, tokens: Tensor) -> Tensor:
        """Appends tokens [B]; returns logits [B, V]."""

    def select(self, rows: Tensor) -> None:
        """Keeps only `rows` [B']."""


class Runner(Protocol):
    """How a model is run, see `treewright.agent.policies.runners`. `shares`: draws of a prompt read one copy of it."""

    shares: bool

    @property
    def device(self) -> torch.device: ...

    def refresh(self) -> None:
        """Reads the model's weights again."""

    def prefill(self, ids: Sequence[int], path: Path) -> tuple[Stretch, Tensor]:
        """Keys and values of `ids`, which continue `path`, and the logits [V] after the last id."""

    def rows(self, paths: Sequence[Path], repeats: Sequence[int], room: int) -> Rows:
        """Each path `repeats` times, ready to take up to `room` tokens."""


def uniforms(seeds: Sequence[int], count: int) -> NDArray[np.float64]:
    """[len(seeds), count] numbers in [0, 1) that depend on nothing but seed and position.

    The mixing function of SplitMix64 (Steele, Lea, Flood 2014), applied to the mixed seed plus position.
    """
    start = _mix(np.array([seed & (2**64 - 1) for seed in seeds], dtype=np.uint64))
    step = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(start[:, None] + step) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def pick(logits: Tensor, u: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens [B] for logits [B, V] and u [B], and their log-probabilities [B] in float32.

    At temperature 0 the log-probability is the one at temperature 1: the draw itself was certain.
    """
    logits = logits.float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    logprobs = logits.log_softmax(-1)
    if temperature == 0.0:
        tokens = logprobs.argmax(-1, keepdim=True)
    else:
        cdf = logprobs.double().exp_().cumsum_(-1)
        tokens = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


@torch.inference_mode()
def generate(
    runner: Runner,
    requests: Sequence[Request],
    prompts: Sequence[tuple[Path, Tensor]],
    stop_ids: Sequence[int],
) -> list[list[Drawn]]:
    """The draws of each request, in the order of its seeds; all requests share one temperature.

    prompts  for each request its keys and values and the logits after its last id; neighbours share best
    A draw ends after a stop id, which it keeps, or after its request's max_tokens.
    """
    repeats = [len(request.seeds) for request in requests]
    steps = max(request.max_tokens for request in requests)
    device, temperature = runner.device, requests[0].temperature
    count = torch.tensor(repeats, device=device)
    limit = torch.tensor([r.max_tokens for r in requests], device=device).repeat_interleave(count)
    u = torch.from_numpy(uniforms([s for r in requests for s in r.seeds], steps)).to(device)
    stop = torch.tensor(list(stop_ids), device=device)
    total = len(u)
    ids = torch.zeros(total, steps, dtype=torch.long, device=device)
    logprobs = torch.zeros(total, steps, device=device)
    length = limit.clone()

    logits = torch.stack([last for _, last in prompts]).repeat_interleave(count, 0)
    rows: Rows | None = None
    at = torch.arange(total, device=device)  # which draw a row belongs to
    alive = torch.ones(total, dtype=torch.bool, device=device)
    for t in range(steps):
        tokens, chosen = pick(logits, u[at, t], temperature)
        ids[at, t], logprobs[at, t] = tokens, chosen
        over = alive & (torch.isin(tokens, stop) | (limit[at] <= t + 1))
        length[at[over]] = t + 1
        alive = alive & ~over
        running = int(alive.sum())
        if not running:
            break
        if rows is None:
            rows = runner.rows([path for path, _ in prompts], repeats, steps - 1)
        if running <= COMPACT_AT * len(at):
            keep = alive.nonzero()[:, 0]
            at, tokens, alive = at[keep], tokens[keep], alive[keep]
            rows.select(keep)
        logits = rows.step(tokens)
    draws = [
        Drawn(tuple(row[:n]), tuple(lp[:n]))
        for row, lp, n in zip(ids.tolist(), logprobs.tolist(), length.tolist(), strict=True)
    ]
    out, start = [], 0
    for n in repeats:
        out.append(draws[start : start + n])
        start += n
    return out
