"""A run that is trained: its configuration, its trainer as of the newest checkpoint, and what is said of an update."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treewright.agent.cli.options import again, console, must_exist, read_config, resumable, say
from treewright.agent.config import store_settings
from treewright.envs.errors import TreewrightError
from treewright.envs.redact import without_secrets
from treewright.envs.registry import names
from treewright.search.meter import Meter
from treewright.training.manifest import read_manifest
from treewright.training.track import Metrics, Update, open_metrics

if TYPE_CHECKING:
    from treewright.agent.config import Config
    from treewright.agent.runs.loop import Learner
    from treewright.search.tree import Tree

__all__ = ["Run", "growing", "metrics_of", "open_run", "show_stats"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run's configuration, its trainer as of the newest checkpoint, and what its trees are of."""

    config: Config
    learner: Learner
    weights: Path | str
    extra: dict[str, Any]  # what the newest checkpoint was saved with
    metrics: Metrics
    began: list[float] = field(default_factory=lambda: [time.monotonic()])  # the last entry: of what is under way
    seen: list[str] = field(default_factory=list)  # suites of its trees that can be opened

    @property
    def trainer(self) -> Any:
        return self.learner.trainer

    def trees(self, suite: str | None = None, split: str | None = None) -> list[Tree]:
        """The finished trees of the run's store. Raises TreewrightError for none."""
        from treewright.search.store import TreeStore

        cfg = self.config
        must_exist(cfg)
        with TreeStore.open(cfg.store_at, read_only=True) as store:
            rows = store.trees(suite=suite, split=split, status="done")
            found = [store.load(row.tree_id) for row in rows]
        self.seen[:] = [name for name in dict.fromkeys(row.suite for row in rows) if name in names()]
        if not found:
            wanted = ", ".join(w for w in (suite and f"suite {suite}", split and f"split {split}") if w)
            raise TreewrightError(
                f"{cfg.store_at} holds no finished tree ({wanted or 'any'}); type: {again(cfg, 'collect')}"
            )
        return found

    def plan(self, told: str) -> None:
        """What is trained and how, so that no other work takes up what was done of it."""
        self.trainer.progress.plan = told

    def saved(self, stats: Mapping[str, float], extra: dict[str, Any], trees: Sequence[Tree] = ()) -> None:
        """Prints what was measured, writes a checkpoint and says what to type next. `trees` were trained on."""
        saved = self.learner.save({**extra, "stats": dict(stats), "success": self._success(trees)})
        show_stats(stats)
        self.track(stats, extra.get("recipe", "credit"), trees)
        line = shlex.join([*shlex.split(again(self.config, "eval")), *self.suites_option()])
        say(f"saved {saved.path}; next: {line}")

    def track(self, stats: Mapping[str, float], recipe: str, trees: Sequence[Tree] = ()) -> None:
        """A line of metrics.jsonl, and the trackers, for what was done since the last one."""
        now = time.monotonic()
        self.metrics.log(
            Update(
                step=self.trainer.steps, iteration=self.learner.iteration, version=self.trainer.versions[-1],
                stats=stats, seconds=now - self.began[-1], recipe=recipe, success=self._success(trees),
                meter=Meter.trained(stats).as_dict() if "row_tokens" in stats else {},
            )
        )  # fmt: skip
        self.began.append(now)

    @staticmethod
    def _success(trees: Sequence[Tree]) -> dict[str, float]:
        from treewright.agent.runs.success import success_by_suite

        try:
            return success_by_suite(trees)
        except TreewrightError:  # trees that give their nodes no values; imitation takes them nevertheless
            return {}

    def tell_round(self, recipe: str) -> Callable[[int, Mapping[str, float], Sequence[Tree]], None]:
        """What is told and kept of each round of a recipe that grows trees as it trains."""

        def tell(index: int, stats: Mapping[str, float], trees: Sequence[Tree]) -> None:
            shown = (
                "share", "starts", "pairs", "trees", "inexact", "faults", "right_at_once", "mended", "loss", "value",
                "grad_norm",
            )  # fmt: skip
            told = "  ".join(f"{k} {stats[k]:.3g}" for k in shown if k in stats)
            console.print(f"round {index + 1}: {told}")
            self.track(stats, recipe, trees)

        return tell

    def suites_option(self) -> list[str]:
        """Where to measure: what the run was set to, else the worlds of its trees, as far as they can be opened."""
        worlds = self.config.told.get("worlds", {})
        if {"suites", "tasks_file", "questions"} & set(worlds) or not self.seen:
            return []
        return ["--suites", ",".join(self.seen)]


