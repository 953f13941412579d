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
from itertools import count
from pathlib import Path

import treewright
from treewright.envs.errors import TreewrightError
from treewright.envs.whole import whole_folder
from treewright.search.store import TreeRow, TreeStore
from treewright.search.store.ending import result_of
from treewright.search.types import Expansion
from treewright.training.export.atif import atif_documents
from treewright.training.export.card import write_card
from treewright.training.export.columns import DOCUMENTS, columns
from treewright.training.export.inspect_log import InspectLog
from treewright.training.export.options import ExportOptions, ExportReport, TreeFilter
from treewright.training.export.own import OwnFormat
from treewright.training.export.raw import encode_tree
from treewright.training.export.rows import dpo_rows, prefix_rows, prm_rows, sft_rows, tokens_of
from treewright.training.export.tables import Table, need_pyarrow, open_table
from treewright.training.export.view import Row, View

__all__ = ["ExportOptions", "ExportReport", "TreeFilter", "export_dataset"]


def export_dataset(
    store: TreeStore, folder: str | Path, options: ExportOptions | None = None, where: TreeFilter | None = None
) -> ExportReport:
    """Writes the finished trees of the store that pass the filter; the folder is there whole or not at all.

    Tables are `FORMAT/SPLIT.parquet` (or .jsonl), in the folder mymod_rows for `mymod:rows`; ATIF documents are
    `atif/SPLIT/TREE-LEAF.json`, Inspect's logs `inspect/SPLIT/SUITE.json`. Trees are read one at a
    time. Raises TreewrightError if the folder holds anything, if no tree passes, if none of them gives a row (then
    nothing is written), or without pyarrow for parquet.
    """
    options, where = options or ExportOptions(), where or TreeFilter()
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TreewrightError(f"{folder} is there and not empty; name a new folder, or delete it first")
    if options.file_type == "parquet" and set(options.formats) - set(DOCUMENTS):
        need_pyarrow("writing parquet")
    chosen = _chosen(store, where)
    with whole_folder(folder) as part:
        report = ExportReport(part)
        with _Tables(part, options, report) as tables:
            for row in chosen:
                tables.add(store, row, where.success)
        if not report.rows.total():
            raise TreewrightError(_nothing(report))
        write_card(report, options, where)
    report.folder = folder
    return report


def _nothing(report: ExportReport) -> str:
    """Why no format has a row, and what to change."""
    why = []
    for name, counts in report.skipped.items():
        told = ", ".join(f"{reason} ({n})" for reason, n in counts.most_common(2))
        why.append(f"{name}: {told or 'nothing to show'}")
    trees = sum(report.trees.values())
    return f"{trees} trees pass the filter and give no row, so nothing was written; {'; '.join(why)}"


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
        self.logs: dict[tuple[str, str], InspectLog] = {}
        self.own: dict[str, OwnFormat] = options.own()
        for name in options.formats:
            report.skipped[name] = Counter()

    def _table(self, name: str, split: str) -> Table:
        key = (name, split)
        if key not in self.open:
            own = self.own.get(name)
            path = self.folder / (own.table if own else name) / f"{split}.{self.options.file_type}"
            shape = own.columns if own else columns(name, self.options.style)
            table = open_table(path, shape, self.options.file_type)
            self.open[key] = self.enter_context(table)
        return self.open[key]

    def _log(self, suite: str, split: str) -> InspectLog:
        key = (suite, split)
        if key not in self.logs:
            folder = self.folder / "inspect" / split
            folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]", "_", suite, flags=re.ASCII)[:80] or "trees"
            taken = {log.path.name for log in self.logs.values() if log.path.parent == folder}
            name = next(n for n in (f"{name}{i or ''}.json" for i in count()) if n not in taken)
            self.logs[key] = self.enter_context(InspectLog(folder / name))
        return self.logs[key]

    def add(self, store: TreeStore, row: TreeRow, wanted: bool | None = None) -> None:
        """Writes a tree; not one whose success is not known, where it is asked for: older stores say False of it."""
        tree, expansions = store.load(row.tree_id), store.expansions(row.tree_id)
        success = result_of(tree)[1]
        if wanted is not None and success is None:
            return
        versions = [row.policy_version, *(d.completion.policy_version for e in expansions for d in e.drafts)]
        report, options, split = self.report, self.options, split_name(row.split)
        view = View(tree, options.style, options.system, options.decode, versions)
        unvalued = view.skipped
        for name in options.formats:
            view.skipped = report.skipped[name]
            if name in ("dpo", "prm"):
                view.skipped.update(unvalued)
            if name == "inspect":
                report.rows[name, split] += self._log(row.suite, split).write(view, row)
                continue
            if name == "atif":
                written = self._documents(view, split)
                report.rows[name, split] += written
                if not written:
                    view.skip("trees without a finished path")
                continue
            for line in self._rows(name, view, expansions, row):
                self._table(name, split).write(line)
                report.rows[name, split] += 1
                if name not in self.own:
                    report.longest[name] = max(report.longest[name], tokens_of(line))
        report.trees[row.suite, split] += 1
        report.versions[row.policy_version] += 1
        report.runs[row.run] += 1
        report.reasons.update(row.reasons)
        report.solved += bool(success)
        report.unknown += success is None
        report.inexact += not row.exact
        report.nodes += row.nodes

    def _rows(self, name: str, view: View, expansions: list[Expansion], row: TreeRow) -> Iterator[Row]:
        o = self.options
        if name in self.own:
            return self.own[name].rows(view)
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
        folder, written = self.folder / "atif" / split, 0
        for name, document in atif_documents(view, treewright.__version__):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(document, ensure_ascii=False, allow_nan=False), encoding="utf-8")
            written += 1
        return written
