"""A world and parts in which every setting of a search shows: used by name, as a user's own module."""

import asyncio

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import BaseEnvironment, EnvFault, Observation, StepResult, ToolSpec
from treewright.envs.types import Effect, Restore, Snapshot, Suite, Task, digest
from treewright.search.types import Score

SEEN = {"open": 0, "most_open": 0, "drawing": set(), "most_trees": 0, "goals": set()}
STEPS = ("one", "two", "three")


class Steps(BaseEnvironment):
    """Three steps, then the end. `data` of a task makes trouble: slow, fails once, drifts on replay."""

    sandboxed = True
    restore_ways = frozenset({Restore.STATE})
    tools = [
        ToolSpec(
            "go", "", {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}, Effect.READ
        )
    ]
    failed = set()

    async def reset(self, task, key):
        self.data, self.path = task.data, ()
        return self.seen()

    def seen(self):
        return Observation(f"at {'/'.join(self.path) or 'start'} of the hall", digest("reach", repr(self.path)))

    async def step(self, action, key):
        if self.data.get("slow"):
            await asyncio.sleep(30)
        to = action.arguments["to"]
        if self.data.get("fails") and to == "b" and (self.path, to) not in Steps.failed:
            Steps.failed.add((self.path, to))
            raise EnvFault("the hall is dark")
        self.path = (*self.path, to)
        over = len(self.path) == len(STEPS)
        return StepResult(self.seen(), float(over and "b" in self.path), over, effect=Effect.READ)

    async def snapshot(self):
        return Snapshot(Restore.STATE, repr((self.data, self.path)).encode(), self.seen().fingerprint)

    async def restore(self, snapshot):
        self.data, self.path = eval(snapshot.data)
        return self.seen()


async def opened():
    SEEN["open"] += 1
    SEEN["most_open"] = max(SEEN["most_open"], SEEN["open"])
    made = Steps()
    close = made.close

    async def closing():
        SEEN["open"] -= 1
        await close()

    made.close = closing
    return made


def _tasks(split, count):
    kinds = ({}, {"fails": True}, {}, {"slow": True})
    made = [
        Task("steps", f"{split}-{i}", "walk the hall", seed=i, horizon=4, data=data) for i, data in enumerate(kinds)
    ]
    return made[:count]


SUITE = Suite("steps", _tasks, opened, sessions=4, max_tokens=80)


class Walker(ScriptedPolicy):
    """Says go a or go b, in different words; each draw costs money. `quotes`: says what it saw first."""

    def __init__(self, quotes=False, same=False, words=True):
        super().__init__(self.say, name="walker", version="walker", trainable=False)
        self.quotes, self.same, self.words = quotes, same, words

    def say(self, task, turns, tools, rng, first):
        to = "a" if self.same else rng.choice("ab")
        gap = " " * rng.randrange(8) if self.words else ""
        quoted = "<evidence>walk the hall</evidence>\n" if self.quotes else ""
        return f'{quoted}go {{"to": {gap}"{to}"}}'

    def dearest(self, max_tokens):
        return 0.5

    def context(self, task, tools, first, turns, base):
        SEEN["goals"].add(task.goal)
        return super().context(task, tools, first, turns, base)

    async def draw(self, context, seeds, max_tokens):
        from dataclasses import replace

        SEEN["drawing"].add(context.task.id)
        SEEN["most_trees"] = max(SEEN["most_trees"], len(SEEN["drawing"]))
        for _ in range(8):  # others may begin meanwhile
            await asyncio.sleep(0)
        out = [replace(done, money=0.5) for done in await super().draw(context, seeds, max_tokens)]
        SEEN["drawing"].discard(context.task.id)
        return out


class Judge:
    """0.5 for everything, at ten tokens a candidate."""

    def __init__(self, worth=0.5):
        self.worth = worth

    async def evaluate(self, task, candidates):
        return [Score(self.worth, 10) for _ in candidates]
