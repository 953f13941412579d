"""A taskset of verifiers as a suite; against the package itself where it is installed whole, else a stand-in."""

import importlib.util
import sys

import pytest

from treewright.envs import Action, TreewrightError, suite
from treewright.envs.check import check_env

REAL = all(importlib.util.find_spec(name) is not None for name in ("verifiers", "pydantic_config", "math_verify"))


@pytest.fixture(autouse=True)
def package(monkeypatch):
    if not REAL:
        import verifiers_stand_in

        verifiers_stand_in.install(monkeypatch)
    monkeypatch.delitem(sys.modules, "shop_taskset", raising=False)
    yield
    sys.modules.pop("shop_taskset", None)


async def test_tools_state_and_rewards_of_a_taskset_carry_over():
    found = suite("verifiers:shop_taskset:taskset")
    (first, second), (third,) = found.tasks("train", 9), found.tasks("test", 9)
    assert [t.goal.split()[1] for t in (first, second, third)] == ["tea", "milk", "rice"]
    env = await found.open()
    await env.reset(first, 0)
    assert [s.name for s in await env.actions()] == ["add", "list_cart", "done"]
    start = await env.snapshot()
    assert (await env.step(Action.of("add", item="tea"), 0)).observation.text == "1 items"
    assert (await env.step(Action.of("done", answer="bought"), 0)).reward == 1.0
    await env.restore(start)
    assert (await env.step(Action.of("list_cart"), 0)).observation.text == "[]"
    assert (await env.step(Action.of("done", answer="bought"), 0)).reward == 0.25


async def test_it_keeps_the_contract():
    plan = [Action.of("add", item="tea"), Action.of("list_cart"), Action.of("done", answer="bought")]
    found = suite("verifiers:shop_taskset:taskset")
    report = await check_env(found.open, found.tasks("train", 1), oracle=lambda t, h, s: plan[len(h) - 1])
    report.raise_if_failed()


def test_what_is_no_taskset_is_named():
    with pytest.raises(TreewrightError, match="is a dict, not a verifiers Taskset"):
        suite("verifiers:shop_taskset:__dict__")
    with pytest.raises(TreewrightError, match="did you mean 'taskset'"):
        suite("verifiers:shop_taskset:tasket")
