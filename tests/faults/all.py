"""Runs the harnesses of faults or of security one after another and merges what they found into one file.

    python -P tests/faults/all.py faults [--quick] [--json docs/trust.json]
    python -P tests/faults/all.py security [--quick] [--only NAME …]
    python -P tests/faults/all.py faults --only fuzz --size="--inputs 200000"

Each harness is a program of its own, `NAME.py [--quick] --json FILE`, whose file holds {"figures": {name: {"value",
"unit"}}}. Where one is missing, fails, or writes no figure that it owes, the table and the file say so, and the exit
code is then 1. With --quick each runs a tenth or less; such figures go to runs/trust-quick.json unless --json says
otherwise. What the other part, or a run beside this one, has written into the file stays. --size gives a harness other
options of its own; they stand in the file and in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["HARNESSES", "PROMISED", "Harness", "merged", "table", "work"]

ROOT = Path(__file__).parents[2]
FULL, QUICK = ROOT / "docs" / "trust.json", ROOT / "runs" / "trust-quick.json"
PATIENCE = {False: 6 * 3600.0, True: 900.0}


@dataclass(frozen=True, slots=True)
class Harness:
    """A program of the repository.

    owes  figures that it must give;  words  go before its options;  of  the figure that says how much was done
    """

    path: str
    owes: tuple[str, ...]
    words: tuple[str, ...] = ()
    of: str = ""


COMMANDS = ("collect", "train", "export", "upgrade", "commit", "explore", "serve")
HARNESSES: Mapping[str, Mapping[str, Harness]] = {
    "faults": {
        "ledger": Harness("tests/faults/kill_sweep.py", ("ledger_duplicates",), of="kills_killed"),
        "commands": Harness("tests/faults/kill_commands.py", ("kills_lost",), ("--only", *COMMANDS), "kills"),
        "loop": Harness("tests/faults/kill_commands.py", ("kills_lost",), ("--only", "loop"), "kills"),
        "resume": Harness(
            "tests/faults/kill_commands.py", ("resume_milliseconds",), ("--only", "resume"), "resume_nodes"
        ),
        "grid": Harness(
            "tests/faults/grid.py", ("grid_hangs", "grid_rewards_of_faults", "grid_wrong_trees"), of="grid_faults_met"
        ),
        "commits": Harness("tests/faults/commits.py", ("commits_errors", "commits_p99_ms"), of="commits"),
        "planted": Harness("tests/faults/planted/run.py", ("planted_bugs_caught",), of="planted_bugs"),
        "gradient": Harness(
            "tests/faults/fault_gradient.py", ("fault_gradient_shift_over_noise",), of="fault_gradient_trees"
        ),
        "fuzz": Harness("tests/faults/fuzz.py", ("fuzz_tracebacks",), of="fuzz_inputs"),
        "soak": Harness(
            "tests/faults/soak.py",
            ("soak_slopes_above_noise",),
            ("--only", "mazes", "browsers", "store"),
            "soak_minutes",
        ),
        "soak_loop": Harness("tests/faults/soak.py", ("soak_slopes_above_noise",), ("--only", "loop"), "soak_minutes"),
    },
    "security": {
        "canaries": Harness("tests/security/canaries.py", ("canaries_found",), of="canaries_sinks"),
        "hosts": Harness(
            "tests/helpers/bypasses.py",
            ("web_bypasses_past_the_guard",),
            of="web_bypasses_that_work_without_the_guard",
        ),
        "attacks": Harness("tests/security/dojo.py", ("agentdojo_attack_success_guarded",), of="agentdojo_cases"),
    },
}
PROMISED: Mapping[str, float | None] = {
    "ledger_duplicates": 0.0,
    "kills_lost": 0.0,
    "commits_errors": 0.0,
    "grid_hangs": 0.0,
    "grid_rewards_of_faults": 0.0,
    "grid_wrong_trees": 0.0,
    "planted_bugs_caught": None,
    "fault_gradient_shift_over_noise": None,
    "fuzz_tracebacks": 0.0,
    "canaries_found": 0.0,
    "web_bypasses_past_the_guard": 0.0,
    "soak_slopes_above_noise": 0.0,
}
"""The figures that the page of promises names first, and what each must be; None where the harness judges it."""
MAY_FALL_SHORT = frozenset({"soak_slopes_above_noise"})
"""What a busy machine can move: such a figure may be published short of its promise if the page says so by name."""


def work(harness: Harness, quick: bool, root: Path = ROOT, size: str = "") -> dict[str, Any]:
    """{"figures", "seconds", "trouble"} of one run, and its "size" if given; `trouble` is empty where all went well."""
    if not (root / harness.path).is_file():
        return {"figures": {}, "seconds": 0.0, "trouble": f"there is no {harness.path}"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="treewright-trust-") as folder:
        out = Path(folder) / "figures.json"
        sized = [*harness.words, *(["--quick"] if quick else []), *shlex.split(size)]
        line = [sys.executable, "-P", harness.path, *sized, "--json", str(out)]
        paths = [str(root / "tests" / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        try:
            done = subprocess.run(line, cwd=root, env=own, timeout=PATIENCE[quick], check=False)
            trouble = "" if done.returncode == 0 else f"{harness.path} ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            trouble = f"{harness.path} did not end within {PATIENCE[quick]:.0f} s"
        figures = _read(out)
    missing = [name for name in harness.owes if name not in figures]
    if missing:
        trouble = f"{trouble + '; ' if trouble else ''}{harness.path} gave no {', '.join(missing)}"
    done_as = {"figures": figures, "seconds": round(time.monotonic() - began, 1), "trouble": trouble}
    return done_as | ({"size": size} if size else {})


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Figures of a harness's file by name; a bare number is one without a unit."""
    try:
        found = json.loads(path.read_text("utf-8"))
        figures = dict(found.get("figures", found))  # or flat: nothing but counts
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    plain = {k: {"value": v, "unit": "1"} for k, v in figures.items() if isinstance(v, int | float)}
    return plain | {k: v for k, v in figures.items() if isinstance(v, dict) and "value" in v}


