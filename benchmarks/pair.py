"""`treewright bench pair OLD NEW`: two builds on the same machine, in turns A B A B, as ratios with intervals.

A build is a folder with a checkout, or a commit of the repository that this one runs from. Both run with this
interpreter and its packages; each turn is a process of its own. What they give must be equal before anything is timed.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table

from treewright.agent.policies.prompts import template_for
from treewright.agent.runs.figures import commit, hardware, versions, write_result
from treewright.benchmarks.pair_work import MODEL, POSTGRES, PROMPTED, PROMPTS
from treewright.benchmarks.unpaired import UNPAIRED, Unpaired
from treewright.envs import suite
from treewright.envs.errors import TreewrightError
from treewright.envs.fetched import is_whole, known_folder

__all__ = ["BEFORE", "WORKLOADS", "Workload", "check", "checkout", "keep", "main", "ratio_of", "slower"]

BEFORE: Final = "6f1348a"
"""The last commit before 0.2.0 was begun."""
SCRIPT, ROOT = Path(__file__).with_name("pair_work.py"), Path(__file__).resolve().parents[1]
DRAWS, LIMIT = 2000, 900.0  # resamples of a bootstrap; seconds that one turn may take
WORSE = 1.2  # times the committed ratio, which is worth a failure
REAL = ("loop", "nodes")  # works that need a real model
CHECKED, CHECK_ROUNDS = ("engine_1e3", "langgraph", "config"), 3


@dataclass(frozen=True, slots=True)
class Workload:
    """name   of its figure: NAME_vs_before
    work   in `pair_work`, at `size`, or `small` in a quick run
    unit   of the costs;  whole: the processor time of the whole process is the cost, as the system counts it
    rounds  turns of each build
    heavy  left out of a quick run that does not name it
    says   what is measured, for the page
    """

    name: str
    work: str
    size: int
    small: int
    unit: str
    says: str
    whole: bool = False
    rounds: int = 5
    heavy: bool = False


WORKLOADS: Final = (
    Workload("engine_1e3", "engine", 1_000, 300, "µs/node", "engine, maze, scripted policy, store; 1e3 nodes"),
    Workload("engine", "engine", 10_000, 1_000, "µs/node", "the same, 1e4 nodes"),
    Workload("engine_1e5", "engine", 100_000, 2_000, "µs/node", "the same, 1e5 nodes", rounds=3),
    Workload("engine_growing", "growing", 10_000, 1_000, "µs/node", "prompts that grow with the path, 1e4 nodes"),
    Workload(
        "langgraph",
        "langgraph",
        400,
        100,
        "µs/expansion",
        "an expansion through the LangGraph episode, above the engine",
    ),
    Workload("run_start", "run", 0, 0, "s", "`treewright run kg/3`, the search included", whole=True),
    Workload("help", "help", 0, 0, "s", "`treewright --help`", whole=True),
    Workload("config", "config", 0, 0, "s", "`treewright config`", whole=True),
    Workload(
        "sqlite", "sqlite", 200_000, 2_000, "µs/row", "SQLite, bulk load, 200 tokens a node, wall clock", rounds=3
    ),
    Workload(
        "postgres",
        "postgres",
        100_000,
        2_000,
        "µs/row",
        "PostgreSQL, bulk load, 200 tokens each, wall clock",
        rounds=3,
    ),
    Workload("arrays", "arrays", 200_000, 2_000, "s", "`store.arrays` of 200,000 nodes", rounds=3),
    Workload("viewer", "viewer", 100_000, 2_000, "s", "the viewer's server on a tree of 100,000 nodes", rounds=3),
    Workload(
        "hf",
        "hf",
        64,
        4,
        "µs/token",
        "`hf:`, 8 draws of 64 tokens over a new prompt of 1,000, wall clock",
        rounds=3,
        heavy=True,
    ),
    Workload("hf_known", "hf_known", 64, 4, "µs/token", "the same, the prompt known", rounds=3, heavy=True),
    Workload(
        "hf_episodes", "episodes", 24, 4, "µs/token", "`hf:`, 24 episodes at once whose prompts grow, wall clock",
        rounds=3, heavy=True,
    ),
    Workload(
        "hf_nodes", "nodes", 24, 2, "µs/token", "`hf:`, a real model, 8 draws at each of 24 nodes, wall clock",
        rounds=3, heavy=True,
    ),
    Workload(
        "loop_135m", "loop", 2, 1, "GB", "most resident memory of a loop's round, SmolLM2-135M, packs of 1,024 tokens",
        rounds=2, heavy=True,
    ),
)  # fmt: skip


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    *,
    between: Sequence[str] = (),
    only: Sequence[str] | None = None,
    rounds: int | None = None,
) -> dict[str, Any]:
    """{"figures": {NAME_vs_before: ratio}, "pairs": {NAME: costs, ratio, interval}, "old", "new", "unpaired", "quick"}.

    between  OLD and NEW, folders or commits; the commit before 0.2.0 and this checkout where they are not given
    only     workloads by a part of their names; a result at `json_path` keeps those that are not measured now, and
             the pairs of a quick run, which CI is compared with, stand there as "small". What is measured without a
             build before (`unpaired`) is left out of a quick run that does not name it, and not kept of any
    Raises TreewrightError where the builds disagree, where one fails, and for names that are not there.
    """
    console = Console(emoji=False)
    if len(between) > 2:
        raise TreewrightError(
            f"bench pair compares two builds, {len(between)} were named: treewright bench pair OLD NEW"
        )
    if plot_path is not None:
        console.print("bench pair draws no plot; --plot is ignored")
    if quick:
        console.print("quick run: small sizes; its ratios are not the published ones")
    chosen = [w for w in WORKLOADS if (any(part in w.name for part in only) if only else not (quick and w.heavy))]
    alone = [u for u in UNPAIRED if (any(part in u.name for part in only) if only else not quick)]
    if not chosen and not alone:
        raise TreewrightError(f"no workload is called {(only or [''])[0]!r}; there are "
                              f"{', '.join(w.name for w in (*WORKLOADS, *UNPAIRED))}")  # fmt: skip
    if POSTGRES not in os.environ and any(w.work == "postgres" for w in chosen):
        console.print(f"postgres is left out: name a server in {POSTGRES}")
        chosen = [w for w in chosen if w.work != "postgres"]
    if (real := [w for w in chosen if w.work in REAL]) and MODEL not in os.environ:
        if is_whole(folder := known_folder("smollm2")):
            os.environ[MODEL] = str(folder)
        else:
            for w in real:
                console.print(f"{w.name} is left out: type treewright model fetch smollm2, or name a folder in {MODEL}")
            chosen = [w for w in chosen if w.work not in REAL]
    old, new = (*between, *(BEFORE, str(ROOT))[len(between) :])
    pairs: dict[str, dict[str, Any]] = {}
    figures: dict[str, dict[str, Any]] = {}
    others = _alone(alone, quick, None if json_path is None or quick else Path(json_path), console)
    if not chosen:
        return {"quick": quick, "pairs": {}, "unpaired": others, "figures": {}}
    with checkout(old) as first, checkout(new) as second, _prompts(chosen):
        builds = {"old": _named(first, old), "new": _named(second, new)}
        for workload in chosen:
            found = _paired(workload, (first, second), quick, rounds)
            found = pairs[workload.name] = {**found, "new": builds["new"]}
            figures[f"{workload.name}_vs_before"] = {"value": found["ratio"], "unit": "x"}
            console.print(_row(workload.name, found), markup=False, highlight=False)
            if json_path is not None:  # at once: what was measured is there whatever comes next
                part = {**builds, "pairs": pairs}
                keep(Path(json_path), {"small": part} if quick else {**part, "figures": figures})
    console.print(_table({**builds, "pairs": pairs}))
    return {**builds, "quick": quick, "pairs": pairs, "unpaired": others, "figures": figures}


@contextmanager
def _prompts(chosen: Sequence[Workload]) -> Iterator[None]:
    """Lists the tokens of an agent's first prompts for both builds, where a workload needs them."""
    if not any(w.work == "nodes" for w in chosen):
        yield
        return
    most = max(w.size for w in chosen if w.work == "nodes")
    listed = json.dumps(asyncio.run(first_prompts(os.environ[MODEL], os.environ.get(PROMPTED, "kg"), most)))
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {PROMPTS: str(Path(folder, "prompts.json"))}):
        Path(os.environ[PROMPTS]).write_text(listed)
        yield


