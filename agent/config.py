"""One TOML for everything, plus `--set a.b=c`. An unknown key fails with the nearest known name."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treewright.envs.errors import TreewrightError

__all__ = ["Config", "ConfigError", "load_config", "to_toml"]


class ConfigError(TreewrightError):
    """A configuration value is wrong; the message names the key, what it is and what it may be."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class PolicySection(_Section):
    """spec: seedling[:FOLDER] | hf:NAME_OR_FOLDER | openai:MODEL@URL | vllm:MODEL@URL | vllm:NAME_OR_FOLDER |
    scripted:MODULE:FUNCTION | langgraph:MODULE:GRAPH; options of that kind of policy, e.g. {"grammar": true} (see
    docs/policies.md). For acting (run, collect, eval): contexts that the draws of a node go through in turn,
    plain | history:N | examples:N (of the store `memory`) | rephrased:MODULE:FUNCTION; distinct: no draw twice"""

    spec: str = "seedling"
    options: dict[str, Any] = Field(default_factory=dict)
    contexts: tuple[str, ...] = ("plain",)
    distinct: bool = False
    memory: Path | None = None


class WorldsSection(_Section):
    """suites by name; sessions per suite (0 = what the suite suggests); deadline in seconds for one environment call;
    own tasks with a reward function, or own questions over a corpus (retriever: lexical | dense | hybrid | http://…)"""

    suites: tuple[str, ...] = ("kg", "stdlib", "workbench", "market")
    sessions: int = Field(default=0, ge=0)
    deadline: float = Field(default=60.0, gt=0)
    tasks_file: Path | None = None
    reward: str | None = None
    corpus: Path | None = None
    questions: Path | None = None
    retriever: str = "lexical"
    encoder: str = "minilm"
    grading: Literal["exact", "f1"] = "exact"


class SearchSection(_Section):
    """How trees are grown: rule, its options (such as alpha of astar) and draws, the budget per tree, expansions in
    flight, trees in flight. merge: token-identical draws of a node are executed and gone on from once; keep them apart
    where rewards or steps are random. peers: for acting (run, collect, eval), most other branches
    that a prompt tells of."""

    rule: str = "best_first"
    options: dict[str, Any] = Field(default_factory=dict)
    draws: int = Field(default=2, ge=1)
    root_draws: int = Field(default=4, ge=1)
    evaluator: str = "likelihood"
    expansions: int | None = Field(default=4, ge=0)
    policy_tokens: int | None = Field(default=None, ge=1)
    env_steps: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    width: int = Field(default=1, ge=1)
    peers: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    close: bool = True
    merge: bool = True
    trees: int = Field(default=64, ge=1)


class TrainSection(_Section):
    """The optimizer, the loss and the estimator; see treewright.training.step.TrainSettings. Without a value, lr is
    1e-3 for models of less than 20 million parameters, such as the seedling, and 1e-5 for larger ones. chunk_tokens:
    longer packs go through the model in chunks, with the same gradient and less memory. reference: the folder of the
    policy that kl_coef pulls to; without one, the weights that the run began with."""

    lr: float | None = Field(default=None, gt=0)
    warmup: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    minibatches: int = Field(default=2, ge=1)
    loss: str = "clipped"
    clip: float = Field(default=0.2, gt=0)
    clip_high: float | None = Field(default=None, gt=0)
    dual_clip: float = Field(default=3.0, gt=1)
    adaptive_clip: float = Field(default=0.0, ge=0)
    kl: str = "k3"
    kl_coef: float = Field(default=0.0, ge=0)
    entropy_coef: float = Field(default=0.0, ge=0)
    sampler_cap: float = Field(default=2.0, gt=0)
    top_entropy: float = Field(default=0.2, gt=0, le=1)
    rows: bool = False
    reference: Path | None = None
    grad_clip: float = Field(default=1.0, gt=0)
    estimator: str = "split_loo"
    tau: float = Field(default=3.0, ge=0)
    weight_power: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=8192, ge=1)
    chunk_tokens: int | None = Field(default=None, ge=1)
    allow_biased: bool = False
    max_staleness: int = Field(default=0, ge=0)


