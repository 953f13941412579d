"""Transformers models held to a grammar by llguidance; see actions.py, and closing.py for how draws end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from treewright.agent.policies.actions import cached_grammar
from treewright.agent.policies.closing import Closers, Held
from treewright.agent.policies.drafting import DraftingPolicy
from treewright.agent.policies.hf import HFPolicy
from treewright.agent.policies.sampling import Request, Rows, Runner, generate
from treewright.agent.policies.served import tools_of, with_tools
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.kernels.decode import Path, Stretch
from treewright.search.types import Completion, Context, Exchange

__all__ = ["DraftingGrammarPolicy", "GrammarPolicy"]


@dataclass(frozen=True, slots=True)
class _GrammarRequest(Request):
    grammar: str = ""


class GrammarPolicy(HFPolicy):
    """HFPolicy whose draws are actions of the tools at the node. Needs llguidance, in the extra `grammar`."""

    tempers = False  # the mask is in the log-probs, too, which a weight against the free policy would take for heat

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise TreewrightError("grammars need llguidance; type: pip install 'treewright[grammar]'") from error
        self._matcher = LLMatcher
        self._tokens = from_tokenizer(tokenizer, n_vocab=model.config.vocab_size, eos_token=sorted(self.stop_ids))
        self._closers = Closers(tokenizer, self.stop_ids)

    @property
    def sampling(self) -> dict[str, Any]:
        """How draws were made; kept in the header of every tree."""
        return super().sampling | {"grammar": "actions of the node's tools"}

    def context(
        self,
        task: Task,
        tools: Sequence[ToolSpec],
        first: Observation,
        turns: Sequence[Exchange],
        base: Sequence[int],
    ) -> Context:
        return with_tools(super().context(task, tools, first, turns, base), tools)

    def _request(self, context: Context, seeds: tuple[int, ...], max_tokens: int) -> Request:
        grammar = cached_grammar(tools_of(context))
        return _GrammarRequest(context.ids, seeds, max_tokens, grammar=grammar, **self._heat(context))

    def _matching(self, request: Request) -> Held:
        """What holds a draw to the request's grammar. Raises TreewrightError where the tools make none."""
        assert isinstance(request, _GrammarRequest)
        matcher = self._matcher(self._tokens, request.grammar)
        if matcher.is_error():
            raise TreewrightError(f"the tools make no grammar: {matcher.get_error()}")
        return Held(matcher, self._closers, request.max_tokens)

    def _run(self, requests: Sequence[Request]) -> list[list[Completion]]:
        with self._lock:
            began, out = time.monotonic(), []
            with torch.inference_mode():
                for request in requests:
                    first = self._matching(request)
                    logits = self._prefill(request.ids)
                    prompt = (self._cache.path(request.ids), masked_logits(logits[None], [first])[0])
                    masked = _MaskedRunner(self.runner, first)
                    (drawn,) = generate(masked, [request], [prompt], self.stop_ids)
                    self._cache.trim()
                    out.append([self._completion(one, request) for one in drawn])
            self.stats.seconds += time.monotonic() - began
            self.stats.requests += len(requests)
            return out


def masked_logits(logits: Tensor, held: Sequence[Held]) -> Tensor:
    """logits [B, V] with −inf where the row's grammar does not go on; rows that are done stay as they are."""
    from llguidance.torch import allocate_token_bitmask, fill_next_token_bitmask

    size = logits.shape[-1]
    bits = allocate_token_bitmask(len(held), size)
    for row, one in enumerate(held):
        fill_next_token_bitmask(one.matcher, bits, row)
    allowed = ((bits[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1).bool().flatten(1)[:, :size]
    allowed[~allowed.any(1)] = True
    for row, one in enumerate(held):
        if (only := one.only()) is not None:
            allowed[row] = False
            allowed[row, only] = True
    return logits.masked_fill(~allowed.to(logits.device), float("-inf"))


class _Matching:
    """What holds one response, as the `Constraint` of a drafted draw."""

    def __init__(self, held: Held) -> None:
        self.held = held

    def mask(self, logits: Tensor) -> Tensor:
        return masked_logits(logits[None], [self.held])[0]

    def allows(self, tokens: Sequence[int]) -> bool:
        """Not where the end may be near: what may come there is not asked of the grammar alone."""
        known = self.held.matcher.validate_tokens(list(tokens)) == len(tokens)
        return bool(known) and not self.held.ends_within(len(tokens))

    def take(self, token: int) -> None:
        self.held.take(token)


class DraftingGrammarPolicy(DraftingPolicy, GrammarPolicy):
    """GrammarPolicy with a drafter: the same draws from the same masked distribution, in fewer passes."""

    def _constraints(self, request: Request) -> Sequence[_Matching]:
        first = self._matching(request)
        return [_Matching(first.copy()) for _ in request.seeds]


class _MaskedRunner:
    """A runner whose rows give −inf to every token that the grammar does not allow there."""

    def __init__(self, runner: Runner, first: Held) -> None:
        self.shares = runner.shares
        self.runner, self.first = runner, first

    @property
    def device(self) -> torch.device:
        return self.runner.device

    def refresh(self) -> None:
        self.runner.refresh()

    def release(self) -> None:
        self.runner.release()

    def prefill(self, ids: Sequence[int], path: Path) -> tuple[Stretch, Tensor]:
        return self.runner.prefill(ids, path)

    def rows(self, paths: Sequence[Path], repeats: Sequence[int], room: int, most: Sequence[int]) -> Rows:
        held = [self.first.copy() for _ in range(sum(repeats))]
        return _MaskedRows(self.runner.rows(paths, repeats, room, most), held)


class _MaskedRows:
    def __init__(self, rows: Rows, held: list[Held]) -> None:
        self.rows, self.held = rows, held

    def step(self, tokens: Tensor) -> Tensor:
        for token, held in zip(tokens.tolist(), self.held, strict=True):
            held.take(token)
        return masked_logits(self.rows.step(tokens), self.held)

    def select(self, rows: Tensor) -> None:
        self.rows.select(rows)
        chosen = pairwise([-1, *rows.tolist()])
        self.held = [self.held[i].copy() if i == before else self.held[i] for before, i in chosen]
