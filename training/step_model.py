"""A logistic model of which next step is right, over hashed features of texts: no tokens, no torch, seconds to train.

    model = fit(examples_of(trees))
    model(task, turns, actions)                       # [n] probabilities

It reads the goal, the steps so far and the step in question, as `plan_memory.step_of` writes it: the tool and where
each argument came from. Features are pairs of these, hashed to a fixed size (Weinberger et al., arXiv 0902.2206). What
is learned of words of goals and tools carries over to kinds of tasks that no plan is known of.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.types import Action, Task
from treewright.search.rules.plan_memory import SOLVED, goal_marks, step_of, words_of
from treewright.search.tree import Tree
from treewright.search.types import Exchange

__all__ = ["StepExample", "StepModel", "StepSettings", "examples_of", "features_of", "fit", "hashed"]

FILE = "steps.npz"


@dataclass(frozen=True, slots=True)
class StepSettings:
    """bits of the table of weights;  passes over the examples;  rate of Adagrad;  ridge, the pull to 0 of a weight at
    each of its updates;  seed of the order."""

    bits: int = 18
    passes: int = 4
    rate: float = 0.1
    ridge: float = 1e-5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StepExample:
    """Features of one step and whether it led to full reward."""

    features: tuple[str, ...]
    right: bool


@lru_cache(maxsize=1 << 18)
def hashed(feature: str, bits: int) -> int:
    """The place of a feature in a table of 2^bits; the same on every machine."""
    return zlib.crc32(feature.encode()) & ((1 << bits) - 1)


def features_of(task: Task, turns: Sequence[Exchange], action: Action | None) -> tuple[str, ...]:
    """What the model reads of one step, as texts; a step without an action is invalid output."""
    if action is None:
        return ("invalid",)
    step = step_of(task, turns, action)
    before = [turn.action.name if turn.action is not None else "?" for turn in turns]
    tool, last = action.name, before[-1] if before else "start"
    words = set(tool.casefold().split("_"))
    goal = {word.casefold() for word in words_of(task.goal)}
    out = [f"tool {tool}", f"step {step}", f"after {last} > {step}", f"done {' '.join(sorted(set(before)))} > {tool}"]
    out += [f"part {tool} {part}" for part in step.split()[1:]]
    out += [f"part {part}" for part in step.split()[1:]]
    out += [f"turn {min(len(turns), 9)} {'again' if tool in before else 'new'}"]
    out += [f"names {len(words & goal)} of {len(words)}", f"names {last == 'start'} {sorted(words & goal)}"]
    if turns and turns[-1].action is None:
        out.append("after invalid output")
    said = {str(value) for call in action.calls for value in call.arguments.values()}
    used = said | {str(v) for t in turns if t.action for c in t.action.calls for v in c.arguments.values()}
    values = [word for word in words_of(task.goal) if any(c.isdigit() or c in "#@." for c in word)]
    names = [word for word in words_of(task.goal)[1:] if word[:1].isupper()]
    left = sum(word not in used for word in (*values, *names))
    repeated = any(turn.action == action for turn in turns)
    out += [f"left {min(left, 3)} {tool}", f"left {min(left, 3)} {bool(said)}", f"repeated {repeated}"]
    return (*out, *_asked(task.goal, last, tool))


@lru_cache(maxsize=1 << 14)
def _asked(goal: str, last: str, tool: str) -> tuple[str, ...]:
    """What the goal's words say of a tool, and of it after another one."""
    marks = sorted(goal_marks(goal))
    return tuple([f"goal {m} > {tool}" for m in marks] + [f"both {m} {last} > {tool}" for m in marks])


def examples_of(trees: Iterable[Tree]) -> list[StepExample]:
    """Every step that was drawn on the way to a leaf of full reward, in trees that have one; those above such a leaf
    are right, and so are others with the same action.

    Raises TreewrightError for a tree whose rewards are still sealed.
    """
    out = []
    for tree in trees:
        solved = [i for i in tree.leaves() if tree.outcome_of(i) >= SOLVED]
        right = {j for i in solved for j in tree.path(i)}
        for node in sorted(right):
            turns, good = tree.exchanges(node), {tree.action[c] for c in tree.children[node] if c in right}
            for action in dict.fromkeys(tree.action[c] for c in tree.children[node]):
                out.append(StepExample(features_of(tree.task, turns, action), action is not None and action in good))
    return out


def _places(features: Sequence[str], bits: int) -> list[int]:
    """Each place once, though two features may share it."""
    return sorted({hashed(feature, bits) for feature in features})


class StepModel:
    """Weights of hashed features; the probability of a step is the sigmoid of the sum of its features' weights."""

    def __init__(self, weights: NDArray[np.float64], settings: StepSettings) -> None:
        self.weights, self.settings = weights, settings

    def __call__(self, task: Task, turns: Sequence[Exchange], actions: Sequence[Action | None]) -> list[float]:
        """[n] probabilities that each action is right after these turns."""
        return [self.probability(features_of(task, turns, action)) for action in actions]

    def probability(self, features: Sequence[str]) -> float:
        at = _places(features, self.settings.bits)
        return float(1.0 / (1.0 + np.exp(-self.weights[at].sum())))

    def accuracy(self, examples: Sequence[StepExample]) -> float:
        """Share of (right, wrong) pairs that are ranked right, a tie counting half; .5 is chance, NaN without pairs."""
        scores = np.array([self.probability(e.features) for e in examples])
        right = np.array([e.right for e in examples], bool)
        good, bad = np.sort(scores[right]), np.sort(scores[~right])
        if not len(good) or not len(bad):
            return float("nan")
        below, upto = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
        return float((below + upto).mean() / (2 * len(bad)))

    def save(self, folder: str | Path) -> Path:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        at = np.flatnonzero(self.weights)
        np.savez_compressed(path / FILE, at=at, weights=self.weights[at], settings=json.dumps(asdict(self.settings)))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> StepModel:
        """Raises TreewrightError if the folder holds none."""
        try:
            with np.load(Path(folder) / FILE, allow_pickle=False) as kept:
                settings = StepSettings(**json_value(str(kept["settings"])))
                weights = np.zeros(1 << settings.bits)
                weights[kept["at"]] = kept["weights"]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise TreewrightError(
                f"no model of steps in {str(folder)!r}: {error}; type: treewright train steps --name RUN --to {folder}"
            ) from error
        return cls(weights, settings)


def fit(examples: Sequence[StepExample], settings: StepSettings = StepSettings()) -> StepModel:
    """Logistic regression by Adagrad (Duchi, Hazan and Singer 2011), one example at a time; the same seed gives the
    same weights. Raises TreewrightError where right or wrong steps are missing."""
    if len({e.right for e in examples}) < 2:
        raise TreewrightError(
            "no tree has both a path of full reward and other steps beside it; collect more or wider trees"
        )
    weights, seen = np.zeros(1 << settings.bits), np.full(1 << settings.bits, 1e-8)
    rows = [_places(e.features, settings.bits) for e in examples]
    right, rng = [float(e.right) for e in examples], np.random.default_rng(settings.seed)
    for _ in range(settings.passes):
        for i in rng.permutation(len(rows)).tolist():
            at = rows[i]
            gradient = 1.0 / (1.0 + np.exp(-weights[at].sum())) - right[i]
            step = gradient + settings.ridge * weights[at]
            seen[at] += step * step
            weights[at] -= settings.rate * step / np.sqrt(seen[at])
    return StepModel(weights, settings)
