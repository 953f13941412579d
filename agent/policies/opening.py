"""Policies by name: `open_policy("seedling")`, `open_policy("vllm:NAME@http://host:8000/v1")`.

torch and transformers are imported only when a policy that needs them is opened.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from treewright.agent.policies.fetch import local_model
from treewright.agent.policies.headed import HeadedPolicy
from treewright.agent.policies.policy import SEEDLING, Adaptable, Policy, Updatable, seedling_folder
from treewright.agent.policies.weights import folder_version
from treewright.envs.doors import Door, call, nearest
from treewright.envs.errors import TreewrightError
from treewright.search.types import layers
from treewright.training.manifest import MANIFEST, base_of, is_adapter_folder, read_manifest, require_readable

__all__ = ["loading_model", "open_policy", "serve_weights"]

UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
OPTIONS = (  # of policies, for hints; each kind takes some of them
    "name", "version", "temperature", "window", "template", "template_options", "grammar", "speculate", "repair",
    "draft_model", "draft_width", "draft_depth",
    "deadline", "attempt_timeout", "backoff", "concurrency", "order", "tools_as", "together", "logprobs", "api_key_env",
    "key_header", "max_tokens_field", "price_in", "price_out", "longest_prompt", "extra", "tokenizer", "masked_exact",
    "colocated", "extended", "engine", "restarts", "stop_before", "run_inside", "device", "dtype", "batch_requests",
    "max_batch_tokens", "cache_bytes", "threads", "trainable", "newest_only", "images", "shared", "base", "routes",
)  # fmt: skip


def open_policy(spec: str, **options: Any) -> Policy:
    """The policy that `spec` names; `options` go to its constructor.

    scripted:MODULE:FUNCTION   a plain function, for tests                (agent/policies/scripted.py)
    seedling[:FOLDER]          the small packaged model, or one built since; seedling:web is the packaged one for pages
    hf:FOLDER_OR_NAME          any transformers causal language model     (agent/policies/hf.py); grammar=True: draws
                               are actions (grammar.py); speculate=True: fewer passes (drafting.py), draft_model=FOLDER:
                               by another model's guesses; they go together.
                               Also hf:smollm2 after `treewright model fetch smollm2`, and hf:FILE.gguf
    openai:MODEL@BASE_URL      any OpenAI-compatible server               (agent/policies/openai.py)
    vllm:MODEL@BASE_URL        vLLM's OpenAI server, token ids in and out (agent/policies/vllm_client.py); several, as
                               vllm:MODEL@URL,URL, share the draws     (agent/policies/many.py)
    langgraph:MODULE:GRAPH     your own compiled LangGraph agent          (agent/policies/langgraph.py)
    vllm:FOLDER_OR_NAME        vLLM in this program; vllm:seedling is the packaged model (agent/policies/vllm_engine.py)

    module:object              one of your own, or an entry point of treewright.policies: a Policy, or what makes one

    Raises TreewrightError for an unknown kind, with the nearest known one, and for a missing package, with what to
    install.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _KINDS:
        return _own(spec, options)
    try:
        if kind in ("hf", "vllm") and rest and "@http" not in rest:
            folder = str(SEEDLING) if (kind, rest) == ("vllm", "seedling") else local_model(rest)
            options = {"name": spec, **options} if kind == "hf" and folder != rest else options
            with loading_model(folder):
                return _headed(_KINDS[kind](folder, options), folder)
        return _KINDS[kind](rest, options)
    except TypeError as error:
        if (found := UNEXPECTED.search(str(error))) is None or found[1] not in options:
            raise
        near = difflib.get_close_matches(found[1], [name for name in OPTIONS if name != found[1]], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TreewrightError(f"policy {spec!r} takes no option {found[1]!r}{hint} (see docs/policies.md)") from error
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "transformers", "tokenizers", "safetensors", "vllm"):
            raise
        extra = "vllm" if kind == "vllm" else "train"
        raise TreewrightError(
            f"policy {spec!r} needs {error.name}, which is not installed; type: pip install 'treewright[{extra}]'"
        ) from error


