"""The page docs/performance.md and the check of CI, from one committed result of `bench pair` and `bench scale`.

python -m treewright.benchmarks.performance docs/performance.json docs/performance.md      writes the page
python -m treewright.benchmarks.performance docs/performance.json                          checks, see `pair.check`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treewright.benchmarks.pair import check
from treewright.benchmarks.scale import table
from treewright.benchmarks.search import MARKS
from treewright.envs.errors import TreewrightError

__all__ = ["markdown", "run"]


def markdown(result: Mapping[str, Any]) -> str:
    """What the page shows of a result: the pairs, of a quick run where there is no other, and the exponents."""
    machine = result["hardware"]
    small = "pairs" not in result
    if small:
        result = {**result, **result["small"]}
    how = "a quick run, whose ratios are not the published ones," if result["quick"] else "a full run"
    lines = [
        f"From {how} on {machine['cores']} cores of {machine['cpu']}: commit {result['old']} → {result['new']}.",
        "",
        "| | before | after | unit | ratio | 95 % | turns |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {pair['says']}{_here(pair) if small else ''} (`{name}`) | {pair['before']:.4g} "
        f"| {pair['after']:.4g} | {pair['unit']} | {pair['ratio']:.3f} "
        f"| {pair['low']:.3f} – {pair['high']:.3f} | {pair['rounds']} |"
        for name, pair in result["pairs"].items()
    ]
    return "\n".join([*lines, "", table(result["axes"])] if result["axes"] else lines)


def _here(pair: Mapping[str, Any]) -> str:
    """The size of a quick run, where it has one."""
    return f"; here {pair['size']:,}" if pair["size"] else ""


def run(words: Sequence[str]) -> None:
    made = Path(words[0])
    if len(words) == 1:
        try:
            return check(made)
        except TreewrightError as error:
            raise SystemExit(f"error: {error}") from None
    page = Path(words[1])
    before, _, rest = page.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n{markdown(json.loads(made.read_text()))}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    run(sys.argv[1:])
