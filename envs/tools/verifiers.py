"""A taskset of verifiers 0.4 (github.com/PrimeIntellect-ai/verifiers) as a suite: `--suites verifiers:mod:taskset`.

`taskset` is a Taskset or a function that makes one. Its tasks become tasks, the tools of their toolsets run in this
process, their State is the state that is forked, and the reward is the weighted sum of the task's own reward methods
over a trace of the calls, what they gave, and the answer. Stop conditions and metrics are left out. What decides
rewards and does not exist here is refused on opening, by name: hooks around a rollout, and signals that need a runtime
or ask a model; without them a right answer would be worth 0.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from treewright.envs.custom import load_named
from treewright.envs.errors import TreewrightError
from treewright.envs.tools.outside import outside
from treewright.envs.tools.signature import Tool, tool_of
from treewright.envs.tools.world import Ending, ToolWorld
from treewright.envs.types import Effect, Suite, Task, ToolSpec, digest

__all__ = ["Rollout", "verifiers_suite"]


HOOKS = ("setup", "finalize", "stage_verifier")
Made = tuple[str, dict[str, Any], str]
"""A call that was executed: name, arguments, and what it gave, as text."""


class Rollout:
    """One rollout's State, the toolsets that work on it, and the calls that were executed."""

    def __init__(self, state: Any, toolsets: Sequence[Any], made: Sequence[Made] = ()) -> None:
        self.state, self.toolsets, self.made = state, [copy.copy(toolset) for toolset in toolsets], tuple(made)
        for toolset in self.toolsets:
            toolset._inert_state = state  # what `toolset.state` is outside a server

    def twin(self) -> Rollout:
        return Rollout(self.state.model_copy(deep=True), self.toolsets, self.made)

    async def call(self, tool: Tool, toolset: int, arguments: Any, rng: Any) -> Any:
        """What the tool gives; it is kept for the rewards, as an error is."""
        try:
            value = tool.run(self.toolsets[toolset], arguments, rng)
            value = await value if inspect.isawaitable(value) else value
        except TreewrightError:
            raise
        except Exception as error:
            self._keep(tool, arguments, f"error: {error}")
            raise
        self._keep(tool, arguments, value if isinstance(value, str) else json.dumps(value, default=str))
        return value

    def _keep(self, tool: Tool, arguments: Any, text: str) -> None:
        self.made = (*self.made, (tool.spec.name, dict(arguments), text))


def verifiers_suite(taskset: Any, *, horizon: int = 30, sandboxed: bool | None = None) -> Suite:
    """The suite; of its tasks the first half is 'train', the rest 'test'.

    taskset    'module:name' or a Taskset; an infinite one is cut after 1000 tasks
    sandboxed  whether its tools touch nothing but State, so that they may run any number of times. Default: the
               attribute `sandboxed` of the taskset, else whether their code is seen to keep to itself; a tool of
               another taskset runs while searching only if it is known to read
    Raises TreewrightError for what is no taskset, has no tasks, or has rewards that cannot be computed here.
    """
    title = f"verifiers:{taskset if isinstance(taskset, str) else type(taskset).__name__}"
    found = load_named(taskset, "taskset") if isinstance(taskset, str) else taskset
    found = found() if callable(found) else found
    if not hasattr(found, "load") or not hasattr(found, "__iter__"):
        raise TreewrightError(
            f"{title} is a {type(found).__name__}, not a verifiers Taskset or a function that makes one"
        )
    rows = [row for row, _ in zip(found, range(1000), strict=False)]
    if not rows:
        raise TreewrightError(f"{title} has no tasks; give its loader a data set")
    _check_rewards(title, rows)
    built = type(rows[0]).toolsets(rows[0].config)
    listed = [_tool(i, method) for i, toolset in enumerate(built) for method in _methods(toolset)]

    async def make(task: Task) -> Rollout:
        row = rows[task.data["row"]]
        toolsets = type(row).toolsets(row.config)
        for toolset in toolsets:
            await toolset.setup()
            await toolset.setup_task(row)
        return Rollout(_state_of(toolsets), toolsets)

    async def judge(end: Ending) -> float:
        row = rows[end.task.data["row"]]
        trace = _trace(row, end)
        await row.score(trace)
        return float(sum(reward.value for reward in trace.rewards.values() if reward is not None))

    told = sandboxed if sandboxed is not None else getattr(found, "sandboxed", None)
    if not isinstance(told, bool):
        told = outside(method for toolset in built for method in _methods(toolset)) is None

    world = ToolWorld.of(
        make, listed, name=title, judge=judge, copy=Rollout.twin, sandboxed=told,
        fingerprint=lambda rollout: digest(json.dumps(rollout.state.model_dump(mode="json"), sort_keys=True)),
    )  # fmt: skip

    def tasks(split: str, count: int) -> Sequence[Task]:
        half = (len(rows) + 1) // 2
        chosen = range(half) if split == "train" else range(half, len(rows))
        return [_task(title, i, rows[i], split, horizon) for i in chosen][:count]

    return Suite(title, tasks, world.open, description=f"tasks of {title}", max_tokens=512)


