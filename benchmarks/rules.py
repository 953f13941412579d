"""Sections of `treewright bench search` about the rules: how much they expand, keep and find.

On the suite `office` the proposer is uniform draws over valid calls, the plan memory is what the oracle does on
training tasks, and the sessions are those without a server. Whether a tree *found* a right path is looked up after the
search, among all its leaves; what it *chose* is judged as in an evaluation. No search sees either.
"""

from __future__ import annotations

import asyncio
import functools
import math
import multiprocessing
import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from treewright.agent.judges.judge import Likelihood
from treewright.agent.judges.plans import PlanLikeness, demonstrated_plans
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.uniform import uniform_calls
from treewright.agent.runs.evaluate import acting_rule
from treewright.envs.errors import TreewrightError
from treewright.envs.registry import suite as find_suite
from treewright.envs.tools.office import MODEL, UNSEEN
from treewright.envs.types import Suite, Task
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import Rule, rule
from treewright.search.rules.ets import node_tokens
from treewright.search.rules.plan_memory import PlanMemory
from treewright.search.tree import Tree
from treewright.search.types import Budget, Evaluator, Proposer

__all__ = [
    "astar_figures",
    "dealt",
    "ets_figures",
    "expansions_to",
    "first_found",
    "kept_tokens",
    "office_memory",
    "on_office",
    "on_office_at_once",
    "rate_of",
    "search_all",
    "table_figures",
    "tokens_of",
    "uniform_on_office",
]

Figures = dict[str, tuple[float, str]]
Made = TypeVar("Made")

SOLVED = 1.0 - 1e-6
DRAWS = 48  # uniform draws at a node: about two thirds of the valid calls
ETS = {"cost_weight": 6.0, "cover_weight": 1.0, "distance": 0.05, "temperature": 0.1, "cover": "weight"}
"""The fewest tokens at no less success than the beam's, by treewright.benchmarks.tune_ets on training tasks."""
MEMORY = 300  # training tasks whose plans are remembered
PROCESSES = os.cpu_count() or 1  # among which the tasks of long runs are dealt out
LONG = 4000  # expansions from which on a run is long


@dataclass(frozen=True, slots=True)
class Found:
    """One tree: at which expansion a right path was there (None: never), whether it was chosen, what was kept."""

    task: Task
    expansions: int | None
    chosen: bool
    kept: int


async def search_all(
    tasks: Sequence[Task],
    pool: Pool,
    policy: Proposer,
    order: Rule,
    budget: Budget,
    evaluator: Evaluator | None,
    at_once: int = 1,
) -> list[Found]:
    gate = asyncio.Semaphore(at_once)

    async def one(task: Task) -> Found:
        async with gate:
            tree = await search(
                task, pool, policy, rule=order, budget=budget, evaluator=evaluator,
                settings=Settings(run="bench", max_tokens=200),
            )  # fmt: skip
        right = tree.chosen is not None and tree.outcome_of(tree.chosen) >= SOLVED
        return Found(task, first_found(tree), right, kept_tokens(tree))

    return list(await asyncio.gather(*(one(task) for task in tasks)))


def first_found(tree: Tree) -> int | None:
    """How many expansions were made when a leaf of full reward was there; None if there is none."""
    right = [tree.born[i] + 1 for i in tree.leaves() if tree.outcome_of(i) >= SOLVED]
    return min(right, default=None)


def kept_tokens(tree: Tree) -> int:
    """Tokens of everything above and in the expanded nodes of each depth, added up over the depths: what a cache that
    holds one layer after the other holds, prefixes once."""
    kept = 0
    for depth in range(1, max(tree.depth) + 1):
        layer = [i for i in range(len(tree)) if tree.depth[i] == depth and tree.drawn[i]]
        above = {j for i in layer for j in tree.path(i)[1:]}
        kept += sum(node_tokens(tree, j) for j in above)
    return kept


def expansions_to(found: Sequence[Found], solved: int) -> float:
    """The least number of expansions a task may have so that `solved` tasks are solved; infinite if never."""
    known = sorted(f.expansions for f in found if f.expansions is not None)
    return float(known[solved - 1]) if 0 < solved <= len(known) else math.inf


