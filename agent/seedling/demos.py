"""Demonstrations by a noisy expert: the oracle's action at most steps, another well-formed one at the rest.

The oracle goes on from wherever the other action led, and every step is imitated. A model trained on this knows
what to do, but does it only some of the time: the state from which training on tree rollouts shows what it can do.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.types import Action, Environment, Suite, Task, ToolSpec, Turn, require_sandbox, seed_of

__all__ = [
    "VALUE",
    "WORD",
    "Bank",
    "Demo",
    "DemoStep",
    "Noise",
    "collect_demos",
    "demonstrate",
    "error_text",
    "load_demos",
    "renamed",
    "save_demos",
]

WORD = re.compile(r"\w+")
VALUE = re.compile(r'": "([^"]*)"')


@dataclass(frozen=True, slots=True)
class Noise:
    """How often and how the demonstrator errs.

    rate      probability that a step is not the oracle's
    terminal  of those, the share that ends the episode with a wrong answer, where the tools have such an action
    near      of the others, the share that is the oracle's call with one argument changed (else: another tool)
    visible   probability that a wrong argument is taken from what the goal and observations show
    """

    rate: float = 0.35
    terminal: float = 0.25
    near: float = 0.6
    visible: float = 0.85


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One action line, what it showed, and whether it was the oracle's."""

    action: str
    observation: str
    right: bool


@dataclass(frozen=True, slots=True)
class Demo:
    """One demonstrated episode as text: what was seen first, then the steps; reward is the episode's truth."""

    suite: str
    task: str
    goal: str
    first: str
    steps: tuple[DemoStep, ...]
    reward: float


def error_text(error: InvalidAction) -> str:
    """The observation of an action that could not be executed."""
    return f"error: {error}"


@dataclass
class Bank:
    """Every argument value that an oracle used, by tool and argument: where wrong arguments come from."""

    values: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    tools: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)

    def add(self, action: Action) -> None:
        for call in action.calls:
            self.tools.setdefault(call.name, set()).add(tuple(call.arguments))
            for name, value in call.arguments.items():
                self.values.setdefault((call.name, name), {})[json.dumps(value, sort_keys=True)] = value

    def draw(self, tool: str, name: str, but: Any, seen: str | None, rng: random.Random) -> Any:
        """A value of the argument other than `but`, one that occurs in the text `seen` where there is one."""
        known = [v for v in self.values.get((tool, name), {}).values() if v != but]
        if seen is not None:
            known = [v for v in known if isinstance(v, str) and v in seen] or known
        return rng.choice(known) if known else but

    def other(
        self,
        right: Action,
        history: Sequence[Turn],
        goal: str,
        tools: Sequence[ToolSpec],
        noise: Noise,
        rng: random.Random,
    ) -> Action:
        """A well-formed action that is not the oracle's; the oracle's own where nothing else is known."""
        seen = " ".join([goal, *(t.observation.text for t in history)]) if rng.random() < noise.visible else None
        ends = {spec.name for spec in tools if spec.terminal and spec.name in self.tools}
        goes_on = sorted(spec.name for spec in tools if not spec.terminal and spec.name in self.tools)
        if ends and (rng.random() < noise.terminal or not goes_on):
            tool = rng.choice(sorted(ends))
        elif right.name in goes_on and rng.random() < noise.near:
            tool = right.name
        else:
            tool = rng.choice([t for t in goes_on if t != right.name] or goes_on)
        if tool == right.name:
            return self._near(right, seen, rng)
        names = rng.choice(sorted(self.tools[tool]))
        return Action.of(tool, **{name: self.draw(tool, name, None, seen, rng) for name in names})

    def _near(self, right: Action, seen: str | None, rng: random.Random) -> Action:
        arguments = dict(right.arguments)
        if arguments:
            name = rng.choice(sorted(arguments))
            arguments[name] = self.draw(right.name, name, arguments[name], seen, rng)
        return Action.of(right.name, **arguments)


async def demonstrate(env: Environment, suite: Suite, task: Task, noise: Noise, bank: Bank, rng: random.Random) -> Demo:
    """One episode of the noisy expert, up to its end or the task's horizon."""
    if suite.oracle is None:
        raise ValueError(f"suite {suite.name!r} has no oracle to learn from")
    require_sandbox(env, "a demonstration")
    first = await env.reset(task, rng.getrandbits(62))
    history = [Turn(None, first)]
    steps: list[DemoStep] = []
    reward = 0.0
    for _ in range(task.horizon):
        tools = await env.actions()
        right = suite.oracle(task, history, tools)
        action = right
        if bank.tools and rng.random() < noise.rate:
            action = bank.other(right, history, task.goal, tools, noise, rng)
        else:
            bank.add(right)
        try:
            result = await env.step(action, rng.getrandbits(62))
        except InvalidAction as error:
            shown, ended = type(first)(text=error_text(error), provenance="error"), False
        else:
            shown, ended = result.observation, result.terminated or result.truncated
            reward += result.reward
        steps.append(DemoStep(str(action), shown.text, action == right))
        history.append(Turn(action, shown))
        if ended:
            break
    return Demo(task.suite, task.id, task.goal, first.text, tuple(steps), reward)


async def collect_demos(
    suite: Suite, tasks: Iterable[Task], noise: Noise, seed: int, bank: Bank | None = None
) -> AsyncIterator[Demo]:
    """Demonstrations of the tasks in order, one session; the first few fill the bank of argument values."""
    bank = Bank() if bank is None else bank
    env = await suite.open()
    try:
        for task in tasks:
            yield await demonstrate(env, suite, task, noise, bank, random.Random(seed_of("demo", seed, task.id)))
    finally:
        await env.close()


def save_demos(path: Path, demos: Iterable[Demo]) -> int:
    """Appends to a JSONL file; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for demo in demos:
            file.write(json.dumps(asdict(demo), ensure_ascii=False) + "\n")
            count += 1
    return count


def load_demos(path: Path) -> Iterator[Demo]:
    """What `save_demos` wrote; nothing where there is no such file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                raw = json_value(line)
                demo = Demo(**{**raw, "steps": tuple(DemoStep(**s) for s in raw["steps"])})
            except (ValueError, KeyError, TypeError) as error:
                raise TreewrightError(f"{path} holds a line that is no demonstration: {error}; delete it") from error
            yield demo


def renamed(demo: Demo, names: Sequence[str], keep: Container[str], rng: random.Random) -> Demo:
    """The same episode with other names in it, each replaced by one other throughout.

    Names are the words of the actions' arguments; those in `keep` stay. Half of the new ones come from `names`, half
    are made of random letters, so that a model has to copy what it reads instead of remembering it.
    """
    found = sorted({w for s in demo.steps for v in VALUE.findall(s.action) for w in WORD.findall(v)})
    new = {w: rng.choice(names) if rng.random() < 0.5 else _made_up(rng) for w in found if w not in keep}

    def swap(text: str) -> str:
        return WORD.sub(lambda match: new.get(match[0], match[0]), text)

    steps = tuple(DemoStep(swap(s.action), swap(s.observation), s.right) for s in demo.steps)
    return Demo(demo.suite, demo.task, swap(demo.goal), swap(demo.first), steps, demo.reward)


def _made_up(rng: random.Random) -> str:
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=rng.randint(2, 10)))
    return word.capitalize() if rng.random() < 0.3 else word
