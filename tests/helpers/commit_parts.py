"""A journal in a file, a world with a ledger outside the process, and a process that kills itself on the n-th event."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import EnvFault, Observation
from treewright.envs.maze import SUITE, Maze
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.store import JournalEntry, JournalState

TASK = replace(SUITE.tasks("train", 1)[0], horizon=8)


class Kill:
    """SIGKILL to this process at event number `at`; never for None."""

    def __init__(self, at=None):
        self.at, self.events = at, 0

    def __call__(self):
        if self.events == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.events += 1


def append(path, text, kill):
    """Adds a line to a file and syncs it, with a chance to die before, in the middle of and after it."""
    kill()
    with open(path, "a") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        kill()
        file.write(text[len(text) // 2 :] + "\n")
        file.flush()
        os.fsync(file.fileno())
    kill()


class FileJournal:
    """The journal as lines of JSON, synced one by one. A line torn by a kill was not written."""

    def __init__(self, path, kill=Kill()):
        self.path, self.kill = path, kill
        if path.exists() and not (text := path.read_text()).endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1])

    def entries(self, tree_id=None):
        found = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            row = json.loads(line)
            if "tree" in row:
                start = (row["tree"], row["node"], row["call"], row["action"], JournalState.INTENT, None)
                found[row["id"]] = JournalEntry(row["id"], *start)
            else:
                seen = Observation(row["text"]) if row["text"] is not None else None
                found[row["id"]] = replace(found[row["id"]], state=JournalState(row["state"]), observation=seen)
        return [entry for entry in found.values() if tree_id in (None, entry.tree_id)]

    def pending(self, tree_id=None):
        return [e for e in self.entries(tree_id) if e.state not in (JournalState.DONE, JournalState.FAILED)]

    async def intent(self, tree_id, node, call, action_key):
        new = len(self.entries()) + 1
        row = {"id": new, "tree": tree_id, "node": node, "call": call, "action": action_key}
        append(self.path, json.dumps(row), self.kill)
        return new

    async def dispatched(self, entry):
        assert next(e for e in self.entries() if e.id == entry).state is JournalState.INTENT
        append(self.path, json.dumps({"id": entry, "state": "dispatched", "text": None}), self.kill)

    async def outcome(self, entry, state, observation=None):
        row = {"id": entry, "state": str(state), "text": observation.text if observation else None}
        append(self.path, json.dumps(row), self.kill)


class Live(Maze):
    """A maze that is not sandboxed: pressing writes the step key into a ledger outside the process.

    trouble: None, 'before' or 'after' (a fault before or after the ledger was written), 'wander' (one more step on
    every reset, so that nothing is where it was recorded).
    """

    def __init__(self, ledger, kill=Kill(), trouble=None, **options):
        super().__init__(sandboxed=False, **options)
        self.file, self.kill, self.trouble, self.steps = ledger, kill, trouble, []

    async def reset(self, task, key):
        seen = await super().reset(task, key)
        if self.trouble == "wander":
            self.pressed = 7
        return replace(seen, fingerprint=self._seen().fingerprint)

    async def step(self, action, key):
        self.steps.append(str(action))
        if action.name == "press":
            if self.trouble == "before":
                raise EnvFault("the line is dead")
            append(self.file, str(key), self.kill)
            if self.trouble == "after":
                raise EnvFault("the line is dead")
        return await super().step(action, key)


def pressed(ledger):
    """The step keys in the ledger; a line torn by a kill is none."""
    return [line for line in ledger.read_text().split("\n")[:-1] if line] if ledger.exists() else []


async def chain(*texts, env=None, store=None, settings=Settings()):
    """A tree with one path that says `texts`; grown in a sandbox unless `env` is given."""

    def script(task, turns, tools, rng):
        return texts[len(turns)] if len(turns) < len(texts) else "stop {}"

    rule = best_first(draws=1, root_draws=1)
    tree = await search(TASK, env or Maze(), ScriptedPolicy(script), rule=rule, store=store, settings=settings)
    return tree


def a_move():
    """The first move of the expert in the maze of TASK, as text."""
    return str(SUITE.oracle(TASK, (), ()))
