"""The dataset card: README.md with counts, filters and versions, and the front matter that `datasets` reads."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import treewright
from treewright.training.export.atif import ATIF_VERSION
from treewright.training.export.columns import DOCUMENTS, RAW_SCHEMA, columns, hf_features
from treewright.training.export.options import ExportOptions, ExportReport, TreeFilter

__all__ = ["write_card"]

ABOUT = {
    "sft": "Steps of good paths as prompt and completion, for supervised fine-tuning.",
    "dpo": "Pairs of executed siblings at a branch, the better one chosen. `chosen_value` and `rejected_value` are the "
    "reward of the step plus its SPLIT-LOO value; `on_policy` is true if the tree's own weights drew both.",
    "prm": "Finished paths with a label and a value for every step, for process reward models.",
    "prefix": "Prompts with the front of a good path, to start reinforcement learning from: "
    "`prompt_ids + prefix_ids` is what the policy read at that node.",
    "atif": f"One {ATIF_VERSION} document for each finished path; the place in its tree stands in `extra`.",
    "inspect": "One log of Inspect for each split and suite: a sample is a tree, every other executed node stands in a "
    "branch. `inspect view --log-dir FOLDER/inspect` shows them.",
    "raw": "Whole trees with token ids, log-probs, weights and versions; `treewright import` reads them back with the "
    "same digests. They hold `task_truth`, what rewards were computed from.",
}
CUT = (
    "The longest row has {0} tokens. TRL cuts rows at `max_length`, 1024 if it is not set, and leaves out those whose "
    "completion lies beyond it, without a word: set `max_length={0}` or `None`."
)
TASKS = {"sft": "text-generation", "dpo": "text-generation", "prefix": "text-generation", "prm": "token-classification"}


def write_card(report: ExportReport, options: ExportOptions, where: TreeFilter) -> None:
    """Writes README.md into the folder of the report."""
    unknown = f"of {report.unknown} that is not known, " if report.unknown else ""
    lines = [
        "---",
        *_front(report, options),
        "---",
        "",
        "# Trees of agent behaviour",
        "",
        f"Exported by treewright {treewright.__version__} from {sum(report.trees.values())} search trees with "
        f"{report.nodes} nodes; in {report.solved} of them search chose an answer worth at least 1, "
        f"{unknown}and {report.inexact} are inexact.",
        "",
        *_formats(report, options),
        "## Where it comes from",
        "",
        *_table(("suite", "split", "trees"), [(s, split, n) for (s, split), n in sorted(report.trees.items())]),
        *_table(("policy version", "trees"), _most(report.versions)),
        *_table(("run", "trees"), _most(report.runs)),
        *_table(("reason against exactness", "trees"), _most(report.reasons)),
        "## Filters and options",
        "",
        *_table(("filter on trees", "value"), [(k, "all" if v is None else v) for k, v in asdict(where).items()]),
        *_table(("option", "value"), [(k, "none" if v is None else v) for k, v in options.described().items()]),
        "## Left out",
        "",
        *_left_out(report),
        "## Versions",
        "",
        *_table(("software", "version"), _versions().items()),
        f"Raw table schema {RAW_SCHEMA}. {ATIF_VERSION}.",
        "",
        "## Licence",
        "",
        f"`{options.license}`. Observations come from the worlds that the trees were grown in and keep their terms.",
        "",
    ]
    (report.folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _front(report: ExportReport, options: ExportOptions) -> list[str]:
    """YAML, written as JSON values so that nothing needs quoting by hand."""
    tables = {name: sorted(s for t, s in report.rows if t == name and report.rows[t, s]) for name in options.formats}
    written = {name: splits for name, splits in tables.items() if splits}
    own = options.own()
    configs = []
    for name, splits in written.items():
        if name not in DOCUMENTS:  # `datasets` reads a folder by one module; the documents are JSON beside any table
            table = own[name].table if name in own else name
            files = [{"split": split, "path": f"{table}/{split}.{options.file_type}"} for split in splits]
            configs.append({"config_name": table, "data_files": files})
    lines = [f"license: {json.dumps(options.license)}", 'tags: ["treewright", "agents", "tree-search", "trl"]']
    lines.append(f"task_categories: {json.dumps(sorted({TASKS[name] for name in written if name in TASKS}))}")
    lines += ["configs:", *(f"- {json.dumps(config)}" for config in configs)] if configs else []
    typed = [name for name in written if name not in {*DOCUMENTS, *own}] if options.file_type == "jsonl" else []
    if typed:
        infos = [{"config_name": name, "features": hf_features(columns(name, options.style))} for name in typed]
        lines += ["dataset_info:", *(f"- {json.dumps(info)}" for info in infos)]
    return lines


def _formats(report: ExportReport, options: ExportOptions) -> list[str]:
    lines, own = list[str](), options.own()
    for name in options.formats:
        counts = sorted((split, n) for (table, split), n in report.rows.items() if table == name)
        styled = f" Style: {options.style}." if name in ("sft", "dpo", "prefix") else ""
        lines += [
            f"## {name}",
            "",
            (own[name].about if name in own else ABOUT[name]) + styled,
            "",
            *_table(("split", "rows"), counts),
        ]
        if name in ("sft", "dpo") and report.longest[name]:
            lines += [CUT.format(report.longest[name]), ""]
        if not report.total(name):
            lines += ["Nothing: see what was left out.", ""]
    tables = {name: own[name].table if name in own else name for name in options.formats}
    shown = [n for n in options.formats if n not in DOCUMENTS and report.total(n)][:1]
    calls = [f'load_dataset("FOLDER", "{tables[n]}")' for n in shown]
    if report.total("atif"):
        calls.append('load_dataset("json", data_files={"train": "FOLDER/atif/*/*.json"})')
    if calls:
        lines += ["```python", "from datasets import load_dataset", "", *calls, "```", ""]
    return lines


def _left_out(report: ExportReport) -> list[str]:
    rows = [(name, why, n) for name, counts in report.skipped.items() for why, n in counts.most_common()]
    return _table(("format", "why", "times"), rows) or ["Nothing.", ""]


def _most(counts: Counter[str]) -> Sequence[tuple[str, int]]:
    return counts.most_common()


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; nothing without rows."""
    body = [[_cell(value) for value in row] for row in rows]
    if not body:
        return []
    return [_line(head), _line(["---"] * len(head)), *map(_line, body), ""]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: object) -> str:
    """One line that cannot end its cell or open a tag."""
    text = str(value).encode("utf-8", "replace").decode()
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") or "–"


def _versions() -> Mapping[str, str]:
    out = {"python": platform.python_version(), "treewright": treewright.__version__}
    for name in ("pyarrow", "numpy", "sqlalchemy"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