def _headed(policy: Policy, folder: str) -> Policy:
    """A checkpoint that was trained with a head (`treewright train sft --head`) acts with it, and its name says so."""
    if not (Path(folder) / MANIFEST).is_file():
        return policy
    head = read_manifest(Path(folder))["extra"].get("head")
    headed: Policy = HeadedPolicy(policy, head) if head else policy  # type: ignore[assignment]  # its name is read-only
    return headed


@contextmanager
def loading_model(source: str | Path) -> Iterator[None]:
    """Around loading a model from a folder or by its name: what went wrong, in one line with what to type.

    A path at which there is no model fails before anything asks the network, and so does a checkpoint whose files are
    not those that were saved. Raises TreewrightError.
    """
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file() and not is_adapter_folder(folder):
        if folder.is_dir():
            inside = sorted(p.parent for pattern in ("*", "*/*") for p in folder.glob(f"{pattern}/config.json"))
            hint = f"did you mean {inside[-1]}?" if inside else "give a folder in save_pretrained layout"
            raise TreewrightError(f"no model in the folder {source}: it holds no config.json; {hint}")
        if str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
            raise TreewrightError(
                f"there is no folder {source}; give one that holds a model, in save_pretrained layout"
            )
    require_readable(folder)
    try:
        yield
    except (ImportError, TreewrightError):
        raise
    except Exception as error:  # readers of files that somebody made up raise whatever they like
        if isinstance(error, TypeError) and UNEXPECTED.search(str(error)):
            raise  # an option, not a file
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not isinstance(error, OSError | ValueError):
            why = f"{type(error).__name__}: {why}"
        raise TreewrightError(
            f"cannot load a model from {str(source)!r}: {why}\n"
            "give a folder in save_pretrained layout, or a name that is on the Hugging Face hub or in its cache here"
        ) from error


def _own(spec: str, options: dict[str, Any]) -> Policy:
    """A policy that somebody else wrote."""
    try:
        found = DOOR.find(spec)
    except TreewrightError as error:
        kind = spec.partition(":")[0]
        raise TreewrightError(
            f"no kind of policy named {kind!r} in {spec!r}; {nearest(kind, DOOR.names())}"
            + (f" As one of your own: {error}" if ":" in spec else "")
        ) from error
    if isinstance(found, type) or not isinstance(found, Policy):
        if not callable(found):
            raise TreewrightError(f"policy {spec!r} is a {type(found).__name__}; name a Policy or what makes one")
        found = call(found, options, f"policy {spec!r}")
    elif options:
        raise TreewrightError(f"policy {spec!r} is an object and takes no options; name the class that makes it")
    if not isinstance(found, Policy):
        raise TreewrightError(f"policy {spec!r} gave a {type(found).__name__}, not a treewright Policy")
    return found


