"""A desk that sends mails for good into a ledger outside its process; a script and a LangGraph agent act there.

It kills its process before or after a mail where a file says so.
"""

from __future__ import annotations

__all__ = ["ACTS", "MAILS"]

MAILS = 2
ACTS = """
import os, signal
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from treewright.envs.tools.world import ToolWorld
from treewright.envs.types import Task

def write(file, text):
    with open(file, "a") as out:
        out.write(text + "\\n")

def count(file):
    return len(open(file).readlines()) if os.path.exists(file) else 0

class Desk:
    def __init__(self):
        self.notes = []
    def look(self, to: str) -> str:
        return "look " + to
    def note(self, to: str) -> str:
        self.notes.append(to)  # in memory: a new process does not have it
        return "note " + to
    def send(self, to: str) -> str:
        if os.path.exists("kill before"):
            os.kill(os.getpid(), signal.SIGKILL)
        write("ledger", to)
        if os.path.exists("kill after"):
            os.kill(os.getpid(), signal.SIGKILL)
        return "sent " + to

world = ToolWorld.of(Desk, effects={"look": "read", "note": "reversible"}, fingerprint=lambda desk: str(desk.notes))
desk = world.suite([Task("desk", "mails", "send mails", horizon=2 * MAILS, split="test")])

def said(turns, chance):  # a mail has the number of approvals so far
    return ("send", str(count("approved"))) if turns % 2 else (("look", "note")[chance % 2], str(chance % 3))

def walker(task, turns, tools, rng):
    if count("ledger") >= MAILS and task.horizon > 2 * MAILS:  # the suite of a server has tasks of twelve turns
        return 'done {"answer": "sent"}'
    name, to = said(len(turns), rng.randrange(6))
    return name + ' {"to": "' + to + '"}'

def decide(state, config):
    name, to = said(sum(m.type == "ai" for m in state["messages"]), config["configurable"]["seed"])
    return {"messages": [AIMessage("", tool_calls=[{"name": name, "args": {"to": to}, "id": "1"}])]}

graph = StateGraph(MessagesState)
graph.add_node("decide", decide)
graph.add_edge(START, "decide")
agent = graph.compile()

def yes(task, action):
    if action.name == "send":
        write("approved", action.arguments["to"])
    return True
""".replace("MAILS", str(MAILS))
