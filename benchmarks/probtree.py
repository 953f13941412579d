"""When to look things up, measured: a reader with a memory, passages of which some are poisoned, questions of hops.

The world is one graph of the suite `kg`. A small network is trained on six facts in ten without passages, and on
reading passages, all of them right, about these facts and about others; so it knows some facts, believes what it reads,
and says how likely its answers are. Then three passages in ten are poisoned. A reader that was trained on poisoned
passages weighs them against its memory by itself, and is measured beside it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treewright.agent.runs.probtree import Calibration, Reader, calibrate, expected_calibration_error, probtree
from treewright.envs.retrieval.kg import ENTITIES, RELATIONS, fact
from treewright.search.planning.all_nodes import Answer, Parts, solve

__all__ = ["KnownGraph", "figures", "success"]

POISON, KNOWN = 0.3, 0.6
NAMES = {name: i for i, name in enumerate(ENTITIES)}
Key = tuple[int, int]  # entity, relation
BLANK = len(ENTITIES)


@dataclass(frozen=True, slots=True)
class KnownGraph:
    """One graph, its passages, and a reader of both.

    passages   what the passage about a fact says, which is wrong for the poisoned ones
    calibrate  facts to calibrate on; all questions are asked about the others
    """

    seed: int
    truth: dict[Key, int]
    passages: dict[Key, int]
    held: frozenset[Key]
    net: torch.nn.Module

    @classmethod
    def make(cls, seed: int, steps: int = 1500, wary: bool = False) -> KnownGraph:
        """Trains the reader, a wary one on poisoned passages; deterministic for a seed, some seconds on one core."""
        rng = random.Random(seed)
        keys = [(e, r) for e in range(len(ENTITIES)) for r in range(len(RELATIONS))]
        truth = {(e, r): NAMES[fact(seed, ENTITIES[e], RELATIONS[r])] for e, r in keys}
        known = set(rng.sample(keys, int(KNOWN * len(keys))))
        passages = {key: _other(rng, truth[key]) if rng.random() < POISON else truth[key] for key in keys}
        held = frozenset(rng.sample(keys, len(keys) // 2))
        return cls(seed, truth, passages, held, _train(truth, sorted(known), seed, steps, POISON if wary else 0.0))

    def read(self, key: Key, passage: int) -> tuple[int, float]:
        """The likeliest answer and its probability."""
        with torch.no_grad():
            p = self.net(torch.tensor([[*key, passage]])).softmax(-1)[0]
        best = int(p.argmax())
        return best, float(p[best])

    async def closed(self, question: str) -> Answer | None:
        return self._answer(question, open_book=False)

    async def opened(self, question: str) -> Answer | None:
        return self._answer(question, open_book=True)

    def _answer(self, question: str, open_book: bool) -> Answer | None:
        """One hop, 'name relation', is answered; a chain has to be split."""
        words = question.split()
        if len(words) != 2:
            return None
        key = (NAMES[words[0]], RELATIONS.index(words[1]))
        answer, confidence = self.read(key, self.passages[key] if open_book else BLANK)
        return Answer(ENTITIES[answer], confidence)

    def calibrations(self) -> tuple[dict[str, Calibration], dict[str, tuple[float, float]]]:
        """By way of answering: the calibration, and the error before and after it on facts it was not fitted to."""
        made, errors = {}, {}
        for name, open_book in (("closed", False), ("opened", True)):
            fit = [self._checked(key, open_book) for key in sorted(self.held)]
            test = [self._checked(key, open_book) for key in sorted(set(self.truth) - self.held)]
            made[name] = calibrate(*zip(*fit, strict=True))
            confidence, right = zip(*test, strict=True)
            after = [made[name](p) for p in confidence]
            errors[name] = (expected_calibration_error(confidence, right), expected_calibration_error(after, right))
        return made, errors

    def _checked(self, key: Key, open_book: bool) -> tuple[float, bool]:
        answer, confidence = self.read(key, self.passages[key] if open_book else BLANK)
        return confidence, answer == self.truth[key]

    def questions(self, count: int, hops: tuple[int, int] = (2, 4)) -> list[tuple[str, str]]:
        """(question, answer): chains over facts that nothing was calibrated on."""
        rng, found = random.Random(self.seed + 1), list[tuple[str, str]]()
        free = sorted(set(self.truth) - self.held)
        by_entity = {e: [key for key in free if key[0] == e] for e in range(len(ENTITIES))}
        while len(found) < count:
            at, said = rng.randrange(len(ENTITIES)), list[str]()
            start = ENTITIES[at]
            for _ in range(rng.randint(*hops)):
                if not by_entity[at]:
                    break
                key = rng.choice(by_entity[at])
                said.append(RELATIONS[key[1]])
                at = self.truth[key]
            if len(said) >= hops[0]:
                found.append((" ".join([start, *said]), ENTITIES[at]))
        return found


def split(question: str) -> Parts | None:
    """'ada boss mentor' is 'ada boss' and then '#1 mentor'."""
    *first, last = question.split()
    return Parts((" ".join(first), f"#1 {last}")) if len(first) > 1 else None


def figures(quick: bool = False) -> dict[str, tuple[float, str]]:
    """Success of choosing by confidence against always and never looking things up, over several graphs."""
    seeds = (2, 4) if quick else (2, 4, 6, 8, 10)
    trusting, ece = _measured(seeds, 100 if quick else 300, wary=False)
    wary, _ = _measured(seeds, 100 if quick else 300, wary=True)
    both, always, never = (100 * float(x) for x in trusting)
    return {
        "probtree_gain_points": (both - max(always, never), "points"),
        "probtree_success": (both, "%"),
        "always_retrieve_success": (always, "%"),
        "never_retrieve_success": (never, "%"),
        "wary_reader_gain_points": (100 * float(wary[0] - max(wary[1:])), "points"),
        "ece_closed_before": (float(ece[0][0]), "1"),
        "ece_closed_after": (float(ece[0][1]), "1"),
        "ece_open_before": (float(ece[1][0]), "1"),
        "ece_open_after": (float(ece[1][1]), "1"),
    }


def _measured(seeds: Sequence[int], count: int, wary: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean success [both, always, never], and mean calibration error [closed, open][before, after]."""
    rows, errors = [], []
    for seed in seeds:
        graph = KnownGraph.make(seed, wary=wary)
        calibrations, error = graph.calibrations()
        asked = graph.questions(count)
        ways: list[tuple[Reader | None, Reader | None]] = [
            (graph.closed, graph.opened), (None, graph.opened), (graph.closed, None),
        ]  # fmt: skip
        rows.append([success(asked, *way, calibrations) for way in ways])
        errors.append([error["closed"], error["opened"]])
    return np.mean(rows, axis=0), np.mean(errors, axis=0)


