"""Segments and credit of tokens: bias on a world that can be enumerated, exactness, speed, and what a tree saves."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.envs import BaseEnvironment, Effect, Observation, Restore, Snapshot, StepResult, Task, ToolSpec
from treewright.envs.types import Action, digest
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import Rule, best_first, random_on_policy, rule
from treewright.search.segments import Segments, parts_of
from treewright.search.tree import Tree
from treewright.search.types import Budget, Candidate, Score
from treewright.training.credit import estimate
from treewright.training.credit.prefixes import prefix_tree, row_credit
from treewright.training.credit.row_trie import flat_rows
from treewright.training.credit.trees import tree_arrays
from treewright.training.pack_flat import TokenDraw, pack_draws

__all__ = [
    "CASES",
    "Letters",
    "gradients",
    "main",
    "over_noise",
    "reward",
    "table",
    "tempo_by_definition",
    "true_gradient",
]

Array = NDArray[np.float64]
WORDS = ["".join(w) for w in itertools.product("ab", repeat=3)]
HEADS = ["", "a", "b", "aa", "ab", "ba", "bb"]


class Letters(BaseEnvironment):
    """Two turns, each of which names a word of three letters; the reward depends on both."""

    name = "letters"
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    tools = tuple(ToolSpec(w, effect=Effect.REVERSIBLE) for w in WORDS)
    said: str = ""

    def _seen(self) -> Observation:
        return Observation(self.said or "start", digest(self.said))

    async def reset(self, task: Task, key: int) -> Observation:
        self.said = ""
        return self._seen()

    async def step(self, action: Action, key: int) -> StepResult:
        self.said += action.calls[0].name
        done = len(self.said) == 6
        return StepResult(self._seen(), reward(self.said) if done else 0.0, terminated=done)

    async def snapshot(self) -> Snapshot:
        return Snapshot(Restore.STATE, self.said.encode(), self._seen().fingerprint, size=8)

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.said = snapshot.data.decode()
        return self._seen()


@lru_cache(maxsize=256)
def reward(said: str) -> float:
    """Of the two words said: some number for those that begin with a, a quarter for the others."""
    return round(random.Random(said).random(), 3) if said.startswith("a") else 0.25


def table(task: Task, turns: Sequence[Any], tools: Sequence[ToolSpec]) -> list[tuple[str, float]]:
    """Probabilities of the eight words, other ones in the second turn."""
    weights = [1 + (3 * i + 2 * len(turns)) % 7 for i in range(8)]
    return [(f"{w} {{}}", x / sum(weights)) for w, x in zip(WORDS, weights, strict=True)]


TASK = Task("letters", "t", "say two words", horizon=2)


def _conditionals() -> dict[tuple[int, str], float]:
    """P(a) for each turn and what it has said so far."""
    out = {}
    for turn in (0, 1):
        rows = table(TASK, ["x"] * turn, ())
        for head in HEADS:
            a, b = (sum(p for text, p in rows if text.startswith(head + letter)) for letter in "ab")
            out[turn, head] = a / (a + b)
    return out


P = _conditionals()
STATES: list[tuple[str, str]] = [("", h) for h in HEADS] + [(w, h) for w in WORDS for h in HEADS]
"""(what the first turn said, "" in it; what this turn has said so far): where a letter is chosen."""
PLACE = {state: i for i, state in enumerate(STATES)}


def _p_a(state: tuple[str, str]) -> float:
    return P[1 if state[0] else 0, state[1]]


def true_gradient() -> Array:
    """[63] the gradient of the expected reward by the logit of `a` in each state, over all 64 endings."""
    out = np.zeros(len(STATES))
    for words in itertools.product(WORDS, WORDS):
        chance, taken = 1.0, []
        for first, word in zip(("", words[0]), words, strict=True):
            for i, letter in enumerate(word):
                state = (first, word[:i])
                chance *= _p_a(state) if letter == "a" else 1 - _p_a(state)
                taken.append((PLACE[state], (letter == "a") - _p_a(state)))
        for place, slope in taken:
            out[place] += chance * reward("".join(words)) * slope
    return out


def gradient_of(tree: Tree, coef: Array) -> Array:
    """[63] Σ coef ∇ log π over the tokens of a tree's nodes."""
    out = np.zeros(len(STATES))
    for node in range(1, len(tree)):
        if not coef[node]:
            continue
        parts = parts_of(tree, node)
        head = "".join(chr(t) for i in parts[:-1] for t in tree.ids[i])
        above = tree.exchanges(tree.parent[parts[0]])
        first = above[0].action.calls[0].name if above and above[0].action else ""
        for i, token in enumerate(tree.ids[node]):
            said = head + "".join(map(chr, tree.ids[node][:i]))
            if len(said) < 3:
                out[PLACE[first, said]] += coef[node] * ((chr(token) == "a") - _p_a((first, said)))
    return out


class Guide:
    """A judge whose scores depend on what was said, so that the search is pulled somewhere."""

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Score]:
        said = [c.completion.text + "".join(t.response for t in c.turns) for c in candidates]
        return [Score(0.1 + 0.8 * random.Random(s).random()) for s in said]


