"""Uniform draws over valid calls: only what was seen becomes an argument, and every draw is valid."""

from __future__ import annotations

from collections import Counter
from typing import Any

from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.uniform import UniformPolicy, uniform_answers, uniform_calls, values_for
from treewright.envs import Action, Observation, Task, ToolSpec
from treewright.envs.tools.office import SPECS, open_model, tasks
from treewright.search.screen import parse_action, validate_action
from treewright.search.types import Exchange

TASK = Task("t", "1", "find k12 for Ada")
TOOLS = (
    ToolSpec("look", "", {"type": "object", "properties": {}}),
    ToolSpec("find", "", {"properties": {"id": {"type": "string", "pattern": "^k"}}, "required": ["id"]}),
    ToolSpec("ring", "", {"properties": {"to": {"type": "string", "pattern": "^\\+"}}, "required": ["to"]}),
    ToolSpec("done", "", {"properties": {"answer": {"type": "string"}}, "required": ["answer"]}, terminal=True),
)


async def draws(
    policy: UniformPolicy,
    task: Task,
    tools: tuple[ToolSpec, ...],
    first: Observation,
    turns: tuple[Any, ...] | list[Exchange],
    count: int = 300,
) -> list[Any]:
    context = policy.context(task, tools, first, turns, ())
    return [done.text for done in await policy.draw(context, range(count), 200)]


async def test_tools_whose_arguments_were_not_seen_are_not_called() -> None:
    said = Counter(await draws(uniform_calls, TASK, TOOLS, Observation("ready"), ()))
    assert set(said) == {"look {}", 'find {"id": "k12"}', 'done {"answer": "ok"}'}
    assert all(70 < count < 130 for count in said.values())


async def test_an_observation_makes_new_calls_possible() -> None:
    turns = [Exchange("", Action.of("look"), Observation("call +49 or k77"))]
    said = set(await draws(uniform_calls, TASK, TOOLS, Observation("ready"), turns))
    assert {'ring {"to": "+49"}', 'find {"id": "k77"}', 'find {"id": "k12"}'} <= said


async def test_answers_are_drawn_from_the_words_seen_where_that_is_asked_for() -> None:
    said = set(await draws(uniform_answers, TASK, TOOLS, Observation("ready"), ()))
    assert {'done {"answer": "k12"}', 'done {"answer": "Ada"}'} <= said


async def test_every_draw_on_an_episode_of_the_office_is_a_valid_call() -> None:
    env, task = await open_model(), tasks("train", 5)[4]
    turns: list[Any]
    first, turns = await env.reset(task, 0), []
    for step in range(6):
        for text in await draws(uniform_calls, task, SPECS, first, turns, 20):
            action = parse_action(text, SPECS)
            validate_action(action, SPECS)
        if action.name == "done":
            break
        result = await env.step(action, step)
        turns.append(Exchange(text, action, result.observation))


def test_values_follow_the_schema() -> None:
    words = ("fri", "12", "x1")
    assert values_for({"type": "string", "enum": ["mon", "fri"]}, words) == ("fri",)
    assert values_for({"type": "integer"}, words) == (12,)
    assert values_for({"type": "boolean"}, words) == (True, False)
    assert values_for({"const": 3}, words) == (3,)
    assert values_for({"type": "array"}, words) == ()


def test_the_uniform_policy_is_named_on_the_command_line() -> None:
    spec = "scripted:treewright.agent.policies.uniform:uniform_calls"
    assert open_policy(spec) is uniform_calls
