"""`treewright bench policy`: the same tree through vLLM and transformers, the prefix cache, drafting.

Needs vLLM (`make test-vllm` builds a venv with its CPU build). Nothing is timed before the log-probs of vLLM agree with
those of transformers on the same tokens.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from treewright.agent.policies.engine import Ask, EnginePolicy, Told
from treewright.agent.policies.line import PrefixLine
from treewright.benchmarks.drafting import drafting
from treewright.envs.errors import TreewrightError
from treewright.envs.types import seed_of
from treewright.search.tree import Tree
from treewright.search.types import Context

__all__ = ["Load", "grow", "ideal_cached", "largest_gap", "main"]

ALLOWED_GAP = 1e-3  # nats, float32
BLOCKS = 320  # of 32 tokens: room for a few of the trees below, so that the order of expansion matters
LOOP = ("loop.iterations=6", "loop.tasks=48")
HELD_OUT = 200


@dataclass(frozen=True, slots=True)
class Load:
    """Trees like those of a tool-using agent, in tokens: a shared head (rules and tools), a task, observations."""

    trees: int
    expansions: int
    draws: int = 4
    head: int = 256
    task: int = 128
    observation: int = 96
    response: int = 24
    vocabulary: tuple[int, int] = (300, 2000)


@dataclass(slots=True)
class Log:
    """Every draw in the order in which the engine was asked: its prompt, what came back, how much was cached."""

    asked: list[tuple[int, ...]] = field(default_factory=list)
    told: dict[int, Told] = field(default_factory=dict)

    @property
    def cached(self) -> int:
        return sum(told.cached for told in self.told.values())

    @property
    def sampled(self) -> int:
        return sum(len(told.ids) for told in self.told.values())


def ideal_cached(log: Log) -> int:
    """Prompt tokens that an endless cache with blocks of one token would have had when each draw began.

    A prompt's last token is always computed: its logits are needed. What earlier draws sampled counts as cached.
    """
    known: set[int] = set()
    out = 0
    for number, ids in enumerate(log.asked):
        mark, depth, marks = 0, 0, []
        for token in (*ids, *log.told[number].ids):
            mark = hash((mark, token))
            marks.append(mark)
        while depth < len(ids) - 1 and marks[depth] in known:
            depth += 1
        out += depth
        known.update(marks)
    return out


async def grow(policy: Any, load: Load, number: int) -> None:
    """One tree: pops a random open prompt, draws from it, appends an observation to each draw."""
    dice, words = random.Random(number), random.Random(0)
    low, high = load.vocabulary
    head = tuple(words.randrange(low, high) for _ in range(load.head))
    frontier = [head + tuple(dice.randrange(low, high) for _ in range(load.task))]
    for step in range(load.expansions):
        ids = frontier.pop(dice.randrange(len(frontier)))
        seeds = [seed_of(number, step, i) for i in range(load.draws)]
        for done in await policy.draw(Context(keep=0, delta=ids, ids=ids), seeds, load.response):
            seen = tuple(dice.randrange(low, high) for _ in range(load.observation))
            frontier.append(ids + done.token_ids + seen)


async def timed(policy: EnginePolicy, load: Load, order: str, concurrency: int) -> tuple[float, Log]:
    """Seconds for all trees at once from an empty cache, and the log."""
    engine, log = policy.engine, Log()
    plain = engine.generate

    async def logged(ask: Ask) -> Told:
        number = len(log.asked)
        log.asked.append(ask.ids)
        told = log.told[number] = await plain(ask)
        return told

    policy.line, stops = PrefixLine(concurrency, order), policy.stop_ids
    await engine.llm.reset_prefix_cache()  # type: ignore[attr-defined]
    engine.generate, policy.stop_ids = logged, ()  # type: ignore[method-assign]
    began = time.monotonic()
    try:
        await asyncio.gather(*(grow(policy, load, i) for i in range(load.trees)))
    finally:
        engine.generate, policy.stop_ids = plain, stops  # type: ignore[method-assign]
    return time.monotonic() - began, log


def largest_gap(model: Any, trees: Sequence[Tree]) -> float:
    """Largest difference in nats between the log-probs in the trees and the model's own on the same tokens."""
    import torch

    worst = 0.0
    with torch.no_grad():
        for tree in trees:
            for node in range(1, len(tree)):
                prompt, ids = tree.context_ids(tree.parent[node]), tree.ids[node]
                logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
                own = logits.float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
                worst = max(worst, float((own - torch.tensor(tree.logprobs[node])).abs().max()))
    return worst


async def _trees(policy: Any, count: int) -> list[Tree]:
    from treewright.agent.runs.collect import collect, open_worlds
    from treewright.agent.runs.loop import tasks_for
    from treewright.search.engine import Settings
    from treewright.search.rules import best_first
    from treewright.search.types import Budget

    async with open_worlds(["kg", "stdlib"]) as worlds:
        return await collect(
            tasks_for(worlds, "test", 0, count), worlds, policy, rule=best_first(), budget=Budget(expansions=4),
            settings=Settings(close=True, max_tokens=128),
        )  # fmt: skip


