"""What a policy is and how to name one: `open_policy("seedling")`, `open_policy("vllm:NAME@http://host:8000/v1")`.

A policy is a Proposer (prompts at a node, draws from it) that also has a name, counts what it does and can be closed.
torch and transformers are imported only when a policy that needs them is opened.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Completion, Context, Exchange

__all__ = ["SEEDLING", "Policy", "PolicyStats", "loading_model", "open_policy", "serve_weights"]

SEEDLING = Path(__file__).parent / "seedling"


@dataclass(slots=True)
class PolicyStats:
    """What a policy has done since it was opened.

    prompt_tokens    tokens whose keys and values were computed; cached_tokens were taken from a cache instead
    seconds          time in which the model or server was at work on at least one request
    retries, faults  calls repeated after a failure, and calls given up
    """

    requests: int = 0
    draws: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    sampled_tokens: int = 0
    seconds: float = 0.0
    retries: int = 0
    faults: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second at work; 0 before the first draw."""
        return self.sampled_tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


@runtime_checkable
class Policy(Protocol):
    """A Proposer with a name, counters and an end. See `treewright.search.types.Proposer` for the two methods."""

    name: str
    stats: PolicyStats

    @property
    def version(self) -> str:
        """Names the weights; changes with every update."""

    def context(
        self,
        task: Task,
        tools: Sequence[ToolSpec],
        first: Observation,
        turns: Sequence[Exchange],
        base: Sequence[int],
    ) -> Context:
        """The prompt at a node."""

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        """One independent completion for each seed."""

    async def close(self) -> None:
        """Frees the model or the connections; closing twice is fine."""


