"""Live worlds whose `send` writes a line into a ledger outside the process, and an episode of approvals over them.

Every world has `look`, which reads, `note`, which can be undone, and `send`, which cannot. What is sent is the number
that was approved, so a line that stands twice in the ledger is one approval with two mails.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from mcp.client.stdio import StdioServerParameters
from not_none import not_none

from treewright.agent.policies.langgraph import GraphPolicy
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import BaseEnvironment, Effect, Observation, StepResult, Task, ToolSpec
from treewright.envs.tools.mcp import MCPEnvironment, StateFolder
from treewright.envs.tools.world import ToolWorld
from treewright.envs.types import Action, Environment
from treewright.search.commit import CommitResult, Next, commit, continue_from
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.store.journal import JournalEntry
from treewright.search.types import Budget

if TYPE_CHECKING:
    from commit_parts import Kill


WORLDS = ("mcp", "mcp with a folder", "object", "own class", "langgraph")
EFFECTS = {"look": Effect.READ, "note": Effect.REVERSIBLE, "send": Effect.IRREVERSIBLE}
PER_MAIL = 2  # turns: something that is explored, then a mail

SERVER = """
import json, os, sys
LEDGER, TEXT = sys.argv[1], {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}
notes = []
def say(i, result):
    print(json.dumps({"jsonrpc": "2.0", "id": i, "result": result}), flush=True)