CASES: dict[str, tuple[Callable[[], Rule], Segments]] = {
    "random": (lambda: random_on_policy(draws=2, root_draws=3), Segments(length=1, most=3)),
    "best first": (lambda: best_first(draws=2, root_draws=2), Segments(length=2, most=2)),
    "entropy cut": (
        lambda: best_first(draws=2, root_draws=2),
        Segments(by="entropy", threshold=0.62, length=3, most=3),
    ),
    "fallback": (lambda: rule("treepo", leaves=6, spread=4, fallback=0.4), Segments(length=1, most=3)),
}
"""Schedule and cuts, by name."""


async def _opened() -> Letters:
    return Letters()


async def gradients(case: str, trees: int, close: bool = True) -> Array:
    """[trees, 63] the gradient of each tree that a case grows, by SPLIT-LOO. close: False leaves open nodes open."""
    make, cut = CASES[case]
    policy, found = scripted_choice(table), []
    pool, growth = Pool(_opened, 1), make()
    for seed in range(trees):
        tree = await search(
            TASK, pool, policy, rule=growth, evaluator=Guide(), budget=Budget(expansions=6),
            settings=Settings(seed=seed, close=close, segments=cut),
        )  # fmt: skip
        credit = estimate("split_loo", tree_arrays([tree]), root_baseline=0.3, allow_biased=not close)
        found.append(gradient_of(tree, credit.coef))
    return np.array(found)


def over_noise(found: Array) -> float:
    """|mean − true| over the standard error of the mean: about 1 if unbiased."""
    off = found.mean(0) - true_gradient()
    return float(np.linalg.norm(off) / math.sqrt(found.var(0, ddof=1).sum() / len(found)))


# -- credit of tokens -------------------------------------------------------------------------------------------------


def tempo_by_definition(
    rows: Sequence[Sequence[int]], returns: Sequence[float], eps: float = 1e-6
) -> list[list[float]]:
    """By row and token: Σ over the rows through the token of [(R − μ) + V(s_{t+1}) − V(s_t)]/(σ + ε), over all rows.

    V of a prefix is the mean return of the rows that begin with it.
    """
    n = len(rows)
    mean = math.fsum(returns) / n
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in returns) / n)
    scale = 1 / (std + eps) if std > 1e-9 else 0.0
    out = []
    for row in rows:
        through = [
            [r for other, r in zip(rows, returns, strict=True) if other[:t] == row[:t]] for t in range(len(row) + 1)
        ]
        value = [math.fsum(some) / len(some) for some in through]
        out.append(
            [math.fsum(r - mean + value[t + 1] - value[t] for r in through[t + 1]) * scale / n for t in range(len(row))]
        )
    return out


def p2t_error(groups: int, seed: int = 0) -> float:
    """The largest difference from the definition over random groups, relative to the largest value of each."""
    rng, worst = np.random.default_rng(seed), 0.0
    for _ in range(groups):
        count = int(rng.integers(1, 9))
        rows = [rng.integers(0, rng.integers(1, 4), rng.integers(1, 9)).tolist() for _ in range(count)]
        plain = rng.integers(0, 2, count) if rng.random() < 0.5 else rng.normal(size=count)
        returns = np.float32(plain).astype(float)
        symbols, offset = flat_rows(rows)
        tree = prefix_tree(symbols, offset, returns)
        _, coef = row_credit("tempo", tree)
        wanted = [x for row in tempo_by_definition(rows, returns.tolist()) for x in row]
        off = np.abs(coef[tree.trie.position] - wanted).max()
        worst = max(worst, float(off) / max(1.0, float(np.abs(wanted).max())))
    return worst