def _memory(suite: Suite, count: int) -> PlanMemory:
    if suite.oracle is None:
        return PlanMemory()
    return asyncio.run(demonstrated_plans(suite.tasks("train", count), suite.open, suite.oracle))


@functools.cache
def office_memory() -> PlanMemory:
    """What the oracle does on the first training tasks of the office."""
    return _memory(MODEL, MEMORY)


@functools.cache
def uniform_on_office(tasks: int, expansions: int) -> list[Found]:
    """Uniform cost on the first test tasks of the office: what A* is compared with, measured once."""
    options = {"draws": DRAWS, "root_draws": DRAWS}
    return on_office_at_once(tasks, "uniform_cost", options, expansions, PlanLikeness(office_memory()))


def on_office(
    tasks: int, order: Rule, expansions: int, judge: Evaluator | None, part: slice = slice(None)
) -> list[Found]:
    """The first `tasks` test tasks of the office, or some of them."""

    async def run() -> list[Found]:
        some = MODEL.tasks("test", tasks)[part]
        return await search_all(some, Pool(MODEL.open), uniform_calls, order, Budget(expansions=expansions), judge)

    return asyncio.run(run())


def on_office_at_once(
    tasks: int, name: str, options: Mapping[str, Any], expansions: int, judge: Evaluator | None
) -> list[Found]:
    """The same by a rule of that name, in some processes where it takes long. Trees do not depend on how many."""
    return dealt(_part, tasks, tasks * expansions >= LONG, tasks, name, dict(options), expansions, judge)


def _part(
    part: slice, tasks: int, name: str, options: Mapping[str, Any], expansions: int, judge: Evaluator | None
) -> list[Found]:
    return on_office(tasks, rule(name, **options), expansions, judge, part)


