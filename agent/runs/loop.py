"""The main job: collect trees, credit and train on them, serve the new weights, again.

Synchronous (`loop.behind = 0`): collect, train, serve, collect with the new weights. One step behind
(`loop.behind = 1`): while the trainer takes a step on the trees of round n, the sampler already grows those of round
n + 1 with the weights it has; then it is given the new ones. From the second round on trees are then one update old,
which the trainer allows and corrects for, see `treewright.training.versions`. Weights are exchanged between rounds
only, so every tree has one policy version in either mode.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from treewright.agent.config import Config
from treewright.agent.policies.opening import serve_weights
from treewright.agent.policies.policy import Colocated, Sleeper, Trusting
from treewright.agent.policies.weights import folder_version
from treewright.agent.runs.collect import Failure, World, collect
from treewright.agent.runs.setup import (
    acting_rule_of,
    budget_of,
    evaluator_of,
    evidence_of,
    rates_of,
    rule_of,
    settings_of,
    tasks_for,
)
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.engine import Keeper
from treewright.search.tree import Tree
from treewright.search.types import layers
from treewright.training.track import Update

__all__ = [
    "Ahead",
    "Learner",
    "Round",
    "acting_rule_of",
    "budget_of",
    "evaluator_of",
    "evidence_of",
    "grow_for_training",
    "make_trainer",
    "rates_of",
    "resume_loop",
    "rule_of",
    "run_loop",
    "settings_of",
    "tasks_for",
]


@dataclass(frozen=True, slots=True)
class Round:
    """One iteration: the policy version that drew the trees, the one trained from them, and what was measured."""

    index: int
    drawn_by: str
    trained: str
    success: dict[str, float]
    stats: dict[str, float]
    seconds: float

    def update(self, step: int) -> Update:
        """What metrics keep of it; `step` counts the optimizer's steps."""
        return Update(
            step=step, iteration=self.index + 1, version=self.trained, drawn_by=self.drawn_by, stats=self.stats,
            seconds=self.seconds, success=self.success,
        )  # fmt: skip


class Ahead(TypedDict):
    """What a checkpoint says of the round that was being collected when it was made, one step behind: the version of
    the weights that draw its trees, and the success rates by suite that its rule was given."""

    drawn_by: str
    rates: dict[str, float]


@dataclass(slots=True)
class Learner:
    """A trainer and the folder its checkpoints go to; `iteration` of the loop is kept with them.

    base   the policy that the run was begun with, as --policy names it; kept with every checkpoint
    saved  the folder of the trainer's present weights, once there is one
    ahead  of a loop that goes on one step behind: how the round that it stopped in was begun
    """

    trainer: Any
    folder: Path
    keep: int = 3
    base: str | None = None
    rounds: list[Round] = field(default_factory=list)
    iteration: int = 0
    saved: Path | None = None
    ahead: Ahead | None = None

    def learn(self, trees: Sequence[Tree], extra: dict[str, Any]) -> tuple[dict[str, float], Any]:
        """Updates on the trees and saves a checkpoint. Blocking: call it in a thread."""
        from treewright.training import checkpoint

        stats = self.trainer.update(trees)
        saved = checkpoint.save(self.trainer, self.folder, self.keep, {**self._begun(), **extra})
        self.knows(saved.path)
        return stats, saved

    def save(self, extra: dict[str, Any]) -> Any:
        """A checkpoint of the weights as they are, for recipes that train in their own way. Blocking."""
        from treewright.training import checkpoint

        saved = checkpoint.save(
            self.trainer, self.folder, self.keep, {"iteration": self.iteration, **self._begun(), **extra}
        )
        self.knows(saved.path)
        return saved

    def _begun(self) -> dict[str, str]:
        return {} if self.base is None else {"policy": self.base}

    def restore(self, saved: Any) -> int:
        """Goes back to a checkpoint; the iteration to go on with."""
        from treewright.training import checkpoint

        extra = checkpoint.restore(self.trainer, saved)
        self.knows(saved.path)
        self.ahead = extra.get("ahead")
        return int(extra["iteration"])

    def folder_of(self, version: str, source: str | Path) -> str | Path:
        """The folder of the weights that go by `version`: a checkpoint's, or the model that the run began with.

        Raises TreewrightError where they are gone.
        """
        names = self.trainer.aliases
        for folder in (*sorted(self.folder.glob("step-*"), reverse=True), source):
            found = folder_version(folder)
            if names.get(found, found) == names.get(version, version):
                return folder
        raise TreewrightError(
            f"the weights {version} that the round under way was begun with are neither in {self.folder} nor {source}; "
            "set loop.keep to 2 or more, and start a run with a new name"
        )

    def knows(self, folder: str | Path) -> None:
        """The folder holds the trainer's present weights: policies that name weights by their files are known by it."""
        self.saved = Path(folder)
        if self.trainer.versions is not None and any(Path(folder).glob("*.safetensors")):
            self.trainer.aliases[folder_version(folder)] = self.trainer.versions[-1]


