"""Trees for many tasks at once: sessions shared by pool, draws batched by the policy, every expansion stored."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from treewright.agent.config import Config
from treewright.agent.runs.anew import AGAIN
from treewright.envs.errors import TreewrightError
from treewright.envs.naming import import_named
from treewright.envs.registry import names
from treewright.envs.registry import suite as find_suite
from treewright.envs.types import Suite, Task
from treewright.envs.waiting import together
from treewright.search.engine import Keeper, Settings, search
from treewright.search.evidence import Evidence
from treewright.search.header import tree_name
from treewright.search.offered import refuse_others
from treewright.search.restore import Pool
from treewright.search.rules import Rule
from treewright.search.settings import MAX_TOKENS
from treewright.search.store.errors import StoreLost
from treewright.search.tree import Tree
from treewright.search.types import Budget, Evaluator, Proposer

__all__ = [
    "UNLIMITED",
    "Failure",
    "World",
    "collect",
    "open_worlds",
    "refuse_stored",
    "settings_in",
    "suites_of",
    "tokens_for",
]

log = logging.getLogger("treewright")

UNLIMITED = 1 << 30
"""`Settings.max_tokens` where the user set none: the task's suite says how long a draw may be."""


@dataclass(frozen=True, slots=True)
class World:
    """A suite with its pool of sessions."""

    suite: Suite
    pool: Pool


@dataclass(frozen=True, slots=True)
class Failure:
    """A task for which not even a root could be had, and why. The run goes on without it."""

    task: Task
    why: str


def _site(cfg: Config, name: str) -> Suite:
    """A site of one's own, with what the configuration says of it."""
    from treewright.envs.web.own_site import web_suite

    w = cfg.worlds
    given = {"same_page": w.same_page or None, "tasks": w.tasks_file, "reward": w.reward}
    return web_suite(name.removeprefix("web:"), {**w.web, **{k: v for k, v in given.items() if v is not None}})


def _agents(cfg: Config, name: str) -> Suite:
    """An agent's command with the tasks of a file."""
    from treewright.agent.gateway.agents import agent_suite
    from treewright.envs.custom import custom_suite

    suite = agent_suite(name.removeprefix("agent:"), **cfg.worlds.agent)
    if cfg.worlds.tasks_file is None:
        suite.tasks("train", 1)  # says how tasks are given
        return suite
    return custom_suite("agent", cfg.worlds.tasks_file, suite, cfg.worlds.reward)


def tokens_for(suite: Suite, wanted: int) -> int:
    """Most tokens of one draw: what the user wants; where that is UNLIMITED, what one action of the suite needs."""
    return (suite.max_tokens or MAX_TOKENS) if wanted == UNLIMITED else wanted


def settings_in(suite: Suite, settings: Settings) -> Settings:
    """The settings as a suite completes them: how long a draw may be, and what its world and reward are called."""
    tokens = tokens_for(suite, settings.max_tokens)
    return replace(settings, max_tokens=tokens, origin=dict(suite.origin) or None)


def refuse_stored(store: Keeper, run: str, work: Iterable[tuple[Task, int]], worlds: Mapping[str, World]) -> None:
    """Raises TreewrightError where a run's stored trees are of other tasks than those to be grown, or of other worlds.

    work  tasks, each with its attempt
    """
    refuse_others(store, run, ((task, attempt, worlds[task.suite].suite.origin) for task, attempt in work))


def suites_of(cfg: Config) -> list[Suite]:
    """The suites of the configuration, looked up before anything slow is opened; own tasks or questions are `own`."""
    found = _suites(cfg)
    if not cfg.worlds.digest:
        return found
    from treewright.agent.runs.digesting import Digester, with_digest

    reader = Digester(cfg.policy.spec if cfg.worlds.digest == "policy" else cfg.worlds.digest)
    return [with_digest(suite, reader) for suite in found]


def _suites(cfg: Config) -> list[Suite]:
    w = cfg.worlds
    _import_first(cfg.policy.spec, w.reward)
    if w.questions is not None:
        from treewright.envs.retrieval.opening import open_suite

        given = {"retriever": w.retriever, "encoder": w.encoder, "stemming": w.stemming}
        return [open_suite("own", questions=w.questions, corpus=w.corpus, reward=w.grading, **given)]
    if w.corpus is not None:
        raise TreewrightError("a corpus alone has no tasks: name a question file too, --questions FILE.jsonl")
    if not w.suites:
        raise TreewrightError(f"no suite is named; write --suites NAME,NAME of {', '.join(names())}")
    if len(w.suites) == 1 and w.suites[0].startswith("agent:"):
        return [_agents(cfg, w.suites[0])]
    if w.tasks_file is None or all(name.startswith("web:") for name in w.suites):
        return [_site(cfg, name) if name.startswith("web:") else find_suite(name) for name in w.suites]
    from treewright.envs.custom import custom_suite

    if len(w.suites) != 1:
        raise TreewrightError(
            f"own tasks ({w.tasks_file}) need exactly one world: --suites NAME or --suites MODULE:CLASS, not "
            f"{', '.join(w.suites)}"
        )
    return [custom_suite("own", w.tasks_file, w.suites[0], w.reward)]


