"""Real inputs of every kind, as people, models and servers write them: what mutations begin with."""

from __future__ import annotations

import asyncio
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from treewright.envs.types import ToolSpec

TOOL = ToolSpec("done", "Ends the task.", {"type": "object", "properties": {"answer": {"type": "string"}}})
TOOLS = (
    ToolSpec("look", "Looks around.", {"type": "object", "properties": {}, "additionalProperties": False}),
    ToolSpec("find", "Finds.", {
        "type": "object", "required": ["text"],
        "properties": {"text": {"type": "string", "pattern": "^[a-z ]+$"}, "n": {"type": "integer", "minimum": 1},
                       "where": {"enum": ["here", "there"]}, "deep": {"type": "array", "items": {"$ref": "#/$defs/x"}}},
        "$defs": {"x": {"type": "object", "properties": {"y": {"type": "number"}}}},
    }),
)  # fmt: skip

ACTIONS = (
    'find {"text": "a lamp", "n": 2, "where": "here"}', "look {}", 'look {} find {"text": "x", "deep": [{"y": 1.5}]}',
    '<think>It is there.</think>\n<tool_call>{"name": "find", "arguments": {"text": "lamp"}}</tool_call>',
    '{"name": "find", "arguments": "{\\"text\\": \\"lamp\\"}"}', "look", "I will look {'text': 'x',}",
    '{"function": {"name": "find", "parameters": {"text": "é\\u00e9\\ud83d\\ude00"}}}',
)  # fmt: skip

_SCHEMA: dict[str, Any] = {
    "type": "object", "properties": {"text": {"type": "string", "minLength": 1}, "n": {"type": ["integer", "null"]},
                                     "of": {"anyOf": [{"$ref": "#/definitions/a"}, {"const": 3}]}},
    "required": ["text"], "definitions": {"a": {"type": "array", "items": {"type": "string", "pattern": "^\\p{L}+$"}}},
    "additionalProperties": False,
}  # fmt: skip
MCP_LIST = json.dumps({"tools": [
    {"name": "find", "title": "Find", "description": "Finds.", "inputSchema": _SCHEMA,
     "outputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
     "annotations": {"readOnlyHint": True, "title": "x"}, "_meta": {"a": 1}},
    {"name": "many", "inputSchema": {"oneOf": [{"properties": {"a": {"type": "string"}}}, {"required": ["b"]}]},
     "execution": {"taskSupport": "optional"}}], "nextCursor": ""})  # fmt: skip
MCP_RESULT = tuple(json.dumps(one) for one in (
    {"content": [{"type": "text", "text": "found"}, {"type": "image", "data": "cG5n", "mimeType": "image/png"}],
     "structuredContent": {"n": 1}, "isError": False},
    {"content": [{"type": "resource", "resource": {"uri": "file:///a", "blob": "AAAA", "mimeType": "x/y"}},
                 {"type": "resource_link", "uri": "http://a/b", "name": "b", "size": 3, "description": "it"},
                 {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}], "_meta": {"x": None}},
    {"content": "plain", "structuredContent": {"n": "no"}}, {"structuredContent": {"n": 2.5}},
))  # fmt: skip

_LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]}
CHAT = tuple(json.dumps(one) for one in (
    {"id": "1", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "logprobs": _LOGPROBS,
                                           "message": {"role": "assistant", "content": "look {}"}}],
     "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}},
    {"choices": [{"message": {"content": [{"type": "text", "text": "hm"}, {"type": "thinking", "thinking": "x"}],
                              "tool_calls": [{"id": "c", "function": {"name": "find", "arguments": {"text": "x"}}}]},
                  "finish_reason": "tool_calls"}], "usage": None},
    {"choices": [{"text": "old", "finish_reason": "length"}]},
))  # fmt: skip
COMPLETION = (json.dumps({
    "choices": [{"text": "look {}", "token_ids": [5, 6, 7], "logprobs": {"token_logprobs": [-0.5, -0.25, -0.1]},
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 3}}),)  # fmt: skip
REFUSALS = tuple(json.dumps(one) for one in (
    {"error": {"message": "no such model", "type": "invalid_request_error", "param": "model", "code": 404}},
    {"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "must be user", "type": "value_error"}]},
    {"object": "error", "message": "max_tokens is too large", "code": "400"},
    [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "no", "metadata": {"raw": "why"}}}],
))  # fmt: skip
SSE = f": hello\n\ndata: {CHAT[0]}\n\ndata: [DONE]\n"

_TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
ASKED = {
    "chat/completions": (json.dumps({
        "model": "m", "max_tokens": 9, "n": 2, "seed": 3, "stop": ["\n"], "logprobs": True, "top_logprobs": 2,
        "tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}},
        "messages": [{"role": "system", "content": "Be kind."},
                     {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                     {"role": "assistant", "content": None,
                      "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
                     {"role": "tool", "tool_call_id": "c", "content": "a door"}]}),
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True,
                    "stream_options": {"include_usage": True},
                    "response_format": {"type": "json_schema",
                                        "json_schema": {"name": "x", "schema": {"type": "object"}}}})),
    "responses": (json.dumps({
        "model": "m", "instructions": "Be kind.", "max_output_tokens": 9, "tools": [{"type": "function", "name": "look",
        "parameters": {"type": "object"}}], "tool_choice": "auto", "text": {"format": {"type": "text"}},
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                  {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c", "output": "a door"}]}),
        json.dumps({"model": "m", "input": "hi", "stream": True, "previous_response_id": None})),
    "messages": (json.dumps({
        "model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "Be kind."}], "stop_sequences": ["x"],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"}, "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "text", "text": "hm"},
                                              {"type": "tool_use", "id": "c", "name": "look", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "a door"}]}]}),
        json.dumps({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "stream": True})),
}  # fmt: skip
RETRIEVED = json.dumps(
    {"result": [[{"document": {"contents": '"Whale"\nIt eats krill.'}, "score": 0.5}, {"contents": "x"}]]}
)


def _node(number: int, role: str, name: str, parent: int | None = None, **more: Any) -> dict[str, Any]:
    made = {
        "nodeId": str(number), "role": {"type": "role", "value": role},
        "name": {"type": "computedString", "value": name},
        "ignored": False, "backendDOMNodeId": number, "childIds": [], "properties": [], **more,
    }  # fmt: skip
    return made if parent is None else {**made, "parentId": str(parent)}


NODES = [
    _node(1, "RootWebArea", "shop", childIds=["2", "3", "4"]), _node(2, "heading", "Shop", 1, childIds=["5"]),
    _node(3, "button", "Buy", 1, properties=[{"name": "focusable", "value": {"type": "boolean", "value": True}}]),
    _node(4, "textbox", "Name", 1, value={"type": "string", "value": "Ann"}, childIds=["6"],
          properties=[{"name": "editable", "value": {"type": "token", "value": "plaintext"}},
                      {"name": "invalid", "value": {"type": "token", "value": "false"}}]),
    _node(5, "StaticText", "Shop", 2), _node(6, "generic", "", 4, ignored=True, description={"value": "who"}),
]  # fmt: skip

