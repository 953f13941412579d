"""AgentDojo's four suites (97 user tasks) as worlds: `--suites agentdojo:banking`, or workspace, travel, slack.

Debenedetti et al. 2024, https://arxiv.org/abs/2406.13352. Reward is the task's own utility check. AgentDojo has no
splits: tasks of even number are 'train' here, of odd number 'test', and 'all' is every one in order. Its tools say
nothing of their effects, so all are UNKNOWN unless `effects` is given; the world is sandboxed, so they are explored.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.tools.signature import Tool
from treewright.envs.tools.state import copy_state
from treewright.envs.tools.world import Ending, ToolWorld
from treewright.envs.types import Action, Effect, Suite, Task, ToolSpec, Turn, digest

__all__ = ["NAMES", "agentdojo_suite", "ground_truth"]

NAMES = ("workspace", "travel", "banking", "slack")


def agentdojo_suite(
    name: str, *, version: str = "v1.2.2", injections: Mapping[str, str] | None = None,
    effects: Mapping[str, Effect | str] | None = None, sandboxed: bool = True,
) -> Suite:  # fmt: skip
    """One of AgentDojo's suites; `injections` are texts that an attacker puts into its world, by AgentDojo's names.

    sandboxed  False treats it as a live world: what `effects` does not call read or reversible waits for an approval

    Raises TreewrightError for an unknown suite, and where agentdojo is not installed.
    """
    if name not in NAMES:
        raise TreewrightError(f"no AgentDojo suite {name!r}; known: {', '.join(NAMES)}")
    dojo = _suites(version)[name]
    title, start = f"agentdojo:{name}", dojo.load_and_inject_default_environment(dict(injections or {}))
    users = list(dojo.user_tasks.values())

    def make(task: Task) -> Any:
        return dojo.get_user_task_by_id(task.id).init_environment(copy_state(start))

    def judge(end: Ending) -> bool:
        from agentdojo.functions_runtime import FunctionCall
        from agentdojo.types import text_content_block_from_string

        calls = [FunctionCall(function=call.name, args=dict(call.arguments)) for call in end.calls]
        said = [text_content_block_from_string(end.answer)]
        user = dojo.get_user_task_by_id(end.task.id)
        return bool(dojo._check_user_task_utility(user, said, make(end.task), end.object, calls))

    world = ToolWorld.of(
        make, [_tool(function) for function in dojo.tools], effects, name=title, judge=judge,
        copy=copy_state, fingerprint=lambda env: digest(env.model_dump_json()), render=_render, sandboxed=sandboxed,
    )  # fmt: skip

    def tasks(split: str, count: int) -> Sequence[Task]:
        kept = {"train": users[::2], "test": users[1::2], "all": users}.get(split, [])
        return [Task(title, user.ID, user.PROMPT, seed=0, split=split, horizon=30) for user in kept[:count]]

    return Suite(
        title, tasks, world.open, oracle=_Oracle(dojo, make), description=f"AgentDojo's {name} tasks", max_tokens=256
    )


class _Oracle:
    """AgentDojo's ground truth as an oracle: the next call that was not made yet, then the expected answer."""

    def __init__(self, dojo: Any, make: Any) -> None:
        self.dojo, self.make = dojo, make

    def __call__(self, task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
        plan = ground_truth(self.dojo.get_user_task_by_id(task.id), self.make(task))
        done = sum(turn.action is not None for turn in history)
        return plan[min(done, len(plan) - 1)]


def ground_truth(user: Any, env: Any) -> list[Action]:
    """The calls that solve a user task, and `done` with its expected answer."""
    calls = [Action.of(call.function, **call.args) for call in user.ground_truth(env)]
    return [*calls, Action.of("done", answer=user.GROUND_TRUTH_OUTPUT)]


def _tool(function: Any) -> Tool:
    from agentdojo.functions_runtime import FunctionsRuntime

    schema = function.parameters.model_json_schema()
    runtime = FunctionsRuntime([function])

    def run(env: Any, arguments: Mapping[str, Any], rng: object) -> Any:
        return runtime.run_function(env, function.name, dict(arguments), raise_on_error=True)[0]

    return Tool(ToolSpec(function.name, function.description, schema, Effect.UNKNOWN), run)


def _render(value: Any) -> str:
    """As AgentDojo shows results: YAML for models and lists."""
    import yaml  # type: ignore[import-untyped]

    plain = [v.model_dump() if hasattr(v, "model_dump") else v for v in value] if isinstance(value, list) else value
    plain = plain.model_dump() if hasattr(plain, "model_dump") else plain
    return str(yaml.safe_dump(plain)).strip() if isinstance(plain, list | dict) else str(plain)


@lru_cache
def _suites(version: str) -> Mapping[str, Any]:
    found = importlib.util.find_spec("agentdojo")
    if found is None or found.origin is None:
        raise TreewrightError(
            "agentdojo is not installed; type: pip install --no-deps agentdojo, then its few needs: "
            "pip install docstring-parser deepdiff email-validator pyyaml"
        )
    _stand_in("agentdojo.agent_pipeline", Path(found.origin).parent / "agent_pipeline")
    from agentdojo.task_suite.load_suites import get_suites

    return dict(get_suites(version))


CLIENTS = ("anthropic", "cohere", "google.genai", "openai")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _stand_in(package: str, folder: Path) -> None:
    """Lets the suites be imported without the four model clients that the package around them imports.

    The suites use nothing of the clients, nor of the ground-truth pipeline, which leads to one of them.
    """
    if package in sys.modules or all(map(_installed, CLIENTS)):
        return
    module, pipeline = ModuleType(package), ModuleType(f"{package}.ground_truth_pipeline")
    module.__path__ = [str(folder)]
    pipeline.__dict__["GroundTruthPipeline"] = None
    sys.modules.update({package: module, pipeline.__name__: pipeline})
