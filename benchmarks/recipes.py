"""`treewright bench recipes`: what one small dose of each recipe does to the seedling on held-out tasks of `kg`.

All of them start from the packaged weights. Those that train on stored trees get the same ones; those that grow their
own get as many. Doses are not tuned and not equal in tokens: the table says that each recipe trains, and roughly how
much, not which is best. Gains are on the same test tasks before and after, with the paired bootstrap's 95 % interval.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treewright.agent.config import Config, load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.runs.collect import World, open_worlds
from treewright.agent.runs.evaluate import Evaluation, evaluate, paired_gain
from treewright.agent.runs.loop import Learner, grow_for_training, make_trainer, tasks_for
from treewright.agent.runs.recipes import prefix_rounds, spar_rounds
from treewright.search.tree import Tree

__all__ = ["main"]

SUITE = "kg"


@dataclass(frozen=True, slots=True)
class _Plan:
    trees: int
    held_out: int
    tests: int


FULL, QUICK = _Plan(160, 60, 400), _Plan(16, 8, 30)


@dataclass(slots=True)
class _Arm:
    """One recipe's learner, and what it may use."""

    config: Config
    learner: Learner
    policy: Any
    worlds: Mapping[str, World]
    trees: list[Tree]
    plan: _Plan


async def _online(arm: _Arm) -> None:
    arm.learner.trainer.update(arm.trees)


async def _sft(arm: _Arm) -> None:
    from treewright.training.recipes.imitate import sft

    sft(arm.learner.trainer, arm.trees, epochs=4)


async def _dpo(arm: _Arm) -> None:
    from treewright.training.recipes.prefer import branch_pairs, dpo

    dpo(arm.learner.trainer, branch_pairs(arm.trees, 0.25), epochs=4)


async def _spar(arm: _Arm) -> None:
    await spar_rounds(arm.config, arm.worlds, arm.policy, arm.learner, rounds=2)


def _prefix(name: str) -> Callable[[_Arm], Awaitable[None]]:
    async def run(arm: _Arm) -> None:
        await prefix_rounds(
            arm.config, name, arm.worlds, arm.policy, arm.learner, arm.trees, updates=2, starts=arm.plan.trees // 2
        )

    return run


RECIPES: dict[str, Callable[[_Arm], Awaitable[None]]] = {
    "online": _online,
    "sft": _sft,
    "dpo": _dpo,
    "spar": _spar,
    "prefixrl": _prefix("prefixrl"),
    "prefix_rft": _prefix("prefix_rft"),
    "pppo": _prefix("pppo"),
}


async def _success(policy: Any, worlds: Mapping[str, World], plan: _Plan) -> Evaluation:
    found, _ = await evaluate(worlds[SUITE].suite.tasks("test", plan.tests), worlds, policy)
    return found[SUITE]


def _judged(config: Config, train: list[Tree], held_out: list[Tree]) -> dict[str, float]:
    """Squared error of a PRM on trees that it was not trained on, and that of always saying their mean."""
    import numpy as np

    from treewright.training.recipes.prm import Prm, steps_of, train_prm

    trainer = make_trainer(config, SEEDLING)
    model = Prm(trainer.model, trainer.tokenizer)
    train_prm(model, train, epochs=4, lr=1e-3, max_tokens=2048)
    steps = steps_of(held_out)
    said = np.concatenate([model.scores(steps[i : i + 64]) for i in range(0, len(steps), 64)])
    value = np.asarray([s.value for s in steps])
    return {
        "prm_brier": float(np.mean((said - value) ** 2)),
        "prm_brier_of_mean": float(np.var(value)),
        "prm_correlation": float(np.corrcoef(said, value)[0, 1]),
    }


async def _measured(plan: _Plan, folder: Path, console: Console) -> dict[str, tuple[float, str]]:
    sets = [f"folder={folder}", f'worlds.suites=["{SUITE}"]', "train.lr=0.001", f"loop.tasks={plan.trees // 2}"]
    config = load_config(None, [*sets, "search.expansions=6", "search.root_draws=6"])
    out: dict[str, tuple[float, str]] = {}
    table = Table("recipe", "success before", "after", "gain, points", "95 % interval")
    async with open_worlds([SUITE]) as worlds:
        policy = open_policy("seedling")
        tasks = tasks_for(worlds, "train", 0, plan.trees + plan.held_out)
        trees = [t for t in await grow_for_training(config, tasks, worlds, policy, "bench", 0) if t.exact]
        held_out, trees = trees[-plan.held_out :], trees[: -plan.held_out]
        before = await _success(policy, worlds, plan)
        await policy.close()
        out["success_before"] = (100 * before.rate, "%")
        for name, train in RECIPES.items():
            learner = Learner(make_trainer(config, SEEDLING), folder / name, 1)
            actor = open_policy("seedling")
            await train(_Arm(config, learner, actor, worlds, trees, plan))
            saved = await asyncio.to_thread(learner.save, {})
            actor.load_weights(saved.path)  # type: ignore[attr-defined]
            after = await _success(actor, worlds, plan)
            await actor.close()
            gain, low, high = paired_gain(before, after)
            out |= {
                f"gain_{name}_points": (gain, "points"),
                f"gain_{name}_low": (low, "points"),
                f"gain_{name}_high": (high, "points"),
            }
            table.add_row(
                name,
                f"{100 * before.rate:.1f} %",
                f"{100 * after.rate:.1f} %",
                f"{gain:+.1f}",
                f"{low:+.1f} … {high:+.1f}",
            )
    judged = _judged(config, trees, held_out)
    console.print(table)
    console.print("  ".join(f"{name} {value:.3f}" for name, value in judged.items()))
    return out | {name: (value, "1") for name, value in judged.items()}


def main(quick: bool = False, json_path: str | None = None, plot_path: str | None = None) -> dict[str, Any]:
    """Prints the table and returns {"figures": {name: {"value", "unit"}}, "quick"}. There is no plot."""
    console = Console(emoji=False)
    plan = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measured(plan, Path(folder), console))
    if quick:
        console.print("quick: a few tasks; shows that it runs, measures nothing")
    figures = {name: {"value": round(value, 4), "unit": unit} for name, (value, unit) in found.items()}
    result = {"figures": figures, "quick": quick}
    if json_path is not None:
        from treewright.agent.runs.figures import write_result

        write_result(Path(json_path), result)
    return result
