"""The control of the demo: the same trees teach with their rewards, and teach nothing with these permuted.

All trees are drawn by the frozen seedling: trees drawn by a policy that has learned already would teach by being
imitated, whatever their rewards. Every task has two trees, whose baselines come from each other, and rewards are
permuted among the leaves of both: what is left of a task's rewards then says nothing about what was done in it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treewright.agent.config import Config
from treewright.agent.runs.collect import World, open_worlds
from treewright.agent.runs.demo import PLAN, QUICK, DemoPlan, demo_config, measure, open_suites, progress_bar
from treewright.agent.runs.evaluate import Evaluation, paired_gain
from treewright.agent.runs.loop import Learner, grow_for_training, make_trainer, model_folder, tasks_for
from treewright.search.tree import Tree

__all__ = ["main", "permuted"]

ATTEMPTS = 2


def permuted(trees: Sequence[Tree], seed: int) -> list[Tree]:
    """Copies of the trees with the rewards of each task's leaves shuffled among them; all else is shared."""
    out: list[Tree] = []
    for task in dict.fromkeys((t.task.suite, t.task.id) for t in trees):
        mine = [t for t in trees if (t.task.suite, t.task.id) == task]
        places = [(i, leaf) for i, t in enumerate(mine) for leaf in t.leaves()]
        rewards = [mine[i]._truth[leaf] for i, leaf in places]
        random.Random(f"{seed} {task}").shuffle(rewards)
        truth = [list(t._truth) for t in mine]
        for (i, leaf), reward in zip(places, rewards, strict=True):
            truth[i][leaf] = reward
        for tree, own in zip(map(copy, mine), truth, strict=True):
            tree._truth = own
            out.append(tree)
    return out


async def _grow(console: Console, config: Config, worlds: dict[str, World], policy: Any) -> list[list[Tree]]:
    batches: list[list[Tree]] = []
    half = {name: config.loop.suite_tasks.get(name, config.loop.tasks) // ATTEMPTS for name in worlds}
    with progress_bar(console, "trees of the seedling", ATTEMPTS * sum(half.values()) * config.loop.iterations) as bar:
        for index in range(config.loop.iterations):
            tasks = tasks_for(worlds, "train", index, 1, half)
            batch: list[Tree] = []
            for attempt in range(ATTEMPTS):
                run = f"control {attempt}"
                batch += await grow_for_training(
                    config, tasks, worlds, policy, run, ATTEMPTS * index + attempt, attempt=attempt, on_tree=bar
                )
            batches.append([t for t in batch if t.exact])
    return batches


async def _measured(
    console: Console, config: Config, plan: DemoPlan, names: Sequence[str], folder: Path
) -> dict[str, dict[str, Evaluation]]:
    from treewright.agent.policies.opening import open_policy

    source, out = model_folder(config.policy.spec), {}
    async with open_worlds(names) as worlds:
        policy = open_policy(config.policy.spec, **config.policy.options)
        stage, _ = await measure(console, "before", worlds, policy, plan, "before")
        out["before"] = stage.alone
        batches = await _grow(console, config, worlds, policy)
        await policy.close()
        for word in ("true", "permuted"):
            learner, saved = Learner(make_trainer(config, source), folder / word, 1), None
            # All trees are the first weights' own, and both arms train on them in turn: no tree is refused for its age.
            learner.trainer.versions = None
            with progress_bar(console, f"training on {word} rewards", len(batches)) as bar:
                for index, trees in enumerate(batches):
                    given = trees if word == "true" else permuted(trees, config.seed)
                    _, saved = await asyncio.to_thread(learner.learn, given, {"iteration": index})
                    bar(None)
            assert saved is not None
            policy = open_policy(f"hf:{saved.path}")
            stage, _ = await measure(console, word, worlds, policy, plan, word)
            out[word] = stage.alone
            await policy.close()
    return out


def main(
    quick: bool = False, json_path: str | None = None, plot_path: str | None = None, suites: Sequence[str] | None = None
) -> dict[str, Any]:
    """Prints a table of gains and returns {"figures": {name: {"value", "unit"}}, "quick"}.

    quick  a few tasks and rounds: shows that it runs, measures nothing. There is no plot.
    """
    console = Console(emoji=False)
    plan = replace(QUICK.plan if quick else PLAN, searched={})
    with tempfile.TemporaryDirectory() as folder:
        config = demo_config(Path(folder), QUICK.settings if quick else ())
        names = open_suites(console, suites or config.worlds.suites)
        found = asyncio.run(_measured(console, config, plan, names, Path(folder)))
    table = Table(
        "suite", "before", "true rewards", "gain (95 %)", "permuted rewards", "gain (95 %)", title="control, %"
    )
    figures: dict[str, dict[str, Any]] = {}
    for name, before in found["before"].items():
        row = [f"{name} ({len(before.tasks)})", f"{100 * before.rate:.1f}"]
        for word in ("true", "permuted"):
            gain, low, high = paired_gain(before, found[word][name])
            row += [f"{100 * found[word][name].rate:.1f}", f"{gain:+.1f} ({low:+.0f} … {high:+.0f})"]
            for end, value in (("points", gain), ("low", low), ("high", high)):
                figures[f"{name}.{word}_gain_{end}"] = {"value": value, "unit": "points"}
        table.add_row(*row)
    console.print(table)
    if quick:
        console.print("quick: too few tasks and rounds to say anything about the gains")
    return {"figures": figures, "quick": quick}
