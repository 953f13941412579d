"""Who lets an action that cannot be undone through: nobody, a person at the terminal, or a function."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace

from treewright.envs.custom import load_named
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Task

__all__ = ["Approval", "Approve", "approves", "open_approval"]

Approval = Callable[[Task, Action], bool | Awaitable[bool]]
Approve = str | Approval
"""'never' refuses everything; 'ask' asks on the terminal; 'module:function' or a function (task, action) -> bool.
Only True approves: any other value, however true it looks, refuses."""


def open_approval(approve: Approve) -> Approval:
    """The function behind 'never', 'ask', 'module:function' or a function. Raises TreewrightError for anything else."""
    if callable(approve):
        return approve
    if approve == "never":
        return lambda task, action: False
    if approve == "ask":
        if not sys.stdin.isatty():
            raise TreewrightError("nobody can be asked: standard input is no terminal; use approve='module:function'")
        return _ask
    if not isinstance(approve, str) or ":" not in approve:
        raise TreewrightError(f"approve = {approve!r}; it must be 'never', 'ask', 'module:function' or a function")
    found = load_named(approve, "approve")
    if not callable(found):
        raise TreewrightError(
            f"approve = {approve!r} is a {type(found).__name__}, not a function (task, action) -> bool"
        )
    return found  # type: ignore[no-any-return]


async def approves(allowed: Approval, task: Task, action: Action) -> bool:
    """Asks about a copy, so that the one who answers cannot change what is done."""
    answer = allowed(replace(task, truth={}), Action.from_key(action.key))
    return (await answer if inspect.isawaitable(answer) else answer) is True


async def _ask(task: Task, action: Action) -> bool:
    """Shows the exact action as ASCII JSON, where no escape sequence can hide anything, and reads an answer."""
    shown = json.dumps(json.loads(action.key), indent=2, sort_keys=True)
    print(f"\nTask {json.dumps(task.goal)} wants to do this, and it cannot be undone:\n{shown}")
    answer = await asyncio.to_thread(input, "Do it? Type yes to allow: ")
    return answer.strip() == "yes"
