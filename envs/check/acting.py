"""Actions that are only judged, or that cannot be executed."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

from treewright.envs.check.kit import UNKNOWN_TOOL, Kit, Move, Violated, clause
from treewright.envs.errors import InvalidAction
from treewright.envs.types import Action, Call, Effect, ToolSpec


@clause("effect() judges without doing anything")
async def _effect_harmless(kit: Kit) -> None:
    kit.needs_repeatable_steps()
    async with kit.started() as (env, _):
        for move in kit.script:
            for action in (move.action, UNKNOWN_TOOL):
                found = await env.effect(action)
                if not isinstance(found, Effect):
                    raise Violated(f"effect({action}) is {found!r}")
            result = await env.step(move.action, move.key)
            kit.same_result(env, result, move.result, f"after effect(), {move.action}")


def _invalid(move: Move) -> list[Action]:
    return [UNKNOWN_TOOL, Action(()), Action((*move.action.calls, *UNKNOWN_TOOL.calls))]


@clause("an action that cannot be executed raises InvalidAction")
async def _invalid_raises(kit: Kit) -> None:
    async with kit.started() as (env, _):
        for action in _invalid(kit.script[0]) if kit.script else [UNKNOWN_TOOL, Action(())]:
            try:
                await env.step(action, 0)
            except InvalidAction:
                continue
            except Exception as error:
                raise Violated(f"{action or 'no call'}: {error!r}") from error
            raise Violated(f"{action.key}: was executed")


@clause("an invalid action leaves the state unchanged")
async def _invalid_harmless(kit: Kit) -> None:
    kit.needs_repeatable_steps()
    async with kit.started() as (env, _):
        for move in kit.script:
            for action in _invalid(move):
                with contextlib.suppress(Exception):  # which exception it is has a clause of its own
                    await env.step(action, 0)
            result = await env.step(move.action, move.key)
            kit.same_result(env, result, move.result, f"after an invalid action, {move.action}")


@clause("whatever the arguments, step raises nothing but InvalidAction")
async def _only_our_errors(kit: Kit) -> None:
    async with kit.started() as (env, _):
        for spec in kit.specs[0] if kit.specs else ():
            if not kit.may_execute(spec.effect):
                continue
            for arguments in _odd_arguments(spec):
                action = Action((Call(spec.name, arguments),))
                try:
                    result = await env.step(action, 0)
                except InvalidAction:
                    continue
                except Exception as error:
                    raise Violated(f"{spec.name} {str(arguments)[:80]}: {error!r}") from error
                if result.terminated or result.truncated:
                    await env.reset(kit.task, kit.key)


def _odd_arguments(spec: ToolSpec) -> Iterator[dict[str, Any]]:
    """Arguments as bad models write them."""
    names = list(spec.parameters.get("properties", {}))
    yield {}
    yield {**{name: "a" for name in names}, "extra": 1}
    odd: list[Any] = [
        None,
        -1,
        10**30,
        1.5,
        math.nan,
        True,
        "",
        "\x00",
        "../" * 40,
        "x" * 5000,
        ["a"],
        {"a": {"b": []}},
    ]
    for name, value in itertools.product(names, odd):
        yield {**{other: "a" for other in names}, name: value}
