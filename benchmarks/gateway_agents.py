"""Searching an agent's own program against running it again and again, with as many policy tokens.

Questions of five look-ups in the worlds of `kg`. A policy of known probabilities answers: it takes the right step with
probability RIGHT, and else answers too early or looks up nobody, so that a single run seldom ends well. The judge reads
what a person would who sees the transcript: the question, what was looked up and shown, and the step that is proposed;
never the facts or the reward. A search ends with its first finished answer, which is the one it gives; independent runs
count as successful where any one of them is, whether or not somebody could tell which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treewright.agent.gateway.agents import agent_suite
from treewright.agent.policies.scripted import scripted_choice
from treewright.agent.runs.collect import collect, open_worlds
from treewright.envs.custom import custom_suite
from treewright.envs.retrieval.kg import ENTITIES, RELATIONS, fact, make_suite
from treewright.envs.types import Suite, Task, ToolSpec
from treewright.search import Budget, Rule, Settings, Tree, best_first
from treewright.search.types import Candidate, Exchange, Score

__all__ = ["AGENTS", "HOPS", "Judge", "guesses", "searched"]

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "agents"
AGENTS = {
    "react": ["openai"], "graph": ["langgraph.graph", "openai"], "smolagents_agent": ["smolagents", "openai"],
}  # fmt: skip
HOPS, RIGHT, LONGEST = 5, 0.63, 9
DRAWS, EXPANSIONS = 3, 16
SHOWN = re.compile(rf"\b({'|'.join(ENTITIES)}) ({'|'.join(RELATIONS)}) ({'|'.join(ENTITIES)})\b")
ENDS = ("answer", "final_answer")


def guesses(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec]) -> list[tuple[str, float]]:
    """The right next step with probability RIGHT; else an answer before its time, or a look-up of nobody."""
    entity, hop = _reached(task, turns)
    relations = task.data["relations"]
    public = any(tool.name == "final_answer" for tool in tools)

    def answer(who: str) -> str:
        return f"final_answer {json.dumps({'answer': who})}" if public else f"answer {json.dumps({'text': who})}"

    if hop == len(relations):
        return [(answer(entity), RIGHT), (answer(task.data["start"]), 1 - RIGHT)]
    right = f'search {{"entity": "{entity}", "relation": "{relations[hop]}"}}'
    lost = f'search {{"entity": "nobody", "relation": "{relations[hop]}"}}'
    return [(right, RIGHT), (answer(entity), (1 - RIGHT) * 0.6), (lost, (1 - RIGHT) * 0.4)]


def _reached(task: Task, turns: Sequence[Exchange]) -> tuple[str, int]:
    """Whom the look-ups shown lead to, and how many of the question's they answer. What was shown is read wherever it
    stands: agents retell the past in words of their own."""
    shown = {(m[1], m[2]): m[3] for turn in turns for m in SHOWN.finditer(turn.observation.text)}
    entity, hop, relations = task.data["start"], 0, task.data["relations"]
    while hop < len(relations) and (entity, relations[hop]) in shown:
        entity, hop = shown[entity, relations[hop]], hop + 1
    return entity, hop


class Judge:
    """How far the transcript has come along the question; 1 for an answer that the look-ups shown bear out."""

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Score]:
        return [Score(_promise(task, one)) for one in candidates]


def _promise(task: Task, one: Candidate) -> float:
    (entity, hop), relations = _reached(task, one.turns), task.data["relations"]
    drawn = one.action.calls[0] if one.action is not None and one.action.calls else None
    if drawn is None:
        return hop / (len(relations) + 1)
    given = drawn.arguments
    if drawn.name in ENDS:
        return float(hop == len(relations) and given.get("text", given.get("answer")) == entity)
    if hop < len(relations) and (given.get("entity"), given.get("relation")) == (entity, relations[hop]):
        return (hop + 1) / (len(relations) + 1)
    return max(0.01, hop / (len(relations) + 1) - 0.05)  # nothing new comes of it, but the path goes on


def _tasks(count: int, hops: int, folder: Path) -> Path:
    path = folder / "tasks.jsonl"
    with path.open("w") as file:
        for task in make_suite(noise=0.0, hops=(hops, hops)).tasks("test", count):
            facts = {f"{e} {r}": fact(task.seed, e, r) for e in ENTITIES for r in RELATIONS}
            data = {"facts": facts, "start": task.data["start"], "relations": task.data["relations"]}
            row = {"id": task.id, "goal": task.goal, "split": "test", "horizon": LONGEST, "data": data}
            file.write(json.dumps({**row, "truth": {"output": task.truth["answer"]}}) + "\n")
    return path


def _suite(agent: str, tasks: Path, python: str) -> Suite:
    options: dict[str, Any] = {"sandboxed": True, "output": "answer.txt", "preload": AGENTS[agent]}
    return custom_suite("agent", tasks, agent_suite(f"{python} {FOLDER / (agent + '.py')}", **options))


async def searched(agent: str, count: int, folder: Path, python: str, hops: int = HOPS) -> dict[str, float]:
    """Questions solved by best-first search, and by independent runs of the same agent with as many policy tokens.

    The run that passes the tokens of the search still counts for the independent ones. Steps count replays.
    """
    suite = _suite(agent, _tasks(count, hops, folder), python)
    tasks = suite.tasks("test", count)
    async with open_worlds([suite], 2, 120.0) as worlds:

        async def grown(todo: Sequence[Task], rule: Rule, budget: int, attempt: int) -> list[Tree]:
            answers = None if attempt else 1
            settings = Settings(run=agent, attempt=attempt, max_tokens=96, seed=7, answers=answers)
            return await collect(
                todo, worlds, scripted_choice(guesses), rule=rule, budget=Budget(expansions=budget),
                settings=settings, evaluator=Judge(), concurrency=2,
            )  # fmt: skip

        rule = best_first(DRAWS, DRAWS, weighted=False, pick="score", eager=False)
        trees = await grown(tasks, rule, EXPANSIONS, 0)
        left = {tree.task.id: tree.spent.policy_tokens for tree in trees}
        alone = list[Tree]()
        todo = list(tasks)
        while todo:
            done = await grown(todo, best_first(1, 1), 2 * LONGEST, 1 + len(alone))
            alone += done
            for tree in done:
                left[tree.task.id] -= tree.spent.policy_tokens
            todo = [task for task in todo if left[task.id] > 0]
    solved, single = sum(map(_solved, trees)), sum(map(_solved, alone))
    other = {tree.task.id for tree in alone if _solved(tree)}
    return {
        "tasks": count, "solved": solved, "independent": len(other), "gain": solved / max(len(other), 1),
        "single_run_rate": single / len(alone), "independent_runs": len(alone),
        "policy_tokens": sum(t.spent.policy_tokens for t in trees),
        "independent_tokens": sum(t.spent.policy_tokens for t in alone),
        "steps_with_replays": sum(t.spent.env_steps for t in trees),
        "independent_steps": sum(t.spent.env_steps for t in alone),
        "lost_nodes": sum(s.value in ("unreachable", "fault") for t in (*trees, *alone) for s in t.status),
    }  # fmt: skip


def _solved(tree: Tree) -> bool:
    return any(tree.outcome_of(leaf) >= 1 - 1e-6 for leaf in tree.leaves())
