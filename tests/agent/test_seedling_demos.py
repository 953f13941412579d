"""The noisy demonstrator: how often it errs, how it recovers, and what renaming leaves alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from treewright.agent.seedling.demos import Bank, Demo, DemoStep, Noise, collect_demos, load_demos, renamed, save_demos
from treewright.envs.retrieval.kg import ENTITIES, RELATIONS, SUITE
from treewright.search.screen import parse_action, validate_action


async def demos(rate: float, count: int = 150, seed: int = 0) -> list[Any]:
    bank = Bank()
    tasks = SUITE.tasks("train", count)
    _ = [d async for d in collect_demos(SUITE, tasks[:50], Noise(rate=0.0), 99, bank)]
    return [d async for d in collect_demos(SUITE, tasks, Noise(rate=rate), seed, bank)]


async def test_without_noise_every_step_is_the_oracles() -> None:
    found = await demos(0.0)
    assert all(step.right for demo in found for step in demo.steps)
    assert 0.6 < sum(demo.reward for demo in found) / len(found) < 0.9  # look-ups lie now and then


async def test_the_share_of_other_actions_is_the_rate() -> None:
    steps = [step for demo in await demos(0.35) for step in demo.steps]
    wrong = sum(not step.right for step in steps) / len(steps)
    assert 0.28 < wrong < 0.42


async def test_other_actions_are_well_formed_and_the_oracle_goes_on_after_them() -> None:
    env: Any = await SUITE.open()
    found = await demos(0.5)
    for step in (step for demo in found for step in demo.steps):
        action = parse_action(step.action, env.tools)
        validate_action(action, env.tools)
        assert set(action.arguments.values()) <= {*ENTITIES, *RELATIONS}
    assert any(demo.reward and not all(s.right for s in demo.steps) for demo in found)
    await env.close()


async def test_the_same_seed_gives_the_same_demonstrations_and_another_one_does_not() -> None:
    assert await demos(0.3, 20, seed=1) == await demos(0.3, 20, seed=1)
    assert await demos(0.3, 20, seed=1) != await demos(0.3, 20, seed=2)


async def test_saved_demonstrations_come_back(tmp_path: Path) -> None:
    found = await demos(0.3, 10)
    assert save_demos(tmp_path / "a" / "kg.jsonl", found) == 10
    assert list(load_demos(tmp_path / "a" / "kg.jsonl")) == found


def test_renaming_is_the_same_in_every_text_of_an_episode_and_keeps_the_frame() -> None:
    steps = (
        DemoStep('read {"doc": "zip.Bad"}', "zip.Bad: class. base err.Worse. about Bad", True),
        DemoStep('answer {"text": "err.Worse"}', "done", True),
    )
    demo = Demo("stdlib", "t", "take zip.Bad, then base. what is it ?", "ready", steps, 1.0)
    other = renamed(demo, ["alpha", "beta"], {"zip"}, random.Random(3))
    page = other.steps[0].observation
    bad = page.partition(":")[0].removeprefix("zip.")
    worse = other.steps[1].action.removeprefix('answer {"text": "').removesuffix('"}')
    assert bad != "Bad" and worse != "err.Worse"
    assert other.goal == f"take zip.{bad}, then base. what is it ?"
    assert other.steps[0].action == f'read {{"doc": "zip.{bad}"}}'
    assert page == f"zip.{bad}: class. base {worse}. about {bad}"
