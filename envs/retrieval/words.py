"""Words of any script: what a text is cut into for the index, and a query in the same way.

    analysis = Analysis(stemming="german")
    analysis("Die größten Städte")      → ['die', 'grosst', 'stadt']

Unicode comes first (NFKC, case folding, digits of all scripts as 0–9, accents and pointing taken off), then tantivy's
tokenizers: runs of letters, marks and digits; Snowball's stemmers (Porter 2001), one for each alphabet. Chinese,
Japanese, Korean, Thai, Lao, Khmer and Burmese are cut into single characters and overlapping pairs of them, which need
no dictionary: on help pages of a desktop, page titles as queries, they found as much as ICU's words, in Korean more.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import islice

import tantivy

from treewright.envs.errors import TreewrightError
from treewright.envs.retrieval.rows import clean

__all__ = ["STEMMERS", "UNSPACED", "Analysis", "guessed", "sample_of", "spread"]

STEMMERS = (
    "danish", "dutch", "english", "finnish", "french", "german", "hungarian", "italian", "norwegian", "portuguese",
    "romanian", "spanish", "swedish", "turkish",
)  # fmt: skip
ALPHABETS = {
    "russian": "[\u0400-\u04ff]",
    "greek": "[\u0370-\u03ff]",
    "arabic": "[\u0600-\u06ff]",
    "tamil": "[\u0b80-\u0bff]",
}
TOLD = ("english", *(name for name in STEMMERS if name not in ("romanian", "turkish")))  # by their function words
SAMPLED, LONGEST = 1000, 400  # documents by which the language is guessed, and characters of each
LEAST = 0.1  # share of a language's function words in a text of it
LONGEST_WORD = 255  # bytes; longer ones are no words

# Scripts whose words are not set apart by blanks; Hangul's are, but with particles joined to them.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
# What carries no meaning of its own for a search: accents left without a letter that has them, Hebrew and Arabic
# pointing, Hebrew's marks of abbreviations, letters that stand for an apostrophe (the okina), the Arabic lengthening
# stroke, soft hyphens, joiners and other invisible characters.
_SILENT = re.compile(
    "[\u00ad\u02b9-\u02bf\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u05f3\u05f4\u0610-\u061a\u0640\u064b-\u065f\u0670\u200b-\u200f\u2060\ufeff]"
)


@cache
def _folds() -> dict[int, str]:
    """Greek letters without accents, ё as е, Persian's and Urdu's kaf and yeh as Arabic's, all digits as 0–9."""
    greek = {c: unicodedata.normalize("NFD", chr(c))[0] for c in (*range(0x386, 0x3CF), *range(0x1F00, 0x2000))}
    digits = {c: str(d) for c in range(0x660, sys.maxunicode) if (d := unicodedata.decimal(chr(c), None)) is not None}
    arabic = {0x6A9: "\u0643", 0x6CC: "\u064a", 0x649: "\u064a", 0x6C1: "\u0647", 0x6BE: "\u0647"}
    return {**greek, **digits, **arabic, ord("ё"): "е"}


_FOLDABLE = frozenset(map(chr, _folds()))


def spread(text: str) -> str:
    """The text with its characters made alike and words of scripts without blanks spread out, for a tokenizer."""
    if text.isascii():
        return text
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", clean(text)).casefold())
    if not _FOLDABLE.isdisjoint(folded):
        folded = folded.translate(_folds())
    return UNSPACED.sub(_grams, _SILENT.sub("", folded))


def _grams(run: re.Match[str]) -> str:
    return f" {' '.join(_pairs().analyze(run[0]))} "


@cache
def _pairs() -> tantivy.TextAnalyzer:
    return tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.ngram(1, 2)).build()


class Analysis:
    """Cuts texts into words, those of documents and of queries alike.

    stemming  of words in Latin letters: one of STEMMERS, or 'none', which leaves those of all alphabets as they are
    sample    texts by whose alphabets further stemmers are chosen

    Raises TreewrightError for an unknown language.
    """

    def __init__(self, stemming: str = "english", sample: str = "") -> None:
        if stemming != "none" and stemming not in STEMMERS:
            raise TreewrightError(f"no stemmer {stemming!r}; there are auto, none, {', '.join(STEMMERS)}")
        make, fold = tantivy.Filter, tantivy.Filter.ascii_fold()
        stemmers: list[tantivy.Filter] = []
        if stemming != "none":
            # English has no accents, so folding first helps it; the other stemmers read theirs.
            first = [make.stemmer(stemming), fold]
            others = [make.stemmer(name) for name, letters in ALPHABETS.items() if re.search(letters, sample)]
            stemmers = [*(reversed(first) if stemming == "english" else first), *others]
        filters = [make.remove_long(LONGEST_WORD), make.lowercase(), *(stemmers or [fold])]
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(r"[\p{L}\p{M}\p{N}]+"))
        for one in filters:
            builder = builder.filter(one)
        self.analyzer = builder.build()

    def __call__(self, text: str) -> list[str]:
        """The words in order, repeated ones too."""
        words: list[str] = self.analyzer.analyze(spread(text))
        return words


def sample_of(texts: Iterable[str]) -> str:
    """The beginnings of the first texts, from which languages and alphabets are told."""
    return "\n".join(clean(text[:LONGEST]) for text in islice(texts, SAMPLED))


@lru_cache(maxsize=8)
def guessed(sample: str) -> str:
    """The language whose function words stand most often in the sample; English if none is frequent."""
    words = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.lowercase())
    total = len(words.build().analyze(sample))
    counts = {name: total - len(_without(name).analyze(sample)) for name in TOLD}
    best = max(counts, key=counts.__getitem__)  # English on a tie
    return best if counts[best] >= LEAST * max(1, total) else "english"


@cache
def _without(language: str) -> tantivy.TextAnalyzer:
    made = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.lowercase())
    return made.filter(tantivy.Filter.stopword(language)).build()
