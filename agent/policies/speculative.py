"""Drafting by another model: a tree of its draws without replacement, of which each is taken or refused so that what is
said has exactly the distribution of the model that is drafted for.

The draft model q grows a tree by stochastic beam search (Kool et al. 2019, arXiv:1903.06059): every level holds the
`width` continuations of the highest perturbed log-probability, which are draws of q without replacement. The target p
sees the whole tree in one forward pass. Then, from the root (Jeon et al. 2024, arXiv:2402.14160):

    for c of the node's children, in the order in which they were drawn:
        take c with probability min(1, p(c)/q(c)), and go on below it
        else  p ← (p − q)+ made to sum to 1,  q ← q without c, made to sum to 1
    where none is taken, draw from p as it is then

What was taken and the token drawn last are draws of p. Whether a node has a further child depends on how far it was
perturbed, not on which token it is, so that the beam's end does not bend the distribution. A draw depends on its seed,
its prompt and both models; it is another draw than the plain sampler's with that seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treewright.agent.policies.fetch import local_model
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.policies.prefixes import PrefixCache
from treewright.agent.policies.runners import ModelRunner
from treewright.agent.policies.sampling import Drawn, Request
from treewright.agent.policies.token_trees import KV, Constraint, checked, extended, joined
from treewright.envs.errors import TreewrightError
from treewright.kernels.decode import Path, path_length
from treewright.training.lora import load_model

__all__ = ["Guesses", "ModelDrafter", "beam", "drafted_by_model", "open_draft", "perturbed", "taken_or_drawn"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Guesses:
    """tokens [N] and the index of each one's parent, −1 for what follows the last token; parents come first.

    children  by node, −1 included: its children in the order in which they were drawn
    q         by node with children: the draft model's probabilities [V]
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    children: dict[int, list[int]]
    q: dict[int, Floats]