def wrong(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Promised figures that are another value than they must be, one line each."""
    return [
        f"{name} = {figures[name]['value']:g}, promised {must:g}"
        for name, must in PROMISED.items()
        if must is not None and name in figures and figures[name]["value"] != must
    ]


def unsaid(page: str, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Promises not kept that the page does not name under `NOT_KEPT`, or that no page may excuse."""
    said = page.partition(NOT_KEPT)[2].partition("\n## ")[0]
    short = [(line.partition(" = ")[0], line) for line in wrong(figures)]
    return [line for name, line in short if name not in MAY_FALL_SHORT or f"`{name}`" not in said]


def merged(before: Mapping[str, Any], part: str, runs: Mapping[str, Mapping[str, Any]], quick: bool) -> dict[str, Any]:
    """The file with this part's runs put in the place of those that ran; others stay."""
    from treewright.agent.runs.figures import commit, hardware, versions

    made = {"hardware": hardware(), "versions": versions(), "commit": commit(), "quick": quick}
    harnesses = {**before.get("harnesses", {})}
    for name, run in runs.items():
        harnesses[name] = {"part": part, **made, **run}
    figures: dict[str, Any] = {}
    for run in harnesses.values():
        for name, figure in run["figures"].items():
            # What several harnesses count is counted together.
            figures[name] = {**figure, "value": figure["value"] + figures.get(name, {}).get("value", 0.0)}
    return {"figures": dict(sorted(figures.items())), "harnesses": harnesses}


def table(found: Mapping[str, Any]) -> str:
    """The promised figures as Markdown rows, with the size of the run that gave each."""
    owed = [(name, part, key) for part, all_ in HARNESSES.items() for key, h in all_.items() for name in h.owes]
    rows = ["| figure | value | of | harness | run |", "|---|---:|---:|---|---|"]
    for name, part, key in owed:
        run = found["harnesses"].get(key, {})
        figure = run.get("figures", {}).get(name)
        value = f"{figure['value']:,.4g}" if figure else "not measured"
        must = PROMISED.get(name)
        value += f" (promised {must:g})" if figure and must is not None and figure["value"] != must else ""
        size = "not run" if not run else "a tenth or less" if run["quick"] else "full"
        size = f"`{run['size']}`" if run.get("size") else size
        shown = f"`make {part} ONLY={key}`"
        much = run.get("figures", {}).get(HARNESSES[part][key].of)
        words = HARNESSES[part][key].of.replace("_", " ")
        of = f"{much['value']:,.0f} {much['unit'] if much['unit'] != '1' else words}" if much else ""
        rows.append(f"| `{name}` | {value} | {of} | {shown} | {size}{'; failed' if run.get('trouble') else ''} |")
    return "\n".join(rows)


NOT_KEPT = "\n## Not kept\n"
BEGIN, END = "<!-- figures of trust.json -->", "<!-- end of figures -->"


def rewritten(page: str, found: Mapping[str, Any]) -> str:
    """The page with its table of figures made anew."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(HARNESSES))
    parser.add_argument("--quick", action="store_true", help="a tenth or less of each")
    parser.add_argument("--json", type=Path, help="docs/trust.json, or runs/trust-quick.json with --quick")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these harnesses alone")
    parser.add_argument("--size", default="", metavar="WORDS", help="options for the one harness of --only")
    asked = parser.parse_args(words)
    chosen = HARNESSES[asked.part]
    if asked.size and len(asked.only or ()) != 1:
        parser.error("--size goes with one harness; name it by --only NAME")
    if unknown := set(asked.only or ()) - set(chosen):
        parser.error(f"no harness {', '.join(sorted(unknown))}; known: {', '.join(chosen)}")
    path = asked.json or (QUICK if asked.quick else FULL)
    runs: dict[str, dict[str, Any]] = {}
    for name in asked.only or chosen:
        print(f"== {name}: {chosen[name].path}", flush=True)
        runs[name] = work(chosen[name], asked.quick, size=asked.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text("utf-8")) if path.exists() else {}  # another run may have written
        found = merged(before, asked.part, {name: runs[name]}, asked.quick)  # after each: a later one may take hours
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    page = ROOT / "docs" / "trust.md"
    if path.resolve() == FULL.resolve():
        page.write_text(rewritten(page.read_text("utf-8"), found), "utf-8")
    print(f"\n{table(found)}\n\n{path}")
    troubles = [f"{name}: {run['trouble']}" for name, run in runs.items() if run["trouble"]]
    troubles += wrong(found["figures"])
    for trouble in troubles:
        print(f"NOT SHOWN: {trouble}", file=sys.stderr)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
