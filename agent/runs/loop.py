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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treewright.agent.config import Config
from treewright.agent.policies.fetch import local_model
from treewright.agent.policies.opening import loading_model
from treewright.agent.policies.policy import Colocated, Sleeper, Trusting
from treewright.agent.policies.weights import folder_version
from treewright.agent.runs.collect import Failure, World, collect, refuse_stored
from treewright.agent.runs.guiding import guided, refresh
from treewright.agent.runs.pushing import serve_from
from treewright.agent.runs.ranks import trainer_kind
from treewright.agent.runs.rounds import Ahead, Grower, Round, RoundOrder
from treewright.agent.runs.setup import (
    acting_rule_of,
    budget_of,
    evaluator_of,
    evidence_of,
    rates_of,
    rule_of,
    settings_of,
    tasks_for,
    tasks_of_round,
)
from treewright.agent.runs.success import success_by_suite, useless
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.engine import Keeper
from treewright.search.meter import Meter, measured, metering, work_of
from treewright.search.tree import Tree
from treewright.search.types import Evaluator, layers
from treewright.training.heap import give_back
from treewright.training.manifest import ADAPTER
from treewright.training.parallel.launched import launched

if TYPE_CHECKING:
    from treewright.agent.policies.push import Push
    from treewright.training.recipes.curriculum import Front

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
    "open_trainer",
    "rates_of",
    "resume_loop",
    "rule_of",
    "run_loop",
    "settings_of",
    "tasks_for",
    "tasks_of_round",
]


@dataclass(slots=True)
class Learner:
    """A trainer and the folder its checkpoints go to; `iteration` of the loop is kept with them.

    base   the policy that the run was begun with, as --policy names it;  rounds  the last thousand
    saved  the folder of the trainer's present weights, once there is one
    ahead  of a loop that goes on one step behind: how the round that it stopped in was begun
    serving  the folder of the policy's weights when the loop was resumed;  adapted  what starts and schedules learned
    push   what sends the trainer's weights to servers (see pushing.py); None: they go as files
    """

    trainer: Any
    folder: Path
    checkpoints: int = 3
    base: str | None = None
    rounds: deque[Round] = field(default_factory=lambda: deque(maxlen=1000))
    iteration: int = 0
    saved: Path | None = None
    ahead: Ahead | None = None
    serving: str | None = None
    adapted: dict[str, Any] = field(default_factory=dict)
    push: Push | None = None

    def learn(self, trees: Sequence[Tree], extra: dict[str, Any]) -> tuple[dict[str, float], Any]:
        """Updates on the trees and saves a checkpoint. Blocking: call it in a thread."""
        from treewright.training import checkpoint

        began = time.monotonic()
        give_back()  # what the sampler held while the trees grew
        stats = self.trainer.update(trees)
        stats["train_seconds"] = time.monotonic() - began
        self.trainer.optimizer.zero_grad(set_to_none=True)  # gradients are as large as the weights, and done with
        saved = checkpoint.save(self.trainer, self.folder, self.checkpoints, {**self._begun(), **extra, "stats": stats})
        self.knows(saved.path)
        give_back()
        return stats, saved

    def save(self, extra: dict[str, Any]) -> Any:
        """A checkpoint of the weights as they are, for recipes that train in their own way. Blocking."""
        from treewright.training import checkpoint

        saved = checkpoint.save(
            self.trainer, self.folder, self.checkpoints, {"iteration": self.iteration, **self._begun(), **extra}
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
        self.ahead, self.adapted = extra.get("ahead"), extra.get("adapted", {})
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
            "set loop.checkpoints to 2 or more, and start a run with a new name"
        )

    def knows(self, folder: str | Path) -> None:
        """The folder holds the trainer's present weights: policies that name weights by their files are known by it."""
        self.saved = Path(folder)
        if self.trainer.versions is not None and any(Path(folder).glob("*.safetensors")):
            self.trainer.aliases[folder_version(folder)] = self.trainer.versions[-1]