def dealt(work: Callable[..., list[Made]], count: int, long: bool, *given: Any) -> list[Made]:
    """What work(part, *given) gives for each of `count` things, in their order; in some processes where it takes long.

    part  the things that one process works on; `work` is a function of a module
    """
    among = min(PROCESSES, count) if long else 1
    if among == 1:
        return work(slice(None), *given)
    with ProcessPoolExecutor(among, multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(work, slice(i, None, among), *given) for i in range(among)]
        found = [part.result() for part in parts]
    return [found[i % among][i // among] for i in range(count)]


def rate_of(found: Sequence[Found]) -> float:
    return 100 * sum(f.expansions is not None for f in found) / max(len(found), 1)


# -- A* against uniform cost -----------------------------------------------------------------------------------------


def astar_figures(quick: bool) -> Figures:
    """astar_vs_uniform_expansions: at the success that uniform cost reaches within its budget, how many expansions per
    task it needed for that, over how many A* needs.

    All of these go by the memory alone. ..._paired compares the sums over the tasks that both solved, with a
    bootstrap's 95 % interval; ..._at_least those over the tasks that A* solved, where uniform cost counts for its whole
    budget if it did not: it would have needed more. ..._all_plans uses every remembered plan whatever its goal,
    ..._no_memory none; ..._unseen counts kinds of jobs of which no plan was remembered."""
    tasks, budget, flat_budget = (26, 40, 40) if quick else (104, 120, 400)
    memory = office_memory()
    draws = {"draws": DRAWS, "root_draws": DRAWS, "trust": 0.0}
    flat = uniform_on_office(tasks, flat_budget)
    solved = sum(f.expansions is not None for f in flat)
    out: Figures = {
        "office_tasks": (float(tasks), "tasks"),
        "office_plans": (float(len(memory)), "plans"),
        "uniform_budget": (float(flat_budget), "expansions"),
        "astar_budget": (float(budget), "expansions"),
        "uniform_found": (rate_of(flat), "%"),
        "uniform_chosen": (100 * sum(f.chosen for f in flat) / tasks, "%"),
        "uniform_expansions": (expansions_to(flat, solved), "expansions"),
    }
    orders = {"": rule("astar", memory=memory, **draws)}
    if not quick:
        orders |= {
            "_all_plans": rule("astar", memory=memory, nearest=0, **draws),
            "_no_memory": rule("astar", **draws),
        }
    for name, order in orders.items():
        some = tasks // 2 if name else tasks  # ablations: every kind of job twice
        best, base = on_office(some, order, budget, PlanLikeness(memory)), flat[:some]
        goal = sum(f.expansions is not None for f in base)
        needed = expansions_to(best, goal)  # infinite where it never finds as much: no ratio then
        out[f"astar_vs_uniform_expansions{name}"] = (expansions_to(base, goal) / needed or math.nan, "x")
        out[f"astar_found{name}"] = (rate_of(best), "%")
        if name:
            continue
        out["astar_chosen"] = (100 * sum(f.chosen for f in best) / tasks, "%")
        out["astar_expansions"] = (expansions_to(best, solved), "expansions")
        both = [(a.expansions, b.expansions) for a, b in zip(flat, best, strict=True) if a.expansions and b.expansions]
        low, high = _interval(both)
        out["astar_vs_uniform_tasks_paired"] = (float(len(both)), "tasks")
        out["astar_vs_uniform_expansions_paired"] = (_ratio(both), "x")
        out["astar_vs_uniform_expansions_paired_low"] = (low, "x")
        out["astar_vs_uniform_expansions_paired_high"] = (high, "x")
        least = [(a.expansions or flat_budget, b.expansions) for a, b in zip(flat, best, strict=True) if b.expansions]
        out["astar_vs_uniform_expansions_at_least"] = (_ratio(least), "x")
        unseen = [(a, b) for a, b in zip(flat, best, strict=True) if a.task.data["kind"] in UNSEEN]
        out["uniform_found_unseen"] = (rate_of([a for a, _ in unseen]), "%")
        out["astar_plans_found_unseen"] = (rate_of([b for _, b in unseen]), "%")
    return out


def _ratio(pairs: Sequence[tuple[int, int]]) -> float:
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs) if pairs else math.nan


def _interval(pairs: Sequence[tuple[int, int]], samples: int = 2000) -> tuple[float, float]:
    """95 % interval of the ratio of sums, by a bootstrap over tasks; NaN for fewer than two."""
    if len(pairs) < 2:
        return math.nan, math.nan
    rng = random.Random(0)
    ratios = sorted(_ratio(rng.choices(pairs, k=len(pairs))) for _ in range(samples))
    return ratios[round(0.025 * samples)], ratios[round(0.975 * samples) - 1]


# -- ETS against a beam ----------------------------------------------------------------------------------------------


def ets_figures(quick: bool) -> Figures:
    """ets_vs_beam_tokens: kept tokens per task of a beam over those of `ets` at the same width, the widest; it counts
    as reached only if ets_found is at least beam_found at that width. ..._4 and ..._8 say it by width. ..._any_width
    compares the cheapest of each that find as much as the widest beam."""
    tasks, wide = (13, 4) if quick else (104, 8)
    widths = {"beam": [w for w in (1, 2, 4, 8) if w <= wide], "ets": [wide // 2, wide]}
    memory = office_memory()
    draws = {"draws": DRAWS, "root_draws": DRAWS}
    runs: dict[str, dict[int, list[Found]]] = {"beam": {}, "ets": {}}
    out: Figures = {}
    for name, by_width in runs.items():
        for width in widths[name]:
            options = {"width": width, **draws, **(ETS if name == "ets" else {})}
            found = on_office_at_once(tasks, name, options, 200, PlanLikeness(memory))
            by_width[width] = found
            out[f"{name}_found_{width}"] = (rate_of(found), "%")
            out[f"{name}_tokens_{width}"] = (tokens_of(found), "tokens")
    goal = rate_of(runs["beam"][wide])
    cheapest = {
        name: min((tokens_of(f) for f in by_width.values() if rate_of(f) >= goal), default=math.inf)
        for name, by_width in runs.items()
    }
    for width in widths["ets"]:
        out[f"ets_vs_beam_tokens_{width}"] = (tokens_of(runs["beam"][width]) / tokens_of(runs["ets"][width]), "x")
    out["ets_vs_beam_tokens"] = (tokens_of(runs["beam"][wide]) / tokens_of(runs["ets"][wide]), "x")
    if math.isfinite(cheapest["ets"]):  # else no ets finds as much
        out["ets_vs_beam_tokens_any_width"] = (cheapest["beam"] / cheapest["ets"], "x")
    return out


def tokens_of(found: Sequence[Found]) -> float:
    return sum(f.kept for f in found) / max(len(found), 1)


# -- all rules on all suites -----------------------------------------------------------------------------------------

NAMES = ("best_first", "cascade", "astar", "beam", "ets", "uct", "depth_first_critic", "uniform_cost", "chains")


@dataclass(frozen=True, slots=True)
class Setting:
    """One column of the table: suite, tasks, expansions of a tree, draws of a node and of the root, plans learned."""

    suite: Suite
    tasks: int
    expansions: int
    draws: int
    root_draws: int
    plans: int


def _settings(quick: bool) -> list[Setting]:
    """Sizes by what a task takes; the seedling draws in kg, stdlib, workbench and market."""
    scale = 0.2 if quick else 1.0

    def some(count: int) -> int:
        return max(round(count * scale), 2)

    known = [
        Setting(find_suite("kg"), some(40), 10, 2, 4, 100),
        Setting(find_suite("stdlib"), some(40), 10, 2, 4, 100),
        Setting(find_suite("workbench"), some(20), 10, 2, 4, some(50)),
        Setting(find_suite("market"), some(4), 6, 2, 4, 0),
        Setting(MODEL, some(52), 40, DRAWS, DRAWS, MEMORY),
        Setting(find_suite("maze"), some(50), 40, 4, 4, 50),
    ]
    return [s for s in known if _available(s.suite) and not (quick and s.suite.name in ("market", "workbench"))]


def _available(suite: Suite) -> bool:
    try:
        if suite.available is not None:
            suite.available()
    except TreewrightError:
        return False
    return True


def table_figures(quick: bool) -> Figures:
    """table/RULE/SUITE/chosen and …/found in per cent of the tasks; rules share budget, draws, evaluator and seeds.
    A quick run leaves `market` and `workbench` out."""
    out: Figures = {}
    for setting in _settings(quick):
        out.update(asyncio.run(_column(setting)))
    return out


async def _column(setting: Setting) -> Figures:
    suite = setting.suite
    seedling = suite.name in ("kg", "stdlib", "workbench", "market")
    memory = PlanMemory()
    if suite.oracle is not None and setting.plans:
        memory = await demonstrated_plans(suite.tasks("train", setting.plans), suite.open, suite.oracle)
    policy = open_policy("seedling") if seedling else uniform_calls
    judge: Evaluator = Likelihood() if seedling else PlanLikeness(memory)
    at_once = 16 if seedling else 1
    pool = Pool(suite.open, suite.sessions if seedling else 1)
    out: Figures = {}
    try:
        tasks = suite.tasks("test", setting.tasks)
        for name in NAMES:
            order = _order(name, setting, memory, judge)
            found = await search_all(tasks, pool, policy, order, Budget(expansions=setting.expansions), judge, at_once)
            cell = f"table/{name}/{suite.name}"
            out[f"{cell}/chosen"] = (100 * sum(f.chosen for f in found) / len(found), "%")
            out[f"{cell}/found"] = (rate_of(found), "%")
    finally:
        await pool.close()
        if seedling:
            await policy.close()
        if suite.close is not None:
            await suite.close()
    return out


def _order(name: str, setting: Setting, memory: PlanMemory, judge: Evaluator) -> Rule:
    draws: Mapping[str, int] = {"draws": setting.draws, "root_draws": setting.root_draws}
    match name:
        case "chains":
            return rule("chains", draws=setting.root_draws)
        case "best_first":
            return acting_rule(judge, setting.draws, setting.root_draws)
        case "astar":
            return rule("astar", memory=memory, **draws)
        case "beam":
            return rule("beam", width=4, **draws)
        case "ets":
            return rule("ets", width=4, **draws, **ETS)
    return rule(name, **draws)