def success(
    asked: Sequence[tuple[str, str]], closed: Reader | None, opened: Reader | None, by: dict[str, Calibration]
) -> float:
    """Share of (question, answer) that is answered right with these ways to answer."""
    solver = probtree(closed, opened, split, by)

    async def run() -> float:
        found = [await solve(question, solver) for question, _ in asked]
        right = [s.answer is not None and s.answer.text == a for s, (_, a) in zip(found, asked, strict=True)]
        return sum(right) / len(asked)

    return asyncio.run(run())


def _other(rng: random.Random, right: int) -> int:
    return (right + rng.randrange(1, len(ENTITIES))) % len(ENTITIES)


class _Net(torch.nn.Module):
    """entity, relation, what the passage says (or BLANK) → scores of the entities."""

    def __init__(self, size: int = 96) -> None:
        super().__init__()
        self.entity = torch.nn.Embedding(len(ENTITIES), size)
        self.relation = torch.nn.Embedding(len(RELATIONS), size)
        self.passage = torch.nn.Embedding(BLANK + 1, size)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3 * size, 256), torch.nn.GELU(), torch.nn.Linear(256, 256), torch.nn.GELU(),
            torch.nn.Linear(256, len(ENTITIES)),
        )  # fmt: skip

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        e, r, p = given.unbind(-1)
        scores: torch.Tensor = self.layers(torch.cat([self.entity(e), self.relation(r), self.passage(p)], -1))
        return scores


def _train(truth: dict[Key, int], known: Sequence[Key], seed: int, steps: int, poison: float) -> torch.nn.Module:
    """Facts it is to know, with and without passages, and passages about other facts, which say something new every
    time, so that nothing about those can be remembered; `poison` of all passages are wrong."""
    rng, taught = np.random.default_rng(seed), np.array(known)
    right = np.array([truth[key] for key in known])
    unknown = np.array(sorted(set(truth) - set(known)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = _Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    for _ in range(steps):
        some = rng.integers(0, len(taught), 128)
        says = np.where(rng.random(128) < poison, rng.integers(0, BLANK, 128), right[some])
        says[:64] = BLANK
        other, told = unknown[rng.integers(0, len(unknown), 128)], rng.integers(0, BLANK, 128)
        answer = np.where(rng.random(128) < poison, rng.integers(0, BLANK, 128), told)
        given = np.concatenate([np.c_[taught[some], says], np.c_[other, told]])
        loss = torch.nn.functional.cross_entropy(
            net(torch.from_numpy(given)), torch.from_numpy(np.concatenate([right[some], answer]))
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()
