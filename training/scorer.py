"""A dual encoder that ranks next steps: one vector for where an episode stands, one for a step, their product scores.

After RankGen (2205.09726), which ranks continuations of a prefix and learns from two kinds of negatives; here a
positive is a step that did better than a sibling, and the negatives are

- other steps of the same trajectory: right elsewhere, wrong now;
- failed siblings: drawn at the same place, and worth less.

Both encoders are small byte models from scratch (convolutions and a pool), so that a scorer trains in a minute on a CPU
from the trees of a store. Values are the trees' own, estimated by SPLIT-LOO from truth rewards after the search; at
search time the scorer sees texts only.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.whole import write_whole
from treewright.search.tree import Tree
from treewright.search.types import Exchange
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

__all__ = ["DualEncoder", "Example", "Scorer", "ScorerSettings", "examples_of", "fit", "place_text", "step_text"]

PAD = 256


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """width of the byte vectors and of the result;  length  most bytes of a text that are read, the last ones."""

    width: int = 64
    length: int = 192
    epochs: int = 12
    batch: int = 64
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """One contrast: the place, a step that did well there, and steps that did worse or belong elsewhere.

    siblings  how many of `worse` are failed siblings; they come first
    """

    place: str
    better: str
    worse: tuple[str, ...]
    siblings: int


def place_text(goal: str, turns: Sequence[Exchange]) -> str:
    """Goal, the actions so far, and what was seen last: the end of it is what the encoder reads if it is long."""
    done = " ; ".join(turn.response.strip() for turn in turns[-6:])
    return f"{goal}\n{done}\n{turns[-1].observation.text if turns else ''}"


def step_text(response: str, observation: str | None) -> str:
    """What the policy wrote and, where it was executed, what was seen."""
    return f"{response.strip()}\n{observation or ''}"


def examples_of(trees: Sequence[Tree], margin: float = 0.1, elsewhere: int = 2, seed: int = 0) -> list[Example]:
    """Contrasts at every node where one child is worth at least `margin` more than another.

    elsewhere  how many other steps of the better child's trajectory join as negatives
    """
    rng, found = random.Random(seed), list[Example]()
    for tree in trees:
        value = _values(tree)
        steps = {i: step_text(tree.text[i], _seen(tree, i)) for i in range(1, len(tree))}
        for node in range(len(tree)):
            below = [] if tree.in_turn(node) else tree.children[node]  # steps are whole turns
            known = [c for c in below if not math.isnan(value[c]) and not tree.in_turn(c)]
            place = place_text(tree.task.goal, tree.exchanges(node))
            for child in known:
                failed = [steps[c] for c in known if value[c] <= value[child] - margin and steps[c] != steps[child]]
                if failed:
                    way = sorted({steps[i] for i in _trajectory(tree, child, value)} - {steps[child], *failed})
                    others = rng.sample(way, min(elsewhere, len(way)))
                    found.append(Example(place, steps[child], (*failed, *others), len(failed)))
    return found


def _values(tree: Tree) -> list[float]:
    """[N] estimated return of the steps from each node's own on; NaN where unknown."""
    credit = estimate("split_loo", tree_arrays([tree]), allow_biased=True)
    reward = tree.rewards()
    return [float(v) + (float(r) if r == r else 0.0) for v, r in zip(credit.value, reward, strict=True)]


def _seen(tree: Tree, node: int) -> str | None:
    seen = tree.observation[node]
    return seen.text if seen is not None else None


def _trajectory(tree: Tree, node: int, value: Sequence[float]) -> list[int]:
    """The path from the root through `node` to the leaf below it that did best."""
    path = tree.path(node)[1:]
    while kids := [c for c in tree.children[path[-1]] if not math.isnan(value[c])]:
        path.append(max(kids, key=lambda c: value[c]))
    return path


