"""Policies made of functions and tables."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from random import Random
from typing import Any

import pytest

from treewright.agent.policies.policy import Policy
from treewright.agent.policies.scripted import END, SLOW, ScriptedPolicy, scripted_choice
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Observation, Task, ToolSpec
from treewright.search.types import Context, Exchange, PolicyFault

TASK = Task("maze", "1", "get out")
START = Observation("a hall")


def at(policy: ScriptedPolicy, *turns: tuple[tuple[int, ...], str], tools: tuple[ToolSpec, ...] = ()) -> Context:
    """The context after `turns` of (response ids, observation), each built on the one before."""
    context = policy.context(TASK, tools, START, (), ())
    told = []
    for ids, seen in turns:
        told.append(Exchange(bytes(ids[:-1]).decode(), Action.of("go"), Observation(seen)))
        context = policy.context(TASK, tools, START, told, context.ids + tuple(ids))
    return context


async def test_a_function_sees_the_task_the_turns_the_tools_and_its_own_random_numbers() -> None:
    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        return f"{task.id} {len(turns)} {tools[0].name} {rng.random():.6f}"

    policy = ScriptedPolicy(script, trainable=False)
    assert isinstance(policy, Policy)
    tools = (ToolSpec("go"),)
    root = at(policy, tools=tools)
    first, other, again = await policy.draw(root, [1, 2, 1], 100)
    assert first.text.startswith("1 0 go 0.") and first == again != other
    assert first.token_ids == (*first.text.encode(), END) and not first.trainable
    below = at(policy, (first.token_ids, "a door"), tools=tools)
    assert below.ids == root.ids + first.token_ids + below.delta and below.keep == len(root.ids + first.token_ids)
    (next_one,) = await policy.draw(below, [1], 100)
    assert next_one.text.startswith("1 1 go")
    assert policy.stats.draws == 4 and policy.stats.sampled_tokens > 40


async def test_a_function_with_a_parameter_first_sees_what_reset_showed_at_every_node() -> None:
    def script(task: Task, turns: Any, tools: Any, rng: Random, first: Any) -> str:
        return f"{first.text} {len(turns)}"

    def table(task: Task, turns: Any, tools: Any, *, first: Any) -> list[Any]:
        return [(first.text, 1.0)]

    for policy, said in ((ScriptedPolicy(script), "a hall 1"), (scripted_choice(table), "a hall")):
        (root,) = await policy.draw(at(policy), [1], 100)
        (below,) = await policy.draw(at(policy, (root.token_ids, "a door")), [1], 100)
        assert below.text == said


async def test_functions_that_cannot_be_scripts_are_refused_and_one_that_fails_is_a_fault_of_its_draw() -> None:
    async def waits(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        return "go"

    refused: tuple[Any, ...] = (lambda task: "go", lambda task, turns, tools, rng, memory: "go", waits)
    for script in refused:
        with pytest.raises(TreewrightError, match=r"a script (takes|is)"):
            ScriptedPolicy(script)
    failing: tuple[tuple[Any, str], ...] = (
        (
            lambda *_: dict[str, str]()["door"],
            r"scripted raised KeyError: 'door' \(test_policies_scripted.py, line \d+\)",
        ),
        (lambda *_: None, "gave a NoneType"),
    )
    for fails, says in failing:
        policy = ScriptedPolicy(fails)
        with pytest.raises(PolicyFault, match=says):
            await policy.draw(at(policy), [0], 4)


async def test_a_script_that_takes_its_time_lets_others_go_on_between_its_draws() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def slow(*_: Any) -> str:
        time.sleep(2 * SLOW)
        seen.append(turns)
        return "go"

    policy, seen = ScriptedPolicy(slow), list[int]()
    beside = asyncio.create_task(other())
    await policy.draw(at(policy), range(3), 4)
    await policy.draw_segment(at(policy), range(3), 4, (), None)
    beside.cancel()
    assert seen == sorted(set(seen)), "nobody else had a turn between two draws"


async def test_a_draw_ends_at_max_tokens_like_any_other() -> None:
    policy = ScriptedPolicy(lambda *_: "gö", logprob=-0.5)
    (done,) = await policy.draw(at(policy), [0], 2)
    assert (done.text, done.finish_reason, done.logprobs) == ("g\ufffd", "length", (-0.5, -0.5))
    assert len(done.token_ids) == 2


async def test_choices_come_with_exact_log_probs_token_by_token() -> None:
    table = [("left", 0.5), ("less", 0.3), ("le", 0.2)]
    policy = scripted_choice(table)
    done = await policy.draw(at(policy), range(4000), 100)
    share = Counter(c.text for c in done)
    for text, p in table:
        assert abs(share[text] / 4000 - p) < 0.03
        (one,) = {c for c in done if c.text == text}
        assert math.isclose(one.logprob, math.log(p), abs_tol=1e-12) and one.trainable
    less = next(c for c in done if c.text == "less")
    assert math.isclose(math.exp(less.logprobs[2]), 0.3) and less.logprobs[0] == 0.0


async def test_choices_may_depend_on_the_state() -> None:
    policy = scripted_choice(lambda task, turns, tools: [("stop" if turns else "go", 1.0)])
    (go,) = await policy.draw(at(policy), [5], 9)
    (stop,) = await policy.draw(at(policy, (go.token_ids, "dark")), [5], 9)
    assert (go.text, stop.text) == ("go", "stop")


async def test_wrong_tables_and_foreign_contexts_are_refused() -> None:
    for table in ([("a", 0.5)], [("a", 1.5), ("b", -0.5)], []):
        with pytest.raises(TreewrightError, match="sum to 1"):
            scripted_choice(table)
    policy = scripted_choice([("a", 1.0)])
    with pytest.raises(TreewrightError, match="context it did not make"):
        await policy.draw(Context(keep=0, delta=(1,), ids=(1,)), [0], 4)