def make_trainer(config: Config, source: str | Path) -> Any:
    """A Trainer on the weights in `source` (a folder in `save_pretrained` layout), in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from treewright.training.credit.registry import require_options
    from treewright.training.step import Trainer, frozen
    from treewright.training.versions import weights_version

    settings = replace(config.train, max_staleness=max(config.train.max_staleness, config.loop.behind))
    settings.loss_settings(False)  # a misspelt loss or estimator is told before the model is loaded
    require_options(settings.estimator, settings.estimator_options)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    reference = None
    if config.train.reference is not None:
        if not (config.train.reference / "config.json").is_file():
            raise TreewrightError(
                f"train.reference = {config.train.reference} holds no model; name a checkpoint's folder"
            )
        reference = frozen(AutoModelForCausalLM.from_pretrained(config.train.reference, dtype=torch.float32))
    tokenizer = AutoTokenizer.from_pretrained(source)
    version = weights_version(model)
    aliases = {folder_version(source): version}
    return Trainer(model, settings, tokenizer=tokenizer, reference=reference, versions=[version], aliases=aliases)


def model_folder(spec: str) -> Path | str:
    """Where the weights of a trainable policy lie. Raises TreewrightError for one that is only served."""
    from treewright.agent.policies.policy import SEEDLING

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
        evidence=evidence_of(config.search),
        store=store,
        concurrency=config.search.trees,
        on_tree=on_tree,
    )


@dataclass(frozen=True, slots=True)
class _Grown:
    """A round's trees, the version of the weights that drew them, and the seconds that took."""

    trees: list[Tree]
    drawn_by: str
    seconds: float


async def resume_loop(config: Config, learner: Learner, policy: Any) -> int:
    """The run's newest checkpoint in trainer and policy, and the iteration to go on with: `first` of `run_loop`.

    0 for a new run.
    A round that was being collected one step behind goes on with the weights that it was begun with.
    """
    from treewright.training import checkpoint

    saved = checkpoint.latest(learner.folder)
    if saved is None:
        return 0
    first = learner.restore(saved)
    folder: str | Path = saved.path
    if learner.ahead is not None:
        folder = learner.folder_of(learner.ahead["drawn_by"], model_folder(config.policy.spec))
    await serve_weights(policy, folder)
    return first


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
    A loop that is stopped goes on from its last checkpoint: pass what `resume_loop` gives as `first`.
    """
    last, behind, trainer = config.loop.iterations - 1, config.loop.behind, learner.trainer
    if behind:
        learner.keep = max(learner.keep, 2)  # a resume needs the weights that the round under way was begun with
        if any(p.colocated for p in layers(policy) if isinstance(p, Colocated)):
            raise TreewrightError(
                "loop.behind = 1 samples while the trainer works, and a colocated server sleeps meanwhile; set "
                "loop.behind=0, or give the server an accelerator of its own and leave colocated out"
            )
    if trainer.versions is not None and (trainer.age_of(policy.version) is None or not _sure(policy)):
        await serve_weights(policy, model_folder(config.policy.spec))  # a server that nobody knows the weights of

    async def grow(index: int, rates: Mapping[str, float]) -> _Grown:
        began, drawn_by = time.monotonic(), policy.version
        tasks = tasks_for(worlds, "train", index, config.loop.tasks, config.loop.suite_tasks)
        trees = await grow_for_training(
            config, tasks, worlds, policy, f"{config.name}/{index}", index, store, on_tree, rates=rates
        )
        return _Grown(trees, drawn_by, time.monotonic() - began)

    kept: list[list[Tree]] = []
    ahead: _Grown | None = None
    for index in range(first, last + 1):
        began, rates = time.monotonic(), dict(trainer.baselines)
        if ahead is None:
            ahead = await grow(index, learner.ahead["rates"] if learner.ahead is not None else rates)
            learner.ahead = None
        batch, ahead = ahead, None
        usable = [t for t in batch.trees if t.exact or config.train.allow_biased]
        if behind:
            if trainer.age_of(policy.version) and learner.saved is not None:  # only after a resume
                await serve_weights(policy, learner.saved)
            coming = asyncio.create_task(grow(index + 1, rates)) if index < last else None
            stats, saved, ahead = await _train_beside(learner, usable, index, coming, policy.version, rates)
        else:
            stats, saved = await _train_alone(learner, usable, index, policy)
        await serve_weights(policy, saved.path)
        stats |= {
            "collect_s": batch.seconds,
            "inexact": float(len(batch.trees) - len(usable)),
            "sampled_tokens": float(sum(t.spent.policy_tokens + t.spent.closing_tokens for t in batch.trees)),
            "env_steps": float(sum(t.spent.env_steps + t.spent.closing_steps for t in batch.trees)),
        }
        seconds = time.monotonic() - began
        done = Round(index, batch.drawn_by, policy.version, success_by_suite(usable), stats, seconds)
        learner.rounds.append(done)
        kept.append(batch.trees)
        if on_round is not None:
            on_round(done)
    return kept


def _sleeper(policy: object) -> Sleeper | None:
    return next((p for p in layers(policy) if isinstance(p, Sleeper)), None)


def _sure(policy: object) -> bool:
    """Its version names the weights that it draws from: nobody else can have given it others."""
    return all(p.sure for p in layers(policy) if isinstance(p, Trusting))


async def _train_alone(
    learner: Learner, trees: Sequence[Tree], index: int, policy: Any
) -> tuple[dict[str, float], Any]:
    """A step while the policy sleeps, if it shares the accelerator; it is woken with the new weights."""
    sleeper = _sleeper(policy)
    if sleeper is not None:
        await sleeper.sleep()
    try:
        return await asyncio.to_thread(learner.learn, trees, {"iteration": index + 1})
    except Exception:
        if sleeper is not None:
            await sleeper.wake()  # no new weights will come that could wake it
        raise


async def _train_beside(
    learner: Learner,
    trees: Sequence[Tree],
    index: int,
    coming: asyncio.Task[_Grown] | None,
    version: str,
    rates: dict[str, float],
) -> tuple[dict[str, float], Any, _Grown | None]:
    """A step while the next round is collected; both are awaited, whichever ends first."""
    extra: dict[str, Any] = {"iteration": index + 1}
    if coming is not None:
        extra["ahead"] = Ahead(drawn_by=version, rates=rates)
    try:
        stats, saved = await asyncio.to_thread(learner.learn, trees, extra)
        return stats, saved, await coming if coming is not None else None
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