def make_trainer(config: Config, source: str | Path) -> Any:
    """A Trainer on the weights in `source` (a folder in `save_pretrained` layout, or an adapter's), in float32.

    With train.lora the base is kept in train.precision. What train.memory leads to is in the trainer's `chosen`.
    """
    import torch
    from transformers import AutoTokenizer

    from treewright.training.credit.registry import require_options
    from treewright.training.lora import attach, load_model
    from treewright.training.memory import fitted
    from treewright.training.optim import rate_factor
    from treewright.training.precision import compute_dtype
    from treewright.training.step import frozen
    from treewright.training.versions import weights_version

    s = replace(config.train, max_staleness=max(config.train.max_staleness, config.loop.steps_behind))
    s = replace(s, schedule_steps=s.schedule_steps or config.loop.iterations * s.minibatches)
    make = trainer_kind(s)
    s.loss_settings(False), rate_factor(s)  # what is misspelt is told before the model is loaded
    require_options(s.estimator, s.estimator_options)
    model = load_model(source)
    version = weights_version(model)
    device, group = "cuda" if torch.cuda.is_available() else "cpu", launched()
    if group is None:  # where many train, each layer goes to its devices as it is sharded
        model = model.to(device)
    if s.lora.rank:
        model = attach(model, s.lora, source, config.seed, compute_dtype(s.precision))
    reference = None
    if s.reference is not None:
        if not any((s.reference / name).is_file() for name in ("config.json", ADAPTER)):
            raise TreewrightError(f"train.reference = {s.reference} holds no model; name a checkpoint's folder")
        reference = frozen(load_model(s.reference)).to(model.device)
    s, chosen = fitted(model, s, reference is not None, 1 if group is None else group[1], device)
    tokenizer = AutoTokenizer.from_pretrained(source)
    aliases = {folder_version(source): version}
    made = make(model, s, tokenizer=tokenizer, reference=reference, versions=[version], aliases=aliases)
    made.chosen = chosen
    return made


def open_trainer(config: Config) -> Any:
    """`make_trainer` on the weights that the configuration's policy begins with."""
    source = model_folder(config.policy.spec)
    with loading_model(source):
        return make_trainer(config, source)


def model_folder(spec: str) -> Path | str:
    """Where the weights of a trainable policy lie. Raises TreewrightError for one that is only served."""
    from treewright.agent.policies.policy import SEEDLING, seedling_folder

    kind, _, rest = spec.partition(":")
    if kind == "seedling":
        return seedling_folder(rest)
    if kind in ("hf", "vllm") and rest:
        name = rest.partition("@http")[0]  # a server is started with the folder's name, so its model's name is that
        return SEEDLING if (kind, name) == ("vllm", "seedling") else local_model(name)
    raise TreewrightError(f"policy {spec!r} cannot be trained here; use seedling, hf:NAME_OR_FOLDER or vllm:FOLDER")


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
    evaluator: Evaluator | None = None,
) -> list[Tree]:
    """One batch of trees as the configuration's search section says; the seed changes with the batch.

    rates      success by suite so far, for a rule that adapts to it
    evaluator  one that is open already; None: the section's
    """
    return await collect(
        tasks,
        worlds,
        policy,
        rule=rule_of(config.search, rates),
        budget=budget_of(config.search),
        settings=settings_of(config.search, run=run, attempt=attempt, seed=config.seed + index),
        evaluator=evaluator or evaluator_of(config.search, policy),
        evidence=evidence_of(config.search),
        store=store,
        concurrency=config.search.trees,
        on_tree=on_tree,
    )


@dataclass(frozen=True, slots=True)
class _Grown:
    """A round's trees, the version of the weights that drew them, and the seconds and whatever else that took.

    begun, chosen  trees that begin at stored nodes, and where they do;  rates  what the rule was told
    """

    trees: list[Tree]
    drawn_by: str
    seconds: float
    meter: Meter
    begun: list[Tree] = field(default_factory=list)
    chosen: list[Front] = field(default_factory=list)
    rates: Mapping[str, float] = field(default_factory=dict)


