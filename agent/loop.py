"""The main job: collect trees, credit and train on them, serve the new weights, again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treewright.agent.clients.engine import folder_version
from treewright.agent.collect import Failure, World, collect
from treewright.agent.config import Config, SearchSection
from treewright.agent.judge import open_evaluator
from treewright.agent.policy import serve_weights
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.engine import Keeper, Settings
from treewright.search.rules import Rule, options_of, rule
from treewright.search.tree import Tree
from treewright.search.types import Budget, Evaluator

__all__ = [
    "Learner",
    "Round",
    "acting_rule_of",
    "budget_of",
    "evaluator_of",
    "grow_for_training",
    "make_trainer",
    "rates_of",
    "rule_of",
    "run_loop",
    "tasks_for",
]


SMALL, SMALL_LR, LARGE_LR = 20_000_000, 1e-3, 1e-5


def rule_of(section: SearchSection, rates: Mapping[str, float] | None = None) -> Rule:
    """The rule named in the configuration with its options, and the draws it takes. `chains` has no inner draws.

    rates  running success rate by suite, for the rule that adapts to it
    """
    if section.rule == "chains":
        return rule("chains", **{"draws": section.root_draws, **section.options})
    given = {"draws": section.draws, "root_draws": section.root_draws, "rates": rates}
    taken = {name: value for name, value in given.items() if name in options_of(section.rule)}
    return rule(section.rule, **{**taken, **section.options})


def rates_of(config: Config) -> dict[str, float]:
    """The success by suite that the run's newest checkpoint knows; {} before the first."""
    newest = sorted((config.home / "checkpoints").glob("step-*/manifest.json"))
    return dict(json.loads(newest[-1].read_text())["baselines"]) if newest else {}


def acting_rule_of(section: SearchSection) -> Rule | None:
    """The rule to act by, None for the usual one: the configuration's default is made for training."""
    return None if section.rule == "best_first" and not section.options else rule_of(section)


def budget_of(section: SearchSection) -> Budget:
    return Budget(
        expansions=section.expansions,
        policy_tokens=section.policy_tokens,
        env_steps=section.env_steps,
        seconds=section.seconds,
    )


def settings_of(section: SearchSection, *, run: str, seed: int, attempt: int = 0) -> Settings:
    """How trees of a run are grown."""
    return Settings(
        run=run, attempt=attempt, seed=seed, width=section.width, max_tokens=section.max_tokens, close=section.close,
        merge=section.merge,
    )  # fmt: skip


def evaluator_of(section: SearchSection, policy: Any = None) -> Evaluator | None:
    """The evaluator named in the configuration, see `open_evaluator`; `policy` is asked by those that need one."""
    return open_evaluator(section.evaluator, policy)


def tasks_for(
    worlds: Mapping[str, World], split: str, index: int, count: int, other: Mapping[str, int] | None = None
) -> list[Task]:
    """Batch `index` of `count` tasks of every suite, or of `other[suite]`; a suite that runs out begins again."""
    out: list[Task] = []
    for name, world in worlds.items():
        suite, many = world.suite, (other or {}).get(name, count)
        start = index * many
        try:
            out += suite.tasks(split, start + many)[start:]
        except ValueError:
            size = _size(suite.tasks, split)
            every = suite.tasks(split, size)
            out += [every[i % size] for i in range(start, start + many)]
    return out


def _size(tasks: Callable[[str, int], Sequence[Task]], split: str) -> int:
    """How many tasks a finite suite has: the largest count it gives without ValueError, by bisection."""
    low, high = 1, 1 << 20
    while low < high:
        middle = (low + high + 1) // 2
        try:
            tasks(split, middle)
            low = middle
        except ValueError:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class Round:
    """One iteration: the policy version that drew the trees, the one trained from them, and what was measured."""

    index: int
    drawn_by: str
    trained: str
    success: dict[str, float]
    stats: dict[str, float]
    seconds: float


@dataclass(slots=True)
class Learner:
    """A trainer and the folder its checkpoints go to; `iteration` of the loop is kept with them."""

    trainer: Any
    folder: Path
    keep: int = 3
    rounds: list[Round] = field(default_factory=list)
    iteration: int = 0

    def learn(self, trees: Sequence[Tree], extra: dict[str, Any]) -> tuple[dict[str, float], Any]:
        """Updates on the trees and saves a checkpoint. Blocking: call it in a thread."""
        from treewright.training import checkpoint

        stats = self.trainer.update(trees)
        saved = checkpoint.save(self.trainer, self.folder, self.keep, extra)
        self.knows(saved.path)
        return stats, saved

    def save(self, extra: dict[str, Any]) -> Any:
        """A checkpoint of the weights as they are, for recipes that train in their own way. Blocking."""
        from treewright.training import checkpoint

        saved = checkpoint.save(self.trainer, self.folder, self.keep, {"iteration": self.iteration, **extra})
        self.knows(saved.path)
        return saved

    def knows(self, folder: str | Path) -> None:
        """The folder holds the trainer's present weights: policies that name weights by their files are known by it."""
        if self.trainer.versions is not None and any(Path(folder).glob("*.safetensors")):
            self.trainer.aliases[folder_version(folder)] = self.trainer.versions[-1]


