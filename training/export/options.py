"""What to export and how, and the report of what was written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.training.export.columns import BUILT_IN, FORMATS, STYLES
from treewright.training.export.own import OwnFormat, own_formats
from treewright.training.export.rows import SOLVED, known_gap
from treewright.training.export.tables import FILE_TYPES
from treewright.training.export.view import Decode

__all__ = ["PAIRS", "PATHS", "ExportOptions", "ExportReport", "TreeFilter"]

PATHS = ("best", "chosen", "all")
PAIRS = ("extremes", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFilter:
    """Which finished trees to export; None lets all through.

    success  what search chose was worth at least 1;  exact  no reason against exactness was recorded
    """

    run: str | None = None
    suite: str | None = None
    split: str | None = None
    success: bool | None = None
    policy_version: str | None = None
    exact: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to write and how.

    formats          of sft, dpo, prm, prefix, atif, raw, inspect, or one's own: module:function, an entry point of
                     treewright.exporters
    options          of one's own formats, each gets those that it takes
    style            of sft, dpo and prefix: conversational (messages), text, or tokens (ids alone)
    file_type        parquet (needs pyarrow) or jsonl
    paths            what sft and prefix take: the best path of a tree, the chosen one, or all that are good
    min_outcome      least return of a good path
    min_gap          least difference of values in a dpo pair;  pairs  extremes or all of a branch
    min_ess          effective leaves behind each side of a pair;  on_policy  only pairs of the tree's own weights
    label_threshold  a prm step is labelled True above this value
    system           a system message for every conversation
    decode           token ids to text, for the text style to be what the policy read
    license          for the card; an identifier of the Hugging Face hub
    """

    formats: tuple[str, ...] = FORMATS
    style: str = "conversational"
    file_type: str = "parquet"
    paths: str = "best"
    min_outcome: float = SOLVED
    min_gap: float = 0.1
    pairs: str = "extremes"
    min_ess: float = 0.0
    on_policy: bool = False
    label_threshold: float = 0.0
    system: str | None = None
    decode: Decode | None = None
    license: str = "unknown"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {"style": STYLES, "file_type": FILE_TYPES, "paths": PATHS, "pairs": PAIRS}
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise TreewrightError(f"{name} = {getattr(self, name)!r}; known: {', '.join(allowed)}")
        if not self.formats:
            raise TreewrightError(f"no format named ''; known: {', '.join(BUILT_IN)}")
        self.own()  # a misspelt name or option is told before anything is read
        for name in ("min_outcome", "min_ess", "label_threshold"):
            if math.isnan(getattr(self, name)):
                raise TreewrightError(f"{name} = nan is no number; write one such as 0.5")
        known_gap(self.min_gap)

    def own(self) -> dict[str, OwnFormat]:
        """The formats of one's own, by name. Raises TreewrightError for an unknown one, or an option none takes."""
        return own_formats(self.formats, self.options)

    def described(self) -> dict[str, object]:
        """The options for the card, the decoder as yes or no."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("decode", "formats", "license")}
        if not self.options:
            del named["options"]
        return {**named, "decoded_by_tokenizer": self.decode is not None}


@dataclass(slots=True)
class ExportReport:
    """What was written: rows by (format, split), trees and their facts, and what was left out and why.

    unknown  trees of which it is not known whether search chose well
    longest  by format, tokens of the longest row: prompt and completion; 0 where rows have no token ids
    """

    folder: Path
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    trees: Counter[tuple[str, str]] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)
    longest: Counter[str] = field(default_factory=Counter)
    solved: int = 0
    unknown: int = 0
    inexact: int = 0
    nodes: int = 0

    def total(self, name: str) -> int:
        return sum(n for (table, _), n in self.rows.items() if table == name)
