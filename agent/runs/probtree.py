"""Knowing when to look things up: answers from memory and from passages compete by calibrated confidence.

After ProbTree (Cao et al. 2023, arXiv 2311.13982): a question is a tree of sub-questions, and at every node the answer
from memory (closed book), the one from passages (open book) and the one put together from the sub-questions compete by
how sure the model is. How sure a model is of two kinds of answers cannot be compared as it stands, so each kind is
calibrated first.

    solver = probtree(closed, opened, split, calibrations)
    solution = await solve(question, solver)          # treewright.search.planning.all_nodes
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.search.planning.all_nodes import Answer, Option, Parts, Solver

__all__ = ["Calibration", "calibrate", "expected_calibration_error", "probtree"]

Reader = Callable[[str], Awaitable[Answer | None]]
"""Answers a question in one way, with the probability of its answer; None where it has nothing to say."""

LEAST = 1e-6  # probabilities are kept this far from 0 and 1
STEPS = 50


@dataclass(frozen=True, slots=True)
class Calibration:
    """p' = sigmoid(slope · logit(p) + shift), after Platt (1999)."""

    slope: float = 1.0
    shift: float = 0.0

    def __call__(self, p: float) -> float:
        return 1.0 / (1.0 + math.exp(-(self.slope * _logit(p) + self.shift)))


def calibrate(confidence: Sequence[float], right: Sequence[bool]) -> Calibration:
    """The slope and shift of greatest likelihood on answers whose truth is known; slope is at least 0.

    A weak pull towards slope 1 and shift 0 (one answer's weight) keeps them finite where all answers are right, or all
    wrong. Raises TreewrightError for no answers or lists of different length.
    """
    if not confidence or len(confidence) != len(right):
        raise TreewrightError(f"calibration needs answers with known truth, got {len(confidence)} and {len(right)}")
    x, y = np.array([[_logit(p), 1.0] for p in confidence]), np.array(right, float)
    start = theta = np.array([1.0, 0.0])

    def loss(at: NDArray[np.float64]) -> float:
        z = x @ at
        return float(np.logaddexp(0.0, z).sum() - y @ z + 0.5 * ((at - start) ** 2).sum())

    for _ in range(STEPS):  # Newton with halved steps; the loss is convex
        p = 0.5 * (1.0 + np.tanh(0.5 * (x @ theta)))
        gradient = x.T @ (p - y) + theta - start
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.eye(2), gradient)
        size = next((2.0**-i for i in range(40) if loss(theta - 2.0**-i * step) < loss(theta)), 0.0)
        if size == 0.0:
            break
        theta = theta - size * step
    if theta[0] < 0:  # surer answers are wrong more often: what is left is the share of right ones
        return Calibration(0.0, _logit((y.sum() + 0.5) / (len(y) + 1)))
    return Calibration(float(theta[0]), float(theta[1]))


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Mean distance of confidence and share of right answers over equal bins of confidence (Guo et al. 2017)."""
    p, y = np.asarray(confidence, float), np.asarray(right, float)
    if not len(p):
        return float("nan")
    at = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [abs(p[at == b].mean() - y[at == b].mean()) * (at == b).mean() for b in range(bins) if (at == b).any()]
    return float(sum(gaps))


def probtree(
    closed: Reader | None,
    opened: Reader | None,
    split: Callable[[str], Parts | None],
    calibrations: Mapping[str, Calibration] | None = None,
) -> Solver:
    """A solver for `treewright.search.planning.all_nodes.solve`: the options of a question, the surest answer first.

    closed, opened   from memory, from passages; leave one out to never or always retrieve
    split            sub-questions of a question, or None where it cannot be split
    calibrations     by 'closed' and 'opened'; without one a confidence is taken as it is
    """
    ways = [(name, reader) for name, reader in (("closed", closed), ("opened", opened)) if reader is not None]
    if not ways:
        raise TreewrightError("a solver needs a way to answer: from memory, from passages, or both")
    known = calibrations or {}

    async def options(question: str) -> Sequence[Option]:
        answers = []
        for name, reader in ways:
            found = await reader(question)
            if found is not None:
                answers.append(Answer(found.text, known.get(name, Calibration())(found.confidence)))
        parts = split(question)
        surest = sorted(answers, key=lambda answer: -answer.confidence)
        return [*surest, *([parts] if parts is not None else [])]

    return options


def _logit(p: float) -> float:
    p = min(max(p, LEAST), 1.0 - LEAST)
    return math.log(p / (1.0 - p))
