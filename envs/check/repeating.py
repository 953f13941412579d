"""The same actions again: in another session, after a reset, beside another session, to the end."""

from __future__ import annotations

from treewright.envs.check.kit import Kit, Skip, Violated, clause, play, play_as_recorded
from treewright.envs.errors import InvalidAction
from treewright.envs.types import Restore, Turn, seed_of


@clause("reset gives the same observation for the same task and key, also after steps")
async def _reset_deterministic(kit: Kit) -> None:
    async with kit.started() as (env, first):
        kit.same(env, first, kit.first, "another session")
        await play(env, kit.script[:1])
        kit.same(env, await env.reset(kit.task, kit.key), kit.first, "the same session, after a step")


@clause("the same state, action and key give the same result")
async def _step_deterministic(kit: Kit) -> None:
    kit.needs_repeatable_steps()
    async with kit.started() as (env, _):
        once = await play(env, kit.script)
        await env.reset(kit.task, kit.key)
        for move, before in zip(kit.script, once, strict=True):
            kit.same_result(env, await env.step(move.action, move.key), before, f"second time, {move.action}")


@clause("the recorded actions and keys, taken again in a fresh session, lead through the same states")
async def _replay(kit: Kit) -> None:
    if Restore.REPLAY not in kit.ways:
        raise Skip("REPLAY is not declared")
    kit.needs_repeatable_steps()
    async with kit.started() as (env, _):
        await play_as_recorded(kit, env, kit.script, "replay")


@clause("a sandboxed session is not touched by what another one does")
async def _sandboxed(kit: Kit) -> None:
    if not kit.sandboxed:
        raise Skip("the world is live")
    kit.needs_repeatable_steps()
    async with kit.started() as (env, _), kit.started() as (other, _):
        for move in kit.script:
            await env.step(move.action, move.key)
        await play_as_recorded(kit, other, kit.script, "beside another session")


@clause("an ended episode stays ended")
async def _ended(kit: Kit) -> None:
    kit.needs_repeatable_steps()
    if not kit.script[-1].result.terminated:
        raise Skip("the script does not reach an end")
    async with kit.started() as (env, _):
        await play(env, kit.script)
        for move in kit.script:
            try:
                result = await env.step(move.action, move.key)
            except InvalidAction:
                continue
            if not result.terminated:
                raise Violated(f"{move.action} was executed after the end")


@clause("close can be called twice, and on a session that was never used")
async def _close_twice(kit: Kit) -> None:
    async with kit.started() as (env, _):
        await env.close()
        await env.close()
    async with kit.session() as unused:
        await unused.close()


@clause("the oracle ends the episode within the task's horizon")
async def _horizon(kit: Kit) -> None:
    if kit.oracle is None:
        raise Skip("no oracle given")
    async with kit.started() as (env, shown):
        history = [Turn(None, shown)]
        for index in range(kit.task.horizon):
            action = kit.oracle(kit.task, history, await env.actions())
            if not kit.may_execute(await env.effect(action)):
                raise Skip(f"{action} needs a commit in this live world")
            result = await env.step(action, seed_of(kit.key, index))
            history.append(Turn(action, result.observation))
            if result.terminated or result.truncated:
                return
    raise Violated(f"no end after {kit.task.horizon} actions")
