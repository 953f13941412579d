"""One TOML for everything, plus `--set a.b=c`. An unknown key fails with the nearest known name."""

from __future__ import annotations

import difflib
import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.redact import drop_masked, without_secrets
from treewright.envs.secrecy import in_settings, keep_secret
from treewright.envs.toml_text import toml_text, toml_value
from treewright.envs.whole import write_whole
from treewright.training.sections import EvalSection, LoopSection, Section, TrackSection
from treewright.training.settings import TrainSettings

__all__ = ["Config", "ConfigError", "explained", "load_config", "store_settings", "to_toml"]

log = logging.getLogger("treewright")


LONGEST_NAME = 200  # bytes; a folder takes 255, and trees of a run add a number to it


class ConfigError(TreewrightError):
    """A configuration value is wrong; the message names the key, what it is and what it may be."""


class PolicySection(Section):
    """Who acts."""

    newest: bool = Field(
        default=True, description="act with the newest checkpoint of the named run; false: with spec itself"
    )
    spec: str = Field(
        default="seedling",
        description="seedling[:FOLDER] | hf:NAME_OR_FOLDER | openai:MODEL@URL | vllm:MODEL@URL | vllm:NAME_OR_FOLDER | "
        "scripted:MODULE:FUNCTION | langgraph:MODULE:GRAPH, module:object, or an entry point of treewright.policies",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="of that kind of policy, e.g. {grammar = true}; see docs/policies.md"
    )
    contexts: tuple[str, ...] = Field(
        default=("plain",),
        description="for acting: prompts that the draws of a node go through in turn: plain | history:N | examples:N "
        "(of the store `memory`) | rephrased:MODULE:FUNCTION",
    )
    distinct: bool = Field(default=False, description="for acting: no draw of a node twice")
    memory: Path | None = Field(
        default=None, description="the store that the context examples:N takes solved tasks from"
    )
    proposer: str | None = Field(
        default=None,
        description="what is put around the policy: codetree, module:function(policy), or an entry point of "
        "treewright.proposers",
    )
    proposer_options: dict[str, Any] = Field(default_factory=dict, description="of that proposer")


class WorldsSection(Section):
    """Where it acts."""

    suites: tuple[str, ...] = Field(
        default=("kg", "stdlib", "workbench", "market"),
        description="by name, or MODULE:THING of your own; see docs/worlds.md",
    )
    sessions: int = Field(default=0, ge=0, description="per suite; 0: what the suite suggests")
    deadline: float = Field(default=60.0, gt=0, description="seconds for one call of the environment")
    tasks_file: Path | None = Field(default=None, description="own tasks: JSON lines, for one suite or module:object")
    reward: str | None = Field(
        default=None, description="of own tasks: module:function of (task, history[, object]); else the world's own"
    )
    corpus: Path | None = Field(
        default=None, description="own documents: JSON lines with id and text, or a folder of texts"
    )
    questions: Path | None = Field(
        default=None, description="own questions over the corpus: JSON lines with question, answers"
    )
    retriever: str = Field(
        default="lexical",
        description="of own questions: lexical | dense | hybrid | hypergraph | treehop:FOLDER | http://…",
    )
    encoder: str = Field(default="minilm", description="of the dense retriever: a name or a folder")
    stemming: str = Field(
        default="auto", description="of the lexical retriever: auto (by the documents' language), none, or a language"
    )
    grading: Literal["exact", "f1"] = Field(default="exact", description="reward of own questions")
    digest: str = Field(
        default="",
        description="gives every world the tool digest, which reads long texts with this policy (hf:…, openai:…, "
        "vllm:…; policy: the one that acts); empty: no such tool",
    )
    same_page: str = Field(
        default="",
        description="of web:… suites, when a page counts as the recorded one: exact | target | distance:0.05; "
        "empty: what their file says",
    )
    web: dict[str, Any] = Field(
        default_factory=dict, description="of web:… suites: hosts, calm, effects, login, … (docs/web.md)"
    )
    agent: dict[str, Any] = Field(
        default_factory=dict,
        description="of agent:… suites: goal, folder, output, sandboxed, effects, normalise, … (docs/gateway.md)",
    )


