"""The beginning of a search: the header that names its tree, a reset, or what a store has of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from treewright.envs.errors import EnvFault, TreewrightError
from treewright.envs.types import Observation, Task
from treewright.search.evidence import Evidence
from treewright.search.expand import Expander
from treewright.search.header import TreeHeader
from treewright.search.offered import ORIGIN, refuse_other
from treewright.search.past import Past
from treewright.search.rules import Rule
from treewright.search.settings import REPAIRS, Keeper, Settings
from treewright.search.tree import Tree
from treewright.search.types import Budget, Expansion, NodeStatus, Outcome, Proposer, Sampler, layers

__all__ = ["finished", "first_outcome", "header_of", "resumed"]


def header_of(
    task: Task,
    policy: Proposer,
    rule: Rule,
    budget: Budget,
    settings: Settings,
    seed: int,
    evidence: Evidence | None,
    continues: tuple[str, int] | None,
    past: Past | None = None,
) -> TreeHeader:
    """The header of the tree that a search grows, its root still to come: equal for equal searches."""
    kept = {**asdict(settings), "rule": rule.name, "budget": asdict(budget)}
    kept["width"] = kept.pop("in_flight")  # as it was called when the first trees were stored
    if settings.repairs == REPAIRS:
        del kept["repairs"]  # trees begun before there were repairs have no such setting
    for name in ("share_results", "peers"):
        if not kept[name]:
            del kept[name]
    if settings.merge:
        del kept["merge"]
    for name in ("segments", "temperature_by_depth", ORIGIN):
        if kept[name] is None:
            del kept[name]
    if settings.stop == "budget":
        del kept["stop"]
    if evidence is not None:
        kept["evidence"] = evidence.name
    sampler = next((p for p in layers(policy) if isinstance(p, Sampler)), None)
    if sampler is not None and sampler.sampling:
        kept["sampling"] = sampler.sampling  # how draws differ from plain ones at temperature 1
    return TreeHeader(
        run=settings.run,
        task=task,
        attempt=settings.attempt,
        seed=seed,
        policy_version=policy.version,
        settings=kept,
        root=Outcome(observation=Observation(text=""), status=NodeStatus.OPEN),
        continues=continues,
        past=past if past is None else past.to(policy.version),
    )


def resumed(store: Keeper, header: TreeHeader, version: str) -> tuple[Tree, Sequence[Expansion]]:
    """The tree as it was begun, and the expansions that the store has of it.

    Raises TreewrightError naming the settings that have changed since, or what differs between the tasks.
    """
    stored = store.header(header.tree_id)
    refuse_other(store, stored, header)
    keys = sorted({*stored.settings, *header.settings} - {ORIGIN})
    if changed := [k for k in keys if stored.settings.get(k) != header.settings.get(k)]:
        raise TreewrightError(
            f"cannot resume tree {stored.tree_id}: {', '.join(changed)} changed since it was begun; "
            "use the stored settings or another run name"
        )
    tree = Tree.start(stored)
    if stored.policy_version != version:
        tree.inexact(f"resumed with policy {version}, begun with {stored.policy_version}")
    return tree, store.expansions(stored.tree_id)


def finished(store: Keeper, header: TreeHeader) -> Tree:
    """The tree as it was finished. Raises TreewrightError where that is one of another task, and has a result."""
    tree = store.load(header.tree_id)
    if not tree.lost:
        refuse_other(store, tree.header, header)
    return tree


async def first_outcome(work: Expander) -> Outcome:
    """What reset gives, tried again in other sessions; a fault that lasts is the outcome then."""
    fault = ""
    for _ in range(work.retries + 1):
        try:
            async with work.pool.lease(work.tree.tree_id) as session:
                try:
                    return await work.reset(session)
                except EnvFault as error:
                    fault = f"{type(error).__name__}: {error}"
                    await work.pool.replace(session)
        except EnvFault as error:  # not even a new session could be had
            fault = f"{type(error).__name__}: {error}"
    return Outcome(
        observation=Observation(text=fault, fingerprint="", provenance="error"),
        status=NodeStatus.FAULT,
        reward=math.nan,
        fault=fault,
    )
