"""The few names of verifiers 0.4 that a small taskset uses, for machines where its 70 dependencies are not installed.

`install(monkeypatch)` puts them in place of the modules; the adapter is tested against the real package by
`make test-verifiers`.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

A, B = TypeVar("A"), TypeVar("B")


class State(BaseModel):
    pass


class TaskData(BaseModel):
    idx: int | None = None
    id: str | None = None
    prompt: str | None = None
    system_prompt: str | None = None

    @property
    def prompt_text(self):
        return self.prompt or ""


class Toolset(Generic[A, B]):
    def __init__(self, config):
        (state,) = (arg for base in type(self).__orig_bases__ for arg in base.__args__ if issubclass(arg, State))
        self._inert_state = state()

    @property
    def state(self):
        return self._inert_state

    async def setup(self):
        pass

    async def setup_task(self, task):
        pass


def _mark(name, **values):
    def marked(function):
        for key, value in {name: True, **values}.items():
            setattr(function, key, value)
        return function

    return marked


def tool(function=None, name=None):
    return _mark("tool", tool_name=name) if function is None else _mark("tool", tool_name=name)(function)


def reward(function=None, weight=1.0):
    return _mark("reward", weight=weight) if function is None else _mark("reward", weight=weight)(function)


class Task(Generic[A, B]):
    NEEDS_CONTAINER = False

    def __init__(self, data, config=None):
        self.data, self.config = data, config

    async def setup(self, trace, runtime):
        return None

    async def finalize(self, trace, runtime):
        return None

    async def stage_verifier(self, trace, runtime):
        return None

    def hooks(self, kind):
        return [getattr(self, name) for name in dir(type(self)) if hasattr(getattr(type(self), name), kind)]

    def plugged_judges(self):
        return []

    async def score(self, trace):
        for method in self.hooks("reward"):
            trace.rewards[method.__name__] = SimpleNamespace(value=method.weight * await method(trace))


class Taskset(Generic[A]):
    def __init__(self, config):
        self.config = config

    def __iter__(self):
        return iter(self.load())


class _Loose(BaseModel):
    model_config = {"extra": "allow"}


class Trace(_Loose):
    nodes: list[Any]
    rewards: dict[str, Any] = Field(default_factory=dict)

    @property
    def last_reply(self):
        return self.nodes[-1].message.content

    @property
    def messages(self):
        return [node.message for node in self.nodes]


def message(role):
    return type(role, (_Loose,), {"__annotations__": {"role": str}, "role": role})


def install(monkeypatch):
    made = {"pydantic_config": {"BaseConfig": _Loose}, "verifiers": {}}
    names = dict(State=State, TaskData=TaskData, Toolset=Toolset, tool=tool, reward=reward, Task=Task, Taskset=Taskset)
    loose = dict.fromkeys(("TasksetConfig", "AgentConfig", "AgentInfo", "TraceTask", "MessageNode"), _Loose)
    made["verifiers.v1"] = {**names, **loose, "Trace": Trace}
    made["verifiers.v1.types"] = {
        "AssistantMessage": message("assistant"), "UserMessage": message("user"), "ToolMessage": message("tool"),
        "SystemMessage": message("system"), "ToolCall": _Loose,
    }  # fmt: skip
    for name, members in made.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["verifiers"].v1 = sys.modules["verifiers.v1"]