async def resume_loop(config: Config, learner: Learner, policy: Any) -> int:
    """The run's newest checkpoint in trainer and policy, and the iteration to go on with: `first` of `run_loop`.

    0 for a new run. A round that was being collected one step behind goes on with the weights that it was begun with.
    """
    from treewright.training import checkpoint

    saved = checkpoint.latest(learner.folder)
    if saved is None:
        return 0
    first = learner.restore(saved)
    folder: str | Path = saved.path
    if learner.ahead is not None:
        folder = learner.folder_of(learner.ahead["drawn_by"], model_folder(config.policy.spec))
    await serve_from(learner, policy, folder)
    learner.serving = _whole_path(folder)
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
    crew: Grower | None = None,
    on_trees: Callable[[list[Tree]], None] | None = None,
) -> None:
    """Iterations `first` … of collect → train → serve. `crew` grows the trees, if there is one.

    on_tree, on_trees, on_round  hear of each tree, of an iteration's trees, of what was measured; the loop keeps none
    Inexact trees (a fault persisted, say) are left out of training unless train.allow_biased is set, and counted.
    A loop that is stopped goes on from its last checkpoint: pass what `resume_loop` gives as `first`.
    """
    last, behind, trainer = config.loop.iterations - 1, config.loop.steps_behind, learner.trainer
    if behind:
        # a resume needs the weights that the round under way was begun with
        learner.checkpoints = max(learner.checkpoints, 2)
        if any(p.colocated for p in layers(policy) if isinstance(p, Colocated)):
            raise TreewrightError(
                "loop.behind = 1 samples while the trainer works, and a colocated server sleeps meanwhile; set "
                "loop.behind=0, or give the server an accelerator of its own and leave colocated out"
            )
    if trainer.versions is not None and (trainer.age_of(policy.version) is None or not _sure(policy)):
        await serve_from(learner, policy, model_folder(config.policy.spec))  # a server whose weights nobody knows

    from treewright.agent.runs.adapting import Adapted

    judge = guided(config, policy, crew is not None)
    adapted = Adapted(config, learner.adapted, store, policy, crew)
    serving: dict[str, str] = {}  # folders by the version that policies give them

    async def serve(folder: str | Path) -> None:
        serving[await serve_from(learner, policy, folder)] = _whole_path(folder)

    if learner.serving is not None:
        serving[policy.version] = learner.serving

    async def grow(index: int, rates: Mapping[str, float]) -> _Grown:
        began, drawn_by = time.monotonic(), policy.version
        begun: list[Tree] = []
        chosen: list[Front] = []
        tasks = tasks_of_round(worlds, config.loop, index)
        run = f"{config.name}/{index}"
        if crew is None:
            with metering() as spent:
                trees = await grow_for_training(
                    config, tasks, worlds, policy, run, index, store, on_tree, rates=rates, evaluator=judge
                )
                chosen, begun = await adapted.begin(len(tasks), worlds, policy, run, store, index, rates, judge)
            busy = spent.busy()
        else:
            where, busy = serving.get(drawn_by), Meter()
            if store is not None:
                refuse_stored(store, run, [(task, 0) for task in tasks], worlds)
            trees = await crew.grow(
                RoundOrder(run=run, index=index, weights=where, version=drawn_by, rates=dict(rates)), tasks
            )
            for tree in trees if on_tree is not None else ():
                on_tree(tree)  # type: ignore[misc]
        cost = measured([*trees, *begun], work_of(policy)) + busy  # those that were in the store already count too
        return _Grown(trees, drawn_by, time.monotonic() - began, cost, begun, chosen, rates)

    recent: deque[list[Tree]] = deque(maxlen=config.loop.prm_every if judge is not None else 0)
    ahead: _Grown | None = None
    for index in range(first, last + 1):
        began, rates = time.monotonic(), adapted.rates(trainer.baselines)
        if ahead is None:
            ahead = await grow(index, learner.ahead["rates"] if learner.ahead is not None else rates)
            learner.ahead = None
        batch, ahead = ahead, None
        every = [*batch.trees, *batch.begun]
        usable = [t for t in every if t.exact or config.train.allow_biased]
        if every and not usable:
            raise TreewrightError(useless(every))
        success = success_by_suite([t for t in batch.trees if t.exact or config.train.allow_biased])
        moved, known, paid = adapted.note(
            batch.trees, batch.begun, batch.chosen, batch.rates, trainer.baselines, batch.seconds
        )
        cost = batch.meter + paid
        told = {"iteration": index + 1, "drawn_by": batch.drawn_by, "success": success, "meter": cost.as_dict()}
        told |= {"adapted": known} if known else {}
        if behind:
            if trainer.age_of(policy.version) and learner.saved is not None:  # only after a resume
                await serve(learner.saved)
            coming = asyncio.create_task(grow(index + 1, rates)) if index < last else None
            stats, saved, ahead = await _train_beside(learner, usable, told, coming, policy.version, rates)
        else:
            stats, saved = await _train_alone(learner, usable, told, policy)
        handing = time.monotonic()
        await serve(saved.path)
        stats |= {} if learner.push is None else {"push_s": time.monotonic() - handing}
        stats |= {
            "collect_s": batch.seconds,
            "inexact": float(len(every) - len(usable)),
            "sampled_tokens": float(sum(t.spent.policy_tokens + t.spent.closing_tokens for t in every)),
            "env_steps": float(sum(t.spent.env_steps + t.spent.closing_steps for t in every)),
            **moved,
        }
        seconds = time.monotonic() - began
        done = Round(index, batch.drawn_by, policy.version, success, stats, seconds, cost + Meter.trained(stats))
        learner.rounds.append(done)
        recent.append(every)
        if judge is not None and (index + 1) % config.loop.prm_every == 0:
            stats |= await asyncio.to_thread(refresh, judge, config, trainer, [t for trees in recent for t in trees])
        if on_round is not None:
            on_round(done)
        if on_trees is not None:
            on_trees(every)


