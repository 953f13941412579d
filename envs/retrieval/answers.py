"""Comparing a given answer with the accepted ones, in the way of open-domain question answering."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from treewright.envs.retrieval.words import UNSPACED

__all__ = ["exact_match", "f1", "normalise"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no English articles, single spaces (Rajpurkar et al. 2016, SQuAD).

    Beyond ASCII: compatibility forms and composed and decomposed accents are the same, ß is ss, and the punctuation of
    all scripts goes.
    A text of which nothing would be left (the name `a`, the operator `+`) is only lowered and stripped, so that two
    such answers are not equal by accident.
    """
    lowered = " ".join(_alike(text).split())
    plain = lowered.translate(_NO_PUNCTUATION)
    if not plain.isascii():
        plain = "".join(letter for letter in plain if not unicodedata.category(letter).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", plain).split()) or lowered


def _alike(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1.0 if the answer equals one of the accepted answers after normalisation, else 0.0."""
    return float(normalise(answer) in {normalise(text) for text in accepted})


def f1(answer: str, accepted: Sequence[str]) -> float:
    """The best F1 of word overlap between the answer and an accepted one, in [0, 1] (Rajpurkar et al. 2016).

    In scripts without blanks between words each character counts as a word.
    """
    return max((_overlap(_words(answer), _words(text)) for text in accepted), default=0.0)


def _words(text: str) -> list[str]:
    return UNSPACED.sub(lambda run: f" {' '.join(run[0])} ", normalise(text)).split()


def _overlap(answer: list[str], gold: list[str]) -> float:
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold)) if common else 0.0