async def first_prompts(model: str, name: str, count: int) -> list[tuple[int, ...]]:
    """Tokens of the first prompts of a suite's training tasks, for the model in that folder."""
    from transformers import AutoTokenizer

    template = template_for(AutoTokenizer.from_pretrained(model))
    source = suite(name)
    found, env = [], await source.open()
    try:
        for task in source.tasks("train", count):
            first = await env.reset(task, 0)
            found.append(template.context(task, await env.actions(), first, (), ()).ids)
    finally:
        await env.close()
    return found


def _alone(chosen: Sequence[Unpaired], quick: bool, path: Path | None, console: Console) -> dict[str, dict[str, Any]]:
    """{NAME: says, goal, commit, figures} of what has no build before, put into the result at `path` at once."""
    found: dict[str, dict[str, Any]] = {}
    for part in chosen:
        figures = {name: {"value": value, "unit": unit} for name, (value, unit) in part.measure(quick).items()}
        found[part.name] = {"says": part.says, "goal": part.goal, "commit": commit(), "figures": figures}
        for name, one in figures.items():
            console.print(f"{part.name}/{name}: {one['value']:.4g} {one['unit']}", markup=False, highlight=False)
        if path is not None:
            keep(path, {"unpaired": found})
    return found


def keep(path: Path, part: Mapping[str, Any]) -> None:
    """Puts what was measured into a result, beside what is there of other parts; `quick` says that it has no full run.

    Pairs with another OLD go: their ratios mean something else. Those of another NEW say of which.
    """
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "small" in part and before.get("small", part["small"])["old"] == part["small"]["old"]:
        part = {
            "small": {**part["small"], "pairs": {**before.get("small", {}).get("pairs", {}), **part["small"]["pairs"]}}
        }
    if "pairs" in part and before.get("old", part["old"]) == part["old"]:
        earlier = {name: {"new": before["new"], **pair} for name, pair in before.get("pairs", {}).items()}
        part = {**part, "pairs": {**earlier, **part["pairs"]}}
    given = {"axes": {}, "figures": {}} | before
    for name in ("axes", "figures", "unpaired"):
        part = {**part, name: {**given.get(name, {}), **part.get(name, {})}}
    result = {**before, **part, "hardware": hardware(), "versions": versions()}
    result.pop("commit", None)  # which is given anew
    write_result(path, {**result, "quick": "pairs" not in result})