class _Encoder(nn.Module):
    """Bytes [B, L] → unit vectors [B, width]: two convolutions of width 5 and a pool of means and maxima."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(PAD + 1, width, padding_idx=PAD)
        self.first = nn.Conv1d(width, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 5, padding=2)
        self.out = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != PAD).unsqueeze(1)
        x = self.bytes(ids).transpose(1, 2)
        x = functional.gelu(self.first(x)) * there
        x = (x + functional.gelu(self.second(x))) * there
        mean = x.sum(-1) / there.sum(-1).clamp(min=1)
        most = x.masked_fill(~there, -1e4).amax(-1)
        unit: Tensor = functional.normalize(self.out(torch.cat([mean, most], -1)), dim=-1)
        return unit


class DualEncoder(nn.Module):
    """score(place, step) = scale · ⟨encode(place), encode(step)⟩ + offset, a logit."""

    def __init__(self, settings: ScorerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.place, self.step = _Encoder(settings.width), _Encoder(settings.width)
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def tensor(self, texts: Sequence[str]) -> Tensor:
        """[B, L] int64 bytes, the last `length` of each text."""
        rows = [list(text.encode()[-self.settings.length :]) or [32] for text in texts]
        longest = max(map(len, rows))
        device = self.scale.device
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=device)

    def forward(self, places: Sequence[str], steps: Sequence[str]) -> Tensor:
        """[B] logits of pairs."""
        product = (self.place(self.tensor(places)) * self.step(self.tensor(steps))).sum(-1)
        logits: Tensor = self.scale * product + self.offset
        return logits


def fit(
    examples: Sequence[Example],
    settings: ScorerSettings = ScorerSettings(),
    on_epoch: Callable[[int, float], None] | None = None,
) -> DualEncoder:
    """Trains a dual encoder: softmax of the better step over itself and its negatives, and a logistic loss on the
    same scores, so that their sigmoid is an estimate of being the better one. The same seed gives the same weights.

    Raises TreewrightError without examples.
    """
    if not examples:
        raise TreewrightError("no place in these trees has children of different worth; collect more or wider trees")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = DualEncoder(settings)
    rng, optimizer = random.Random(settings.seed), torch.optim.AdamW(model.parameters(), lr=settings.lr)
    steps = max(1, settings.epochs * math.ceil(len(examples) / settings.batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps)
    order = list(examples)
    for epoch in range(settings.epochs):
        rng.shuffle(order)
        total = 0.0
        for at in range(0, len(order), settings.batch):
            loss = _loss(model, order[at : at + settings.batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        if on_epoch is not None:
            on_epoch(epoch, total / math.ceil(len(order) / settings.batch))
    return model.eval()


def _loss(model: DualEncoder, batch: Sequence[Example]) -> Tensor:
    rows = [(i, step) for i, e in enumerate(batch) for step in (e.better, *e.worse)]
    first = torch.tensor([sum(1 + len(e.worse) for e in batch[:i]) for i in range(len(batch))])
    owner = torch.tensor([i for i, _ in rows])
    place = model.place(model.tensor([e.place for e in batch]))
    step = model.step(model.tensor([text for _, text in rows]))
    logit = model.scale * (place[owner] * step).sum(-1) + model.offset
    top = torch.full((len(batch),), -torch.inf).scatter_reduce(0, owner, logit.detach(), "amax")
    total = torch.zeros(len(batch)).scatter_add(0, owner, (logit - top[owner]).exp())
    contrast = (total.log() + top - logit[first]).mean()
    label = torch.zeros(len(rows)).index_fill(0, first, 1.0)
    loss: Tensor = contrast + 0.5 * functional.binary_cross_entropy_with_logits(logit, label)
    return loss


class Scorer:
    """A trained dual encoder, kept as a folder of config.json and model.safetensors."""

    def __init__(self, model: DualEncoder) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def __call__(self, places: Sequence[str], steps: Sequence[str]) -> list[float]:
        """Scores in (0, 1), one for each pair."""
        return torch.sigmoid(self.model(places, steps)).tolist() if places else []

    def accuracy(self, examples: Sequence[Example]) -> float:
        """Share of (better, failed sibling) pairs that are ranked right, a tie counting half; .5 is chance."""
        right = pairs = 0.0
        for example in examples:
            steps = [example.better, *example.worse[: example.siblings]]
            better, *failed = self([example.place] * len(steps), steps)
            right += sum(float(better > f) + 0.5 * float(better == f) for f in failed)
            pairs += len(failed)
        return right / pairs if pairs else math.nan

    def save(self, folder: Path | str) -> Path:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        part = path / ".model.safetensors.part"  # the weights that are there stay until the new ones are whole
        save_file(self.model.state_dict(), part)
        part.replace(path / "model.safetensors")
        write_whole(path / "config.json", json.dumps(asdict(self.model.settings), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path | str) -> Scorer:
        """Raises TreewrightError if the folder holds no scorer."""
        path = Path(folder)
        try:
            model = DualEncoder(ScorerSettings(**json_value((path / "config.json").read_bytes())))
            model.load_state_dict(load_file(path / "model.safetensors"))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise TreewrightError(
                f"no scorer in {str(path)!r}: {error}; type: treewright train scorer --name RUN --to {path}"
            ) from error
        return cls(model)