async def _measure(quick: bool, console: Console) -> dict[str, tuple[float, str]]:
    from treewright.agent.policies.opening import open_policy

    engine = {"num_gpu_blocks_override": BLOCKS, "max_model_len": 2048}
    vllm, hf = open_policy("vllm:seedling", engine=engine), open_policy("seedling")
    assert isinstance(vllm, EnginePolicy)
    out: dict[str, tuple[float, str]] = {}
    try:
        trees = await _trees(vllm, 4 if quick else 16)
        gap = largest_gap(hf.model, trees)  # type: ignore[attr-defined]
        out["max_logprob_gap"] = (gap, "nats")
        if gap > ALLOWED_GAP:
            raise TreewrightError(f"vLLM's log-probs differ from transformers' by {gap:.2g} nats; nothing was timed")
        console.print(f"log-probs agree within {gap:.1e} nats on {sum(map(len, trees))} nodes")
        out |= await _roomy(vllm, hf, quick)
        out |= await _tight(vllm, quick)
        if not quick:
            for name, policy in (("vllm", vllm), ("hf", hf)):
                out |= await _loop(name, policy)
    finally:
        await vllm.close()
        await hf.close()
    return out


async def _roomy(vllm: EnginePolicy, hf: Any, quick: bool) -> dict[str, tuple[float, str]]:
    """Trees that fit into the cache: how much of what could be shared was, and how fast."""
    load = Load(trees=2, expansions=8 if quick else 16)
    seconds, log = await timed(vllm, load, "prefix", 16)
    prompts = sum(map(len, log.asked))
    stops, hf.stop_ids = hf.stop_ids, []
    began = time.monotonic()
    await asyncio.gather(*(grow(hf, load, i) for i in range(load.trees)))
    taken, hf.stop_ids = time.monotonic() - began, stops
    return {
        "cached_token_share": (log.cached / prompts, "of prompt tokens"),
        "cached_token_share_over_ideal": (log.cached / ideal_cached(log), "ratio"),
        "tokens_per_s": (log.sampled / seconds, "tokens/s"),
        "hf_tokens_per_s": (log.sampled / taken, "tokens/s"),
    }


async def _tight(vllm: EnginePolicy, quick: bool) -> dict[str, tuple[float, str]]:
    """Many trees at once in a cache that holds a few of them: draws in the order of shared prefix or of arrival."""
    load, rounds = Load(trees=20, expansions=5 if quick else 10), 1 if quick else 3
    seconds, shares = {"arrival": 0.0, "prefix": 0.0}, {"arrival": 0.0, "prefix": 0.0}
    for _ in range(rounds):
        for order in seconds:  # in turns, so that a slow moment of the machine falls on both
            took, log = await timed(vllm, load, order, 8)
            seconds[order] += took
            shares[order] = log.cached / ideal_cached(log)
    return {
        "kv_order_vs_plain_tokens_per_s": (seconds["arrival"] / seconds["prefix"], "ratio"),
        "kv_order_share_over_ideal": (shares["prefix"], "ratio"),
        "plain_order_share_over_ideal": (shares["arrival"], "ratio"),
    }


async def _loop(name: str, policy: Any) -> dict[str, tuple[float, str]]:
    """The same loop of collecting and training through one policy: gain on held-out tasks, sampler's gap."""
    from treewright.agent.config import load_config
    from treewright.agent.policies.policy import SEEDLING
    from treewright.agent.runs.collect import open_worlds
    from treewright.agent.runs.evaluate import evaluate, paired_gain
    from treewright.agent.runs.loop import Learner, make_trainer, run_loop, tasks_for

    policy.line = PrefixLine(64) if isinstance(policy, EnginePolicy) else None
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [f"folder={folder}", f"name={name}", *LOOP])
        learner = Learner(make_trainer(config, SEEDLING), config.home / "checkpoints", 1)
        async with open_worlds(["kg"]) as worlds:
            held_out = tasks_for(worlds, "test", 0, HELD_OUT)
            before, _ = await evaluate(held_out, worlds, policy)
            await run_loop(config, worlds, policy, learner)
            after, _ = await evaluate(held_out, worlds, policy)
    gain, low, high = paired_gain(before["kg"], after["kg"])
    return {
        f"loop_{name}_before": (100 * before["kg"].rate, "% of kg tasks"),
        f"loop_{name}_gain": (gain, "points"),
        f"loop_{name}_gain_low": (low, "points"),
        f"loop_{name}_gain_high": (high, "points"),
        f"loop_{name}_sampler_gap": (max(done.stats["sampler_gap"] for done in learner.rounds), "nats"),
    }


def main(quick: bool = False, json_path: str | None = None, plot_path: str | None = None) -> dict[str, Any]:
    """Prints a table and returns {"figures": {name: {"value", "unit"}}, "quick"}. There is no plot.

    Raises TreewrightError where vLLM is not installed, or differs from transformers.
    """
    console = Console(emoji=False)
    figures = drafting(quick)
    try:
        import vllm
    except ImportError as error:
        raise TreewrightError("bench policy needs vLLM; make test-vllm builds .venv-vllm with its CPU build") from error
    figures |= asyncio.run(_measure(quick, console))
    table = Table("figure", "value", "unit", title="policy" + (" (quick)" if quick else ""))
    for name, (value, unit) in figures.items():
        table.add_row(name, f"{value:.3g}", unit)
    console.print(table)
    return {
        "figures": {name: {"value": value, "unit": unit} for name, (value, unit) in figures.items()},
        "quick": quick,
        "vllm": str(vllm.__version__),
    }