class SearchSection(Section):
    """How trees are grown: the rule, the draws, the budget of each tree, and what runs side by side."""

    rule: str = Field(
        default="auto",
        description="what is expanded next: a rule's name (docs/search.md), module:function, an entry point of "
        "treewright.rules; auto: best_first for training (collect, loop), score_first for acting (run, eval)",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="of the rule, such as alpha of astar or width of beam"
    )
    draws: int = Field(default=2, ge=1, description="samples of the policy at a node")
    root_draws: int = Field(default=4, ge=1, description="samples at the root")
    evaluator: str = Field(
        default="likelihood",
        description="likelihood | entropy | tests | prm:FOLDER | scorer:FOLDER | steps:FOLDER | checklist:POLICY | "
        "critic:POLICY | imagined:POLICY | vstar[:FOLDER] | none, module:object, or an entry point of "
        "treewright.evaluators",
    )
    evaluator_options: dict[str, Any] = Field(default_factory=dict, description="of an evaluator of one's own")
    evidence: str | None = Field(
        default=None,
        description="drafts must quote what they act on: all, or tools by name, comma separated; see docs/judging.md",
    )
    evidence_judge: str | None = Field(
        default=None, description="the policy that judges evidence in other words, e.g. hf:NAME; else only quotes count"
    )
    expansions: int | None = Field(default=4, ge=0, description="budget of a tree; run takes 12 unless it is set")
    policy_tokens: int | None = Field(default=None, ge=1, description="budget of a tree: sampled tokens")
    judge_tokens: int | None = Field(default=None, ge=1, description="budget of a tree: tokens of the evaluator")
    env_steps: int | None = Field(
        default=None, ge=1, description="budget of a tree: steps of the world, replays included"
    )
    seconds: float | None = Field(default=None, gt=0, description="budget of a tree: wall-clock time")
    money: float | None = Field(
        default=None, gt=0, description="budget of a tree, in the currency of the policy's prices"
    )
    answers: int | None = Field(default=None, ge=1, description="stop a tree once it has so many finished leaves")
    stop: Literal["budget", "first", "proved"] = Field(
        default="budget",
        description="when a tree ends before its budget: never | once the world has ended an episode | once the "
        "cheapest end of astar or uniform_cost cannot be beaten by what is open",
    )
    in_flight: int = Field(
        default=1, ge=1, description="expansions of one tree at once; part of the result, unlike sessions"
    )
    retries: int = Field(default=2, ge=0, description="how often a faulty action is tried again from a restored node")
    repairs: int = Field(
        default=2, ge=0, description="how often a step is taken again where a replay found another state"
    )
    share_results: bool = Field(
        default=False, description="equal actions of one expansion in other words share one step"
    )
    peers: int = Field(default=0, ge=0, description="for acting: most other branches that a prompt tells of")
    max_tokens: int | None = Field(
        default=None, ge=1, description="most tokens of one draw; else what the suite suggests, or 512"
    )
    close: bool | None = Field(
        default=None,
        description="finish open nodes by one rollout each; else trees for training are, acting searches are not",
    )
    merge: bool = Field(
        default=True,
        description="token-identical draws of a node are executed and gone on from once; false keeps them apart, for "
        "random rewards or steps",
    )
    trees: int = Field(default=64, ge=1, description="trees grown at once")
    temperature_by_depth: dict[str, Any] = Field(
        default_factory=dict,
        description='sampling temperature by depth, {start = 1, growth = 0.1, most = 2} or {by = "module:function"}; '
        "empty: the policy's own; see docs/search.md",
    )
    segments: dict[str, Any] = Field(
        default_factory=dict,
        description='branch within responses, cut by length or delimiter, entropy, surprisal: {by = "length", '
        "length = 64}; empty: whole turns; see docs/search.md",
    )


