"""How each parser of outside data is called, as its part of the package calls it; `outside_parsers.py` lists them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from mcp_types import CallToolResult, JSONRPCError, JSONRPCRequest, JSONRPCResponse
from outside_examples import MCP_LIST, TOOL, TOOLS

from treewright.envs.errors import TreewrightError


class PartialWrite(Exception):
    """An error left something half written behind."""


# -- actions --------------------------------------------------------------------------------------------------------


def action(text: str, _: Path) -> None:
    from treewright.agent.policies.actions import repair_action
    from treewright.search.screen import parse_action, validate_action

    repair_action(text, TOOLS)
    action = parse_action(text, TOOLS)
    action.key.encode()
    validate_action(action, TOOLS)


def template(text: str, _: Path) -> None:
    """What a model said and what it saw, in the next prompt of each template."""
    from treewright.agent.policies.light import LightTokenizer
    from treewright.agent.policies.policy import SEEDLING
    from treewright.agent.policies.prompts import chat_messages, template_for
    from treewright.envs.types import Observation, Task
    from treewright.search.types import Exchange

    global _COMPACT
    if _COMPACT is None:
        _COMPACT = template_for(LightTokenizer(SEEDLING), None, None)
    task, seen = Task("kg", "1", text[:200]), Observation(text)
    first = _COMPACT.context(task, TOOLS, seen, (), ())
    said = _COMPACT.response(text)
    _COMPACT.context(task, TOOLS, seen, (Exchange(text, None, seen),), first.ids + said)
    json.dumps([[m.role, m.content] for m in chat_messages(task, TOOLS, seen, (Exchange(text, None, seen),), 1, False)])


_COMPACT: Any = None


def answer_lines(text: str, _: Path) -> None:
    """Words of a model that are read as lists, numbers and choices."""
    from treewright.agent.judges.imagined import steps_left
    from treewright.agent.policies.prompt_text import read_items
    from treewright.agent.runs.questions import sub_questions
    from treewright.envs.code.problem import equal
    from treewright.envs.code.world import share_passed
    from treewright.envs.reasoning.puzzles import value_of

    steps_left(text), read_items(text), sub_questions(text, 4), share_passed(text)
    value_of(text), equal(text, "[1, 2]")


# -- MCP ------------------------------------------------------------------------------------------------------------


def _through_wire(method: str, result: Any, params: dict[str, Any]) -> Any:
    from mcp.shared.message import SessionMessage

    from treewright.envs.tools.wire import Wire

    wire = Wire("MCP server fuzzed")
    wire.sent(SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=7, method="tools/list", params={})))
    listed = wire.came(SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=7, result=json.loads(MCP_LIST))))
    if method == "tools/list":
        wire.sent(SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=8, method=method, params=params)))
        listed = wire.came(SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=8, result=result)))
        return listed.message.result  # type: ignore[union-attr]
    wire.sent(SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=8, method=method, params=params)))
    came = wire.came(SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=8, result=result)))
    assert not isinstance(came, Exception) and not isinstance(came.message, JSONRPCError)
    return came.message.result  # type: ignore[union-attr]


def mcp_list(value: Any, _: Path) -> None:
    """A list of tools, then a call of each that is offered."""
    from mcp_types import ListToolsResult

    from treewright.envs.tools.listing import Listing
    from treewright.envs.types import Action
    from treewright.search.screen import validate_action

    if not isinstance(value, dict):
        return
    found = ListToolsResult.model_validate(_through_wire("tools/list", value, {}), by_name=False)
    specs = Listing("fuzzed", {}, True, TOOL).read(found.tools, False)
    for spec in specs:
        spec.to_openai()
        validate_action(Action.of(spec.name, text="x", n=1), specs)


def mcp_result(value: Any, _: Path) -> None:
    from treewright.envs.tools.answer import answer_parts, answer_text

    if not isinstance(value, dict):
        return
    result = CallToolResult.model_validate(_through_wire("tools/call", value, {"name": "find"}), by_name=False)
    answer_text(result).encode()
    answer_parts(result)


def mcp_line(text: str, _: Path) -> None:
    """A line that the client could not read as a message."""
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter
    from pydantic import ValidationError

    from treewright.envs.tools.wire import Wire

    wire = Wire("MCP server fuzzed")
    wire.sent(SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=1, method="tools/call", params={"name": "find"})))
    try:
        wire.came(SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False)))
    except ValidationError as error:
        wire.came(error)
    except UnicodeEncodeError:
        pass  # such a line comes over no wire


# -- models' servers and the gateway --------------------------------------------------------------------------------


def openai_answer(data: bytes, _: Path) -> None:
    from treewright.agent.policies.answers import Refused, read, refusal

    refusal(500, data)
    try:
        reply = read(data)
    except Refused as refused:
        str(refused).encode("utf-8", "replace")
        return
    for choice in reply.choices:
        choice.said().encode()
        choice.chat_logprobs()


def vllm_answer(data: bytes, _: Path) -> None:
    """An answer with token ids, as the client of vLLM's server takes it."""
    from treewright.agent.policies.answers import Refused
    from treewright.agent.policies.light import LightTokenizer
    from treewright.agent.policies.policy import SEEDLING
    from treewright.agent.policies.vllm_client import VLLMPolicy
    from treewright.search.segments import usable

    global _VLLM
    if _VLLM is None:
        _VLLM = VLLMPolicy("m", "http://127.0.0.1:9/v1", tokenizer=LightTokenizer(SEEDLING), version="v", routes=True)
    try:
        reply = _VLLM._heard(httpx.Response(200, content=data))
    except Refused:
        return
    body = {"max_tokens": 9}
    for done in _VLLM._counted([_VLLM._completion(choice) for choice in reply.choices], reply, body):
        usable(done)


