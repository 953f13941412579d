"""The few names of verifiers 0.4 that a small taskset uses, for machines where its 70 dependencies are not installed.

`install(monkeypatch)` puts them in place of the modules; the adapter is tested against the real package by
`make test-verifiers`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, Field

A = TypeVar("A")
B = TypeVar("B")


class State(BaseModel):
    pass


class TaskData(BaseModel):
    idx: int | None = None
    id: str | None = None
    prompt: str | None = None
    system_prompt: str | None = None

    @property
    def prompt_text(self) -> str:
        return self.prompt or ""


class Toolset(Generic[A, B]):
    __orig_bases__: Any

    def __init__(self, config: Any) -> None:
        (state,) = (arg for base in type(self).__orig_bases__ for arg in base.__args__ if issubclass(arg, State))
        self._inert_state = state()

    @property
    def state(self) -> Any:
        return self._inert_state

    async def setup(self) -> None:
        pass

    async def setup_task(self, task: Any) -> None:
        pass


def _mark(name: str, **values: Any) -> Callable[[Any], Any]:
    def marked(function: Any) -> Any:
        for key, value in {name: True, **values}.items():
            setattr(function, key, value)
        return function

    return marked


def tool(function: Any = None, name: str | None = None) -> Any:
    return _mark("tool", tool_name=name) if function is None else _mark("tool", tool_name=name)(function)


def reward(function: Any = None, weight: float = 1.0) -> Any:
    return _mark("reward", weight=weight) if function is None else _mark("reward", weight=weight)(function)


class Task(Generic[A, B]):
    NEEDS_CONTAINER = False

    def __init__(self, data: Any, config: Any = None) -> None:
        self.data, self.config = data, config

    async def setup(self, trace: Any, runtime: Any) -> None:
        return None

    async def finalize(self, trace: Any, runtime: Any) -> None:
        return None

    async def stage_verifier(self, trace: Any, runtime: Any) -> None:
        return None

    def hooks(self, kind: str) -> list[Any]:
        return [getattr(self, name) for name in dir(type(self)) if hasattr(getattr(type(self), name), kind)]

    def plugged_judges(self) -> list[Any]:
        return []

    async def score(self, trace: Any) -> None:
        for method in self.hooks("reward"):
            trace.rewards[method.__name__] = SimpleNamespace(value=method.weight * await method(trace))


class Taskset(Generic[A]):
    def __init__(self, config: Any) -> None:
        self.config = config

    load: Callable[[], Any]

    def __iter__(self) -> Any:
        return iter(self.load())


class _Loose(BaseModel):
    model_config = {"extra": "allow"}


class Trace(_Loose):
    nodes: list[Any]
    rewards: dict[str, Any] = Field(default_factory=dict)

    @property
    def last_reply(self) -> Any:
        return self.nodes[-1].message.content

    @property
    def messages(self) -> list[Any]:
        return [node.message for node in self.nodes]


def message(role: str) -> type:
    return type(role, (_Loose,), {"__annotations__": {"role": str}, "role": role})


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, dict[str, Any]] = {"pydantic_config": {"BaseConfig": _Loose}, "verifiers": {}}
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
    setattr(sys.modules["verifiers"], "v1", sys.modules["verifiers.v1"])  # noqa: B010