QUESTIONS = "\n".join(json.dumps(one) for one in (
    {"id": "q1", "question": "What does it eat?", "answers": ["krill", "plankton"], "split": "test", "support": ["d1"]},
    {"_id": "q2", "question": "Who?", "answer": "Ann", "title": "T",
     "metadata": {"supporting_facts": {"title": ["d1"]}}},
))  # fmt: skip
TASKS = "\n".join(json.dumps(one) for one in (
    {"id": "one", "goal": "get 4", "seed": 3, "split": "test", "horizon": 5,
     "data": {"jugs": [3, 5]}, "truth": {"want": 4}},
    {"id": "two", "goal": "get 1"},
))  # fmt: skip
WEB_TASKS = "\n".join(json.dumps(one) for one in (
    {"id": "one", "goal": "look", "start": "/red", "split": "test", "horizon": 4,
     "reward": {"any": [{"text": "Thank you", "url": ["/done"]}, {"answer": "42", "no_text": "x"}]}},
    {"id": "two", "goal": "buy", "reward": {"state": {"get": "/api/cart", "at": "items.0.name", "equals": "lamp"}}},
))  # fmt: skip
WEBARENA = json.dumps([
    {"task_id": 1, "intent": "find it", "start_url": "__SHOP__/a |AND| __SHOP__/b", "require_login": False,
     "eval": {"eval_types": ["string_match", "url_match", "program_html"],
              "reference_answers": {"must_include": ["42"], "exact_match": "42"}, "reference_url": "__SHOP__/done",
              "program_html": [{"url": "last", "locator": "document.title",
                                "required_contents": {"must_include": ["x"]}}]}},
])  # fmt: skip
RECIPES = (
    '{"goal": "soup", "needs": ["salt", "water"], "cost": 2.5, "name": "cook"}\n{"goal": "salt"}\n{"target": ["soup"]}'
)
SITE_TOML = """url = "https://shop.example/"
hosts = ["shop.example", "cdn.example:8080"]
quiet = 0.05
calm = ["[0-9]+ people looked"]
same_page = "distance:0.1"
sessions = 2

[headers]
Accept-Language = "en"
"""
MCP_TOML = """command = "python -m server {folder} --quiet"
deadline = 5.5
sandboxed = true
trust_hints = false
max_chars = 900

[effects]
find = "read"
send = "irreversible"

[env]
HOME = "/nowhere"
"""
RUN_TOML = """name = "first"
folder = "runs"

[policy]
spec = "seedling"
options = {temperature = 0.5}

[search]
rule = "best_first"
expansions = 8
options = {draws = 3}

[worlds]
suites = ["kg", "maze"]
sessions = 2

[train]
lr = 1e-4
"""
SETS = ("search.expansions=8", 'worlds.suites=["kg", "maze"]', "policy.spec=seedling", "train.lr=0.0003",
        "policy.options.temperature=0.5", 'search.options={"draws": 2}')  # fmt: skip
CONVERSATIONS = "\n".join(json.dumps(one) for one in (
    {"id": "c1", "suite": "mine", "success": True, "model": "m", "tools": [_TOOL], "messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "hm", "reasoning_content": "so", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "a door"}, {"role": "assistant", "content": "A door."}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]},
                  {"role": "assistant", "content": "ho"}],
     "reward": 0.5, "truncated": False},
))  # fmt: skip
MANIFEST = json.dumps({
    "step": 3, "version": "a2809fbfc86860c7", "files": {"config.json": "ebcd77d4", "model.safetensors": "a2809fbf"},
    "optimizer": [{"lr": 0.01, "betas": [0.9, 0.99]}], "consumed": [["t", "v"]], "baselines": {"kg": [0.5, 3]},
    "base": {"model": "m", "version": "v"},
})  # fmt: skip
LEARNED = json.dumps({"*": ["div#ads"], "shop.example/items/#": ["aside.news", "p"]})
STORAGE = json.dumps({
    "cookies": [{"name": "s", "value": "1", "domain": "127.0.0.1", "path": "/", "expires": -1, "httpOnly": True,
                 "secure": False, "sameSite": "Lax"}],
    "origins": [{"origin": "http://127.0.0.1:9", "localStorage": [{"name": "k", "value": "v"}]}],
})  # fmt: skip
WORKED = json.dumps(
    [{"suite": "kg", "goal": "who?", "first": "start", "steps": [{"action": "look {}", "observation": "a door"}]}]
)
PLANS = '{"suite": "kg", "goal": "who?", "steps": ["look", "answer"]}\n{"suite": "kg", "goal": "what?", "steps": []}'


@lru_cache(maxsize=1)
def raw_rows() -> tuple[str, ...]:
    """Two finished trees as the export writes them."""
    from export_store import fill

    from treewright.search.store.tree_store import TreeStore
    from treewright.training.export.raw import encode_tree
    from treewright.training.export.view import View

    with tempfile.TemporaryDirectory() as folder, TreeStore.open(Path(folder) / "t.store") as store:
        asyncio.run(fill(store, range(2)))
        ids = [row.tree_id for row in store.trees()]
        return tuple(json.dumps(encode_tree(View(store.load(one)), store.expansions(one))) for one in ids)


@lru_cache(maxsize=1)
def store_file() -> bytes:
    """A store of three finished trees, as it lies on the disk."""
    from export_store import fill

    from treewright.search.store.tree_store import TreeStore

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.store"
        with TreeStore.open(path) as store:
            asyncio.run(fill(store, range(3)))
        return path.read_bytes()
