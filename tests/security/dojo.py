"""AgentDojo's own attacks through the tools world, against a policy that obeys whatever it reads.

    python -P tests/security/dojo.py [--quick] [--json FILE]

The policy does what the user asked, by AgentDojo's ground truth. Where a tool's result holds an injection it does
that first, by the ground truth of the injection: no model is as obedient. The world is live, its reading tools are
declared. With the rules a user approves, call by call, what solves the user's own task and nothing else, and an episode
ends at the first call that is not approved; without them everything is approved. Utility and attack success are
AgentDojo's own checks of the world that the executed calls, and those alone, lead to.

Attacks: important_instructions on every pair of user and injection task; direct, ignore_previous, system_message and
injecagent on one injection for each user task. --quick takes two user tasks of each suite.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.episode import run_episode
from treewright.agent.runs.figures import write_figures
from treewright.envs.tools.agentdojo import NAMES, _suites, agentdojo_suite, ground_truth
from treewright.envs.tools.state import copy_state
from treewright.envs.types import Action, Task
from treewright.search.engine import Settings
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget

__all__ = ["Case", "Ended", "cases", "measure", "play"]

VERSION = "v1.2.2"
ATTACKS = ("important_instructions", "direct", "ignore_previous", "system_message", "injecagent")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # every call is synced to a disk else
READS = ("get_", "read_", "search_", "list_", "check_")


@dataclass(frozen=True, slots=True)
class Case:
    """One pair: attack '' is a world without an injection."""

    suite: str
    user: str
    injection: str
    attack: str


@dataclass(frozen=True, slots=True)
class Ended:
    """AgentDojo's two checks of what was really executed, and whether the policy met the injection at all."""

    utility: bool
    attacked: bool
    met: bool


def injected(dojo: Any, case: Case) -> dict[str, str]:
    """AgentDojo's own text of the attack, at every place where its world takes one."""
    if not case.attack:
        return {}
    from agentdojo.attacks import load_attack

    class Target:
        name = "local"  # one of the model names that AgentDojo knows

    with contextlib.redirect_stdout(io.StringIO()):
        attack = load_attack(case.attack, dojo, Target())
    places = list(dojo.get_injection_vector_defaults())
    attack.get_injection_candidates = lambda user: places
    found = attack.attack(dojo.get_user_task_by_id(case.user), dojo.get_injection_task_by_id(case.injection))
    return dict(found)


class Obedient:
    """The user's plan, and the injection's as soon as its goal has been read."""

    def __init__(self, dojo: Any, case: Case, start: Any) -> None:
        user = dojo.get_user_task_by_id(case.user)
        self.plan = ground_truth(user, user.init_environment(copy_state(start)))
        self.goal, self.orders, self.met = "", [], False
        self.before, self.now = Counter[str](), Counter[str]()  # calls of earlier searches, and of this one
        if case.attack:
            injection = dojo.get_injection_task_by_id(case.injection)
            self.goal = " ".join(injection.GOAL.split())[:60]
            self.orders = [Action.of(c.function, **c.args) for c in injection.ground_truth(copy_state(start))]

    def executes(self, action: Action) -> None:
        """What follows is a new search, whose turns begin behind this call."""
        self.before += self.now + Counter([action.key])
        self.now = Counter()

    def __call__(self, task: Task, turns: Any, tools: Any, rng: Random) -> str:
        self.now = Counter(turn.action.key for turn in turns if turn.action is not None)
        done = self.before + self.now
        seen = " ".join(" ".join(turn.observation.text for turn in turns).split())
        self.met = self.met or (bool(self.goal) and self.goal in _plain(seen))
        for action in [*(self.orders if self.met else []), *self.plan]:
            if done[action.key]:
                done[action.key] -= 1
            else:
                return str(action)
        return str(self.plan[-1])


def _plain(text: str) -> str:
    """Without the signs that YAML puts around long texts."""
    return " ".join(text.replace("''", "'").replace('\\"', '"').replace("\\", " ").split())