class Config(Section):
    """One configuration for every command."""

    name: str = Field(default="run", description="of the run; its files go to runs/NAME")
    folder: Path | None = Field(default=None, description="where its files go instead")
    store: str | None = Field(
        default=None,
        description="where its trees go instead: a file, or postgresql://USER@HOST/NAME for many processes",
    )
    seed: int = Field(default=0, description="of everything random")
    policy: PolicySection = PolicySection()
    worlds: WorldsSection = WorldsSection()
    search: SearchSection = SearchSection()
    train: TrainSettings = TrainSettings()
    track: TrackSection = TrackSection()
    loop: LoopSection = LoopSection()
    eval: EvalSection = EvalSection()

    _told: dict[str, Any] = PrivateAttr(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not name.strip() or name in (".", "..") or any(c in name for c in "/\\\0") or not name.isprintable():
            raise ValueError("a run's name is one folder's name: no slashes, not empty, no control characters")
        if name.startswith("-") or len(name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"a run's name is one folder's name: at most {LONGEST_NAME} bytes long, and no dash at its beginning"
            )
        return name

    def __eq__(self, other: object) -> bool:
        """Equal settings, however they came to be."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    @property
    def told(self) -> Mapping[str, Any]:
        """What was set, by a file, by options or by the run itself; everything else is a default."""
        return self._told

    @property
    def home(self) -> Path:
        """The run's folder: `folder`, or runs/<name> under the working directory."""
        return self.folder or Path("runs") / self.name

    @property
    def store_at(self) -> str:
        """Path or URL of the run's trees."""
        return self.store or str(self.home / "trees.sqlite")


RENAMED = {
    "search.width": "search.in_flight, or search.options.width for the width of beam and ets",
    "train.rows": "train.clip_rows",
    "loop.keep": "loop.checkpoints",
}
"""Keys of version 0.1 and what they are called now."""


def load_config(
    path: Path | None = None,
    settings: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    remember: bool = False,
) -> Config:
    """The configuration in a TOML file with `a.b=c` settings on top, and what the command line's own options say.

    given     values by dotted key, taken literally
    remember  begin with what the named run was begun with, see `store_settings`; worlds named anew replace its worlds

    Values of settings are read as JSON where the key is not a text (8, true, ["kg"]), else as they stand.
    Raises ConfigError naming the key; for an unknown one with the nearest known.
    """
    data = _read(path) if path is not None else {}
    data.pop(BEGUN, None)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {setting!r} has no key or no '='; write --set search.expansions=8")
        _put(data, key, _value_of(key, text), setting)
    for key, value in (given or {}).items():
        _put(data, key, value, key)
    _refuse_unknown(data, Config, "")
    if remember:
        data = _joined(_remembered(data), data)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{key} = {first['input']!r:.200}: {first['msg']}; what it takes: treewright config --explain"
        ) from None
    config._told = data
    keep_secret(*in_settings(data))
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return toml_value(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}; leave --config out to use the defaults") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}; print one that is: treewright config") from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 text, see byte {error.start}"
        raise ConfigError(f"cannot read {path}: {why}; print a good one: treewright config") from None


def _value_of(key: str, text: str) -> Any:
    """A setting's value: text where the key holds text, whatever it looks like; else JSON where it is JSON."""
    kind: Any = Config
    for part in key.split("."):
        kind = _fields(kind).get(part, (None, ""))[0] if _is_section(kind) else None
    if kind in (str, str | None, Path | None):
        return None if text == "null" else text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    try:
        return json_value(text)
    except json.JSONDecodeError:
        return text