def _import_first(policy: str, reward: str | None) -> None:
    """Imports the user's modules, since one may register what a suite names (a Gymnasium environment, say)."""
    kind, _, named = policy.partition(":")
    for spec in (named if kind in ("scripted", "langgraph") else "", reward or ""):
        if module := spec.partition(":")[0]:
            with suppress(Exception):  # told by whoever needs the module, with its place
                import_named(module)


@asynccontextmanager
async def open_worlds(
    suites: Sequence[str | Suite], sessions: int | None = None, deadline: float = 60.0
) -> AsyncIterator[dict[str, World]]:
    """Pools for the suites, by name; all sessions and what they share are closed at the end.

    sessions  how many each suite may open; None leaves it to the suite
    deadline  seconds of one call, or what the suite's slowest takes, where that is longer
    """
    found = [s if isinstance(s, Suite) else find_suite(s) for s in suites]
    pools = ((s, max(deadline, s.slowest or 0.0)) for s in found)
    worlds = {s.name: World(s, Pool(s.open, sessions or s.sessions, most, around=s.around)) for s, most in pools}
    try:
        yield worlds
    finally:
        for suite in found:
            for line in suite.told() if suite.told is not None else ():
                log.warning("%s: %s", suite.name, line)
        await asyncio.gather(*(w.pool.close() for w in worlds.values()), return_exceptions=True)
        await asyncio.gather(*(s.close() for s in found if s.close is not None), return_exceptions=True)


async def collect(
    tasks: Sequence[Task],
    worlds: Mapping[str, World],
    policy: Proposer,
    *,
    rule: Rule,
    budget: Budget,
    settings: Settings,
    evaluator: Evaluator | None = None,
    evidence: Evidence | None = None,
    store: Keeper | None = None,
    concurrency: int = 64,
    on_tree: Callable[[Tree | Failure], None] | None = None,
    rounds: Sequence[int] | None = None,
    anew: bool = True,
) -> list[Tree]:
    """One tree for each task, in the order of the tasks; tasks that failed at the root are logged and left out.

    A task that is there several times is attempted as often, by trees of their own: `settings.attempt` and those after.
    `rounds` says of each task how often it was given in batches before this one, which counts alike.
    A draw is as long as settings.max_tokens says; where that is UNLIMITED, as the task's suite suggests. Trees found
    finished in `store` are not grown again; where faults left such a tree without a result, and `anew`, another one is
    grown in its place.
    Raises TreewrightError if a task's suite has no world, before anything is grown if the run's stored trees are of
    other tasks, or if every single task failed, and StoreLost at once where the store cannot be written any more.
    """
    for task in tasks:
        if task.suite not in worlds:
            raise TreewrightError(f"task {task.id!r} belongs to suite {task.suite!r}; opened: {', '.join(worlds)}")
    gate = asyncio.Semaphore(concurrency)
    before: Counter[tuple[str, str]] = Counter()

    async def one(task: Task, again: int) -> Tree | Failure:
        world = worlds[task.suite]
        own = replace(settings_in(world.suite, settings), attempt=settings.attempt + again)
        async with gate:
            try:
                while True:
                    found = store is not None and store.status(tree_name(own.run, task, own.attempt)) == "done"
                    tree = await search(
                        task,
                        world.pool,
                        policy,
                        rule=rule,
                        evaluator=evaluator,
                        budget=budget,
                        settings=own,
                        store=store,
                        evidence=evidence,
                    )
                    if not (anew and found and tree.lost):
                        break
                    own = replace(own, attempt=own.attempt + AGAIN)
                done: Tree | Failure = tree
            except StoreLost:
                raise  # no other tree can be kept either
            except TreewrightError as error:
                log.warning("task %s/%s failed: %s", task.suite, task.id, error)
                done = Failure(task, f"{type(error).__name__}: {error}")
        if on_tree is not None:
            on_tree(done)
        return done

    work: list[tuple[Task, int]] = []
    for task, earlier in zip(tasks, rounds or [0] * len(tasks), strict=True):
        work.append((task, earlier + before[task.suite, task.id]))
        before[task.suite, task.id] += 1
    if store is not None:
        refuse_stored(store, settings.run, ((task, settings.attempt + again) for task, again in work), worlds)
    results = await together(one(task, again) for task, again in work)
    trees = [r for r in results if isinstance(r, Tree)]
    if results and not trees:
        first = next(r for r in results if isinstance(r, Failure))
        raise TreewrightError(f"all {len(results)} tasks failed; the first with {first.why}")
    return trees
