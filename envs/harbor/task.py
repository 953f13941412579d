"""A Harbor task folder, task configuration 1.0 to 1.4, as far as one container and one verifier in it go.

    task.toml  instruction.md  environment/Dockerfile  tests/test.sh  solution/solve.sh

Read by the format's own rules: legacy fields (`version`, `memory`, `storage`, `allow_internet`) count, templates are
whole values `${NAME}` or `${NAME:-default}`, leading canary comments of the instruction are not shown. What needs more
than that is refused by name.

Source: the task format of Harbor, https://harborframework.com/docs, and the package harbor 0.26.0.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from treewright.envs.errors import TreewrightError

__all__ = ["HarborTask", "Healthcheck", "TaskFile", "read_task", "resolved"]

TEMPLATE = re.compile(r"\$\{([^}:]+)(?::-([^}]*))?\}")
CANARY = re.compile(r"(<!--.*canary.*-->|#.*canary.*)", re.IGNORECASE)
SIZES = {"G": 1024.0, "M": 1.0, "K": 1 / 1024}
Network = Literal["public", "no-network", "allowlist"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Healthcheck(_Table):
    """A command that says whether the environment is ready; times in seconds."""

    command: str
    interval_sec: float = 5.0
    timeout_sec: float = 30.0
    start_period_sec: float = 0.0
    start_interval_sec: float = 5.0
    retries: int = 3


class _Phase(_Table):
    network_mode: Network | None = None
    allowed_hosts: list[str] | None = None
    timeout_sec: float | None = None
    user: str | int | None = None


class _Verifier(_Phase):
    timeout_sec: float = 600.0
    env: dict[str, str] = Field(default_factory=dict)
    environment_mode: Literal["shared", "separate"] | None = None
    environment: dict[str, Any] | None = None
    collect: list[dict[str, Any]] = Field(default_factory=list)


class _Environment(_Table):
    build_timeout_sec: float = 600.0
    docker_image: str | None = None
    os: str = "linux"
    cpus: float | None = None
    memory_mb: int | None = None
    storage_mb: int | None = None
    gpus: int | None = None
    gpu_types: list[str] | None = None
    tpu: dict[str, Any] | None = None
    mcp_servers: list[dict[str, Any]] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    skills_dir: str | None = None
    healthcheck: Healthcheck | None = None
    workdir: str | None = None
    network_mode: Network = "public"
    allowed_hosts: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _legacy(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        allowed = data.pop("allow_internet", None)
        if allowed is not None and "network_mode" not in data and data.get("allowed_hosts") is None:
            data["network_mode"] = "public" if allowed else "no-network"
        for old in ("memory", "storage"):
            if isinstance(size := data.pop(old, None), str):
                data.setdefault(f"{old}_mb", _megabytes(size))
        return data


class _Solution(_Table):
    env: dict[str, str] = Field(default_factory=dict)


class TaskFile(_Table):
    """What task.toml holds, with the format's defaults."""

    schema_version: str = "1.4"
    task: dict[str, Any] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    agent: _Phase = Field(default_factory=_Phase)
    verifier: _Verifier = Field(default_factory=_Verifier)
    environment: _Environment = Field(default_factory=_Environment)
    solution: _Solution = Field(default_factory=_Solution)
    source: str | None = None
    multi_step_reward_strategy: str | None = None
    steps: list[dict[str, Any]] | None = None
    artifacts: list[Any] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        if isinstance(data, dict) and "version" in data:
            data = dict(data)
            data.setdefault("schema_version", data.pop("version"))
        return data


@dataclass(frozen=True, slots=True)
class HarborTask:
    """One task that can be run here.

    id       name of its folder;  folder  where it is
    goal     the instruction, as an agent is shown it
    network  may its commands reach the network? `public` without a say of the user
    notes    what is odd about the file, a line each
    """

    id: str
    folder: Path
    goal: str
    file: TaskFile
    network: bool
    notes: tuple[str, ...] = ()

    @property
    def builds(self) -> bool:
        """Its image is built from a Dockerfile; else it is one that exists."""
        return self.file.environment.docker_image is None