def make_trainer(config: Config, source: str | Path) -> Any:
    """A Trainer on the weights in `source` (a folder in `save_pretrained` layout), in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from treewright.training.step import Trainer, TrainSettings, frozen
    from treewright.training.versions import weights_version

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    size = sum(p.numel() for p in model.parameters())
    lr = config.train.lr or (SMALL_LR if size < SMALL else LARGE_LR)
    plain = config.train.model_dump(exclude={"reference"})
    reference = None
    if config.train.reference is not None:
        if not (config.train.reference / "config.json").is_file():
            raise TreewrightError(
                f"train.reference = {config.train.reference} holds no model; name a checkpoint's folder"
            )
        reference = frozen(AutoModelForCausalLM.from_pretrained(config.train.reference, dtype=torch.float32))
    settings = TrainSettings(**{**plain, "lr": lr})
    tokenizer = AutoTokenizer.from_pretrained(source)
    version = weights_version(model)
    aliases = {folder_version(source): version} if any(Path(source).glob("*.safetensors")) else {}
    return Trainer(model, settings, tokenizer, reference=reference, versions=[version], aliases=aliases)


def model_folder(spec: str) -> Path | str:
    """Where the weights of a trainable policy lie. Raises TreewrightError for one that is only served."""
    from treewright.agent.policy import SEEDLING

    kind, _, rest = spec.partition(":")
    if kind == "seedling":
        return Path(rest) if rest else SEEDLING
    if kind in ("hf", "vllm") and rest:
        name = rest.partition("@http")[0]  # a server is started with the folder's name, so its model's name is that
        return SEEDLING if (kind, name) == ("vllm", "seedling") else name
    raise TreewrightError(f"policy {spec!r} cannot be trained here; use seedling, hf:NAME_OR_FOLDER or vllm:FOLDER")


def success_by_suite(trees: Sequence[Tree]) -> dict[str, float]:
    """Mean value of the roots: what a sampled rollout would get, estimated with every tree's own weights."""
    from treewright.training.credit import estimate
    from treewright.training.credit.trees import tree_arrays

    out: dict[str, float] = {}
    for name in dict.fromkeys(t.task.suite for t in trees):
        arrays = tree_arrays([t for t in trees if t.task.suite == name])
        values = estimate("split_loo", arrays, allow_biased=True).value[arrays.roots]
        out[name] = float(values[values == values].mean())
    return out


async def grow_for_training(
    config: Config,
    tasks: Sequence[Task],
    worlds: Mapping[str, World],
    policy: Any,
    run: str,
    index: int,
    store: Keeper | None = None,
    on_tree: Callable[[Tree | Failure], None] | None = None,
    attempt: int = 0,
    rates: Mapping[str, float] | None = None,
) -> list[Tree]:
    """One batch of trees as the configuration's search section says; the seed changes with the batch.

    rates  success by suite so far, for a rule that adapts to it
    """
    return await collect(
        tasks,
        worlds,
        policy,
        rule=rule_of(config.search, rates),
        budget=budget_of(config.search),
        settings=settings_of(config.search, run=run, attempt=attempt, seed=config.seed + index),
        evaluator=evaluator_of(config.search, policy),
        store=store,
        concurrency=config.search.trees,
        on_tree=on_tree,
    )


async def run_loop(
    config: Config,
    worlds: Mapping[str, World],
    policy: Any,
    learner: Learner,
    store: Keeper | None = None,
    first: int = 0,
    on_tree: Callable[[Tree | Failure], None] | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> list[list[Tree]]:
    """Iterations `first` … of collect → train → serve; returns the trees of each.

    Inexact trees (a fault persisted, say) are left out of training unless train.allow_biased is set, and counted.
    A loop that is stopped goes on from its last checkpoint: pass the iteration it holds as `first`.
    """
    kept: list[list[Tree]] = []
    if learner.trainer.versions is not None and learner.trainer.age_of(policy.version) is None:
        await serve_weights(policy, model_folder(config.policy.spec))  # a server that nobody knows the weights of
    for index in range(first, config.loop.iterations):
        began, drawn_by = time.monotonic(), policy.version
        tasks = tasks_for(worlds, "train", index, config.loop.tasks, config.loop.suite_tasks)
        trees = await grow_for_training(
            config, tasks, worlds, policy, f"{config.name}/{index}", index, store, on_tree,
            rates=dict(learner.trainer.baselines),
        )  # fmt: skip
        usable = [t for t in trees if t.exact or config.train.allow_biased]
        collected = time.monotonic() - began
        if (sleep := getattr(policy, "sleep", None)) is not None:
            await sleep()  # the trainer may need the accelerator
        stats, saved = await asyncio.to_thread(learner.learn, usable, {"iteration": index + 1})
        await serve_weights(policy, saved.path)
        stats |= {
            "collect_s": collected,
            "inexact": float(len(trees) - len(usable)),
            "sampled_tokens": float(sum(t.spent.policy_tokens + t.spent.closing_tokens for t in trees)),
            "env_steps": float(sum(t.spent.env_steps + t.spent.closing_steps for t in trees)),
        }
        done = Round(index, drawn_by, policy.version, success_by_suite(usable), stats, time.monotonic() - began)
        learner.rounds.append(done)
        kept.append(trees)
        if on_round is not None:
            on_round(done)
    return kept
