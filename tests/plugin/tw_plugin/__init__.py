"""One of each kind of part that treewright takes from others. `USED` tells which were used, and with which options."""

from dataclasses import replace

from treewright.agent.policies.prompts import CompactTemplate
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs.retrieval import kg
from treewright.envs.types import Suite
from treewright.search.rules import Rule
from treewright.search.types import Score

USED = {}


# -- worlds: a suite with tasks of its own, and a class whose methods become tools


def tasks(split, count):
    return [replace(task, suite="plug_world") for task in kg.SUITE.tasks(split, count)]


SUITE = Suite("plug_world", tasks, kg.SUITE.open, max_tokens=kg.SUITE.max_tokens)


class Desk:
    sandboxed = True
    effects = {"file": "reversible"}

    def __init__(self):
        self.filed = []

    def file(self, letter: str) -> str:
        self.filed.append(letter)
        return f"{letter} is filed"


# -- what acts


class Clerk(ScriptedPolicy):
    def __init__(self, word="ada"):
        super().__init__(self.say, name="clerk", version=f"clerk-{word}")
        self.word = word

    def say(self, task, turns, tools, rng):
        USED["policy"] = self.word
        if tools[0].name == "file":
            return 'file {"letter": "a"}' if not turns else 'done {"answer": "done"}'
        return f'answer {{"entity": "{self.word}"}}'


class Counted:
    """A proposer around the policy that counts the draws."""

    def __init__(self, policy, mark="counted"):
        self.inner, self.mark, self.name, self.stats = policy, mark, policy.name, policy.stats

    @property
    def version(self):
        return self.inner.version

    def context(self, task, tools, first, turns, base):
        return self.inner.context(task, tools, first, turns, base)

    async def draw(self, context, seeds, max_tokens):
        USED["proposer"] = self.mark
        return await self.inner.draw(context, seeds, max_tokens)

    async def close(self):
        await self.inner.close()


class Renamed(CompactTemplate):
    """Shows tasks as those of another suite, such as the model was trained on."""

    def __init__(self, tokenizer, window=None, suite="?"):
        super().__init__(tokenizer, window)
        self.suite = suite

    def opening(self, task, tools, seen, last):
        USED["template"] = self.suite
        return super().opening(replace(task, suite=self.suite), tools, seen, last)


# -- what searches


def deepest(draws=2, root_draws=4, tilt=1.0):
    USED["rule"] = tilt
    return Rule(
        name=f"deepest(tilt={tilt})",
        priority=lambda node: tilt * node.depth,
        draws=lambda node: draws if node.depth else root_draws,
    )


class Steady:
    def __init__(self, worth=0.5):
        self.worth = worth

    async def evaluate(self, task, candidates):
        USED["evaluator"] = self.worth
        return [Score(self.worth) for _ in candidates]


# -- what learns


def halved(arrays, *, omega=0.5, root_baseline=None, allow_biased=False):
    from treewright.training.credit import estimate

    USED["estimator"] = omega
    credit = estimate("split_loo", arrays, root_baseline=root_baseline, allow_biased=allow_biased)
    return replace(credit, coef=omega * credit.coef)


def plain_ratio(delta, logp, coef, low, high, options, scale=1.0):
    USED["loss"] = scale
    return scale * delta.exp() * coef, delta != delta


# -- what is written


def sizes(view, least=1):
    """The size of each tree."""
    USED["exporter"] = least
    if len(view.tree) >= least:
        yield {"tree_id": view.tree.tree_id, "nodes": len(view.tree), "values": view.value, "goal": view.tree.task.goal}


class TextFile:
    def __init__(self, folder, run, file="tracked.txt"):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / file).open("a")
        self.file.write(f"{run}\n")

    def log(self, step, values):
        self.file.write(f"{step} {values['loss']:.6f}\n")

    def close(self):
        self.file.close()
