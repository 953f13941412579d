"""From a store to a dataset folder: one sub-folder for each format, and a card that says what is in it.

with TreeStore.open("runs/first/trees.sqlite", read_only=True) as store:
    export_dataset(store, "data/first", ExportOptions(formats=("sft", "dpo")), TreeFilter(suite="kg"))
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path

import treewright
from treewright.envs.errors import TreewrightError
from treewright.search.store import TreeRow, TreeStore
from treewright.search.types import Expansion
from treewright.training.export.atif import atif_documents
from treewright.training.export.card import write_card
from treewright.training.export.columns import FORMATS, STYLES, columns
from treewright.training.export.raw import encode_tree
from treewright.training.export.rows import SOLVED, dpo_rows, prefix_rows, prm_rows, sft_rows
from treewright.training.export.tables import FILE_TYPES, Table, need_pyarrow, open_table
from treewright.training.export.view import Decode, Row, View

__all__ = ["ExportOptions", "ExportReport", "TreeFilter", "export_dataset"]

PATHS = ("best", "chosen", "all")
PAIRS = ("extremes", "all")


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to write and how.

    formats          of sft, dpo, prm, prefix, atif, raw
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

    def __post_init__(self) -> None:
        known = {"style": STYLES, "file_type": FILE_TYPES, "paths": PATHS, "pairs": PAIRS}
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise TreewrightError(f"{name} = {getattr(self, name)!r}; known: {', '.join(allowed)}")
        wrong = [f for f in self.formats if f not in FORMATS]
        if wrong or not self.formats:
            raise TreewrightError(f"no format named {wrong[0] if wrong else ''!r}; known: {', '.join(FORMATS)}")
        if self.min_gap < 0:
            raise TreewrightError(f"min_gap = {self.min_gap} is negative; 0 takes every pair whose values differ")

    def described(self) -> dict[str, object]:
        """The options for the card, the decoder as yes or no."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("decode", "formats", "license")}
        return {**named, "decoded_by_tokenizer": self.decode is not None}


@dataclass(slots=True)
class ExportReport:
    """What was written: rows by (format, split), trees and their facts, and what was left out and why."""

    folder: Path
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    trees: Counter[tuple[str, str]] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)
    solved: int = 0
    inexact: int = 0
    nodes: int = 0

    def total(self, name: str) -> int:
        return sum(n for (table, _), n in self.rows.items() if table == name)


def export_dataset(
    store: TreeStore, folder: str | Path, options: ExportOptions | None = None, where: TreeFilter | None = None
) -> ExportReport:
    """Writes the finished trees of the store that pass the filter; the card is written last.

    Tables are `FORMAT/SPLIT.parquet` (or .jsonl), ATIF documents `atif/SPLIT/TREE-LEAF.json`. Trees are read one at a
    time. Raises TreewrightError if the folder holds anything, if no tree passes, or without pyarrow for parquet.
    """
    options, where = options or ExportOptions(), where or TreeFilter()
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TreewrightError(f"{folder} is there and not empty; name a new folder, or delete it first")
    if options.file_type == "parquet" and set(options.formats) - {"atif"}:
        need_pyarrow("writing parquet")
    chosen = _chosen(store, where)
    report = ExportReport(folder)
    with _Tables(folder, options, report) as tables:
        for row in chosen:
            tables.add(store, row)
    write_card(report, options, where)
    return report


def _chosen(store: TreeStore, where: TreeFilter) -> list[TreeRow]:
    done = store.trees(
        run=where.run, suite=where.suite, split=where.split, success=where.success,
        policy_version=where.policy_version, status="done",
    )  # fmt: skip
    found = [row for row in done if where.exact is None or row.exact is where.exact]
    if not found:
        count = len(store.trees(status="done"))
        raise TreewrightError(f"none of the {count} finished trees in {store.name} passes the filter; loosen it")
    return found


def split_name(split: str) -> str:
    """A split's name as `datasets` allows it: letters, digits and underscores."""
    return re.sub(r"\W", "_", split, flags=re.ASCII) or "train"


class _Tables(ExitStack):
    """The open tables of an export, by format and split."""

    def __init__(self, folder: Path, options: ExportOptions, report: ExportReport) -> None:
        super().__init__()
        self.folder, self.options, self.report = folder, options, report
        self.open: dict[tuple[str, str], Table] = {}
        for name in options.formats:
            report.skipped[name] = Counter()

    def _table(self, name: str, split: str) -> Table:
        key = (name, split)
        if key not in self.open:
            path = self.folder / name / f"{split}.{self.options.file_type}"
            table = open_table(path, columns(name, self.options.style), self.options.file_type)
            self.open[key] = self.enter_context(table)
        return self.open[key]

    def add(self, store: TreeStore, row: TreeRow) -> None:
        tree, expansions = store.load(row.tree_id), store.expansions(row.tree_id)
        versions = [row.policy_version, *(d.completion.policy_version for e in expansions for d in e.drafts)]
        report, options, split = self.report, self.options, split_name(row.split)
        view = View(tree, options.style, options.system, options.decode, versions)
        unvalued = view.skipped
        for name in options.formats:
            view.skipped = report.skipped[name]
            if name in ("dpo", "prm"):
                view.skipped.update(unvalued)
            if name == "atif":
                report.rows[name, split] += self._documents(view, split)
                continue
            for line in self._rows(name, view, expansions, row):
                self._table(name, split).write(line)
                report.rows[name, split] += 1
        report.trees[row.suite, split] += 1
        report.versions[row.policy_version] += 1
        report.runs[row.run] += 1
        report.reasons.update(row.reasons)
        report.solved += bool(row.success)
        report.inexact += not row.exact
        report.nodes += row.nodes

    def _rows(self, name: str, view: View, expansions: list[Expansion], row: TreeRow) -> Iterator[Row]:
        o = self.options
        if name == "sft":
            return sft_rows(view, o.paths, o.min_outcome)
        if name == "dpo":
            return dpo_rows(view, o.min_gap, o.pairs, o.min_ess, o.on_policy)
        if name == "prm":
            return prm_rows(view, o.label_threshold)
        if name == "prefix":
            return prefix_rows(view, o.paths, o.min_outcome)
        return iter([encode_tree(view, expansions, row.spent)])

    def _documents(self, view: View, split: str) -> int:
        folder, count = self.folder / "atif" / split, 0
        for name, document in atif_documents(view, treewright.__version__):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(document, ensure_ascii=False, allow_nan=False), encoding="utf-8")
            count += 1
        return count
