"""The page docs/performance.md and the check of CI, from one committed result of `bench pair` and `bench scale`.

python -m treewright.benchmarks.performance docs/performance.json docs/performance.md      writes the page, and the
                                                                      named figures into the JSON
python -m treewright.benchmarks.performance docs/performance.json                          checks, see `pair.check`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from treewright.benchmarks.pair import check
from treewright.benchmarks.scale import table
from treewright.benchmarks.search import MARKS
from treewright.envs.errors import TreewrightError
from treewright.envs.whole import write_whole

__all__ = ["NAMED", "markdown", "named", "run"]

NAMED: Final[Mapping[str, tuple[str, ...]]] = {
    "engine_vs_before": ("pairs", "engine"),
    "engine_exponent": ("axes", "engine"),
    "sessions_8_vs_1_tools": ("unpaired", "tools_sessions", "8_vs_1_5ms"),
    "postgres_vs_before": ("pairs", "postgres"),
    "sqlite_vs_before": ("pairs", "sqlite"),
    "run_start_vs_before": ("pairs", "run_start"),
    "hf_vs_before": ("pairs", "hf"),
    "hf_known_vs_before": ("pairs", "hf_known"),
    "hf_episodes_vs_before": ("pairs", "hf_episodes"),
    "hf_nodes_vs_before": ("pairs", "hf_nodes"),
    "hf_vs_generate": ("unpaired", "generate", "vs_peer"),
    "hf_known_vs_generate": ("unpaired", "generate", "known_vs_peer"),
    "viewer_open_s": ("unpaired", "viewing", "open_s"),
    "viewer_fps": ("unpaired", "viewing", "fps"),
    "list_s": ("unpaired", "listing", "list_s"),
    "langgraph_vs_before": ("pairs", "langgraph"),
    "loop_135m_peak_gb": ("after", "loop_135m"),
    "loop_135m_vs_before": ("pairs", "loop_135m"),
    "tests_vs_before": ("tests", "processor"),
    "tests_wall_vs_before": ("tests", "wall"),
}
"""Where each named figure comes from: a part of the result."""
OTHERWISE: Final = {
    "hf_vs_before": "no run on a machine quiet enough; see where sampling spends its time",
    "hf_known_vs_before": "no run on a machine quiet enough; see where sampling spends its time",
    "hf_episodes_vs_before": "no run on a machine quiet enough",
    "hf_nodes_vs_before": "no run on a machine quiet enough",
    "loop_135m_peak_gb": "needs the model: treewright model fetch smollm2",
    "loop_135m_vs_before": "needs the model: treewright model fetch smollm2",
    "tests_vs_before": "`make tests-pair` was not run whole",
    "tests_wall_vs_before": "`make tests-pair` was not run whole",
    "postgres_vs_before": "needs a server, in TREEWRIGHT_BENCH_POSTGRES; [the store](store.md) has rows a second",
}


def named(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{NAME: {"value", "unit", "from"}} of what was measured, {NAME: {"why"}} of what was not."""
    return {name: _found(name, place, result) for name, place in NAMED.items()}


def _found(name: str, place: tuple[str, ...], result: Mapping[str, Any]) -> dict[str, Any]:
    kind, part, *rest = place
    given = result.get("pairs" if kind == "after" else kind, {}).get(part)
    if given is not None:
        if kind == "after":
            return {"value": given["after"], "unit": given["unit"], "from": f"{part}, after"}
        if kind in ("pairs", "tests"):
            return {"value": given["ratio"], "unit": "of before", "from": part if kind == "pairs" else f"tests, {part}"}
        if kind == "axes":
            return {"value": given["exponent"], "unit": "", "from": part}
        if (one := given["figures"].get(rest[0])) is not None:
            return {"value": one["value"], "unit": one["unit"], "from": f"{part}, {rest[0]}"}
    return {"why": OTHERWISE.get(name, "no full run")}


def _tests(result: Mapping[str, Any]) -> list[str]:
    """What the tests that both builds have cost in each."""
    told = result.get("tests")
    if not told:
        return []
    kinds = {"processor": "processor time of the whole run", "passed_processor": "of it, tests that pass in both",
             "wall": "wall clock of the whole run"}  # fmt: skip
    part = "" if told["share"] == 1 else f", of one file of {told['share']}"
    head = f"{told['tests']:,} tests of both builds{part}, {told['workers']} at once ({told['old']} → {told['new']})"
    lines = ["", f"| {head} | before | after | unit | ratio |", "|---|---:|---:|---|---:|"]
    for kind, says in kinds.items():
        one = told[kind]
        lines.append(f"| {says} | {one['before']:.4g} | {one['after']:.4g} | s | {one['ratio']:.3f} |")
    for file, (before, after) in told["files"].items():
        ratio = f"{after / before:.3f}" if before else ""
        lines.append(f"| `{file}` | {before:.4g} | {after:.4g} | s | {ratio} |")
    return lines


def _unpaired(result: Mapping[str, Any]) -> list[str]:
    """What has no build before: figures against a peer or a goal."""
    parts = result.get("unpaired", {})
    if not parts:
        return []
    lines = ["", "| without a build before | figure | measured | unit | goal | commit |", "|---|---|---:|---|---|---|"]
    for name, part in parts.items():
        for i, (figure, one) in enumerate(part["figures"].items()):
            says, goal, commit = (f"{part['says']} (`{name}`)", part["goal"], part["commit"]) if not i else ("", "", "")
            lines.append(f"| {says} | `{figure}` | {one['value']:.4g} | {one['unit']} | {goal} | {commit} |")
    return lines


def _names(result: Mapping[str, Any]) -> list[str]:
    lines = ["", "| named figure | value | unit | from |", "|---|---:|---|---|"]
    for name, one in named(result).items():
        if "why" in one:
            lines.append(f"| `{name}` | not measured | | {one['why']} |")
        else:
            lines.append(f"| `{name}` | {one['value']:.3g} | {one['unit']} | {one['from']} |")
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """What the page shows of a result: the pairs, of a quick run where there is no other, the exponents, what has no
    build before, the tests of both builds, and the named figures."""
    full = result
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
        f"| {pair['says']}{_here(pair) if small else ''} (`{name}`{_of(pair, result['new'])}) | {pair['before']:.4g} "
        f"| {pair['after']:.4g} | {pair['unit']} | {pair['ratio']:.3f} "
        f"| {pair['low']:.3f} – {pair['high']:.3f} | {pair['rounds']} |"
        for name, pair in result["pairs"].items()
    ]
    if result["axes"]:
        lines += ["", table(result["axes"])]
    return "\n".join([*lines, *_unpaired(full), *_tests(full), *_names(full)])


def _of(pair: Mapping[str, Any], new: str) -> str:
    """The commit of a pair that is of another one than the rest."""
    return "" if pair.get("new", new) == new else f", commit {pair['new']}"


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
    result = json.loads(made.read_text())
    result["named"] = named(result)
    write_whole(made, json.dumps(result, indent=1) + "\n")
    before, _, rest = page.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n{markdown(result)}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    run(sys.argv[1:])