def _whole_path(folder: str | Path) -> str:
    return str(Path(folder).resolve())


def _sleeper(policy: object) -> Sleeper | None:
    return next((p for p in layers(policy) if isinstance(p, Sleeper)), None)


def _sure(policy: object) -> bool:
    """Its version names the weights that it draws from: nobody else can have given it others."""
    return all(p.sure for p in layers(policy) if isinstance(p, Trusting))


async def _train_alone(
    learner: Learner, trees: Sequence[Tree], told: dict[str, Any], policy: Any
) -> tuple[dict[str, float], Any]:
    """A step while the policy sleeps, if it shares the accelerator; it is woken with the new weights."""
    sleeper = _sleeper(policy)
    if sleeper is not None:
        await sleeper.sleep()
    try:
        return await asyncio.to_thread(learner.learn, trees, told)
    except Exception:
        if sleeper is not None:
            await sleeper.wake()  # no new weights will come that could wake it
        raise


async def _train_beside(
    learner: Learner,
    trees: Sequence[Tree],
    told: dict[str, Any],
    coming: asyncio.Task[_Grown] | None,
    version: str,
    rates: dict[str, float],
) -> tuple[dict[str, float], Any, _Grown | None]:
    """A step while the next round is collected; both are awaited, whichever ends first."""
    extra = dict(told)
    if coming is not None:
        extra["ahead"] = Ahead(drawn_by=version, rates=rates)
    try:
        stats, saved = await asyncio.to_thread(learner.learn, trees, extra)
        return stats, saved, await coming if coming is not None else None
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
