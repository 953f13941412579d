"""The rule `ab_mcts` beside the package treequest, on the same functions: `make bench-ab-mcts`, or

    python -m treewright.benchmarks.ab_mcts PEER_PYTHON docs/ab_mcts.json

`wide`: what the first draw gives hardly changes below it, so that drawing anew at the root pays. `deep`: the target is
many small steps away, so that going on pays. Both make the same number of draws and report the best score of each seed.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.figures import hardware, versions, write_result
from treewright.benchmarks.peer_treequest import first, further, score
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    Turn,
)
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import Rule, rule
from treewright.search.types import Budget, Candidate, Exchange, Score

__all__ = ["best_scores", "figures", "main"]

KINDS = ("wide", "deep")


class _Line(BaseEnvironment):
    """A number; `go {"to": x}` sets it."""

    name, sandboxed = "line", True
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    tools = (ToolSpec("go", "", {"type": "object", "properties": {"to": {"type": "number"}}}, Effect.REVERSIBLE),)
    at = math.nan

    async def reset(self, task: Task, key: int) -> Observation:
        self.at = math.nan
        return Observation("start", "start")

    async def step(self, action: Action, key: int) -> StepResult:
        self.at = float(action.calls[0].arguments["to"])
        return StepResult(Observation(repr(self.at), repr(self.at)), effect=Effect.REVERSIBLE)

    async def snapshot(self) -> Snapshot:
        return Snapshot(Restore.STATE, repr(self.at).encode(), repr(self.at), size=8)

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.at = float(snapshot.data)
        return Observation(repr(self.at), repr(self.at) if self.at == self.at else "start")


class _Judge:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> Sequence[Score]:
        return [Score(score(self.kind, float(c.observation.text)) if c.observation else 0.0) for c in candidates]


def best_scores(kind: str, order: Rule, seeds: int, steps: int) -> list[float]:
    """[seeds] the best score of a tree of `steps` draws."""

    def say(task: Task, turns: Sequence[Exchange | Turn], tools: Sequence[ToolSpec], rng: random.Random) -> str:
        made = further(kind, float(turns[-1].observation.text), rng) if turns else first(kind, rng)
        return f'go {{"to": {made!r}}}'

    async def opened() -> _Line:
        return _Line()

    async def one(seed: int) -> float:
        tree = await search(
            Task("line", str(seed), "go", horizon=steps + 1), Pool(opened), ScriptedPolicy(say, trainable=False),
            rule=order, evaluator=_Judge(kind), budget=Budget(expansions=steps),
            settings=Settings(run="ab", seed=seed, max_tokens=64, merge=False),
        )  # fmt: skip
        return max(tree.score[1:])

    return [asyncio.run(one(seed)) for seed in range(seeds)]


def figures(peer: str, seeds: int = 60, steps: int = 50) -> dict[str, tuple[float, str]]:
    """Mean best scores of both, of uct and of chains, and how many standard errors lie between ours and the peer's."""
    script = Path(__file__).parent / "peer_treequest.py"
    said = subprocess.run([peer, str(script), str(seeds), str(steps)], capture_output=True, text=True, check=True)
    theirs = json.loads(said.stdout)
    out: dict[str, tuple[float, str]] = {"draws": (float(steps), "draws"), "seeds": (float(seeds), "seeds")}
    for kind in KINDS:
        ours = best_scores(kind, rule("ab_mcts"), seeds, steps)
        apart = statistics.mean(ours) - statistics.mean(theirs[kind])
        error = math.sqrt((statistics.variance(ours) + statistics.variance(theirs[kind])) / seeds)
        out[f"ab_mcts_{kind}"] = (statistics.mean(ours), "score")
        out[f"treequest_{kind}"] = (statistics.mean(theirs[kind]), "score")
        out[f"uct_{kind}"] = (
            statistics.mean(best_scores(kind, rule("uct", draws=1, root_draws=8), seeds, steps - 7)), "score",
        )  # fmt: skip
        out[f"standard_errors_apart_{kind}"] = (apart / error, "σ")
    return out


def main(peer: str, json_path: str | None = None) -> None:
    found = figures(peer)
    for name, (value, unit) in found.items():
        print(f"{name:28} {value:8.4f} {unit}")
    if json_path is not None:
        shown = {name: {"value": value, "unit": unit} for name, (value, unit) in found.items()}
        write_result(Path(json_path), {"figures": shown, "hardware": hardware(), "versions": versions()})


if __name__ == "__main__":
    main(*sys.argv[1:3])
