"""Gymnasium environments and simulated users as worlds."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from treewright.envs import Action, InvalidAction, Restore, Task, TreewrightError, suite
from treewright.envs.check import check_env
from treewright.envs.tools.user import conversation


async def test_a_gymnasium_environment_is_forked_and_seeded_by_its_task() -> None:
    found = suite("gym:CartPole-v1")
    one, two = found.tasks("train", 2)
    env = await found.open()
    assert env.restore_ways == {Restore.FORK, Restore.REPLAY}
    first = await env.reset(one, 0)
    assert (await env.reset(two, 0)).text != first.text and await env.reset(one, 5) == first
    snapshot = await env.snapshot()
    left = (await env.step(Action.of("act", action=0), 0)).observation
    await env.restore(snapshot)
    right = (await env.step(Action.of("act", action=1), 0)).observation
    await env.restore(snapshot)
    assert (await env.step(Action.of("act", action=0), 0)).observation == left != right
    with pytest.raises(InvalidAction, match="2 is greater than the maximum of 1"):
        await env.step(Action.of("act", action=2), 0)
    await env.close()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "Acrobot-v1"])
async def test_gymnasium_worlds_keep_the_contract(name: str) -> None:
    found = suite(f"gym:{name}")
    report = await check_env(found.open, found.tasks("train", 1))
    report.raise_if_failed()


async def test_gymnasiums_rewards_and_ends_are_the_worlds() -> None:
    found = suite("gym:CartPole-v1")
    env = await found.open()
    await env.reset(found.tasks("test", 1)[0], 0)
    rewards = []
    while True:
        result = await env.step(Action.of("act", action=0), 0)
        rewards.append(result.reward)
        if result.terminated:
            break
    assert rewards == [1.0] * len(rewards) and 5 < len(rewards) < 15
    with pytest.raises(InvalidAction, match="over"):
        await env.step(Action.of("act", action=0), 0)
    await env.close()


def test_an_unknown_gymnasium_environment_is_named() -> None:
    with pytest.raises(TreewrightError, match="CartPol"):
        suite("gym:CartPol-v1")


def waiter(task: Task, said: Any, rng: Random) -> Any:
    """A user who wants what the task says, and tells it when asked; hesitates by chance."""
    if "what" in said[-1][1]:
        return rng.choice(["well, ", "please, ", ""]) + task.truth["wish"]
    return rng.choice(["yes?", "go on"])


def served(end: Any) -> Any:
    wish = end.task.truth["wish"]
    return end.answer == wish and any(who == "user" and wish in text for who, text in end.object.transcript)


TASK = Task("cafe", "tea", "find out what the guest wants and bring it", truth={"wish": "green tea"})
PLAN = [Action.of("say", text="hello"), Action.of("say", text="what?"), Action.of("hang_up", answer="green tea")]


@pytest.mark.parametrize("stochastic", [True, False])
async def test_a_conversation_keeps_the_contract_and_is_judged_by_its_transcript(stochastic: bool) -> None:
    world = conversation(waiter, judge=served, stochastic=stochastic)
    assert (Restore.REPLAY in world.restore_ways) is not stochastic
    report = await check_env(world.open, [TASK], oracle=lambda task, history, tools: PLAN[len(history) - 1])
    report.raise_if_failed()
    await world.reset(TASK, 0)
    for action in PLAN:
        result = await world.step(action, 3)
    assert result.reward == 1.0


async def test_a_user_that_never_repeats_itself_comes_back_by_its_transcript() -> None:
    count = 0

    async def moody(task: Task, said: Any, rng: Random) -> str:
        nonlocal count
        count += 1
        return f"reply {count}"

    world = conversation(moody)
    await world.reset(TASK, 0)
    first = await world.step(PLAN[0], 0)
    snapshot = await world.snapshot()
    await world.step(PLAN[0], 0)
    assert (await world.restore(snapshot)).text == first.observation.text == "reply 1"
    assert (await world.step(PLAN[0], 0)).observation.text == "reply 3"
    assert json.loads((await world.snapshot()).data.partition(b"\n")[2])[1] == ["user", "reply 1"]