class LoopSection(_Section):
    """iterations of collect → train; tasks per suite and iteration, and where a suite shall have another number of
    them (suite_tasks = {market = 6}); checkpoints kept. behind = 1: the next round is collected with the weights at
    hand while the trainer works, so that trees are one update old when they are trained on"""

    iterations: int = Field(default=8, ge=1)
    tasks: int = Field(default=24, ge=1)
    suite_tasks: dict[str, int] = Field(default_factory=dict)
    keep: int = Field(default=3, ge=1)
    behind: int = Field(default=0, ge=0, le=1)


class EvalSection(_Section):
    """held-out tasks per suite; expansions of the search (0 = the policy alone)"""

    split: Literal["train", "test"] = "test"
    tasks: int = Field(default=100, ge=1)
    expansions: int = Field(default=0, ge=0)


class Config(_Section):
    """name: of the run; folder: where its store, checkpoints and reports go; seed: of everything random"""

    name: str = "run"
    folder: Path | None = None
    seed: int = 0
    policy: PolicySection = PolicySection()
    worlds: WorldsSection = WorldsSection()
    search: SearchSection = SearchSection()
    train: TrainSection = TrainSection()
    loop: LoopSection = LoopSection()
    eval: EvalSection = EvalSection()

    @property
    def home(self) -> Path:
        """The run's folder: `folder`, or runs/<name> under the working directory."""
        return self.folder or Path("runs") / self.name

    @property
    def store_path(self) -> Path:
        return self.home / "trees.sqlite"


def load_config(path: Path | None = None, settings: Sequence[str] = ()) -> Config:
    """The configuration in a TOML file with `a.b=c` settings on top.

    Values of settings are read as JSON where they can be (8, true, ["kg"]), as text otherwise.
    Raises ConfigError naming the key; for an unknown one with the nearest known.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no configuration file {path}; leave --config out to use the defaults") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}; print one that is: treewright config") from None
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 text, see byte {error.start}"
            raise ConfigError(f"cannot read {path}: {why}; print a good one: treewright config") from None
    for setting in settings:
        _put(data, setting)
    _refuse_unknown(data, Config, "")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{key} = {first['input']!r}: {first['msg']}") from None


def _put(data: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting!r} has no key or no '='; write --set search.expansions=8")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {setting!r}: {section} is a value, not a section")
    data[last] = value


def _refuse_unknown(data: Mapping[str, Any], model: type[BaseModel], prefix: str) -> None:
    for key, value in data.items():
        known = model.model_fields
        if key not in known:
            hint = _nearest(prefix + key, known)
            raise ConfigError(f"unknown key {prefix + key!r}; {hint}")
        inner = known[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix + key} is a section; write {prefix + key}.<key>=<value>")
            _refuse_unknown(value, inner, f"{prefix}{key}.")


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    """The key of the same last name elsewhere, else the nearest name here, else the nearest anywhere."""
    everywhere = _all_keys(Config, "")
    prefix, last = key.rpartition(".")[0], key.rpartition(".")[2]
    same = [full for full in everywhere if full.rpartition(".")[2] == last]
    here = [f"{prefix}.{k}" if prefix else k for k in difflib.get_close_matches(last, list(known), n=1)]
    found = same or here or difflib.get_close_matches(key, everywhere, n=1)
    return f"did you mean {found[0]!r}?" if found else f"known here: {', '.join(known)}"


def _all_keys(model: type[BaseModel], prefix: str) -> list[str]:
    out = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            out += _all_keys(inner, f"{name}.")
        else:
            out.append(prefix + name)
    return out


def to_toml(config: Config) -> str:
    """The configuration as TOML text; keys without a value are left as comments."""
    plain = json.loads(config.model_dump_json())
    top = [_line(k, v) for k, v in plain.items() if not isinstance(v, dict)]
    sections = [
        "\n".join([f"[{name}]", *(_line(k, v) for k, v in body.items())])
        for name, body in plain.items()
        if isinstance(body, dict)
    ]
    return "\n\n".join(["\n".join(top), *sections]) + "\n"


def _line(key: str, value: Any) -> str:
    return f"# {key} =" if value is None else f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)