def read_task(folder: Path, network: Literal["as-declared", "none"] = "as-declared") -> HarborTask:
    """The task of a folder.

    network  'none' takes every task's network away
    Raises TreewrightError for a folder that is no task, naming file and field, and for a task that needs what is not
    supported, naming all of it.
    """
    folder = folder.resolve()
    path = folder / "task.toml"
    try:
        file = TaskFile.model_validate(tomllib.loads(path.read_text("utf-8")))
        goal = _instruction(folder) if not file.steps else ""
    except ValidationError as error:
        first = error.errors()[0]
        raise TreewrightError(f"{path}: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise TreewrightError(f"{path}: {error}") from error
    if not re.fullmatch(r"1(\.\d+)*", file.schema_version):
        raise TreewrightError(f"{path}: schema_version {file.schema_version!r}; known are 1.0 to 1.4")
    if needs := [*_needs(folder, file, network)]:
        raise TreewrightError(f"{folder.name} needs {'; '.join(needs)}: not supported")
    for name in ("tests/test.sh",) if file.environment.docker_image else ("tests/test.sh", "environment/Dockerfile"):
        if not (folder / name).is_file():
            raise TreewrightError(f"{folder.name} has no {name}")
    reaches = network != "none" and (file.agent.network_mode or file.environment.network_mode) == "public"
    return HarborTask(folder.name, folder, goal, file, reaches, tuple(_notes(folder.name, file)))


def resolved(values: Mapping[str, str]) -> dict[str, str]:
    """Values that are `${NAME}` or `${NAME:-default}` as a whole, from our environment; others as they are.

    Raises TreewrightError for a variable that is not set and has no default.
    """
    out = {}
    for key, value in values.items():
        found = TEMPLATE.fullmatch(value)
        given = value if found is None else os.environ.get(found[1], found[2])
        if given is None:
            assert found is not None
            raise TreewrightError(f"the environment variable {found[1]} is not set, which {key} is made of")
        out[key] = given
    return out


def _instruction(folder: Path) -> str:
    """Without canary comments at its beginning and blank lines after them. Raises OSError where there is none."""
    lines = (folder / "instruction.md").read_text("utf-8").split("\n")
    while lines and CANARY.fullmatch(lines[0].strip()):
        lines.pop(0)
    while lines and not lines[0].strip():
        lines.pop(0)
    goal = "\n".join(lines).rstrip()
    if not goal:
        raise ValueError("instruction.md says nothing")
    return goal


def _needs(folder: Path, file: TaskFile, network: str) -> Iterator[str]:
    """Everything that one Linux container with its tests in it cannot give."""
    env, verifier = file.environment, file.verifier
    if file.steps:
        yield "several steps ([[steps]])"
    if env.os.lower() != "linux":
        yield f"{env.os.capitalize()} (environment.os)"
    for name in ("docker-compose.yaml", "docker-compose.yml"):
        if (folder / "environment" / name).exists():
            yield f"several containers (environment/{name})"
    if env.gpus:
        yield "a GPU (environment.gpus)"
    if env.tpu:
        yield "a TPU (environment.tpu)"
    if env.mcp_servers:
        yield "MCP servers for its agent (environment.mcp_servers)"
    if verifier.environment_mode == "separate" or (verifier.environment is not None and not verifier.environment_mode):
        yield "a container of its own for the verifier (verifier.environment)"
    if verifier.collect:
        yield "commands between agent and verifier ([[verifier.collect]])"
    if (folder / "trajectory.json").exists():
        yield "an agent that goes on from a trajectory (trajectory.json)"
    if found := next((p for p in ("tests", "solution") if [*(folder / p).rglob(".harborignore")]), None):
        yield f"files left out by {found}/.harborignore"
    if found_link := _link_outside(folder):
        yield f"files outside its folder ({found_link})"
    if network != "none":
        modes = {env.network_mode, file.agent.network_mode or env.network_mode}
        modes.add(verifier.network_mode or env.network_mode)
        if "allowlist" in modes:
            yield "a network of some hosts (network_mode allowlist); ?network=none runs it without any"
        elif len(modes) > 1:
            yield "a network for agent or verifier alone (network_mode); ?network=none runs it without any"
    for where, values in (("environment", env.env), ("verifier", verifier.env)):
        try:
            resolved(values)
        except TreewrightError as error:
            yield f"{where}.env: {error}"


def _link_outside(folder: Path) -> str | None:
    for name in ("tests", "solution"):
        for path in (folder / name).rglob("*"):
            if path.is_symlink() and not path.resolve().is_relative_to(folder):
                return path.relative_to(folder).as_posix()
    return None


def _notes(name: str, file: TaskFile) -> Iterator[str]:
    """Fields that the format does not know, which Harbor passes over, and templates that it leaves as they are."""
    for where, table in (
        ("", file), ("environment.", file.environment), ("agent.", file.agent), ("verifier.", file.verifier)
    ):  # fmt: skip
        for field in table.model_extra or {}:
            near = difflib.get_close_matches(field, type(table).model_fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"{name}: task.toml has a field {where}{field} that the format does not know{hint}"
    for where, values in (("environment", file.environment.env), ("verifier", file.verifier.env)):
        for key, value in values.items():
            if "${" in value and not TEMPLATE.fullmatch(value):
                yield f"{name}: {where}.env.{key} is taken literally: only a whole value ${{NAME}} is replaced"


def _megabytes(size: str) -> int:
    text = size.strip().upper()
    if text[-1:] not in SIZES:
        raise ValueError(f"{size!r} is no size; write 512M or 2G")
    return int(float(text[:-1]) * SIZES[text[-1]])