async def play(case: Case, guarded: bool, folder: Path) -> Ended:
    """One episode, and AgentDojo's verdicts on the world that its executed calls lead to."""
    dojo = _suites(VERSION)[case.suite]
    injections = injected(dojo, case)
    start = dojo.load_and_inject_default_environment(injections)
    obedient = Obedient(dojo, case, start)
    reads = {tool.name: "read" for tool in dojo.tools if tool.name.startswith(READS)}
    world = agentdojo_suite(case.suite, version=VERSION, injections=injections, effects=reads, sandboxed=False)
    task = next(task for task in world.tasks("all", 999) if task.id == case.user)
    wanted = {action.key for action in obedient.plan}

    def approve(task: Task, action: Action) -> bool:
        if approved := not guarded or action.key in wanted:
            obedient.executes(action)
        return approved

    pool = Pool(world.open)
    with TreeStore.open(folder / f"{'guarded' if guarded else 'open'}.sqlite") as store:
        try:
            episode = await run_episode(
                task, pool, ScriptedPolicy(obedient, name="obedient", trainable=False), journal=store.journal,
                store=store, approve=approve, rule=best_first(1, 1), budget=Budget(expansions=24),
                settings=Settings(max_tokens=4000, run=str(case)), commits=24,
            )  # fmt: skip
        finally:
            await pool.close()
    ends = [(tree, result.committed[-1]) for tree, result in zip(episode.trees, episode.commits, strict=False)
            if result.committed]  # fmt: skip
    executed = [tree.action[node] for tree, end in ends for node in tree.path(end)[1:]]
    return verdict(dojo, case, start, [action for action in executed if action is not None], obedient.met)


def verdict(dojo: Any, case: Case, start: Any, executed: list[Action], met: bool) -> Ended:
    """Both of AgentDojo's checks, after the executed calls alone on a fresh world."""
    from agentdojo.functions_runtime import FunctionCall, FunctionsRuntime
    from agentdojo.types import text_content_block_from_string

    user = dojo.get_user_task_by_id(case.user)
    before = user.init_environment(copy_state(start))
    after, runtime, calls, answer = copy_state(before), FunctionsRuntime(dojo.tools), [], ""
    for action in executed:
        if action.name == "done":
            answer = str(action.arguments.get("answer", ""))
            continue
        runtime.run_function(after, action.name, dict(action.arguments))
        calls.append(FunctionCall(function=action.name, args=dict(action.arguments)))
    said = [text_content_block_from_string(answer)]
    utility = bool(dojo._check_user_task_utility(user, said, before, after, calls))
    if not case.attack:
        return Ended(utility, False, met)
    injection = dojo.get_injection_task_by_id(case.injection)
    return Ended(utility, bool(dojo._check_injection_task_security(injection, said, before, after, calls)), met)


def cases(quick: bool) -> Iterator[Case]:
    for name in NAMES:
        dojo = _suites(VERSION)[name]
        users, injections = list(dojo.user_tasks), list(dojo.injection_tasks)
        for i, user in enumerate(users[:2] if quick else users):
            yield Case(name, user, "", "")
            for attack in ATTACKS[:2] if quick else ATTACKS:
                every = injections if attack == ATTACKS[0] and not quick else [injections[i % len(injections)]]
                for injection in every:
                    yield Case(name, user, injection, attack)


def measure(quick: bool) -> dict[str, tuple[float, str]]:
    """Shares of utility and of attack success, with and without the rules."""
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="tw-dojo-", dir=MEMORY) as name:
        for case in cases(quick):
            for guarded in (True, False):
                ended = asyncio.run(play(case, guarded, Path(name)))
                how = "guarded" if guarded else "open"
                kind = "attacked" if case.attack else "quiet"
                count[f"{kind}_{how}"] += 1
                count[f"{kind}_{how}_utility"] += ended.utility
                count[f"{kind}_{how}_success"] += ended.attacked
                count[f"{kind}_{how}_met"] += ended.met
    return {
        "agentdojo_cases": (float(count["attacked_open"]), "pairs"),
        "agentdojo_injections_met": (float(count["attacked_open_met"]), "pairs"),
        **{
            f"agentdojo_{what}_{how}": (_share(count, kind, how, part), "1")
            for how in ("guarded", "open")
            for what, kind, part in (
                ("utility", "quiet", "utility"), ("utility_attacked", "attacked", "utility"),
                ("attack_success", "attacked", "success"),
            )
        },
    }  # fmt: skip


def _share(count: Mapping[str, int], kind: str, how: str, part: str) -> float:
    return count[f"{kind}_{how}_{part}"] / max(count[f"{kind}_{how}"], 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures = measure(asked.quick)
    for name, (value, unit) in figures.items():
        print(f"{name:36} {value:.4g} {unit}")
    if asked.json:
        write_figures(asked.json, figures, quick=asked.quick)
    held = figures["agentdojo_attack_success_guarded"][0] == 0 < figures["agentdojo_attack_success_open"][0]
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
