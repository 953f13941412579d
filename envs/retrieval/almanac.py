"""A small library of invented passages that link to each other, for measuring and for tests; nothing is downloaded.

People live in towns, towns stand on rivers, firms are led by people. Two-hop questions need two passages, of which the
second is named in the first alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from treewright.envs.retrieval.corpus import Corpus, Doc, Question
from treewright.envs.retrieval.fields import split_of

__all__ = ["almanac"]

SYLLABLES = "an bel cor dan el far gol har in jor kel lom mar nor ol pel quin ros sel tor ul var wen yor zel"
TRADES = ("painter", "botanist", "clockmaker", "poet", "surgeon", "mapmaker", "violinist", "glassblower", "astronomer")
GOODS = ("lamps", "bridges", "tea", "carpets", "bicycles", "bells", "paper", "salt", "pianos", "compasses")
SIGHTS = ("a lighthouse", "an old mill", "a covered market", "a clock tower", "a botanical garden", "a ropewalk")


def almanac(size: int = 300, seed: int = 0) -> tuple[Corpus, list[Question]]:
    """About `size` passages of people, towns, rivers and firms, and two-hop questions over them with their support."""
    rng = random.Random(seed)
    names = _names(rng, size)
    rivers, towns = names[: size // 10], names[size // 10 : size // 3]
    people, firms = names[size // 3 : 4 * size // 5], names[4 * size // 5 :]
    river_of = {town: rng.choice(rivers) for town in towns}
    town_of = {person: rng.choice(towns) for person in people}
    head_of = {firm: rng.choice(people) for firm in firms}
    year_of = {name: rng.randint(1700, 1999) for name in names}
    trade_of = {person: rng.choice(TRADES) for person in people}
    good_of = {firm: rng.choice(GOODS) for firm in firms}
    docs = [_river(rng, name, year_of[name]) for name in rivers]
    docs += [_town(rng, name, river_of[name], year_of[name]) for name in towns]
    docs += [_person(rng, name, trade_of[name], town_of[name], year_of[name]) for name in people]
    docs += [_firm(rng, name, good_of[name], head_of[name], year_of[name]) for name in firms]
    rng.shuffle(docs)
    asked = [
        (f"On which river stands the town where the {trade_of[p]} {p} lives?", river_of[t], (p, t))
        for p, t in town_of.items()
    ]
    asked += [
        (f"What is the trade of the person who leads {f}, the maker of {good_of[f]}?", trade_of[h], (f, h))
        for f, h in head_of.items()
    ]
    questions = [Question(f"a{i}", text, (a,), split_of(f"a{i}"), way) for i, (text, a, way) in enumerate(asked)]
    return Corpus(docs), questions


def _names(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join("".join(rng.choices(SYLLABLES.split(), k=rng.randint(2, 3))).title() for _ in range(2))] = None
    return list(found)


def _doc(rng: random.Random, name: str, sentences: Sequence[str], asides: Sequence[str]) -> Doc:
    """The first sentence, then the others and an aside in any order."""
    first, *rest = sentences
    rest.append(rng.choice(asides))
    rng.shuffle(rest)
    return Doc(name, name, " ".join([first, *rest]))


def _river(rng: random.Random, name: str, year: int) -> Doc:
    asides = ("Herons nest along its banks.", "It freezes in most winters.", "Its source was long disputed.")
    return _doc(rng, name, [f"{name} is a river.", f"It flooded badly in {year}."], asides)


def _town(rng: random.Random, name: str, river: str, year: int) -> Doc:
    asides = ("Its fair is held every autumn.", "The railway came late.", "Its walls were taken down.")
    told = [f"{name} is a town known for {rng.choice(SIGHTS)}.", f"It stands on {river}.", f"It was founded in {year}."]
    return _doc(rng, name, told, asides)


def _person(rng: random.Random, name: str, trade: str, town: str, year: int) -> Doc:
    asides = ("Two letters survive.", "A street is named so today.", "Nothing is known of the early years.")
    return _doc(rng, name, [f"{name} is a {trade} born in {year}.", f"Home is {town}."], asides)


def _firm(rng: random.Random, name: str, good: str, head: str, year: int) -> Doc:
    asides = ("It never had more than forty workers.", "Its first workshop burnt down.", "It exports widely.")
    return _doc(rng, name, [f"{name} makes {good}.", f"It is led by {head}.", f"It began in {year}."], asides)