def perturbed(logp: Floats, above: float, total: float, rng: np.random.Generator) -> Floats:
    """[V] log-probabilities of sequences that end in each token, with Gumbel noise whose largest value is `total`.

    logp  [V] of the tokens, nats;  above  log-probability of the sequence before them;  total  its own perturbed one
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        noisy = logp + above + rng.gumbel(size=len(logp))
        v = total - noisy + np.log1p(-np.exp(noisy - noisy.max()))
        out = total - np.maximum(0.0, v) - np.log1p(np.exp(-np.abs(v)))
    out = np.where(np.isfinite(noisy), out, -np.inf)
    out[int(noisy.argmax())] = total
    return np.asarray(out)


def beam(
    rows: Sequence[tuple[int, float, float, Floats]], width: int, rng: np.random.Generator
) -> list[tuple[int, int, float, float]]:
    """The next level of a stochastic beam: (parent, token, log-probability, perturbed), highest first.

    rows  of the level above: (node, its log-probability, its perturbed one, log-probs [V] of what follows)
    """
    found: list[tuple[int, int, float, float]] = []
    for node, above, total, logp in rows:
        values = perturbed(logp, above, total, rng)
        best = np.argsort(-values)[:width]
        found += [(node, int(t), above + float(logp[t]), float(values[t])) for t in best if values[t] > -math.inf]
    return sorted(found, key=lambda row: -row[3])[:width]


def taken_or_drawn(p: Floats, q: Floats | None, guesses: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """(token, index of the guess that it is, or −1): a draw of p [V], by guesses drawn from q without replacement."""
    left = p
    for i, token in enumerate(guesses):
        assert q is not None
        if rng.random() * q[token] < left[token]:
            return token, i
        rest = np.maximum(left - q, 0.0)
        left = rest / rest.sum() if rest.sum() > 0 else left
        q = q.copy()
        q[token] = 0.0
        q = q / q.sum() if q.sum() > 0 else q
    cdf = np.cumsum(left)
    return int(min(np.searchsorted(cdf, rng.random() * cdf[-1], side="right"), len(p) - 1)), -1


class ModelDrafter:
    """Guesses by a transformers model with the vocabulary of the one that is drafted for.

    width  continuations kept at each level of the tree;  depth  levels
    vocabulary  logits of the model that is drafted for; None: as many as this one's
    """

    def __init__(
        self, model: Any, *, width: int = 4, depth: int = 4, vocabulary: int | None = None, name: str = "a model",
        cache_bytes: int = 64 << 20,
    ) -> None:  # fmt: skip
        for option, value in (("draft_width", width), ("draft_depth", depth)):
            if value < 1:
                raise TreewrightError(f"{option} = {value}; it must be at least 1")
        self.model, self.width, self.depth, self.name = model.eval(), width, depth, name
        self.vocabulary = vocabulary or int(model.config.get_text_config().vocab_size)
        self.runner, self.cache = ModelRunner(model), PrefixCache(cache_bytes)

    def begin(self, ids: tuple[int, ...]) -> KV:
        """Keys and values of a prompt."""
        path, _ = self.cache.longest(ids)
        length = path_length(path)
        if length < len(ids):
            self.cache.put(ids, *self.runner.prefill(ids[length:], path))
        kv = joined(self.cache.path(ids))
        self.cache.trim()
        return kv

    def guess(self, kv: KV, said: Sequence[int], heat: float, rng: np.random.Generator) -> tuple[Guesses, KV]:
        """A tree of what may follow `said`, the tokens since `kv`; and the keys and values with these."""
        after, fresh = checked(self.model, kv, said, range(-1, len(said) - 1))
        kv = extended(kv, fresh, range(len(said)))
        tokens: list[int] = []
        parents: list[int] = []
        children: dict[int, list[int]] = {}
        q = {-1: self._q(after[-1], heat)}
        level = [(-1, 0.0, 0.0)]
        for depth in range(self.depth):
            if depth:
                logits, _ = checked(self.model, kv, tokens, parents)
                q |= {node: self._q(logits[node], heat) for node, *_ in level}
            with np.errstate(divide="ignore"):
                rows = [(node, logp, total, np.log(q[node])) for node, logp, total in level]
            level = []
            for parent, token, logp, total in beam(rows, self.width, rng):
                children.setdefault(parent, []).append(len(tokens))
                level.append((len(tokens), logp, total))
                tokens.append(token)
                parents.append(parent)
        return Guesses(tuple(tokens), tuple(parents), children, q), kv

    def _q(self, logits: Tensor, heat: float) -> Floats:
        """[V] over the vocabulary of the other model: two models of one tokenizer may pad it differently."""
        known = _probabilities(logits[: self.vocabulary], heat)
        return np.pad(known, (0, self.vocabulary - len(known)))


def _probabilities(logits: Tensor, heat: float) -> Floats:
    """[V] at a temperature; at 0 all of it is on the likeliest token."""
    scores = logits.double()
    if heat == 0:
        out = torch.zeros_like(scores)
        out[scores.argmax()] = 1.0
    else:
        out = (scores / heat).softmax(-1)
    return np.asarray(out.cpu().numpy())


@torch.inference_mode()
def drafted_by_model(
    model: Any,
    request: Request,
    seed: int,
    prompt: tuple[Path, Tensor],
    stop_ids: Sequence[int],
    drafter: ModelDrafter,
    constraint: Constraint | None = None,
) -> tuple[Drawn, int]:
    """A draw of the model, and the number of its forward passes after the prompt's.

    With a constraint it is a draw from the masked distribution, and its log-probs are of that. At temperature 0 the
    log-probs are those at temperature 1, as of the plain sampler.
    """
    path, logits = prompt
    heat, rng = request.temperature, np.random.default_rng(seed & (2**64 - 1))
    ids: list[int] = []
    logprobs: list[float] = []

    def draw(logits: Tensor, q: Floats | None = None, guesses: Sequence[int] = ()) -> int:
        """Appends the next token; which of the guesses it is, or −1."""
        masked = logits if constraint is None else constraint.mask(logits)
        p = _probabilities(masked, heat)
        token, which = taken_or_drawn(p, q, guesses, rng)
        ids.append(token)
        logprobs.append(float(masked.double().log_softmax(-1)[token]) if heat == 0 else math.log(p[token]))
        if constraint is not None:
            constraint.take(token)
        return which

    def going() -> bool:
        return ids[-1] not in stop_ids and len(ids) < request.max_tokens

    draw(logits)
    kv, own, fed, passes = joined(path), None, 0, 0
    while going():
        own = drafter.begin(request.ids) if own is None else own
        # The draft model draws at its own temperature 1 where the target is greedy: any guess is only a guess.
        guesses, own = drafter.guess(own, ids[fed:], heat or 1.0, rng)
        fed = len(ids)
        after, fresh = checked(model, kv, (ids[-1], *guesses.tokens), (-1, *(p + 1 for p in guesses.parents)))
        passes += 1
        at, taken = -1, [0]
        while True:
            below = guesses.children.get(at, [])
            which = draw(after[at + 1], guesses.q.get(at), [guesses.tokens[i] for i in below])
            if which < 0 or not going():
                break
            at = below[which]
            taken.append(at + 1)
        kv = extended(kv, fresh, taken)
    return Drawn(tuple(ids), tuple(logprobs)), passes


def open_draft(spec: str, tokenizer: Any, target: Any, *, width: int, depth: int) -> ModelDrafter:
    """A drafter for the model `target` by a model's folder or name, `hf:` before it or not.

    Raises TreewrightError where there is none, or where its tokens are not those of `tokenizer`.
    """
    from transformers import AutoTokenizer

    name = spec.removeprefix("hf:")
    folder = str(SEEDLING) if name == "seedling" else local_model(name)
    try:
        own, model = AutoTokenizer.from_pretrained(folder), load_model(folder, target.dtype, None)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise TreewrightError(f"policy.options.draft_model = {spec!r}: cannot load it: {first}") from error
    if own.get_vocab() != tokenizer.get_vocab():
        raise TreewrightError(
            f"policy.options.draft_model = {spec!r}: its tokens are not those of the model that it drafts for; name a "
            "smaller model of the same family"
        )
    vocabulary = int(target.config.get_text_config().vocab_size)
    return ModelDrafter(model.to(target.device), width=width, depth=depth, vocabulary=vocabulary, name=spec)
