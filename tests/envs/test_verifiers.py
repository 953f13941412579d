"""A taskset of verifiers as a suite; against the package itself where it is installed whole, else a stand-in."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest

from treewright.envs import Action, TreewrightError, suite
from treewright.envs.check import check_env

REAL = all(importlib.util.find_spec(name) is not None for name in ("verifiers", "pydantic_config", "math_verify"))


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not REAL:
        import verifiers_stand_in

        verifiers_stand_in.install(monkeypatch)
    for name in ("shop_taskset", "odd_tasksets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("shop_taskset", "odd_tasksets"):
        sys.modules.pop(name, None)


async def test_tools_state_and_rewards_of_a_taskset_carry_over() -> None:
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


async def test_a_verifiers_taskset_passes_the_conformance_kit() -> None:
    plan = [Action.of("add", item="tea"), Action.of("list_cart"), Action.of("done", answer="bought")]
    found = suite("verifiers:shop_taskset:taskset")
    report = await check_env(found.open, found.tasks("train", 1), oracle=lambda t, h, s: plan[len(h) - 1])
    report.raise_if_failed()


def test_what_is_no_taskset_is_named() -> None:
    with pytest.raises(TreewrightError, match="is a dict, not a verifiers Taskset"):
        suite("verifiers:shop_taskset:__dict__")
    with pytest.raises(TreewrightError, match="did you mean 'taskset'"):
        suite("verifiers:shop_taskset:tasket")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("by_runtime", r"ByRuntime: reward ran\(\) takes a runtime, which does not exist here"),
        ("by_setup", r"BySetup\.setup\(\) runs around a rollout"),
        ("by_finalize", r"ByFinalize\.finalize\(\) runs around a rollout"),
        ("in_container", "InContainer needs a container"),
        ("unjudged", "Unjudged has no reward: nothing would ever be right"),
    ],
)
def test_rewards_that_cannot_be_computed_here_are_refused_on_opening_by_name(name: str, said: str) -> None:
    with pytest.raises(TreewrightError, match=said):
        suite(f"verifiers:odd_tasksets:{name}")


@pytest.mark.parametrize("name", ["maybe_runtime", "by_results"])
async def test_right_answers_are_worth_what_their_rewards_say(name: str) -> None:
    found = suite(f"verifiers:odd_tasksets:{name}")
    (task,) = found.tasks("train", 1)
    env = await found.open()
    await env.reset(task, 0)
    start = await env.snapshot()
    for calls, worth in ((("add", "list_cart"), 1.0), ((), 0.0), (("add", "list_cart"), 1.0)):
        await env.restore(start)
        for i, call in enumerate(calls):
            await env.step(Action.of(call, **({"item": "tea"} if call == "add" else {})), i)
        assert (await env.step(Action.of("done", answer="bought"), 9)).reward == worth