for line in sys.stdin:
    m = json.loads(line); method, i = m.get("method"), m.get("id")
    if method == "initialize":
        say(i, {"protocolVersion": m["params"]["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "mail", "version": "1"}})
    elif method == "tools/list":
        say(i, {"tools": [{"name": n, "description": n, "inputSchema": TEXT} for n in ("look", "note", "send")]})
    elif method == "tools/call":
        name, to = m["params"]["name"], m["params"]["arguments"]["to"]
        if name == "send":
            file = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(file, (to + "\\n").encode()); os.close(file)
        if name == "note": notes.append(to)
        say(i, {"content": [{"type": "text", "text": f"{name} {to} {len(notes)}"}]})
    elif i is not None: say(i, {})
"""


def write(ledger: Any, to: str) -> None:
    """One line, in one write."""
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{to}\n".encode())
    os.close(file)


def lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


class Desk:
    """A plain object whose mails leave the process. It declares nothing but what reads and what can be undone."""

    def __init__(self, ledger: Any, kill: Kill) -> None:
        self.notes: list[Any]
        self.ledger, self.kill, self.notes = str(ledger), kill, []

    def __deepcopy__(self, memo: Any) -> Desk:
        other = Desk(self.ledger, self.kill)
        other.notes = list(self.notes)
        return other

    def look(self, to: str) -> str:
        return f"look {to}"

    def note(self, to: str) -> str:
        self.notes.append(to)
        return f"note {to}"

    def send(self, to: str) -> str:
        self.kill()
        write(self.ledger, to)
        self.kill()
        return f"sent {to}"


DECLARED: dict[str, dict[str, Any]] = {
    "look": {"effect": Effect.READ},
    "note": {"effect": Effect.REVERSIBLE},
    "send": {},
}


class Own(BaseEnvironment):
    """An environment of one's own that can only reset and step. Nothing is declared of `send`, nor of the world."""

    name = "own"
    tools = tuple(
        ToolSpec(name, name, {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}, **effect)
        for name, effect in DECLARED.items()
    )

    def __init__(self, ledger: Path, kill: Kill) -> None:
        self.ledger, self.kill = ledger, kill
        self.notes: tuple[str, ...] = ()

    async def reset(self, task: Task, key: int) -> Observation:
        self.notes = ()
        return Observation("ready", "ready")

    async def step(self, action: Action, key: int) -> StepResult:
        to = action.arguments["to"]
        if action.name == "send":
            self.kill()
            write(self.ledger, to)
            self.kill()
        if action.name == "note":
            self.notes = (*self.notes, to)
        return StepResult(Observation(f"{action.name} {to}", f"ready {self.notes}"))


def opener(world: str, folder: Path, kill: Kill) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Sessions of a world, whose ledger is `folder / "ledger"`."""
    ledger = folder / "ledger"

    def server(path: Path, **options: Any) -> MCPEnvironment:
        command = StdioServerParameters(command=sys.executable, args=["-S", "-E", str(path), str(ledger)])
        return MCPEnvironment(command, effects=EFFECTS, **options)

    def marked(place: Path, task: Task, key: int) -> None:
        (place / "a").write_text("1")

    async def opened() -> MCPEnvironment | ToolWorld | Own:
        if world.startswith("mcp"):
            path = folder / "server.py"
            if not path.exists():
                path.write_text(SERVER)
            if world == "mcp":
                return server(path)
            state = folder / f"state {os.getpid()} {len(list(folder.glob('state *')))}"  # noqa: ASYNC240
            state.mkdir()
            return server(path, state=StateFolder(state, marked))
        if world == "object":
            effects = {"look": "read", "note": "reversible"}
            desk = Desk(ledger, kill)
            return await ToolWorld.of(desk, effects=effects, fingerprint=lambda desk: str(desk.notes)).open()
        return Own(ledger, kill)

    return opened


def said(turns: int, horizon: int, chance: Any) -> tuple[str, str]:
    """Something to explore, then the next mail; both are numbered by the turns that are left in all."""
    left = horizon - turns
    if left % PER_MAIL == 0:
        return ("look", "note")[chance % 2], f"{left}-{chance % 3}"
    return "send", str(left // PER_MAIL)


def policy(world: str, folder: Path) -> GraphPolicy | ScriptedPolicy:
    if world == "langgraph":
        return graph_policy(folder / "ledger")

    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        name, to = said(len(turns), task.horizon, rng.randrange(6))
        return f'{name} {{"to": "{to}"}}'

    return ScriptedPolicy(script)


def graph_policy(ledger: Path) -> GraphPolicy:
    """A LangGraph agent whose own tool really sends, in a node that is not called `tools`."""

    @tool
    def send(to: str) -> str:
        """Sends a mail."""
        write(ledger, f"the graph itself sent {to}".replace(" ", "-"))
        return "sent"

    def decide(state: Any, config: RunnableConfig) -> dict[str, Any]:
        turns = sum(m.type == "ai" for m in state["messages"])
        horizon = int(next(m.content for m in state["messages"] if "turns" in m.content).split("turns")[0].split()[-1])
        name, to = said(turns, horizon, config["configurable"]["seed"] % 6)
        return {"messages": [AIMessage("", tool_calls=[{"name": name, "args": {"to": to}, "id": "1"}])]}

    graph = StateGraph(MessagesState)
    graph.add_node("decide", decide)
    graph.add_node("act", ToolNode([send]))
    graph.add_edge(START, "decide")
    graph.add_edge("decide", "act")
    graph.add_edge("act", "decide")
    return GraphPolicy(graph.compile())


@dataclass
class Watched:
    """The store's journal with a chance to die before and after every row."""

    journal: Any
    kill: Callable[[], None]

    def entries(self, tree_id: str | None = None) -> Sequence[JournalEntry]:
        entries: Sequence[JournalEntry] = self.journal.entries(tree_id)
        return entries

    async def intent(self, *row: Any) -> int:
        return int(await self._around(self.journal.intent(*row)))

    async def dispatched(self, entry: int) -> None:
        await self._around(self.journal.dispatched(entry))

    async def outcome(self, *row: Any, **ends: Any) -> None:
        await self._around(self.journal.outcome(*row, **ends))

    async def _around(self, call: Any) -> Any:
        self.kill()
        done = await call
        self.kill()
        return done


async def episode(
    world: str, folder: Path, kill: Kill, *, sessions: int = 1, eager: bool | None = None, mails: int = 12
) -> CommitResult:
    """Searches and commits in turn until `mails` were approved; each approval is written down before it is given."""
    task = Task(world, "mail", f"send mails; {mails * PER_MAIL} turns are left", horizon=mails * PER_MAIL)
    rule, actor = best_first(draws=3, root_draws=3, eager=eager), policy(world, folder)

    def approve(task: Task, action: Any) -> bool:
        kill()
        if action.name == "send":
            write(folder / "approved", action.arguments["to"])
        kill()
        return True

    open_session: Callable[[], Awaitable[Environment]] = opener(world, folder, kill)
    pool: Pool | None = None
    continues = None
    with TreeStore.open(folder / "trees.db") as store:
        for attempt in range(4 * mails):
            before, pool = pool, Pool(open_session, sessions)
            tree = await search(
                task, pool, actor, rule=rule, budget=Budget(expansions=6), store=store, continues=continues,
                settings=Settings(attempt=attempt, in_flight=min(sessions, 2), max_tokens=200),
            )  # fmt: skip
            kill()
            if before is not None:
                await before.close()
            if tree.chosen is None:
                break
            result = await commit(tree, tree.chosen, pool, approve=approve, journal=Watched(store.journal, kill))
            kill()
            if result.next is not Next.CONTINUE:
                break
            open_session, continues = continue_from(open_session, result), result.continues
            left = f"send mails; {result.task.horizon} turns are left"
            task = replace(result.task, goal=left)
        await not_none(pool).close()
    return result


def run(world: str, folder: Path, kill: Kill, **options: Any) -> CommitResult:
    return asyncio.run(episode(world, Path(folder), kill, **options))