_VLLM: Any = None


def waited(text: str, _: Path) -> None:
    from treewright.envs.waiting import LONGEST, seconds_until

    for pair in ((text, None), ("Wed, 21 Oct 2015 07:28:00 GMT", text), (text, text)):
        assert 0 <= seconds_until(*pair) <= LONGEST


def gateway(api: str) -> Callable[[Any, Path], None]:
    """A request of an agent, through the whole server, to an answer that its API may give."""

    def post(data: bytes, _: Path) -> None:
        from treewright.agent.gateway.draws import Draws
        from treewright.agent.gateway.server import make_app
        from treewright.agent.policies.scripted import ScriptedPolicy

        global _APP, _LOOP
        if _APP is None:
            _LOOP = asyncio.new_event_loop()
            policy = ScriptedPolicy(lambda task, turns, tools, rng: "look {}")
            _APP = httpx.AsyncClient(
                transport=httpx.ASGITransport(make_app(Draws(policy, tries=2), "key")), base_url="http://gateway"
            )
        headers = {"authorization": "Bearer key", "content-type": "application/json"}
        answer = _LOOP.run_until_complete(_APP.post(f"/v1/{api}", content=data, headers=headers))
        if answer.status_code >= 400:
            assert answer.status_code in (400, 404, 413, 502, 503), f"HTTP {answer.status_code}: {answer.text[:200]}"
            assert answer.json()["error"]["message"].strip(), "an error without words"

    return post


_APP: Any = None
_LOOP: Any = None


def retrieved(data: bytes, _: Path) -> None:
    from treewright.envs.retrieval.remote import _passages

    _passages(httpx.Response(200, content=data), "http://server")


# -- pages ----------------------------------------------------------------------------------------------------------


def tree(nodes: Any, _: Path) -> None:
    from treewright.envs.web.reading import read_tree

    view = read_tree(nodes, "title", "http://site/")
    view.parts(2000)
    view.fingerprint("1", "")


# -- files ----------------------------------------------------------------------------------------------------------


def imported(path: Path) -> None:
    """Trees into a store: what is there afterwards is whole, whatever became of the rest."""
    from treewright.search.store import TreeStore
    from treewright.training.export.load import import_trees

    with TreeStore.open(path.parent / "trees.store") as store:
        try:
            asyncio.run(import_trees(path, store))
        finally:
            for row in store.trees():
                if row.status != "done" or store.load(row.tree_id).digest() != store.load(row.tree_id).digest():
                    raise PartialWrite(f"tree {row.tree_id} is {row.status} after an import that ended")


def read_trees(path: Path) -> None:
    from treewright.training.export.load import grown_trees

    for grown in grown_trees(path):
        grown.tree.digest()


def settings(pairs: Any, folder: Path) -> None:
    """--set on a command line; what is kept of it for the next command is read back as the same."""
    from treewright.agent.config import load_config, store_settings

    given = ["name=run", f"folder={folder}", *pairs]
    config = load_config(None, given)
    if config.home.parent != folder:
        return
    store_settings(config)
    try:
        again = load_config(None, ["name=run", f"folder={folder}"], remember=True)
    except TreewrightError as error:
        raise PartialWrite(f"what was kept cannot be read again: {error}") from error
    if again.model_dump_json() != config.model_dump_json():
        raise PartialWrite("what was kept is read as something else")


def storage(path: Path) -> None:
    from treewright.envs.web.own_site import web_suite

    site = path.parent / "site.toml"
    site.write_text(f'url = "http://127.0.0.1:9/"\nstorage = "{path.name}"\n')
    web_suite(str(site))


def site_tasks(path: Path) -> None:
    from treewright.envs.web.own_site import web_suite

    site = path.parent / "site.toml"
    site.write_text(f'url = "http://127.0.0.1:9/"\ntasks = "{path.name}"\n')
    web_suite(str(site)).tasks("test", 5)


def manifest(path: Path) -> None:
    from treewright.training.manifest import base_of, complete

    step = path.parent / "checkpoints" / "step-000001"
    step.mkdir(parents=True)
    path.rename(step / "manifest.json")
    complete(step.parent)
    base_of(step)


def metrics(path: Path) -> None:
    from treewright.training.track import read_metrics

    read_metrics(path)


def loader(where: str, name: str) -> Callable[[Path], Any]:
    """The function or class method `name` of a module, called with a path; imported when it is needed."""

    def load(path: Path) -> Any:
        import importlib

        found: Any = importlib.import_module(f"treewright.{where}")
        for part in name.split("."):
            found = getattr(found, part)
        made = found(path)
        return list(made) if hasattr(made, "__next__") else made

    return load


def config(path: Path) -> None:
    from treewright.agent.config import load_config

    load_config(path)


def server_file(path: Path) -> None:
    from treewright.envs.tools.mcp_suite import read_server

    read_server(str(path))


def site(path: Path) -> None:
    from treewright.envs.web.own_site import web_suite

    web_suite(str(path)).tasks("test", 1)


def own_tasks(path: Path) -> None:
    from treewright.envs.custom import load_tasks

    load_tasks(path, "own")


def webarena(path: Path) -> None:
    from treewright.envs.web.webarena import load_tasks

    load_tasks(path, {"SHOP": "http://127.0.0.1:9"})


def where(texts: Any, _: Path) -> None:
    from treewright.search.store.query import parse_where

    parse_where(texts)


def damaged(data: bytes, folder: Path) -> None:
    """A store whose file was damaged: an error of ours, or what it says."""
    from treewright.search.store import TreeStore

    path = folder / "t.store"
    path.write_bytes(data)
    with TreeStore.open(path, read_only=True) as store:
        for row in store.trees():
            store.load(row.tree_id).digest()
