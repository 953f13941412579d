"""A journal in a file, a world with a ledger outside the process, and a process that kills itself on the n-th event."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from not_none import not_none

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import EnvFault, Observation
from treewright.envs.maze import SUITE, Maze
from treewright.envs.types import Action, StepResult, Task
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.store import JournalEntry, JournalState
from treewright.search.store.tree_store import TreeStore
from treewright.search.tree import Tree

TASK = replace(SUITE.tasks("train", 1)[0], horizon=8)


class Kill:
    """SIGKILL to this process at event number `at`; never for None."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.events = at, 0

    def __call__(self) -> None:
        if self.events == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.events += 1


def append(path: Path, text: str, kill: Kill) -> None:
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

    def __init__(self, path: Path, kill: Kill = Kill()) -> None:
        self.path, self.kill = path, kill
        if path.exists() and not (text := path.read_text()).endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1])

    def entries(self, tree_id: str | None = None) -> list[Any]:
        found = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            row = json.loads(line)
            if "tree" in row:
                start = (row["tree"], row["node"], row["call"], row["action"], JournalState.INTENT, None)
                found[row["id"]] = JournalEntry(row["id"], *start)
            else:
                seen = Observation(row["text"]) if row["text"] is not None else None
                ends = {"reward": row.get("reward"), "over": row.get("over")}
                found[row["id"]] = replace(found[row["id"]], state=JournalState(row["state"]), observation=seen, **ends)
        return [entry for entry in found.values() if tree_id in (None, entry.tree_id)]

    def pending(self, tree_id: str | None = None) -> list[Any]:
        return [e for e in self.entries(tree_id) if e.state not in (JournalState.DONE, JournalState.FAILED)]

    async def intent(self, tree_id: str, node: int, call: int, action_key: str) -> int:
        new = len(self.entries()) + 1
        row = {"id": new, "tree": tree_id, "node": node, "call": call, "action": action_key}
        append(self.path, json.dumps(row), self.kill)
        return new

    async def dispatched(self, entry: int) -> None:
        assert next(e for e in self.entries() if e.id == entry).state is JournalState.INTENT
        append(self.path, json.dumps({"id": entry, "state": "dispatched", "text": None}), self.kill)

    async def outcome(
        self,
        entry: int,
        state: JournalState,
        observation: Observation | None = None,
        *,
        reward: float | None = None,
        over: bool | None = None,
    ) -> None:
        row = {"id": entry, "state": str(state), "text": observation.text if observation else None}
        row |= {"reward": reward, "over": over}
        append(self.path, json.dumps(row), self.kill)


class Live(Maze):
    """A maze that is not sandboxed: pressing writes the step key into a ledger outside the process.

    trouble: None, 'before' or 'after' (a fault before or after the ledger was written), 'wander' (one more step on
    every reset, so that nothing is where it was recorded).
    """

    def __init__(self, ledger: Path, kill: Kill = Kill(), trouble: Any = None, **options: Any) -> None:
        super().__init__(sandboxed=False, **options)
        self.steps: list[Any]
        self.file, self.kill, self.trouble, self.steps = ledger, kill, trouble, []

    async def reset(self, task: Task, key: int) -> Observation:
        seen = await super().reset(task, key)
        if self.trouble == "wander":
            self.pressed = 7
        return replace(seen, fingerprint=self._seen().fingerprint)

    async def step(self, action: Action, key: int) -> StepResult:
        self.steps.append(str(action))
        if action.name == "press":
            if self.trouble == "before":
                raise EnvFault("the line is dead")
            append(self.file, str(key), self.kill)
            if self.trouble == "after":
                raise EnvFault("the line is dead")
        return await super().step(action, key)


def pressed(ledger: Path) -> list[Any]:
    """The step keys in the ledger; a line torn by a kill is none."""
    return [line for line in ledger.read_text().split("\n")[:-1] if line] if ledger.exists() else []


async def chain(
    *texts: str, env: Live | None = None, store: TreeStore | None = None, settings: Settings = Settings()
) -> Tree:
    """A tree with one path that says `texts`; grown in a sandbox unless `env` is given."""

    def script(task: Task, turns: Any, tools: Any, rng: Random) -> str:
        return texts[len(turns)] if len(turns) < len(texts) else "stop {}"

    rule = best_first(draws=1, root_draws=1)
    tree = await search(TASK, env or Maze(), ScriptedPolicy(script), rule=rule, store=store, settings=settings)
    return tree


def a_move() -> str:
    """The first move of the expert in the maze of TASK, as text."""
    return str(not_none(SUITE.oracle)(TASK, (), ()))