def _scripted(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.policies.scripted import ScriptedPolicy
    from treewright.envs.naming import file_of, import_named, shadowed

    module_name, _, function_name = rest.partition(":")
    if not module_name or not function_name:
        raise TreewrightError(f"'scripted:{rest}' does not name a function; write scripted:module:function")
    try:
        module = import_named(module_name)
    except ImportError as error:
        raise TreewrightError(
            f"cannot import {module_name!r} for scripted:{rest}: {error}; mend it, or type in its folder"
        ) from error
    found = getattr(module, function_name, None)
    if found is None:
        near = difflib.get_close_matches(function_name, dir(module), n=1)
        hint = shadowed(module) or (f"; did you mean {near[0]!r}?" if near else "")
        raise TreewrightError(f"module {module_name!r}{file_of(module)} has no {function_name!r}{hint}")
    if isinstance(found, Policy):
        return found
    if not callable(found):
        raise TreewrightError(f"{rest} is a {type(found).__name__}, not a function (task, turns, tools, rng) -> str")
    return ScriptedPolicy(found, **{"name": f"scripted:{rest}", **options})


def _seedling(rest: str, options: dict[str, Any]) -> Policy:
    folder = seedling_folder(rest)
    if not (folder / "config.json").is_file():
        raise TreewrightError(f"no seedling at {folder}: it holds no config.json; type: treewright seedling --help")
    return _hf(str(folder), {"name": "seedling", **options})


def _speculates(options: dict[str, Any]) -> bool:
    """Takes `speculate` out of the options; runs of version 0.2 and before wrote it as `draft`."""
    if "draft" in options:
        warnings.warn("the policy option 'draft' is called 'speculate' now", FutureWarning, stacklevel=2)
        options.setdefault("speculate", options.pop("draft"))
    return bool(options.pop("speculate", False))


def _hf(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.policies.hf import HFPolicy

    if not rest:
        raise TreewrightError("'hf:' names no model; write hf:FOLDER or hf:ORGANISATION/NAME")
    kind: type[HFPolicy] = HFPolicy
    match options.pop("grammar", False), _speculates(options) or "draft_model" in options:
        case True, True:
            from treewright.agent.policies.grammar import DraftingGrammarPolicy as kind
        case True, False:
            from treewright.agent.policies.grammar import GrammarPolicy as kind
        case False, True:
            from treewright.agent.policies.drafting import DraftingPolicy as kind
    return kind.load(rest, **options)


def _openai(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.policies.openai import OpenAIPolicy

    return OpenAIPolicy(*_served("openai", rest), **options)


def _vllm(rest: str, options: dict[str, Any]) -> Policy:
    if "@http" not in rest:
        return _vllm_here(rest, options)
    from treewright.agent.policies.vllm_client import VLLMPolicy

    model, urls = _served("vllm", rest)
    each = [VLLMPolicy(model, url.strip(), **options) for url in urls.split(",") if url.strip()]
    if len(each) == 1:
        return each[0]
    from treewright.agent.policies.many import ManyPolicy

    many: Policy = ManyPolicy(each)  # type: ignore[assignment]  # its counters are read-only
    return many


def _langgraph(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.policies.langgraph import GraphPolicy
    from treewright.envs.custom import load_named

    return GraphPolicy(load_named(rest, "policy langgraph"), **{"name": f"langgraph:{rest}", **options})


def _vllm_here(rest: str, options: dict[str, Any]) -> Policy:
    from treewright.agent.policies.vllm_engine import open_vllm

    if not rest:
        raise TreewrightError("'vllm:' names no model; write vllm:FOLDER, or vllm:MODEL@http://HOST:PORT/v1")
    if is_adapter_folder(rest):
        raise TreewrightError(
            f"{rest} holds an adapter; serve its base, --policy vllm:{base_of(rest)['model']} with "
            f"--set 'policy.options.engine={{\"enable_lora\": true}}', and name the run: it is given the adapter"
        )
    return open_vllm(rest, **options)


def _served(kind: str, rest: str) -> tuple[str, str]:
    model, at, url = rest.partition("@http")
    if not model or not at:
        raise TreewrightError(f"'{kind}:{rest}' names no server; write {kind}:MODEL@http://HOST:PORT/v1")
    return model, "http" + url


async def serve_weights(policy: object, folder: str | Path) -> str:
    """Makes a policy serve the weights of a `save_pretrained` or an adapter's folder, in memory or over the wire; the
    new version.

    A policy that sleeps, because it shares an accelerator with the trainer, is woken for it. Raises TreewrightError for
    a policy that cannot exchange its weights.
    """
    taker = next((p for p in layers(policy) if isinstance(p, Updatable)), None)
    if taker is None:
        name = policy.name if isinstance(policy, Policy) else type(policy).__name__
        raise TreewrightError(f"policy {name} cannot take new weights; use seedling, hf:… or vllm:…")
    require_readable(folder)
    if is_adapter_folder(folder) and isinstance(taker, Adaptable):
        return await taker.load_adapter(folder, folder_version(folder))
    done = taker.load_weights(folder)
    return done if isinstance(done, str) else await done


_KINDS: dict[str, Callable[[str, dict[str, Any]], Policy]] = {
    "scripted": _scripted,
    "seedling": _seedling,
    "hf": _hf,
    "openai": _openai,
    "vllm": _vllm,
    "langgraph": _langgraph,
}

DOOR = Door(kind="policy", group="treewright.policies", built_in=lambda: _KINDS)
