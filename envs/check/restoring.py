"""Snapshots: of a declared kind, exact, and good for another session."""

from __future__ import annotations

from collections.abc import Callable

from treewright.envs.check.kit import Kit, Move, Skip, Violated, clause, play
from treewright.envs.errors import RestoreUnsupported
from treewright.envs.types import Effect, Observation, Restore, Snapshot


async def _snapshots(kit: Kit) -> list[tuple[Snapshot, Observation]]:
    """A snapshot at the start and after each action, with what was seen there."""
    kit.needs_snapshots()
    if kit.kept:
        return kit.kept
    async with kit.started() as (env, shown):
        found = [(await env.snapshot(), shown)]
        for move in kit.repeatable:
            shown = (await env.step(move.action, move.key)).observation
            found.append((await env.snapshot(), shown))
    kit.kept = found
    return found


@clause("snapshot is of a declared kind and has the fingerprint seen there; without a kind it is RestoreUnsupported")
async def _snapshot_declared(kit: Kit) -> None:
    if not kit.ways & {Restore.FORK, Restore.STATE}:
        async with kit.started() as (env, _):
            try:
                await env.snapshot()
            except RestoreUnsupported:
                return
            raise Violated("snapshot() works, but neither FORK nor STATE is declared")
    for snapshot, shown in await _snapshots(kit):
        if snapshot.kind not in kit.ways & {Restore.FORK, Restore.STATE}:
            raise Violated(f"the snapshot is {snapshot.kind}, declared are {sorted(kit.ways)}")
        if snapshot.fingerprint != shown.fingerprint:
            raise Violated(f"its fingerprint is {snapshot.fingerprint!r}, seen was {shown.fingerprint!r}")


@clause("a STATE snapshot is bytes")
async def _state_is_bytes(kit: Kit) -> None:
    if Restore.STATE not in kit.ways:
        raise Skip("STATE is not declared")
    for snapshot, _ in await _snapshots(kit):
        if snapshot.kind is Restore.STATE and not isinstance(snapshot.data, bytes):
            raise Violated(f"its data is {type(snapshot.data).__name__}")


async def _probe(kit: Kit, wanted: Callable[[Move], bool], what: str) -> None:
    """Snapshot, act, restore: is everything as before the action?"""
    async with kit.started() as (env, shown):
        for move in kit.repeatable:
            snapshot = await env.snapshot()
            result = await env.step(move.action, move.key)
            if wanted(move):
                kit.same(env, await env.restore(snapshot), shown, f"{what}, back before {move.action}")
                result = await env.step(move.action, move.key)
            shown = result.observation


@clause("restore returns to the fingerprint and observation of the snapshot")
async def _restore_exact(kit: Kit) -> None:
    kit.needs_snapshots()
    await _probe(kit, lambda move: move.effect is not Effect.READ, "restore")


@clause("going back to before a READ gives what was there before it, so READ moves nothing but attention")
async def _read_only(kit: Kit) -> None:
    reads = [i for i, move in enumerate(kit.script) if move.effect is Effect.READ]
    if not reads:
        raise Skip("the script has no READ action")
    if kit.ways & {Restore.FORK, Restore.STATE}:
        await _probe(kit, lambda move: move.effect is Effect.READ, "READ")
    else:
        kit.needs_repeatable_steps()
        async with kit.started() as (env, _):
            for i in reads:
                before = (kit.script[i - 1].result.observation if i else kit.first).fingerprint
                await play(env, kit.script[: i + 1])
                shown = await env.reset(kit.task, kit.key)
                for result in await play(env, kit.script[:i]):
                    shown = result.observation
                if shown.fingerprint != before:
                    raise Violated(f"after {kit.script[i].action} a replay to before it finds another state")
                await env.reset(kit.task, kit.key)


@clause("after a restore the later steps are those that followed the first time")
async def _restore_continues(kit: Kit) -> None:
    kit.needs_snapshots()
    kit.needs_repeatable_steps()
    async with kit.started() as (env, _):
        start = await env.snapshot()
        once = await play(env, kit.script)
        await env.restore(start)
        for move, before in zip(kit.script, once, strict=True):
            kit.same_result(env, await env.step(move.action, move.key), before, f"after a restore, {move.action}")


@clause("a snapshot can be restored in another session that was reset to the task")
async def _restore_elsewhere(kit: Kit) -> None:
    kit.needs_snapshots()
    half = len(kit.repeatable) // 2
    async with kit.started() as (env, shown), kit.started() as (other, _):
        for move in kit.script[:half]:
            shown = (await env.step(move.action, move.key)).observation
        kit.same(other, await other.restore(await env.snapshot()), shown, "another session")
        if not kit.stochastic:
            for move in kit.script[half:]:
                here = await env.step(move.action, move.key)
                kit.same_result(other, await other.step(move.action, move.key), here, f"another session, {move.action}")


@clause("a STATE snapshot outlives its session: its bytes alone bring a later one back")
async def _state_round_trip(kit: Kit) -> None:
    if Restore.STATE not in kit.ways:
        raise Skip("STATE is not declared")
    half = (len(kit.repeatable) + 1) // 2
    async with kit.started() as (env, shown):
        for move in kit.script[:half]:
            shown = (await env.step(move.action, move.key)).observation
        kept = await env.snapshot()
    if kept.kind is not Restore.STATE or not isinstance(kept.data, bytes):
        raise Skip("snapshot() gives no STATE bytes")
    copy = Snapshot(Restore.STATE, bytes(bytearray(kept.data)), kept.fingerprint, size=kept.size)
    async with kit.started() as (later, _):
        kit.same(later, await later.restore(copy), shown, "a later session")
