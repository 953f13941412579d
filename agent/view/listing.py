"""The list of a store's trees: what narrows it, what sorts it, and where a search found its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import Connection, bindparam, case, false, func, or_, select

from treewright.agent.view.finding import Finder, Hit, goal_of, terms_of
from treewright.agent.view.weights import Weights
from treewright.envs.errors import TreewrightError
from treewright.search.store.models import expansions, trees
from treewright.search.store.reading import Blobs, TreeRow, list_trees
from treewright.search.store.values import escape

__all__ = ["SORTS", "Filters", "Listing", "list_page", "where_of"]

NAMES = (trees.c.run, trees.c.suite, trees.c.task_id, trees.c.policy_version, trees.c.id)
NAMED = 500  # weights of runs that a word may mean, and that are sorted by their steps


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list is narrowed by; None and '' let everything pass.

    text            words, or "phrases in quotes", each of which stands somewhere in a tree: in its run, suite, task,
                    policy version or id, its goal, or what was said, done, observed or went wrong in it
    policy_version  a version, or the step that the run's checkpoints call it by ('step 12')
    success         True solved, False done and not solved
    """

    text: str = ""
    suite: str | None = None
    split: str | None = None
    run: str | None = None
    policy_version: str | None = None
    status: str | None = None
    task_id: str | None = None
    success: bool | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of the list: rows with the goals of their tasks, and counts over everything that matches.

    hits     tree id → where it shows what was looked for; nothing for trees that were found by their names alone
    indexed  share of trees whose texts were looked through; the rest was found by its names
    """

    rows: Sequence[tuple[TreeRow, str]]
    total: int
    done: int
    solved: int
    hits: Mapping[str, Hit] = field(default_factory=dict)
    indexed: float = 1.0


def where_of(filters: Filters, finder: Finder | None, weights: Weights) -> list[Any]:
    """Conditions on `trees`. Without a finder the words are looked for in names only."""
    plain = ("text", "success", "policy_version")
    named = {f.name: getattr(filters, f.name) for f in fields(filters) if f.name not in plain}
    found: list[Any] = [trees.c[name] == escape(value) for name, value in named.items() if value]
    if filters.policy_version:
        called = [filters.policy_version, *weights.versions(filters.policy_version, whole=True)]
        found.append(trees.c.policy_version.in_([escape(version) for version in called]))
    if filters.success is not None:
        found.append(trees.c.success.is_(filters.success))
    for term in terms_of(filters.text):
        places = [column.icontains(escape(term), autoescape=True) for column in NAMES]
        if called := weights.versions(term):
            places.append(trees.c.policy_version.in_(called[:NAMED]))
        if finder is not None:
            places.append(_one_of(finder.trees_with(term)))
        found.append(or_(*places))
    return found


def _one_of(keys: set[int]) -> Any:
    if not keys:
        return false()
    return trees.c.key.in_(bindparam(None, sorted(keys), expanding=True, literal_execute=True))


def _size(done: Any, growing: Any) -> Any:
    """A column of finished trees, or for the others a sum over their expansions."""
    mine = expansions.c.tree == trees.c.key
    return case((trees.c.status == "done", done), else_=select(func.coalesce(growing, 0)).where(mine).scalar_subquery())


def _spent(*names: str) -> Any:
    done = sum((func.coalesce(trees.c[f"spent_{name}"], 0) for name in names[1:]), trees.c[f"spent_{names[0]}"])
    each = sum((func.coalesce(expansions.c[f"spent_{n}"], 0) for n in names[1:]), expansions.c[f"spent_{names[0]}"])
    return _size(done, func.sum(each))


SORTS: Mapping[str, tuple[Any, ...]] = {
    "sign": (trees.c.success,),
    "task": (trees.c.suite, trees.c.task_id, trees.c.attempt),
    "goal": (),  # by the texts, see `_by_goal`
    "status": (trees.c.status,),
    "outcome": (trees.c.outcome,),
    "nodes": (_size(trees.c.count, 1 + func.sum(expansions.c.drafts)),),
    "expansions": (_spent("expansions"),),
    "tokens": (_spent("policy_tokens", "closing_tokens"),),
    "steps": (_spent("env_steps", "closing_steps"),),
    "exact": (case((trees.c.status != "done", None), (trees.c.reasons == "[]", 1), else_=0),),
    "version": (trees.c.policy_version,),
    "run": (trees.c.run,),
    "begun": (trees.c.created,),
}
"""What the columns of the list sort by."""


def list_page(
    connection: Connection,
    where: Sequence[Any],
    limit: int,
    offset: int,
    sort: str,
    goals: dict[str, str],
    weights: Weights,
) -> tuple[list[tuple[TreeRow, str]], dict[int, str], tuple[int, int, int]]:
    """A page: rows with goals, the keys of their trees, and how many trees there are, are done, are solved.

    sort   a key of SORTS, with '-' before it from high to low; '' newest first. What is not known comes last
    goals  goals by the digest of their task, kept between calls
    """
    count = select(func.count(), func.count(trees.c.success), func.count().filter(trees.c.success.is_(True)))
    total, done, solved = connection.execute(count.where(*where)).one()
    query = select(trees.c.key, trees.c.id, trees.c.task).where(*where)
    found = _page(connection, query, limit, offset, sort, goals, weights)
    rows = {r.tree_id: r for r in list_trees(connection, [trees.c.key.in_([key for key, _, _ in found])])}
    read = _goals(connection, {task for _, _, task in found}, goals)
    keys = {key: name for key, name, _ in found}
    return [(rows[name], read[task]) for _, name, task in found], keys, (total, done, solved)


def _page(
    connection: Connection, query: Any, limit: int, offset: int, sort: str, goals: dict[str, str], weights: Weights
) -> list[Any]:
    name, down = sort.removeprefix("-"), sort.startswith("-")
    if name and name not in SORTS:
        raise TreewrightError(f"the list does not sort by {name!r}; it sorts by {', '.join(SORTS)}")
    if name == "goal":
        return _by_goal(connection, query, down, goals)[offset : offset + limit]
    known = weights.order()[:NAMED] if name == "version" else []
    ranks = [case({escape(v): i for i, v in enumerate(known)}, value=trees.c.policy_version)] if known else []
    columns = [(c.desc() if down else c.asc()).nulls_last() for c in (*ranks, *SORTS.get(name, ()))]
    page = query.order_by(*columns, trees.c.key.desc()).limit(limit).offset(offset)
    return list(connection.execute(page).all())


def _by_goal(connection: Connection, query: Any, down: bool, goals: dict[str, str]) -> list[Any]:
    """Goals are contents beside the table, most of them shared by many trees."""
    found = list(connection.execute(query.order_by(trees.c.key.desc())).all())
    read = _goals(connection, {row.task for row in found}, goals)
    return sorted(found, key=lambda row: read[row.task].casefold(), reverse=down)


def _goals(connection: Connection, tasks: set[str], goals: dict[str, str]) -> dict[str, str]:
    fetch = Blobs(connection)
    for task in tasks - goals.keys():
        goals[task] = goal_of(fetch(task))
    return goals
