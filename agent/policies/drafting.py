"""Drafting for transformers models: guess several tokens, check them in one forward pass, keep what would have been
drawn anyway.

Guesses are a small tree of continuations. One pass computes the logits after each of its nodes; then the ordinary
sampler walks: it draws the next token with the random number of that place, and goes on for as long as what it drew is
in the tree. A draw is therefore the very draw that the plain sampler makes with the same seed (up to the rounding of
batched arithmetic), whatever was guessed. For guesses that are certain, as these are, accepting exactly when the drawn
token is among them is what recursive rejection without replacement does (Jeon et al. 2024, arXiv:2402.14160): its
acceptance probability is the mass of the guessed tokens, the most that any exact rule can reach.

Two sources guess, and are fused into one tree by their common prefixes, cut to the likeliest nodes, as in RASD (Quan et
al. 2025, arXiv:2503.03434): the successors last seen after each token (Token Recycling, Luo et al. 2024,
arXiv:2408.08696), and what siblings and cousins have said.

A constraint, such as a grammar, masks both sides: guesses that it forbids are not checked, and the sampler draws from
the masked distribution at every place. Draws are then those that the plain sampler makes under the same mask.

With a draft model the guesses are its draws, see speculative.py.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.runners import ModelRunner
from treewright.agent.policies.sampling import Drawn, Request, pick, uniforms
from treewright.agent.policies.speculative import ModelDrafter, drafted_by_model, open_draft
from treewright.agent.policies.token_trees import Constraint, checked, extended, joined
from treewright.envs.errors import TreewrightError
from treewright.kernels.decode import Path
from treewright.search.types import Completion

__all__ = ["Constraint", "DraftTree", "Drafter", "DraftingPolicy", "allowed", "drafted", "fuse"]

START = -1  # stands before the first token of a response in the siblings' table


@dataclass(frozen=True, slots=True)
class DraftTree:
    """tokens [N] and the index of each one's parent; parent −1 is the token drawn last. Parents come first."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]


def allowed(tree: DraftTree, constraint: Constraint) -> DraftTree:
    """The guesses that may follow; what stands below a forbidden one goes with it."""
    paths: list[tuple[int, ...]] = []
    place: dict[int, int] = {-1: -1}
    parents: list[int] = []
    for i, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if parent not in place:
            continue
        path = (*(paths[place[parent]] if parent >= 0 else ()), token)
        if constraint.allows(path):
            place[i] = len(paths)
            paths.append(path)
            parents.append(place[parent])
    return DraftTree(tuple(path[-1] for path in paths), tuple(parents))


def fuse(roots: Sequence[dict[int, Any]], nodes: int) -> DraftTree:
    """One tree of at most `nodes` tokens from nested {token: (probability, children)}, likeliest paths first.

    Where sources agree on a prefix it becomes one path, with the larger of their probabilities.
    """
    tokens: list[int] = []
    parents: list[int] = []
    queue: list[tuple[float, int, int, int, list[Any]]] = []
    count = 0

    def offer(levels: Sequence[Any], above: float, parent: int) -> None:
        nonlocal count
        best: dict[int, tuple[float, list[Any]]] = {}
        for level in levels:
            for token, (p, below) in level.items():
                old, others = best.get(token, (0.0, []))
                best[token] = (max(old, p), [*others, below])
        for token, (p, below) in best.items():
            heapq.heappush(queue, (-above * p, count, token, parent, below))
            count += 1

    offer(roots, 1.0, -1)
    while queue and len(tokens) < nodes:
        score, _, token, parent, below = heapq.heappop(queue)
        tokens.append(token)
        parents.append(parent)
        offer([level() if callable(level) else level for level in below], -score, len(tokens) - 1)
    return DraftTree(tuple(tokens), tuple(parents))


class Drafter:
    """Guesses continuations from what was drawn before; wrong guesses cost time and nothing else.

    nodes     tokens guessed in one pass;  successors  kept for each token;  depth  of the guessed tree
    tail      longest tail of what was said that is looked up among siblings;  remembered  tails kept
    """

    def __init__(
        self, vocabulary: int, *, nodes: int = 24, successors: int = 4, depth: int = 8, tail: int = 3,
        remembered: int = 65_536,
    ) -> None:  # fmt: skip
        if min(nodes, successors, depth, tail) < 1:
            raise TreewrightError("nodes, successors, depth and tail of a drafter must be at least 1")
        self.nodes, self.depth, self.tail, self.remembered = nodes, depth, tail, remembered
        self.next: NDArray[np.int64] = np.full((vocabulary, successors), -1, dtype=np.int64)
        self.p: NDArray[np.float64] = np.zeros((vocabulary, successors))
        self.said: OrderedDict[tuple[int, ...], dict[int, int]] = OrderedDict()

    def guess(self, said: Sequence[int]) -> DraftTree:
        """A tree of guesses for what follows `said`, the tokens of this response so far."""
        tail = (START, *said)[-self.tail :]
        return fuse([self._recycled(said[-1], 1), self._siblings(tail, 1)], self.nodes)

    def learn(self, tokens: Sequence[int], logits: Tensor) -> None:
        """Takes the likeliest successors of each token from the logits [T, V] that followed it."""
        p, best = torch.topk(logits.float().softmax(-1), min(self.next.shape[1], logits.shape[-1]), dim=-1)
        rows = np.asarray(tokens)
        self.next[rows, : best.shape[1]], self.p[rows, : best.shape[1]] = best.cpu().numpy(), p.cpu().numpy()

    def remember(self, said: Sequence[int]) -> None:
        """Keeps a finished response for its siblings and cousins."""
        whole = (START, *said)
        for at in range(1, len(whole)):
            for size in range(1, self.tail + 1):
                if size > at:
                    break
                row = self.said.setdefault(whole[at - size : at], {})
                row[whole[at]] = row.get(whole[at], 0) + 1
                self.said.move_to_end(whole[at - size : at])
        while len(self.said) > self.remembered:
            self.said.popitem(last=False)

    def _recycled(self, token: int, depth: int) -> dict[int, Any]:
        if depth > self.depth:
            return {}
        rows = zip(self.next[token].tolist(), self.p[token].tolist(), strict=True)
        return {t: (p, lambda t=t: self._recycled(t, depth + 1)) for t, p in rows if t >= 0}

    def _siblings(self, tail: tuple[int, ...], depth: int) -> dict[int, Any]:
        """What followed the longest known part of the tail, by how often."""
        if depth > self.depth:
            return {}
        row = next((self.said[tail[i:]] for i in range(len(tail)) if tail[i:] in self.said), None)
        if row is None:
            return {}
        total = sum(row.values()) + 1  # one more for what was never seen
        return {t: (n / total, lambda t=t: self._siblings((*tail, t)[-self.tail :], depth + 1)) for t, n in row.items()}


