"""What the gateway costs and what searching an agent's own program finds.

    treewright bench gateway --json docs/gateway.json

Overhead: a scripted policy behind the server against the same policy called directly. 32 sessions ask at once, so that
each waits for the others: a call's own part is the median latency divided by 32, less that of a direct call. The client
is in the same process, as bare as can be, and counts as the gateway's. Every call has a session of its own.

Search: a policy of known probabilities answers three agents on questions of the suite `kg`; best-first search against
independent runs of the same agent with as many policy tokens. Replays cost no tokens and are counted in steps.

Kills: a process that records an agent is killed at random; every call that the agent saw answered must be in the store,
and nothing of it may still run (gateway_kills.py).
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treewright.agent.gateway.agents import agent_suite
from treewright.agent.gateway.asked import Asked, Spoken
from treewright.agent.gateway.draws import Draws
from treewright.agent.gateway.server import make_app, running
from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.agent.runs.collect import collect, open_worlds
from treewright.agent.runs.figures import write_result
from treewright.benchmarks.gateway_kills import kills
from treewright.envs.custom import custom_suite
from treewright.envs.retrieval.kg import ENTITIES, RELATIONS, SUITE, fact
from treewright.envs.types import Observation, Suite, Task, ToolSpec
from treewright.search import Budget, Settings, Tree, best_first
from treewright.search.types import Candidate, Exchange, Score

__all__ = ["main"]

KEY = "tw-bench-key-0123456789"
SESSIONS = 32
ROOT = Path(__file__).resolve().parent.parent
AGENTS = ROOT / "examples" / "agents"
PRELOAD = {"react": ["openai"], "graph": ["langgraph.graph", "openai"], "smolagents_agent": ["smolagents", "openai"]}
RIGHT = 0.7  # probability of the right next step: a run alone solves 10 to 40 % of the questions


# -- overhead ---------------------------------------------------------------------------------------------------------


def says(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random) -> str:
    return "an answer of a few words"


async def _overhead(calls: int) -> dict[str, tuple[float, str]]:
    words = "a question of some words, as agents ask"
    policy, asked = ScriptedPolicy(says), Asked(api="chat", model="m", said=(Spoken("user", words),))
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": words}]}).encode()
    direct: list[float] = []
    for _ in range(2000):
        start = time.perf_counter()
        context = policy.context(Task("g", "", asked.said[0].text), (), Observation(""), (), ())
        await policy.draw(context, [1], 64)
        direct.append(time.perf_counter() - start)
    alone: list[float] = []
    together: list[float] = []
    async with running(make_app(Draws(policy, sessions=256), KEY)) as at:
        async with _Line(at) as line:
            for i in range(max(200, calls // 20)):
                start = time.perf_counter()
                await line.ask(f"alone{i}", body)
                alone.append(time.perf_counter() - start)

        async def one(session: int) -> None:
            async with _Line(at) as line:
                for i in range(calls // SESSIONS):
                    start = time.perf_counter()
                    await line.ask(f"s{session}-{i}", body)
                    together.append(time.perf_counter() - start)

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one(i) for i in range(SESSIONS)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    straight, count = statistics.median(direct), len(together)
    return {
        "gateway_overhead_ms_p50": ((statistics.median(together) / SESSIONS - straight) * 1e3, "ms"),
        "gateway_overhead_alone_ms_p50": ((statistics.median(alone) - straight) * 1e3, "ms"),
        "gateway_cpu_ms_per_call": (cpu / count * 1e3, "ms"),
        "gateway_direct_ms_p50": (straight * 1e3, "ms"),
        "gateway_calls_per_s": (count / wall, "1/s"),
        "gateway_calls_per_cpu_s": (count / cpu, "1/s"),
        "gateway_memory_growth_mb": ((after - before) / 1024, "MB"),
        "gateway_calls": (float(count), "calls"),
    }


class _Line:
    """One connection, with as little of a client as there can be."""

    def __init__(self, at: str) -> None:
        host, _, port = at.removeprefix("http://").partition(":")
        self.host, self.port = host, int(port)

    async def __aenter__(self) -> _Line:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, session: str, body: bytes) -> bytes:
        head = (
            f"POST /s/{session}/v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\nx-api-key: {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode("latin-1"))
        size = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await self.reader.readexactly(size)


# -- search -----------------------------------------------------------------------------------------------------------


def guesses(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec]) -> list[tuple[str, float]]:
    """Knows the right next look-up with probability RIGHT; else looks up another relation, or one of nobody."""
    entity, relations = task.data["start"], list(task.data["relations"])
    facts = task.data["facts"]
    done = [turn.action.calls[0].arguments for turn in turns if turn.action is not None and turn.action.calls]
    hop = 0
    for asked in done:
        if hop < len(relations) and (asked.get("entity"), asked.get("relation")) == (entity, relations[hop]):
            entity, hop = facts[f"{entity} {relations[hop]}"], hop + 1
    done_with = "final_answer" if any(tool.name == "final_answer" for tool in tools) else "answer"
    key = "answer" if done_with == "final_answer" else "text"

    def answer(who: str) -> str:
        return f"{done_with} {json.dumps({key: who})}"

    if hop == len(relations):
        return [(answer(entity), RIGHT), (answer(task.data["start"]), 1 - RIGHT)]
    right = f'search {{"entity": "{entity}", "relation": "{relations[hop]}"}}'
    early = answer(entity)
    lost = f'search {{"entity": "nobody", "relation": "{relations[hop]}"}}'
    return [(right, RIGHT), (early, (1 - RIGHT) * 0.6), (lost, (1 - RIGHT) * 0.4)]


class Judge:
    """Scores a path by what it shows: look-ups that found something, less those that did not; never the reward."""

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Score]:
        return [Score(_promise(task, one)) for one in candidates]


def _promise(task: Task, one: Candidate) -> float:
    names = [turn.action.name for turn in one.turns if turn.action is not None]
    errors = sum("error" in turn.observation.text for turn in one.turns)
    wanted = len(task.data["relations"])
    looked = sum(name == "search" for name in names) - errors
    drawn = one.action.calls[0] if one.action is not None and one.action.calls else None
    if drawn is not None and drawn.name == "search":
        looked += drawn.arguments.get("entity") != "nobody"
    if drawn is not None and drawn.name in ("answer", "final_answer"):
        said = drawn.arguments.get("text", drawn.arguments.get("answer"))
        return 1.0 if looked >= wanted and said != task.data["start"] else 0.0
    return max(0.0, min(looked, wanted) / (wanted + 1) - 0.05 * errors)


def _tasks(count: int, folder: Path) -> Path:
    path = folder / "tasks.jsonl"
    with path.open("w") as file:
        for task in SUITE.tasks("test", count):
            facts = {f"{e} {r}": fact(task.seed, e, r) for e in ENTITIES for r in RELATIONS}
            data = {"facts": facts, "start": task.data["start"], "relations": task.data["relations"]}
            row = {"id": task.id, "goal": task.goal, "split": "test", "horizon": 9, "data": data}
            file.write(json.dumps({**row, "truth": {"output": task.truth["answer"]}}) + "\n")
    return path


def _suite(agent: str, tasks: Path, python: str) -> Suite:
    command = f"{python} {AGENTS / (agent + '.py')}"
    options: dict[str, Any] = {"sandboxed": True, "output": "answer.txt", "preload": PRELOAD[agent]}
    return custom_suite("agent", tasks, agent_suite(command, **options))


async def _searched(agent: str, count: int, expansions: int, folder: Path, python: str) -> dict[str, float]:
    """Tasks solved by best-first search, and by independent runs of the same agent with as many policy tokens."""
    suite = _suite(agent, _tasks(count, folder), python)
    tasks, solved, runs = suite.tasks("test", count), 0, [0, 0, 0]
    totals = {"single": 0, "independent": 0, "tokens": 0, "other_tokens": 0, "steps": 0, "other_steps": 0, "lost": 0}
    async with open_worlds([suite], 2, 120.0) as worlds:

        async def grown(todo: Sequence[Task], budget: int, attempt: int, alone: bool) -> list[Tree]:
            rule = best_first(1, 1) if alone else best_first(2, 2, weighted=False, pick="score", eager=False)
            settings = Settings(run=f"{agent}{alone}", attempt=attempt, max_tokens=96, seed=7, answers=None)
            return await collect(
                todo, worlds, scripted_choice(guesses), rule=rule, budget=Budget(expansions=budget),
                settings=settings, evaluator=Judge(), concurrency=2,
            )  # fmt: skip

        trees = await grown(tasks, expansions, 0, False)
        left = {tree.task.id: tree.spent.policy_tokens for tree in trees}
        solved = sum(_solved(tree) for tree in trees)
        totals["tokens"], totals["steps"] = sum(left.values()), sum(tree.spent.env_steps for tree in trees)
        totals["lost"] = sum(status.value in ("unreachable", "fault") for tree in trees for status in tree.status)
        found: set[str] = set()
        todo = list(tasks)
        for attempt in range(1, 64):
            done = await grown(todo, 16, attempt, True) if todo else []
            for tree in done:
                name, used = tree.task.id, tree.spent.policy_tokens
                runs[0] += attempt == 1
                totals["single"] += attempt == 1 and _solved(tree)
                totals["other_tokens"] += used  # the run that passes the budget counts, for the independent ones
                totals["other_steps"] += tree.spent.env_steps
                found |= {name} if _solved(tree) else set()
                left[name] -= used
            todo = [task for task in todo if left[task.id] > 0]
        totals["independent"] = len(found)
    return {
        "tasks": count, "solved": solved, "independent": totals["independent"],
        "single_run_rate": totals["single"] / max(runs[0], 1), "gain": solved / max(totals["independent"], 1),
        "policy_tokens": totals["tokens"], "independent_tokens": totals["other_tokens"],
        "steps_with_replays": totals["steps"], "independent_steps": totals["other_steps"], "lost_nodes": totals["lost"],
    }  # fmt: skip


def _solved(tree: Tree) -> bool:
    return any(tree.outcome_of(leaf) >= 1 - 1e-6 for leaf in tree.leaves())


# -- all --------------------------------------------------------------------------------------------------------------


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    only: Sequence[str] = (),
    peer_python: Path | None = None,
) -> dict[str, Any]:
    """The figures; `only` names parts: overhead, kills, or agents (react, graph, smolagents_agent).

    peer_python  an interpreter that has smolagents and openai; without it that agent is left out
    """
    figures: dict[str, tuple[float, str]] = {}
    agents: dict[str, Any] = {}
    wanted = set(only)
    if not wanted or "overhead" in wanted:
        figures |= asyncio.run(_overhead(1600 if quick else 10_240))
    for agent in ("react",) if quick and not wanted else PRELOAD:
        if wanted and agent not in wanted:
            continue
        python = str(peer_python) if peer_python and agent == "smolagents_agent" else sys.executable
        if agent == "smolagents_agent" and peer_python is None:
            print("smolagents_agent is left out: name an interpreter that has it with --peer-python", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            agents[agent] = asyncio.run(_searched(agent, 6 if quick else 60, 10, Path(folder), python))
        print(agent, agents[agent], flush=True)
    if agents:
        figures["agent_search_gain_min"] = (min(row["gain"] for row in agents.values()), "times")
    if not wanted or "kills" in wanted:
        figures |= kills(20 if quick else 1000)
    for name, (value, unit) in figures.items():
        print(f"{name:<32} {value:10.3f} {unit}")
    out = {"quick": quick, "figures": {n: {"value": v, "unit": u} for n, (v, u) in figures.items()}, "agents": agents}
    if json_path is not None and only:
        path = Path(json_path)
        held = json.loads(path.read_text()) if path.exists() else {}
        both = {k: {**held.get(k, {}), **out[k]} for k in ("figures", "agents")}  # type: ignore[dict-item]
        if both["agents"]:
            gain = min(row["gain"] for row in both["agents"].values())
            both["figures"]["agent_search_gain_min"] = {"value": gain, "unit": "times"}
        write_result(path, {**held, **both, "quick": quick})
    return out