def _put(data: dict[str, Any], key: str, value: Any, setting: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {setting!r}: {section} is a value, not a section")
    data[last] = value


# -- what a run was begun with ----------------------------------------------------------------------------------------

SETTLED = "run.toml"


BEGUN = "begun"
"""A section of run.toml that is for people alone: versions, commit, hardware."""


def store_settings(config: Config, begun: Mapping[str, Any] | None = None) -> None:
    """Writes what was set to the run's run.toml where there is none yet: later commands of the run begin with it.

    begun  facts about this beginning, for its section [begun], which no command reads
    """
    path = config.home / SETTLED
    told = {key: value for key, value in config.told.items() if key not in ("name", "folder")}
    if path.exists() and begun and f"[{BEGUN}]" not in path.read_text("utf-8"):  # begun by collecting, trained now
        added = toml_text(json.loads(json.dumps(without_secrets({BEGUN: begun}), default=str)))
        write_whole(path, path.read_text("utf-8") + "\n" + added)
    if path.exists() or not (told or begun):
        return
    written = without_secrets({**told, **({BEGUN: begun} if begun else {})})
    write_whole(path, toml_text(json.loads(json.dumps(written, default=str))))


def _remembered(data: Mapping[str, Any]) -> dict[str, Any]:
    home = Path(data["folder"]) if data.get("folder") else Path("runs") / str(data.get("name", "run"))
    path = home / SETTLED
    if not path.is_file():
        return {}
    found = _read(path)
    found.pop(BEGUN, None)
    _refuse_unknown(found, Config, "")
    if lacking := drop_masked(found):
        told = "%s keeps no secrets; what needs them has to be told again, by --set or --config: %s"
        log.warning(told, path, ", ".join(lacking))
    return found


def _joined(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """What was set before with what is set now on top. Worlds, and the policy with its options, are replaced whole."""
    out = dict(below)
    worlds, policy = above.get("worlds", {}), above.get("policy", {})
    if {"suites", "tasks_file", "corpus", "questions"} & set(worlds):
        out.pop("worlds", None)
    if "spec" in policy and policy["spec"] != out.get("policy", {}).get("spec"):
        out.pop("policy", None)
    return _over(out, above, Config)


def _over(below: Mapping[str, Any], above: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """One section on top of another, and so for the sections inside it."""
    kinds, out = _fields(section), dict(below)
    for key, value in above.items():
        inner, known = kinds[key][0] if key in kinds else None, below.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        out[key] = _over(known, value, inner) if both and _is_section(inner) else value  # type: ignore[arg-type]
    return out


def _fields(section: Any) -> dict[str, tuple[Any, str]]:
    """The keys of a section with their types and what they mean; pydantic models and dataclasses alike."""
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {name: (field.annotation, field.description or "") for name, field in section.model_fields.items()}
    kinds = get_type_hints(section)
    return {field.name: (kinds[field.name], field.metadata.get("doc", "")) for field in fields(section)}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def _refuse_unknown(data: Mapping[str, Any], section: Any, prefix: str) -> None:
    known = _fields(section)
    for key, value in data.items():
        full = prefix + key
        if full in RENAMED:
            raise ConfigError(f"{full!r} is called {RENAMED[full]} since version 0.2; write that")
        if key not in known:
            raise ConfigError(f"unknown key {full!r}; {_nearest(full, known)}")
        inner = known[key][0]
        if _is_section(inner):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{full} is a section; write {full}.<key>=<value>")
            _refuse_unknown(value, inner, f"{full}.")


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    """The key of the same last name elsewhere, else the nearest name here, else the nearest anywhere."""
    everywhere = list(explained())
    prefix, last = key.rpartition(".")[0], key.rpartition(".")[2]
    same = [full for full in everywhere if full.rpartition(".")[2] == last]
    here = [f"{prefix}.{k}" if prefix else k for k in difflib.get_close_matches(last, list(known), n=1)]
    found = same or here or difflib.get_close_matches(key, everywhere, n=1)
    return f"did you mean {found[0]!r}?" if found else f"known here: {', '.join(known)}"


def explained(section: Any = Config, prefix: str = "") -> dict[str, str]:
    """Every key that can be set, in order, and what it means."""
    out: dict[str, str] = {}
    for name, (kind, doc) in _fields(section).items():
        out |= explained(kind, f"{prefix}{name}.") if _is_section(kind) else {prefix + name: doc}
    return out


def to_toml(config: Config) -> str:
    """The configuration as TOML text; keys without a value are left as comments."""
    return toml_text(json.loads(config.model_dump_json()))