@torch.inference_mode()
def drafted(
    model: Any,
    request: Request,
    seed: int,
    prompt: tuple[Path, Tensor],
    stop_ids: Sequence[int],
    drafter: Drafter,
    constraint: Constraint | None = None,
) -> tuple[Drawn, int]:
    """The draw that `sampling.generate` makes for `seed`, and the number of forward passes after the prompt's.

    With a constraint it is the draw from the masked distribution, and its log-probs are of that.
    """
    path, logits = prompt
    kv = joined(path)
    u = torch.from_numpy(uniforms([seed], request.max_tokens)[0]).to(logits.device)
    ids: list[int] = []
    logprobs: list[float] = []

    def draw(logits: Tensor) -> bool:
        """Appends the next token; True while the response goes on."""
        masked = logits if constraint is None else constraint.mask(logits)
        token, logprob = pick(masked[None], u[len(ids)][None], request.temperature)
        ids.append(int(token))
        logprobs.append(float(logprob))
        if constraint is not None:
            constraint.take(ids[-1])
        return ids[-1] not in stop_ids and len(ids) < request.max_tokens

    passes, going = 0, draw(logits)
    while going:
        tree = drafter.guess(ids) if constraint is None else allowed(drafter.guess(ids), constraint)
        tokens = (ids[-1], *tree.tokens)
        parents = (-1, *(p + 1 for p in tree.parents))
        after, fresh = checked(model, kv, tokens, parents)
        drafter.learn(tokens, after)
        passes += 1
        children = {(parents[i], tokens[i]): i for i in range(1, len(tokens))}
        at, taken = 0, [0]
        while (going := draw(after[at])) and (at, ids[-1]) in children:
            at = children[at, ids[-1]]
            taken.append(at)
        kv = extended(kv, fresh, taken)
    drafter.remember(ids)
    return Drawn(tuple(ids), tuple(logprobs)), passes


class DraftingPolicy(HFPolicy):
    """HFPolicy with a drafter: the same draws in fewer passes, one draw after the other. For large models and few
    draws; many draws of a small model are faster together.

    draft_model  a model of the same tokens that guesses in place of the two sources, by folder or name: the draws are
                 others, of the same distribution (speculative.py);  draft_width, draft_depth  of its tree
    passes    forward passes after the prompts';  tokens_per_pass  how many tokens each gave
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, drafter: Drafter | None = None,
        draft_model: str | ModelDrafter | None = None, draft_width: int = 4, draft_depth: int = 4, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(model, tokenizer, **options)
        self.runner = ModelRunner(model)  # keys and values as the model's own forward lays them out
        self.drafter = drafter or Drafter(model.config.vocab_size)
        if isinstance(draft_model, str):
            draft_model = open_draft(draft_model, tokenizer, model, width=draft_width, depth=draft_depth)
        self.other = draft_model
        self.passes = self.checked = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """How draws were made; kept in the header of every tree."""
        if (other := self.other) is not None:
            return super().sampling | {
                "drafted_by": other.name, "draft_width": other.width, "draft_depth": other.depth,
            }  # fmt: skip
        return super().sampling | {"drafted_by": "recycled tokens and siblings", "draft_nodes": self.drafter.nodes}

    @property
    def tokens_per_pass(self) -> float:
        """1 is what plain sampling has; a response's first token comes with its prompt and does not count."""
        return self.checked / self.passes if self.passes else 0.0

    def _constraints(self, request: Request) -> Sequence[Constraint | None]:
        """One for each seed, None where anything may be said."""
        return [None] * len(request.seeds)

    def _run(self, requests: Sequence[Request]) -> list[list[Completion]]:
        with self._lock:
            began, out = time.monotonic(), []
            with torch.inference_mode():
                for request in requests:
                    logits, row = self._prefill(request.ids), []
                    prompt = (self._cache.path(request.ids), logits)
                    for seed, constraint in zip(request.seeds, self._constraints(request), strict=True):
                        asked = (self.model, request, seed, prompt, self.stop_ids)
                        if self.other is not None:
                            done, passes = drafted_by_model(*asked, self.other, constraint)
                        else:
                            done, passes = drafted(*asked, self.drafter, constraint)
                        self.passes += passes
                        self.checked += len(done.ids) - 1
                        row.append(self._completion(done, request))
                    out.append(row)
                    self._cache.trim()
            self.stats.seconds += time.monotonic() - began
            self.stats.requests += len(requests)
            return out