def open_policy(spec: str, **options: Any) -> Policy:
    """The policy that `spec` names; `options` go to its constructor.

    scripted:MODULE:FUNCTION   a plain function, for tests                (agent/clients/scripted.py)
    seedling[:FOLDER]          the small packaged model, or one built since
    hf:FOLDER_OR_NAME          any transformers causal language model     (agent/clients/hf.py); grammar=True: draws
                               are actions (grammar.py); draft=True: fewer passes (drafting.py)
    openai:MODEL@BASE_URL      any OpenAI-compatible server               (agent/clients/openai.py)
    vllm:MODEL@BASE_URL        vLLM's OpenAI server, token ids in and out
    langgraph:MODULE:GRAPH     your own compiled LangGraph agent          (agent/clients/langgraph.py)
    vllm:FOLDER_OR_NAME        vLLM in this program; vllm:seedling is the packaged model (agent/clients/vllm_engine.py)

    Raises TreewrightError for an unknown kind, with the nearest known one, and for a missing package, with what to
    install.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _KINDS:
        near = difflib.get_close_matches(kind, list(_KINDS), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KINDS)}"
        raise TreewrightError(f"no kind of policy named {kind!r} in {spec!r}; {hint}")
    try:
        if kind in ("hf", "vllm") and rest and "@http" not in rest:
            with loading_model(SEEDLING if (kind, rest) == ("vllm", "seedling") else rest):
                return _KINDS[kind](rest, options)
        return _KINDS[kind](rest, options)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "transformers", "tokenizers", "safetensors", "vllm"):
            raise
        extra = "vllm" if kind == "vllm" else "train"
        raise TreewrightError(
            f"policy {spec!r} needs {error.name}, which is not installed; type: pip install 'treewright[{extra}]'"
        ) from error


@contextmanager
def loading_model(source: str | Path) -> Iterator[None]:
    """Around loading a model from a folder or by its name: what went wrong, in one line with what to type.

    A path at which there is no model fails before anything asks the network. Raises TreewrightError.
    """
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        if folder.is_dir():
            inside = sorted(p.parent for pattern in ("*", "*/*") for p in folder.glob(f"{pattern}/config.json"))
            hint = f"did you mean {inside[-1]}?" if inside else "give a folder in save_pretrained layout"
            raise TreewrightError(f"no model in the folder {source}: it holds no config.json; {hint}")
        if str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
            raise TreewrightError(
                f"there is no folder {source}; give one that holds a model, in save_pretrained layout"
            )
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, ValueError)) and not type(error).__module__.startswith("safetensors"):
            raise
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TreewrightError(
            f"cannot load a model from {str(source)!r}: {why}\n"
            "give a folder in save_pretrained layout, or a name that is on the Hugging Face hub or in its cache here"
        ) from error


def _scripted(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.clients.scripted import ScriptedPolicy
    from treewright.envs.custom import import_named

    module_name, _, function_name = rest.partition(":")
    if not module_name or not function_name:
        raise TreewrightError(f"'scripted:{rest}' does not name a function; write scripted:module:function")
    try:
        module = import_named(module_name)
    except ImportError as error:
        raise TreewrightError(f"cannot import {module_name!r} for scripted:{rest}: {error}") from error
    found = getattr(module, function_name, None)
    if found is None:
        near = difflib.get_close_matches(function_name, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TreewrightError(f"module {module_name!r} has no {function_name!r}{hint}")
    if isinstance(found, Policy):
        return found
    if not callable(found):
        raise TreewrightError(f"{rest} is a {type(found).__name__}, not a function (task, turns, tools, rng) -> str")
    return ScriptedPolicy(found, **{"name": f"scripted:{rest}", **options})


def _seedling(rest: str, options: dict[str, Any]) -> Policy:
    folder = Path(rest) if rest else SEEDLING
    if not (folder / "config.json").is_file():
        raise TreewrightError(f"no seedling at {folder}: it holds no config.json; type: treewright seedling --help")
    return _hf(str(folder), {"name": "seedling", **options})


def _hf(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.clients.hf import HFPolicy

    if not rest:
        raise TreewrightError("'hf:' names no model; write hf:FOLDER or hf:ORGANISATION/NAME")
    kind: type[HFPolicy] = HFPolicy
    if options.pop("grammar", False):
        from treewright.agent.clients.grammar import GrammarPolicy as kind
    if options.pop("draft", False):
        if kind is not HFPolicy:
            raise TreewrightError("draft and grammar do not go together yet; choose one")
        from treewright.agent.clients.drafting import DraftingPolicy as kind
    return kind.load(rest, **options)


def _openai(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.clients.openai import OpenAIPolicy

    return OpenAIPolicy(*_served("openai", rest), **options)


def _vllm(rest: str, options: dict[str, Any]) -> Policy:
    if "@http" not in rest:
        return _vllm_here(rest, options)
    from treewright.agent.clients.openai import VLLMPolicy

    return VLLMPolicy(*_served("vllm", rest), **options)


def _langgraph(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.clients.langgraph import GraphPolicy
    from treewright.envs.custom import load_named

    return GraphPolicy(load_named(rest, "policy langgraph"), **{"name": f"langgraph:{rest}", **options})


def _vllm_here(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.clients.vllm_engine import open_vllm

    if not rest:
        raise TreewrightError("'vllm:' names no model; write vllm:FOLDER, or vllm:MODEL@http://HOST:PORT/v1")
    return open_vllm(str(SEEDLING) if rest == "seedling" else rest, **options)


def _served(kind: str, rest: str) -> tuple[str, str]:
    model, at, url = rest.partition("@http")
    if not model or not at:
        raise TreewrightError(f"'{kind}:{rest}' names no server; write {kind}:MODEL@http://HOST:PORT/v1")
    return model, "http" + url


async def serve_weights(policy: Any, folder: str | Path) -> str:
    """Makes a policy serve the weights of a `save_pretrained` folder, in memory or over the wire; the new version.

    A policy that sleeps, because it shares an accelerator with the trainer, is woken for it. Raises TreewrightError for
    a policy that cannot exchange its weights.
    """
    load = getattr(policy, "load_weights", None)
    if load is None:
        raise TreewrightError(f"policy {policy.name} cannot take new weights; use seedling, hf:… or vllm:…")
    done = load(folder)
    version = await done if inspect.isawaitable(done) else done
    return str(version)


_KINDS: dict[str, Callable[[str, dict[str, Any]], Policy]] = {
    "scripted": _scripted,
    "seedling": _seedling,
    "hf": _hf,
    "openai": _openai,
    "vllm": _vllm,
    "langgraph": _langgraph,
}
