"""A process reward model: from prompt and response to the chance that the episode goes well from there.

A causal language model with one output more, read at the last token of a response, before the world has answered. It
learns the values that trees give their steps: the mean return of what was drawn below, soft labels in [0, 1] (after
Math-Shepherd, 2312.08935, whose labels come from separate rollouts). As an evaluator it guides the next search.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from treewright.envs.errors import TreewrightError
from treewright.envs.whole import write_whole
from treewright.kernels import TreePlan
from treewright.search.tree import Tree
from treewright.training.export.view import View
from treewright.training.model import prepare, tree_hidden
from treewright.training.pack import TokenTrie
from treewright.training.recipes.prefer import require_exact
from treewright.training.step import NonFinite

__all__ = ["Prm", "Step", "steps_of", "train_prm"]

HEAD, ABOUT = "prm_head.safetensors", "prm.json"


@dataclass(frozen=True, slots=True)
class Step:
    """What a policy read and wrote, as token ids, and how good that was: its value in [0, 1], its mass in the tree."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    value: float = math.nan
    mass: float = 1.0


def steps_of(trees: Sequence[Tree]) -> list[Step]:
    """Every executed step of known value: reward of the step plus SPLIT-LOO value, clipped to [0, 1]."""
    out = []
    for tree in trees:
        view = View(tree, style="tokens")
        for i in range(1, len(tree)):
            if view.executed(i) and tree.ids[i] and not math.isnan(view.q[i]):
                value = float(np.clip(view.q[i], 0.0, 1.0))
                out.append(Step(tree.context_ids(tree.parent[i]), tree.ids[i], value, tree.mass[i]))
    return out


class Prm:
    """A language model's body and a linear head; `scores` gives probabilities of success."""

    def __init__(self, model: Any, tokenizer: Any, head: nn.Linear | None = None) -> None:
        prepare(model)
        self.model, self.tokenizer = model, tokenizer
        size = int(model.config.get_text_config().hidden_size)
        self.head = nn.Linear(size, 1) if head is None else head
        if head is None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.head.to(model.device)

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def logits(self, steps: Sequence[Step]) -> Tensor:
        """[steps] differentiable; prompts that begin alike are computed once."""
        trie = TokenTrie()
        last = [trie.extend(trie.extend([], s.prompt), s.response)[-1] for s in steps]
        order = trie.preorder()
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        up = np.asarray(trie.parent, np.int64)[order]
        parent = np.where(up >= 0, rank[up], -1).astype(np.int32)
        ids = torch.from_numpy(np.asarray(trie.ids, np.int64)[order]).to(self.model.device)
        hidden = tree_hidden(self.model, ids, TreePlan.from_parents(parent))
        at = torch.from_numpy(rank[np.asarray(last)]).to(hidden.device)
        found: Tensor = self.head(hidden[at].to(self.head.weight.dtype))[:, 0]
        return found

    @torch.no_grad()
    def scores(self, steps: Sequence[Step]) -> list[float]:
        """Chances of success in [0, 1]. Raises TreewrightError for tokens of another vocabulary."""
        if not steps:
            return []
        most = max(max(s.prompt + s.response) for s in steps)
        if most >= self.vocabulary:
            raise TreewrightError(
                f"token {most} is not in this PRM's vocabulary of {self.vocabulary}: it was made from another model; "
                "train one on trees of the policy that it shall guide"
            )
        return [float(p) for p in torch.sigmoid(self.logits(steps))]

    def save(self, folder: Path, about: dict[str, Any]) -> Path:
        """Writes weights, head, tokenizer and, last, what it was made from, without which the folder does not count."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).unlink(missing_ok=True)
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        save_file({k: v.detach().contiguous() for k, v in self.head.state_dict().items()}, folder / HEAD)
        write_whole(folder / ABOUT, json.dumps(about, indent=1))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Raises TreewrightError for a folder that holds no PRM."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(folder)
        if not (folder / HEAD).is_file():
            raise TreewrightError(f"no PRM at {folder}: {HEAD} is missing; type: treewright train prm --help")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        state = load_file(folder / HEAD)
        head = nn.Linear(state["weight"].shape[1], 1)
        head.load_state_dict(state)
        tokenizer = AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None
        return cls(model, tokenizer, head)


def train_prm(
    prm: Prm,
    trees: Sequence[Tree],
    *,
    epochs: int = 2,
    lr: float = 1e-3,
    max_tokens: int = 8192,
    seed: int = 0,
    allow_biased: bool = False,
) -> dict[str, float]:
    """Cross-entropy of the head's chances against the steps' values; one optimizer step for about `max_tokens`.

    Raises InexactTree unless allowed, TreewrightError without any step, NonFinite if the loss is not finite. `brier` is
    the mean squared error on the last epoch, `base` that of always saying the mean.
    """
    require_exact(trees, allow_biased, "prm")
    steps = steps_of(trees)
    if not steps:
        raise TreewrightError("no step has a known value and token ids; collect with search.close=true")
    parameters = [*prm.model.parameters(), *prm.head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses: list[float] = []
    errors: list[float] = []
    for epoch in range(epochs):
        errors = []
        for batch in _batches(steps, max_tokens, seed + epoch):
            want = torch.tensor([s.value for s in batch], device=prm.model.device)
            logits = prm.logits(batch)
            loss = F.binary_cross_entropy_with_logits(logits, want)
            if not bool(torch.isfinite(loss)):
                raise NonFinite("the PRM's loss is not finite; lower --lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            errors += ((torch.sigmoid(logits) - want) ** 2).tolist()
    values = np.asarray([s.value for s in steps])
    return {
        "steps": float(len(steps)),
        "first_loss": losses[0],
        "loss": losses[-1],
        "brier": float(np.mean(errors)),
        "base": float(np.var(values)),
    }


def _batches(steps: Sequence[Step], max_tokens: int, seed: int) -> list[list[Step]]:
    """Steps of the same prompt stay side by side, so that siblings share it; groups come in random order."""
    groups: dict[tuple[int, ...], list[Step]] = {}
    for step in steps:
        groups.setdefault(step.prompt, []).append(step)
    mixed = list(groups.values())
    random.Random(seed).shuffle(mixed)
    out: list[list[Step]] = [[]]
    room = max_tokens
    for group in mixed:
        size = len(group[0].prompt) + sum(len(s.response) for s in group)
        if out[-1] and size > room:
            out.append([])
            room = max_tokens
        out[-1] += group
        room -= size
    return out