def _check_rewards(title: str, rows: Sequence[Any]) -> None:
    """Refuses tasks whose rewards would be wrong here, naming what they rely on."""
    import verifiers.v1 as vf

    for row in rows:
        kind = type(row)
        owner = f"{title}: {kind.__name__}"
        for hook in HOOKS:
            if getattr(kind, hook) is not getattr(vf.Task, hook):
                raise TreewrightError(
                    f"{owner}.{hook}() runs around a rollout in verifiers' own runtime, which does not exist here, and "
                    "rewards may rely on it; leave it out, or do the same in a toolset's setup_task()"
                )
        if row.NEEDS_CONTAINER:
            raise TreewrightError(f"{owner} needs a container (NEEDS_CONTAINER), which does not exist here")
        rewards = row.hooks("reward")
        for reward in rewards:
            if _needs_runtime(reward):
                raise TreewrightError(
                    f"{owner}: reward {reward.__name__}() takes a runtime, which does not exist here, and verifiers "
                    "would leave it out of the sum; give the parameter a default, or judge by the State"
                )
        judges = [judge.reward_name for judge in row.plugged_judges()]
        if judges:
            raise TreewrightError(f"{owner}: judge {judges[0]!r} asks a model, which is not done here; leave it out")
        if not rewards:
            raise TreewrightError(f"{owner} has no reward: nothing would ever be right; mark a method with @vf.reward")


def _needs_runtime(function: Callable[..., Any]) -> bool:
    found = inspect.signature(function).parameters.get("runtime")
    return found is not None and found.default is inspect.Parameter.empty


def _task(title: str, i: int, row: Any, split: str, horizon: int) -> Task:
    goal = "\n\n".join(text for text in (row.data.system_prompt, row.data.prompt_text) if text)
    return Task(title, str(row.data.id or f"row-{i}"), goal, seed=i, split=split, horizon=horizon, data={"row": i})


def _methods(toolset: Any) -> list[Callable[..., Any]]:
    """Functions marked with @vf.tool, unbound, in the order of their names."""
    kind = type(toolset)
    return [getattr(kind, name) for name in dir(kind) if hasattr(getattr(kind, name, None), "tool")]


def _tool(i: int, function: Callable[..., Any]) -> Tool:
    made = tool_of(function, Effect.UNKNOWN, getattr(function, "tool_name", None) or function.__name__)

    async def run(rollout: Rollout, arguments: Any, rng: Any) -> Any:
        return await rollout.call(made, i, arguments, rng)

    spec = made.spec
    return Tool(ToolSpec(spec.name, spec.description, spec.parameters, spec.effect), run)


def _state_of(toolsets: Sequence[Any]) -> Any:
    """A fresh State of the kind that the toolsets share; the plain State where there are none."""
    kinds = {type(toolset._inert_state) for toolset in toolsets}
    if len(kinds) > 1:
        raise TreewrightError(f"the toolsets use different States: {', '.join(sorted(k.__name__ for k in kinds))}")
    if kinds:
        return kinds.pop()()
    from verifiers.v1 import State

    return State()


def _trace(row: Any, end: Ending) -> Any:
    """What the task's reward methods read: prompt, calls, what they gave, answer and State."""
    import verifiers.v1 as vf
    from verifiers.v1.types import AssistantMessage, SystemMessage, ToolCall, ToolMessage, UserMessage

    system = row.data.system_prompt
    messages: list[Any] = [SystemMessage(content=system)] if system else []
    messages.append(UserMessage(content=row.data.prompt_text))
    for i, (name, arguments, given) in enumerate(end.object.made):
        asked = ToolCall(id=str(i), name=name, arguments=json.dumps(arguments))
        messages.append(AssistantMessage(content=None, tool_calls=[asked]))
        messages.append(ToolMessage(tool_call_id=str(i), content=given, name=name))
    messages.append(AssistantMessage(content=end.answer))
    nodes = [
        vf.MessageNode(parent=i - 1 if i else None, message=message, sampled=message.role == "assistant")
        for i, message in enumerate(messages)
    ]
    agent = vf.AgentInfo(config=vf.AgentConfig())
    task = vf.TraceTask(type=type(row).__name__, data=row.data)
    return vf.Trace(task=task, agent=agent, nodes=nodes, state=end.object.state)