# -- builds ------------------------------------------------------------------------------------------------------------


@contextmanager
def checkout(name: str) -> Iterator[Path]:
    """The folder of a build; a commit is unpacked for as long as it lasts.

    Raises TreewrightError for what is neither, such as a commit that a shallow clone does not have.
    """
    if (Path(name) / "pkg" / "treewright").is_dir():
        yield Path(name).resolve()
        return
    if Path(name).exists():
        raise TreewrightError(f"{name} is no checkout of treewright: there is no pkg/treewright in it")
    with tempfile.TemporaryDirectory(prefix="treewright-pair-") as folder:
        archive = Path(folder) / "build.tar"
        made = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "-o", str(archive), name], capture_output=True, text=True, check=False
        )
        if made.returncode:
            why = made.stderr.strip().splitlines()[-1:] or ["git failed"]
            raise TreewrightError(
                f"there is no build {name} here ({why[0]}): name a folder with a checkout, or, in a clone without "
                "history, type git fetch --unshallow"
            )
        subprocess.run(["tar", "-x", "-f", str(archive), "-C", folder], check=True)
        archive.unlink()
        yield Path(folder)


def _named(folder: Path, name: str) -> str:
    """The commit of a build: of a folder its newest one, with '+' where files differ."""
    if not (folder / ".git").exists():
        found = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short=12", f"{name}^{{commit}}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return found.stdout.strip() or name
    said = [
        subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    return said[0] + ("+" if said[1] else "")


# -- turns -------------------------------------------------------------------------------------------------------------


def _paired(workload: Workload, builds: tuple[Path, Path], quick: bool, rounds: int | None) -> dict[str, Any]:
    size, count = (workload.small, 2) if quick else (workload.size, workload.rounds)
    costs: tuple[list[float], list[float]] = ([], [])
    digests: set[str] = set()
    for _ in range(rounds or count):
        for build, taken in zip(builds, costs, strict=True):
            cost, digest = _turn(workload, build, size)
            taken.append(cost)
            digests.add(digest)
            if len(digests) > 1:
                raise TreewrightError(f"{workload.name}: the builds give different results; nothing is reported")
    ratio, low, high = ratio_of(*costs)
    before, after = map(statistics.median, costs)
    return {
        "before": before, "after": after, "unit": workload.unit, "ratio": ratio, "low": low, "high": high,
        "rounds": len(costs[0]), "size": size, "says": workload.says,
    }  # fmt: skip


def _turn(workload: Workload, build: Path, size: int) -> tuple[float, str]:
    """Cost and digest of one run. Raises TreewrightError with the last words of one that fails."""
    path = os.pathsep.join([str(build / "pkg")])
    own = {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(prefix="treewright-pair-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(SCRIPT), workload.work, str(size)], cwd=folder, env={**os.environ, **own},
                capture_output=True, text=True, timeout=LIMIT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TreewrightError(f"{workload.name} took more than {LIMIT:.0f} s in {build}") from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise TreewrightError(f"{workload.name} failed in {build}:\n{last}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent if workload.whole else float(told["cost"]), str(told["digest"])


def ratio_of(old: Sequence[float], new: Sequence[float]) -> tuple[float, float, float]:
    """Median of new over old, turn by turn, and its 95 % interval by the bootstrap over turns; below 1 is faster."""
    ratios = np.asarray(new) / np.asarray(old)
    drawn = np.random.default_rng(0).integers(0, len(ratios), (DRAWS, len(ratios)))
    middles = np.median(ratios[drawn], axis=1)
    low, high = np.percentile(middles, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def slower(
    committed: Mapping[str, Mapping[str, Any]], fresh: Mapping[str, Mapping[str, Any]], by: float = WORSE
) -> list[str]:
    """Names of the pairs whose fresh ratio is more than `by` times the committed one, its whole interval above that."""
    return [
        name
        for name, pair in fresh.items()
        if name in committed
        and pair["ratio"] > by * committed[name]["ratio"]
        and pair["low"] > committed[name]["ratio"]
    ]


def check(path: Path, measure: Callable[[Sequence[str]], Mapping[str, Any]] | None = None) -> None:
    """Pairs a few workloads at small size with the committed ones, a second time where one fell behind.

    Says so and ends well where the old build is not there, as in a clone without history. Raises TreewrightError for
    workloads that were more than 20 % behind twice in a row.
    """
    committed: dict[str, Any] = json.loads(path.read_text())["small"]

    def pairs(only: Sequence[str]) -> Mapping[str, Any]:
        return main(True, between=(committed["old"],), only=only, rounds=CHECK_ROUNDS)["pairs"]  # type: ignore[no-any-return]

    if measure is None:
        old = f"{committed['old'].removesuffix('+')}^{{commit}}"
        there = subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", old], capture_output=True, check=False)
        if there.returncode:
            print(f"left out: this clone has no commit {committed['old']}; type git fetch --unshallow for the pairing")
            return
    measure, behind = measure or pairs, list(CHECKED)
    for _ in range(2):
        behind = slower(committed["pairs"], measure(behind))
        if not behind:
            return
    raise TreewrightError(
        f"more than 20 % behind {path.name}, twice in a row: {', '.join(behind)}; where that is meant, measure anew: "
        f"treewright bench pair --quick --json {path}"
    )


# -- showing -----------------------------------------------------------------------------------------------------------


def _row(name: str, pair: Mapping[str, Any]) -> str:
    return (
        f"{name}: {pair['before']:.4g} → {pair['after']:.4g} {pair['unit']}, "
        f"{pair['ratio']:.3f} [{pair['low']:.3f}, {pair['high']:.3f}]"
    )


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"{result['old']} → {result['new']}", title_justify="left")
    for column in ("workload", "before", "after", "unit", "ratio", "95 %"):
        table.add_column(column, justify="left" if column in ("workload", "unit") else "right")
    for name, pair in result["pairs"].items():
        table.add_row(
            name, f"{pair['before']:.4g}", f"{pair['after']:.4g}", pair["unit"], f"{pair['ratio']:.3f}",
            f"{pair['low']:.3f} – {pair['high']:.3f}",
        )  # fmt: skip
    return table
