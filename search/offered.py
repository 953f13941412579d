"""Whether stored trees are of the tasks that are offered: an id alone does not say so.

A tree is found again by its run, the suite's name and the task's id. Own worlds share one name, and the lines of a
tasks file may change under their ids. What is compared is what the store keeps of a task: goal, data, truth, seed,
horizon and split; and what world and reward are called, where both sides know it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.secrecy import MASK
from treewright.envs.types import Task
from treewright.search.header import TreeHeader, tree_name
from treewright.search.settings import Keeper

__all__ = ["ORIGIN", "differences", "refuse_other", "refuse_others"]

ORIGIN = "origin"  # among a header's settings: what world and reward are called
SHOWN = 60  # characters of a value that a message shows
Offered = tuple[Task, int, Mapping[str, str]]
"""A task, the attempt at it, and what its suite knows of its origin."""


def refuse_others(store: Keeper, run: str, offered: Iterable[Offered]) -> None:
    """Nothing where each tree that is stored for what is offered is one of that very task, or has no result.

    Raises TreewrightError naming the first of the others, what differs and what to type.
    """
    others: list[tuple[Task, str]] = []
    for task, attempt, origin in offered:
        name = tree_name(run, task, attempt)
        if (status := store.status(name)) is None or not (told := differences(store.header(name), task, origin)):
            continue
        if status == "done" and store.load(name).lost:
            continue  # faults left it without a result, and what was mended may be the task
        others.append((task, told))
    if others:
        raise _refused(store, run, others)


def refuse_other(store: Keeper, stored: TreeHeader, offered: TreeHeader) -> None:
    """Raises TreewrightError where a stored tree is one of another task than the tree of the same id to be grown."""
    if told := differences(stored, offered.task, offered.settings.get(ORIGIN)):
        raise _refused(store, offered.run, [(offered.task, told)])


def _refused(store: Keeper, run: str, others: Sequence[tuple[Task, str]]) -> TreewrightError:
    task, told = others[0]
    more, these = (f" (and {len(others) - 1} more)", "these tasks") if len(others) > 1 else ("", "the task")
    return TreewrightError(
        f"task {task.suite}/{task.id} of run {run!r}{more} is stored as another task: {told}; take another --name, "
        f"give {these} ids not used before, or delete what is stored: {_deleting(store, run, [t for t, _ in others])}"
    )


def differences(stored: TreeHeader, task: Task, origin: Mapping[str, str] | None) -> str:
    """In words, what differs between the task of a stored tree and one of the same id; "" where nothing does."""
    told = []
    then = stored.settings.get(ORIGIN) or {}
    for name, now in (origin or {}).items():
        if name in then and not _same(then[name], now):
            told.append(_told(name, then[name], now))
    for name in ("goal", "data", "truth", "seed", "horizon", "split"):
        before, now = getattr(stored.task, name), getattr(task, name)
        if before != now and not _same(_text(before), _text(now)):
            told.append(f"its {name} differs" if name in ("data", "truth") else _told(name, before, now))
    return ", ".join(told)


def _told(name: str, before: Any, now: Any) -> str:
    shown = [value if len(value := repr(one)) <= SHOWN else f"{value[:SHOWN]}…" for one in (before, now)]
    return f"its {name} was {shown[0]} and is {shown[1]} now" if shown[0] != shown[1] else f"its {name} differs"


def _text(value: Any) -> str:
    """As a store gives it back: tuples as lists, keys as strings."""

    def plain(other: Any) -> Any:
        return dict(other) if isinstance(other, Mapping) else str(other)

    return json.dumps(json.loads(json.dumps(value, default=plain)), sort_keys=True, ensure_ascii=False)


def _same(stored: str, offered: str) -> bool:
    """Equal, but for secrets, which a store masks."""
    if MASK not in stored:
        return stored == offered
    return re.fullmatch(".*".join(map(re.escape, stored.split(MASK))), offered, re.DOTALL) is not None


def _deleting(store: Keeper, run: str, tasks: list[Task]) -> str:
    """The line that deletes the trees of a task, or of the suite where there are several."""
    held = {"run": run, "suite": tasks[0].suite}
    if len({task.id for task in tasks}) == 1:
        held["task_id"] = tasks[0].id
    where = [word for name, value in held.items() for word in ("--where", f"{name}={_value(value)}")]
    return shlex.join(["treewright", "store", "delete", str(getattr(store, "name", "STORE")), *where, "--yes"])


def _value(text: str) -> str:
    """A value as a filter reads it: in quotes where it would be read as JSON."""
    try:
        json.loads(text)
    except ValueError:
        return text if text == text.strip() else json.dumps(text)
    return json.dumps(text)
