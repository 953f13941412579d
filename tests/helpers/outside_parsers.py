"""Every parser of what comes from outside: real inputs, how they are changed, and how the parser is called.

`PARSERS` is what `tests/faults/fuzz.py` runs. A parser either gives something or raises one of `errors`; whatever else
it raises is a traceback that somebody would see.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import outside_calls as call
import outside_examples as real
from hypothesis import strategies as st
from mutations import changed_bytes, changed_json, changed_text, json_text, odd_json, odd_text

from treewright.agent.policies.answers import Malformed
from treewright.envs.errors import TreewrightError

__all__ = ["PARSERS", "Parser"]


@dataclass(frozen=True)
class Parser:
    """One way in.

    seeds   real inputs;  change  makes another one of such;  shapes  hypothesis' inputs of any shape, None for none
    parse   (input, an empty folder of its own) → anything
    errors  what it may raise
    share   of the inputs that it gets, beside 1 of most
    """

    name: str
    seeds: Sequence[Any]
    change: Callable[[Any, random.Random], Any]
    parse: Callable[[Any, Path], Any]
    shapes: st.SearchStrategy[Any] | None = None
    errors: tuple[type[Exception], ...] = (TreewrightError,)
    share: float = 1.0


def _either(value: str, rng: random.Random) -> str:
    """JSON text, changed as text or as what it says."""
    if rng.random() < 0.4:
        return changed_text(value, rng)
    lines = value.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json_text(changed_json(json.loads(lines[at]), rng))
    return "\n".join(lines)


def _whole(value: str, rng: random.Random) -> str:
    return changed_text(value, rng) if rng.random() < 0.4 else json_text(changed_json(json.loads(value), rng))


def _bytes_of(change: Callable[[str, random.Random], str]) -> Callable[[bytes, random.Random], bytes]:
    def changed(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return changed_bytes(data, rng)
        return change(data.decode(), rng).encode("utf-8", "surrogatepass")

    return changed


def file_parser(
    name: str, seeds: Sequence[str], parse: Callable[[Path], Any], *, suffix: str, lines: bool = False,
    text: bool = False, **more: Any,
) -> Parser:  # fmt: skip
    """A parser of a file. lines: of JSON lines; text: of anything but JSON."""

    def call(data: bytes, folder: Path) -> Any:
        path = folder / f"given{suffix}"
        path.write_bytes(data)
        return parse(path)

    change = _bytes_of(changed_text if text else _either if lines else _whole)
    shapes = (odd_text if text else odd_json.map(json_text)).map(lambda made: made.encode("utf-8", "surrogatepass"))
    return Parser(name, [seed.encode() for seed in seeds], change, call, shapes, **more)


def _pairs(pairs: Any, rng: random.Random) -> Any:
    return [changed_text(pair, rng) if rng.random() < 0.7 else pair for pair in pairs]


def _texts(name: str, seeds: Sequence[str], parse: Callable[[Any, Path], Any], **more: Any) -> Parser:
    return Parser(name, seeds, changed_text, parse, odd_text, **more)


def _bodies(name: str, seeds: Sequence[str], parse: Callable[[Any, Path], Any], **more: Any) -> Parser:
    """A parser of the body of a request or an answer."""
    shapes = odd_json.map(lambda value: json_text(value).encode("utf-8", "surrogatepass"))
    return Parser(name, [seed.encode() for seed in seeds], _bytes_of(_whole), parse, shapes, **more)


def _lines(name: str, seeds: Sequence[str], parse: Callable[[Path], Any], **more: Any) -> Parser:
    return file_parser(name, seeds, parse, suffix=".jsonl", lines=True, **more)


def _jsons(name: str, seed: str, parse: Callable[[Path], Any]) -> Parser:
    return file_parser(name, (seed,), parse, suffix=".json")


def _tomls(name: str, seed: str, parse: Callable[[Path], Any], **more: Any) -> Parser:
    return file_parser(name, (seed,), parse, suffix=".toml", text=True, **more)


ANSWERED = (TreewrightError, Malformed)
WORDS = (*real.ACTIONS, "- one\n- two #1\n3) three", "3 of 4 tests pass", "(1 + 2) * 3")
WAITS = ("120", "Wed, 21 Oct 2015 07:28:00 GMT", "-1", "1e3")
RESULTS = [json.loads(one) for one in real.MCP_RESULT]
MESSAGES = [f'{{"jsonrpc": "2.0", "id": 1, "result": {one}}}' for one in real.MCP_RESULT]
REPLIES = odd_json.map(lambda value: json_text({"choices": value}).encode("utf-8", "surrogatepass"))
FILTERS = ["suite=kg", "nodes>=20", 'goal="x"']
REQUESTS = '{"prompt": "How?"}\n{"prompt": "Why?"}'
CORPUS = real.QUESTIONS.replace("question", "text")

PARSERS: tuple[Parser, ...] = (
    _texts("actions", real.ACTIONS, call.action, share=4),
    _texts("templates", real.ACTIONS, call.template, share=0.3),
    _texts("answers_in_words", WORDS, call.answer_lines),
    Parser("mcp_tools", [json.loads(real.MCP_LIST)], changed_json, call.mcp_list,
           odd_json.map(lambda one: {"tools": [one]}), share=0.5),
    Parser("mcp_results", RESULTS, changed_json, call.mcp_result, odd_json.map(lambda one: {"content": one})),
    _texts("mcp_lines", MESSAGES, call.mcp_line),
    Parser("openai_answers", [one.encode() for one in (*real.CHAT, *real.REFUSALS)], _bytes_of(_whole),
           call.openai_answer, REPLIES, ANSWERED, 2),
    Parser("openai_events", [real.SSE.encode()], _bytes_of(changed_text), call.openai_answer, None, ANSWERED, 0.3),
    _bodies("vllm_answers", real.COMPLETION, call.vllm_answer, errors=ANSWERED),
    _texts("retry_after", WAITS, call.waited),
    _bodies("gateway_chat", real.ASKED["chat/completions"], call.gateway("chat/completions"), share=0.5),
    _bodies("gateway_responses", real.ASKED["responses"], call.gateway("responses"), share=0.5),
    _bodies("gateway_messages", real.ASKED["messages"], call.gateway("messages"), share=0.5),
    _bodies("retrieval_answers", (real.RETRIEVED,), call.retrieved),
    Parser("accessibility_trees", [real.NODES], changed_json, call.tree),
    _lines("corpora", (CORPUS,), call.loader("envs.retrieval.corpus", "load_corpus")),
    _lines("questions", (real.QUESTIONS,), call.loader("envs.retrieval.corpus", "load_questions")),
    _lines("own_tasks", (real.TASKS,), call.own_tasks),
    _lines("web_tasks", (real.WEB_TASKS,), call.site_tasks),
    _jsons("webarena_tasks", real.WEBARENA, call.webarena),
    _lines("recipes", (real.RECIPES,), call.loader("envs.recipes", "read_recipes")),
    _tomls("site_files", real.SITE_TOML, call.site),
    _tomls("mcp_files", real.MCP_TOML, call.server_file),
    _tomls("settings_files", real.RUN_TOML, call.config, share=0.5),
    Parser("settings", [list(real.SETS)], _pairs, call.settings, share=0.5),
    _lines("raw_trees", real.raw_rows(), call.read_trees, share=0.3),
    _lines("conversations", (real.CONVERSATIONS,), call.read_trees),
    _lines("imports", (real.CONVERSATIONS,), call.imported, share=0.05),
    _jsons("manifests", real.MANIFEST, call.manifest),
    _jsons("learned_regions", real.LEARNED, call.loader("envs.web.sameness", "_kept")),
    _jsons("storage_states", real.STORAGE, call.storage),
    _lines("metrics", ('{"step": 1, "loss": 0.5}\n{"step": 2}',), call.metrics),
    _jsons("worked_examples", real.WORKED, call.loader("agent.policies.worked", "load_worked")),
    _lines("plan_memories", (real.PLANS,), call.loader("search.rules.plan_memory", "PlanMemory.load")),
    _lines("request_lines", (REQUESTS,), call.loader("agent.runs.ping", "read_lines")),
    Parser("stores", [real.store_file()], changed_bytes, call.damaged, share=0.1),
    Parser("filters", [FILTERS], _pairs, call.where),
)  # fmt: skip