def pack_seconds(tokens: int = 1_000_000, length: int = 1000, repeats: int = 3) -> float:
    """Process seconds for P2T of answers with so many tokens and their pack; the best of `repeats`."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50_000, length).tolist() for _ in range(tokens // length)]
    for i in range(len(rows)):
        shared = int(rng.integers(0, length))
        rows[i][:shared] = rows[i - i % 10][:shared]
    returns, group = rng.random(len(rows)), np.arange(len(rows)) // 10
    best = math.inf
    for _ in range(repeats):
        began = time.process_time()
        symbols, offset = flat_rows(rows)
        tree = prefix_tree(symbols, offset, returns, group=group)
        _, coef = row_credit("tempo", tree)
        each = coef[tree.trie.position]
        draws = [
            TokenDraw(context=(1,), response=row, coef=each[a:b], mode=1)
            for row, (a, b) in zip(rows, itertools.pairwise(offset.tolist()), strict=True)
        ]
        pack_draws(draws)
        best = min(best, time.process_time() - began)
    return best


# -- cost -------------------------------------------------------------------------------------------------------------


def segment_cost(trees: int = 40, repeats: int = 3) -> tuple[float, float]:
    """Process seconds of the engine for a segment node and for a turn node, each the best of `repeats`."""
    whole, parted = (_sayer(), None), (_sayer(), Segments(length=2, most=99))

    async def once(policy: ScriptedPolicy, cut: Segments | None) -> tuple[float, int, int]:
        pool, turns, inside = Pool(_opened, 1), 0, 0
        began = time.process_time()
        for seed in range(trees):
            tree = await search(
                TASK, pool, policy, rule=best_first(draws=2, root_draws=4), budget=Budget(expansions=60),
                settings=Settings(seed=seed, segments=cut, merge=False),
            )  # fmt: skip
            inner = sum(tree.in_turn(i) for i in range(len(tree)))
            turns, inside = turns + len(tree) - inner, inside + inner
        return time.process_time() - began, turns, inside

    a = b = math.inf
    for _ in range(repeats):
        seconds, turns, _ = asyncio.run(once(*whole))
        a = min(a, seconds / turns)
        seconds, turns, inside = asyncio.run(once(*parted))
        b = min(b, (seconds - a * turns) / inside)
    return b, a


def _sayer() -> ScriptedPolicy:
    return ScriptedPolicy(lambda task, turns, tools, rng: "aaa {}")


async def tokens_per_answer(tasks: int, leaves: int, policy: Any, suite: Any) -> dict[str, float]:
    """Sampled tokens for each finished answer, by TreePO's sampler and by as many chains as its tree had leaves."""
    pool, out = Pool(suite.open, 1), {"tree": 0.0, "chains": 0.0, "answers": 0.0}
    try:
        for i, task in enumerate(suite.tasks("train", tasks)):
            budget = Budget(expansions=10_000)
            grown = await search(
                task, pool, policy, rule=rule("treepo", leaves=leaves), evaluator=_entropy(policy),
                budget=budget,
                settings=Settings(seed=i, max_tokens=48, merge=False, segments=Segments(length=4, most=12)),
            )  # fmt: skip
            ended = len(grown.leaves())
            apart = await search(
                task, pool, policy, rule=rule("chains", draws=ended),
                settings=Settings(seed=i, max_tokens=48, merge=False), budget=budget,
            )  # fmt: skip
            out["tree"] += grown.spent.policy_tokens / ended
            out["chains"] += apart.spent.policy_tokens / len(apart.leaves())
            out["answers"] += ended
    finally:
        await pool.close()
    return {name: value / tasks for name, value in out.items()}


def _entropy(policy: Any) -> Any:
    from treewright.agent.judges.uncertainty import Entropy

    return Entropy(policy)


async def _saved(tasks: int, leaves: int) -> dict[str, float]:
    from treewright.agent.policies.opening import open_policy
    from treewright.envs.registry import suite

    policy = open_policy("seedling")
    try:
        return await tokens_per_answer(tasks, leaves, policy, suite("kg"))
    finally:
        await policy.close()


def main(quick: bool = False, json_path: str | None = None, plot_path: str | None = None) -> dict[str, Any]:
    """Measures, prints a table and returns {"figures", "quick"}.

    quick  200 trees per schedule instead of 1,500, 4 tasks instead of 20
    """
    console = Console(emoji=False)
    trees = 200 if quick else 1500
    bias = {name: asyncio.run(gradients(name, trees)) for name in track(CASES, "bias", console=console)}
    true = true_gradient()
    relative = {name: float(np.linalg.norm(g.mean(0) - true) / np.linalg.norm(true)) for name, g in bias.items()}
    noise = {name: over_noise(g) for name, g in bias.items()}
    dropped = over_noise(asyncio.run(gradients("best first", trees, close=False)))
    inside, turn = segment_cost(4 if quick else 20)
    saved = asyncio.run(_saved(4 if quick else 20, 16))
    figures: dict[str, dict[str, Any]] = {
        "segment_bias_over_noise": {"value": max(noise.values()), "unit": "standard errors"},
        "segment_bias_dropped_frontier": {"value": dropped, "unit": "standard errors"},
        "p2t_max_error": {"value": p2t_error(1000), "unit": "of the largest value"},
        "p2t_pack_seconds": {"value": pack_seconds(), "unit": "s for 1e6 tokens"},
        "treepo_tokens_ratio": {"value": saved["tree"] / saved["chains"], "unit": "tokens per answer over chains'"},
        "treepo_answers": {"value": saved["answers"], "unit": "finished answers per tree"},
        "segment_cost_vs_turn": {"value": inside / turn, "unit": "engine time of a node"},
        "segment_node_us": {"value": 1e6 * inside, "unit": "µs"},
    }
    for name, value in noise.items():
        figures[f"bias/{name}"] = {"value": relative[name], "unit": "of the gradient's length"}
        figures[f"bias_over_noise/{name}"] = {"value": value, "unit": "standard errors"}
    shown = Table("figure", "value", "unit", title=f"segments{' (quick)' if quick else ''}")
    for name, figure in figures.items():
        shown.add_row(name, f"{figure['value']:.4g}", figure["unit"])
    console.print(shown)
    return {"figures": figures, "quick": quick, "trees": trees}
