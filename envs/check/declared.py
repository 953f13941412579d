"""What a world says of itself: ways back, tools, observations, rewards, and that it holds no loop up."""

from __future__ import annotations

import math

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from treewright.envs.check import kit as kits
from treewright.envs.check.kit import Kit, Skip, Violated, clause
from treewright.envs.types import Restore


@clause("restore_ways is a non-empty frozenset of Restore, and NONE stands alone")
async def _declared_ways(kit: Kit) -> None:
    if not isinstance(kit.ways, frozenset) or not kit.ways or not all(isinstance(w, Restore) for w in kit.ways):
        raise Violated(f"restore_ways is {kit.ways!r}")
    if Restore.NONE in kit.ways and len(kit.ways) > 1:
        raise Violated(f"restore_ways is {sorted(kit.ways)}; NONE means no other way")


@clause("a world with FORK also declares STATE or REPLAY, since forks die with the process")
async def _fork_is_durable(kit: Kit) -> None:
    if Restore.FORK not in kit.ways:
        raise Skip("FORK is not declared")
    if not kit.ways & {Restore.STATE, Restore.REPLAY}:
        raise Violated("only FORK is declared")


@clause("a stochastic world does not declare REPLAY")
async def _stochastic_without_replay(kit: Kit) -> None:
    if kit.stochastic and Restore.REPLAY in kit.ways:
        raise Violated("stochastic is True and REPLAY is declared")


@clause("observations carry text, a fingerprint and a provenance")
async def _observations(kit: Kit) -> None:
    for shown in [kit.first, *(move.result.observation for move in kit.script)]:
        if not isinstance(shown.text, str) or not shown.fingerprint or not shown.provenance:
            raise Violated(f"{shown!r}")


@clause("a reward is a finite number, or NaN where it is unknown")
async def _rewards(kit: Kit) -> None:
    for move in kit.script:
        if not isinstance(move.result.reward, (int, float)) or math.isinf(move.result.reward):
            raise Violated(f"{move.action}: reward {move.result.reward!r}")


@clause("tools have distinct names and valid JSON schemas for an object of arguments")
async def _schemas(kit: Kit) -> None:
    for specs in kit.specs:
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise Violated(f"a name stands twice: {sorted(names)}")
        for spec in specs:
            try:
                Draft202012Validator.check_schema(dict(spec.parameters))
            except SchemaError as error:
                raise Violated(f"{spec.name}: {error.message}") from error
            if spec.parameters.get("type", "object") != "object":
                raise Violated(f"{spec.name}: arguments are of type {spec.parameters['type']!r}, not 'object'")


@clause("no call keeps the event loop to itself")
async def _event_loop(kit: Kit) -> None:
    if kit.longest_block > kits.BLOCK_LIMIT:
        raise Violated(f"the loop stood still for {kit.longest_block:.1f} s, more than {kits.BLOCK_LIMIT} s")
