"""Drawing from a causal language model: one prompt, many draws, each with random numbers of its own.

The sampler computes a prompt once and shares its keys and values among the draws; draws that have said the same so far
are one row of the batch, which forks where they part. All rows of all requests step together. Token t of a draw is the
inverse of the cumulative distribution at u(seed, t), where u is a counter-based generator: what a draw says does not
depend on its neighbours, its place in the batch or how many there are (up to the rounding of batched arithmetic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treewright.kernels.decode import Path, Stretch

__all__ = ["Cut", "Drawn", "Request", "Rows", "Runner", "generate", "uncertainty", "uniforms"]

COMPACT_AT = 0.75  # rows are dropped when at most this share of them still runs


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the draws asked of it. temperature 0 takes the likeliest token.

    tempered  the temperature is what the prompt asked for, so that the draw may be trained on
    cut  where a draw ends before it would; None: nowhere
    """

    ids: tuple[int, ...]
    seeds: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    cut: Cut | None = None
    tempered: bool = False

    def cost(self, shares: bool) -> int:
        """Tokens kept for it, with one copy of the prompt or one for each draw."""
        draws = len(self.seeds)
        return len(self.ids) * (1 if shares else draws) + draws * self.max_tokens


@dataclass(frozen=True, slots=True)
class Cut:
    """A draw of at least `least` tokens ends before a token whose distribution is unsure, or behind one that `over`
    says so of, given all tokens drawn.

    unsure  entropy | surprisal (of the likeliest token), in nats, of at least `threshold`; None: that ends nothing
    """

    least: int = 1
    unsure: str | None = None
    threshold: float = math.inf
    over: Callable[[Sequence[int]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """[T] sampled ids and their log-probabilities, in nats, under the distribution they were sampled from.

    cut  whether it ended by the request's cut
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    cut: bool = False


class Rows(Protocol):
    """A batch of prompts that are being continued in one or more ways, a row for each."""

    def step(self, tokens: Tensor) -> Tensor:
        """Appends tokens [B]; returns logits [B, V]."""

    def select(self, rows: Tensor) -> None:
        """Goes on with `rows` [B'], which do not fall; one that is named n times becomes n."""


class Runner(Protocol):
    """How a model is run, see `treewright.agent.policies.runners`. `shares`: draws of a prompt read one copy of it."""

    shares: bool

    @property
    def device(self) -> torch.device: ...

    def refresh(self) -> None:
        """Reads the model's weights again."""

    def release(self) -> None:
        """Frees what was copied from the model, until `refresh`."""

    def prefill(self, ids: Sequence[int], path: Path) -> tuple[Stretch, Tensor]:
        """Keys and values of `ids`, which continue `path`, and the logits [V] after the last id."""

    def rows(self, paths: Sequence[Path], repeats: Sequence[int], room: int, most: Sequence[int]) -> Rows:
        """Each path `repeats` times, ready to take up to `room` tokens; it will fork to at most `most` rows."""


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


def pick(logits: Tensor, u: Tensor, temperature: float | Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens [D] for logits [B, V] and u [D], and their log-probabilities [D] in float32.

    temperature  one for all rows, or [B], each above 0
    rows         [D], which do not fall: of which row each draw is; None: D = B, one of each

    At temperature 0 the log-probability is the one at temperature 1: the draw itself was certain.
    """
    logits = logits.float()
    if isinstance(temperature, Tensor):
        logits = logits / temperature[:, None]
    elif temperature not in (0.0, 1.0):
        logits = logits / temperature
    logprobs = logits.log_softmax(-1)
    if rows is None:
        rows = torch.arange(len(logits), device=logits.device)
    if not isinstance(temperature, Tensor) and temperature == 0.0:
        tokens = logprobs.argmax(-1)[rows]
    else:
        cdf = logprobs.double().exp_().cumsum_(-1)
        draws = torch.bincount(rows, minlength=len(cdf))
        place = torch.arange(len(rows), device=rows.device) - (draws.cumsum(0) - draws)[rows]
        asked = u.new_zeros(len(cdf), int(draws.max()))  # row by row, so that no row is copied for its draws
        asked[rows, place] = u
        found = torch.searchsorted(cdf, asked * cdf[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
        tokens = found[rows, place]
    return tokens, logprobs[rows, tokens]


class _Cuts:
    """Which draws are cut, where some requests ask for it."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.cuts = [r.cut for r in requests for _ in r.seeds]
        self.watched = any(c is not None and c.over is not None for c in self.cuts)
        self.kinds = {c.unsure for c in self.cuts if c is not None and c.unsure is not None}

    def unsure(self, at: Sequence[int], rows: Sequence[int], logits: Tensor, drawn: int) -> list[bool]:
        """Draws `at`, in `rows`, that end before the token that `logits` [B, V] are of; `drawn` tokens are there."""
        if not self.kinds:
            return [False] * len(at)
        logp = logits.float().log_softmax(-1)
        known = {kind: uncertainty(logp, kind).tolist() for kind in self.kinds}
        cuts = [self.cuts[draw] for draw in at]
        return [
            c is not None and c.unsure is not None and drawn >= c.least and known[c.unsure][row] >= c.threshold
            for row, c in zip(rows, cuts, strict=True)
        ]

    def over(self, at: Sequence[int], ids: Tensor, drawn: int) -> list[bool]:
        """Draws that end behind their last token; `ids` [draws, steps]."""
        out = []
        for draw in at:
            cut = self.cuts[draw] if self.watched else None
            asked = cut is not None and cut.over is not None and drawn >= cut.least
            out.append(bool(asked and cut and cut.over and cut.over(ids[draw, :drawn].tolist())))
        return out


def uncertainty(logp: Tensor, kind: str) -> Tensor:
    """[B] in nats, of distributions with log-probs [B, V]: their entropy, or the surprisal of their likeliest token."""
    return -(logp.exp() * logp).sum(-1) if kind == "entropy" else -logp.max(-1).values


@torch.inference_mode()
def generate(
    runner: Runner,
    requests: Sequence[Request],
    prompts: Sequence[tuple[Path, Tensor]],
    stop_ids: Sequence[int],
) -> list[list[Drawn]]:
    """The draws of each request, in the order of its seeds. Either all requests are greedy or none is.

    prompts  for each request its keys and values and the logits after its last id; neighbours share best
    A draw ends after a stop id, which it keeps, or after its request's max_tokens.
    """
    repeats = [len(request.seeds) for request in requests]
    steps = max(request.max_tokens for request in requests)
    device, count = runner.device, torch.tensor(repeats, device=runner.device)
    heats = torch.tensor([r.temperature for r in requests], device=device)
    same = requests[0].temperature if len({r.temperature for r in requests}) == 1 else None
    limit = torch.tensor([r.max_tokens for r in requests], device=device).repeat_interleave(count)
    u = torch.from_numpy(uniforms([s for r in requests for s in r.seeds], steps)).to(device)
    stop = torch.tensor(list(stop_ids), device=device)
    ids = torch.zeros(len(u), steps, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(u), steps, device=device)
    length = limit.clone()
    cuts = _Cuts(requests) if any(r.cut is not None for r in requests) else None
    cut = torch.zeros(len(u), dtype=torch.bool, device=device)

    logits = torch.stack([last for _, last in prompts])
    at = torch.arange(len(u), device=device)  # the draws that go on
    row = torch.arange(len(requests), device=device).repeat_interleave(count)  # in which row each of them is
    batch: _Batch | None = None
    for t in range(steps):
        if cuts is not None and t:
            unsure = torch.tensor(cuts.unsure(at.tolist(), row.tolist(), logits, t), device=device)
            length[at[unsure]], cut[at[unsure]] = t, True
            at, row = at[~unsure], row[~unsure]
            if not len(at):
                break
        tokens, chosen = pick(logits, u[at, t], heats if same is None else same, row)
        ids[at, t], logprobs[at, t] = tokens, chosen
        over = torch.isin(tokens, stop) | (limit[at] <= t + 1)
        length[at[over]] = t + 1
        if cuts is not None and cuts.watched:
            behind = ~over & torch.tensor(cuts.over(at.tolist(), ids, t + 1), device=device)
            length[at[behind]], cut[at[behind]] = t + 1, True
            over = over | behind
        at, row, tokens = at[~over], row[~over], tokens[~over]
        if not len(at):
            break
        if batch is None:
            batch = _Batch(runner, [path for path, _ in prompts], repeats, steps - 1)
        order, row, parents = batch.fork(row, tokens)
        at, heats = at[order], heats[parents]
        logits = batch.step()
    draws = [
        Drawn(tuple(row[:n]), tuple(lp[:n]), c)
        for row, lp, n, c in zip(ids.tolist(), logprobs.tolist(), length.tolist(), cut.tolist(), strict=True)
    ]
    out, start = [], 0
    for n in repeats:
        out.append(draws[start : start + n])
        start += n
    return out


class _Batch:
    """The rows of a batch, at first one for each prompt, none of which has begun; each has a next token."""

    def __init__(self, runner: Runner, paths: Sequence[Path], most: Sequence[int], room: int) -> None:
        self.runner, self.paths, self.most, self.room = runner, paths, most, room
        self.tokens = torch.zeros(len(paths), dtype=torch.long, device=runner.device)
        self.rows: Rows | None = None

    def fork(self, row: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parts draws, in rows `row` [D], that go on with different tokens [D].

        Returns the draws in the order of their new rows, these rows [D], and for each of all rows that it was before,
        [B']. Rows that nobody is in any more stay for a while, since it takes time to close the gaps.
        """
        top = int(tokens.max()) + 1
        said, new = torch.unique(row * top + tokens, return_inverse=True)
        parents, tokens = said // top, said % top
        order = torch.argsort(new, stable=True)
        new = new[order]
        before = len(self.tokens)
        if self.rows is None:
            self._begin(parents)
        elif len(torch.unique_consecutive(parents)) == len(parents) > COMPACT_AT * before:
            self.tokens[parents] = tokens
            return order, parents[new], torch.arange(before, device=parents.device)
        else:
            self.rows.select(parents)
        self.tokens = tokens
        return order, new, parents

    def _begin(self, parents: Tensor) -> None:
        repeats = torch.bincount(parents, minlength=len(self.paths)).tolist()
        begun = [i for i, n in enumerate(repeats) if n]
        paths, most = [self.paths[i] for i in begun], [self.most[i] for i in begun]
        self.rows = self.runner.rows(paths, [repeats[i] for i in begun], self.room, most)

    def step(self) -> Tensor:
        """Logits [B, V] after the rows' next tokens."""
        assert self.rows is not None, "fork begins the rows"
        return self.rows.step(self.tokens)