@contextmanager
def open_run(
    name: str | None,
    config: Path | None,
    set_: list[str] | None,
    suites: str | None,
    policy: str | None,
    stored: bool = True,
) -> Iterator[Run]:
    """The run and its trainer, alone at this run until the end. `stored`: it needs trees, so that their lack is told
    before a model is loaded. Ctrl-C keeps the last checkpoint and says how to go on."""
    from treewright.agent.policies.opening import loading_model
    from treewright.agent.runs.begun import begun_with
    from treewright.agent.runs.loop import Learner, make_trainer, model_folder
    from treewright.agent.runs.ranks import leading
    from treewright.agent.runs.rounds import untold
    from treewright.training.manifest import latest, only_trainer
    from treewright.training.progress import Progress

    cfg = read_config(name, config, set_, suites, policy)
    if stored:
        must_exist(cfg)
    folder = cfg.home / "checkpoints"
    source = model_folder(cfg.policy.spec)
    kept = f"the checkpoints in {folder} are whole, and an update under way goes on from where it was last saved"
    with resumable(kept), only_trainer(folder, cfg.name):
        metrics = metrics_of(cfg)
        before = latest(folder)  # a damaged one is told before a model is loaded
        with metrics:
            with loading_model(source):
                trainer = make_trainer(cfg, source)
            if trainer.chosen:
                say(trainer.chosen)
            if getattr(trainer, "ranks", None) is None:  # many processes go on from their checkpoints
                trainer.progress = Progress(folder, cfg.train.save_every, say)
            learner = Learner(trainer, folder, cfg.loop.checkpoints, cfg.policy.spec)
            extra: dict[str, Any] = {}
            if before is not None:
                learner.iteration = learner.restore(before)
                extra, source = read_manifest(before.path)["extra"], before.path
                say(f"going on from {before.path}")
                if (lost := untold(folder, trainer.versions)) is not None and not metrics.holds(lost.step):
                    metrics.log(lost)  # a kill came between the two
            store_settings(cfg, begun_with(cfg.seed))
            with leading(trainer):
                yield Run(cfg, learner, source, extra, metrics)


def metrics_of(cfg: Config) -> Metrics:
    """The run's metrics and trackers, open. Raises TreewrightError for a tracker that cannot be opened."""
    settings = without_secrets(json.loads(cfg.model_dump_json()))
    return open_metrics(cfg.home, cfg.name, cfg.track.trackers, cfg.track.options, settings)


@asynccontextmanager
async def growing(run: Run, found: Sequence[Any]) -> AsyncIterator[tuple[Any, Any, Any]]:
    """The run's newest weights as a policy, its store and its worlds, all closed at the end."""
    from treewright.agent.policies.prompts import prompt_options
    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.collect import open_worlds
    from treewright.search.store import TreeStore

    cfg = run.config
    here = cfg.policy.spec.partition(":")[0] in ("seedling", "hf")
    options = cfg.policy.options if here else prompt_options(cfg.policy.options)  # those of a server are not for it
    section = cfg.policy.model_copy(update={"spec": f"hf:{run.weights}", "options": options})
    actor, store = open_proposer(section), TreeStore.open(cfg.store_at)
    try:
        async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
            yield actor, store, worlds
    finally:
        store.close()
        await actor.close()


def show_stats(stats: Mapping[str, float]) -> None:
    for key, value in stats.items():
        console.print(f"  {key:<20} {value:.4g}")
