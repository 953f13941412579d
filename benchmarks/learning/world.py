"""A knowledge graph to be searched hop by hop, its tasks, a demonstrator with wrong ideas, all batched.

A context is BOS, the start entity and four words (EMPTY beyond the task's hops), then one turn after another:
`SEARCH e r`, answered by one observed entity, or `ANSWER e`, which ends the episode. A task of h hops allows h + 1
turns. An action that is not one of these two forms ends the episode with reward 0.

The question names each relation by one of four words, so there are 32 of them. Which relation a word means is what the
demonstrator knows badly, and what is to be learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ANSWER",
    "BOS",
    "EMPTY",
    "ENTITIES",
    "LENGTH",
    "MAX_HOPS",
    "PREFIX",
    "RELATIONS",
    "SEARCH",
    "TURN",
    "VOCABULARY",
    "WORDS",
    "Array",
    "Tasks",
    "World",
    "contexts",
    "demonstrations",
    "draw_tasks",
    "make_world",
    "observe",
]

Array = NDArray[Any]

ENTITIES, RELATIONS, WORDS, MAX_HOPS = 64, 8, 32, 4
WORD = ENTITIES + RELATIONS
SEARCH = WORD + WORDS
ANSWER, BOS, EMPTY, VOCABULARY = SEARCH + 1, SEARCH + 2, SEARCH + 3, SEARCH + 4
PREFIX = 2 + MAX_HOPS
TURN = 4
"""Tokens of a search turn: SEARCH, entity, relation, and the observed entity."""
LENGTH = PREFIX + TURN * (MAX_HOPS + 1)
WRONG = 0.1
"""Probability that a search shows an entity drawn at random instead of the right one."""
SLIP = 0.03
"""Probability that the demonstrator takes the other verb, and that it names an entity drawn at random."""
MISLED = 0.8
"""Share of the demonstrator's wrong relations that are the one it takes the word for; the rest are drawn at random."""


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """graph [64, 8] the entity each relation leads to; taken_for [32] the wrong relation a word is mistaken for.

    Word w means relation w mod 8. Tasks have `fewest` to `most` hops and use the first `words` words.
    """

    graph: Array
    taken_for: Array
    fewest: int = 2
    most: int = MAX_HOPS
    words: int = WORDS

    @property
    def prefix(self) -> int:
        """Tokens that a task begins with."""
        return 2 + self.most

    @property
    def length(self) -> int:
        """Tokens of the longest episode."""
        return self.prefix + TURN * (self.most + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """n tasks. hops [n] in 2..M; start [n]; words [n, M] token ids, EMPTY beyond the hops; relations [n, M] what they
    mean, −1 beyond; path [n, M + 1] the true entities, start first, the answer repeated at the end."""

    hops: Array
    start: Array
    words: Array
    relations: Array
    path: Array

    def __len__(self) -> int:
        return len(self.hops)

    @property
    def answer(self) -> Array:
        """[n] the entity to be named."""
        return np.asarray(self.path[:, -1])

    def take(self, index: Array) -> Tasks:
        return Tasks(*(getattr(self, name)[index] for name in ("hops", "start", "words", "relations", "path")))


def make_world(rng: np.random.Generator, fewest: int = 2, most: int = MAX_HOPS, words: int = WORDS) -> World:
    """A random graph whose relations are permutations, so no entity is a sink, and random wrong ideas."""
    graph = np.stack([rng.permutation(ENTITIES) for _ in range(RELATIONS)], axis=1)
    taken_for = (np.arange(WORDS) + rng.integers(1, RELATIONS, WORDS)) % RELATIONS
    return World(graph, taken_for, fewest, most, words)


def draw_tasks(world: World, n: int, rng: np.random.Generator) -> Tasks:
    """n tasks of the world's numbers of hops, alike often; starts and words uniform."""
    hops = rng.integers(world.fewest, world.most + 1, n)
    words = rng.integers(0, world.words, (n, world.most))
    path = np.empty((n, world.most + 1), dtype=np.int64)
    path[:, 0] = rng.integers(0, ENTITIES, n)
    for i in range(world.most):
        path[:, i + 1] = np.where(i < hops, world.graph[path[:, i], words[:, i] % RELATIONS], path[:, i])
    used = np.arange(world.most) < hops[:, None]
    relations = np.where(used, words % RELATIONS, -1)
    return Tasks(hops, path[:, 0], np.where(used, WORD + words, EMPTY), relations, path)


def contexts(tasks: Tasks) -> Array:
    """[n, 2 + M] the tokens that a task begins with."""
    return np.column_stack([np.full(len(tasks), BOS), tasks.start, tasks.words])


def observe(world: World, entity: Array, relation: Array, rng: np.random.Generator) -> Array:
    """[n] what searches for relations 0..7 show: the right entity, or with probability .1 one drawn at random."""
    right = world.graph[entity, relation]
    return np.where(rng.random(len(right)) < WRONG, rng.integers(0, ENTITIES, len(right)), right)


def _meant(world: World, tasks: Tasks, turn: int, knows: float, rng: np.random.Generator) -> Array:
    """[n] the relation the demonstrator asks for at this turn: right with probability `knows`, or at a wrong turn."""
    word = tasks.words[:, min(turn, world.most - 1)]
    n, named = len(word), word != EMPTY
    idea = np.where(rng.random(n) < MISLED, world.taken_for[np.where(named, word - WORD, 0)], -1)
    wrong = np.where((idea < 0) | ~named, rng.integers(0, RELATIONS, n), idea)
    return np.where(named & (rng.random(n) < knows), tasks.relations[:, min(turn, world.most - 1)], wrong)


def demonstrations(world: World, n: int, knows: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """(tokens [n, world.length], shown [n, world.length] bool: the demonstrator's own tokens) of n episodes.

    It goes by what it observes, slips now and then, and asks for the right relation with probability `knows`.
    Tokens after the end are EMPTY and not shown.
    """
    tasks = draw_tasks(world, n, rng)
    tokens = np.full((n, world.length), EMPTY)
    tokens[:, : world.prefix] = contexts(tasks)
    shown = np.zeros((n, world.length), dtype=bool)
    current, alive = tasks.start.copy(), np.ones(n, dtype=bool)
    for turn in range(world.most + 1):
        at = world.prefix + TURN * turn
        alive = alive & (turn <= tasks.hops)
        search = (turn < tasks.hops) ^ (rng.random(n) < SLIP)
        entity = np.where(rng.random(n) < SLIP, rng.integers(0, ENTITIES, n), current)
        relation = _meant(world, tasks, turn, knows, rng)
        seen = observe(world, entity, relation, rng)
        tokens[alive, at] = np.where(search, SEARCH, ANSWER)[alive]
        tokens[alive, at + 1] = entity[alive]
        shown[alive, at : at + 2] = True
        asks = alive & search
        tokens[asks, at + 2], tokens[asks, at + 3] = ENTITIES + relation[asks], seen[asks]
        shown[asks, at + 2] = True
        current, alive = np.where(search, seen, current), asks
    return tokens, shown
