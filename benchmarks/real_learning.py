"""What a real model learns: imitation of oracles, then training by trees, and by chains of at least as many sampled
tokens, from the same weights; success of the policy alone on held-out tasks.

Everything is kept in a folder: a run that was stopped goes on with the round that it stopped in.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from treewright.agent.config import Config, load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.prompts import template_for
from treewright.agent.runs.collect import World, open_worlds
from treewright.agent.runs.demo_real import STEP, TREES
from treewright.agent.runs.evaluate import Evaluation, evaluate, paired_gain
from treewright.agent.runs.imitation import SOLVED, demonstrations, episode_rows, oracle_episodes
from treewright.agent.runs.loop import Learner, make_trainer, model_folder, resume_loop, run_loop, tasks_for
from treewright.agent.runs.shared import shared_model
from treewright.agent.runs.workers import alone as orphaned
from treewright.benchmarks.real_parts import Figures, Size, folder_of, kept, size_of
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.envs.whole import write_whole
from treewright.training.checkpoint import latest

__all__ = [
    "ARMS",
    "MOST_ROUNDS",
    "SPEC",
    "begun_model",
    "begun_of",
    "begun_with",
    "from_begun",
    "gains",
    "imitated",
    "learning_figures",
    "learning_home",
]

SPEC = "hf:smollm2"
ARMS: Mapping[str, tuple[str, ...]] = {
    "trees": TREES,
    "chains": ("search.rule=chains", "search.root_draws=28", "search.expansions=1"),
}
"""So many chains of a task that a round of `FULL` draws what one of trees does: the same tasks, steps and tokens."""
CHUNK = 1024  # tokens at most that are computed at once: one of three loops that did 2,048 ran out of 24 GB
MOST_ROUNDS = 10  # times as many rounds as trees took, in which chains must have drawn as many tokens


def learning_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Imitation of oracles, then training by trees and by chains with several seeds, on held-out tasks."""
    size = size_of(quick)
    home = learning_home(spec, size)
    if home is not None:
        return _measured(home, spec, size)
    with tempfile.TemporaryDirectory() as folder:
        return _measured(Path(folder), spec, size)


def _measured(home: Path, spec: str, size: Size) -> Figures:
    began = asyncio.run(_begun(home, spec, size))
    out = began.figures
    arms = ["chains"] if size.tokens else [arm for arm in ARMS if arm == "trees" or size.chains]
    after: dict[str, list[dict[str, Evaluation]]] = {arm: [] for arm in arms}
    for seed, by_arm in enumerate(_trained(home, began.model, size, arms)):
        for arm, one in by_arm.items():
            after[arm].append(one.alone)
            out[f"{arm}/{seed}/sampled_tokens"] = (one.tokens, "tokens")
            out[f"{arm}/{seed}/rounds"] = (float(len(one.rounds)), "rounds")
            out[f"{arm}/{seed}/minutes"] = (sum(done.seconds for done in one.rounds) / 60, "minutes")
            out |= {f"{arm}/{seed}/{name}": (100 * found.rate, "%") for name, found in one.alone.items()}
    for arm, every in after.items():
        out |= gains(arm, began.alone, every)
    if "trees" in after:
        out["real_gain_points_min"] = min(out[f"trees_gain/{name}"] for name in began.alone)
        out["real_gain_low_min"] = min(out[f"trees_low/{name}"] for name in began.alone)
    out |= {"seeds": (float(size.seeds), "seeds"), "beside": (float(size.beside), "loops at once")}
    return out


class _Begun(NamedTuple):
    """The weights that imitated, their success alone, and the figures so far."""

    model: Path
    alone: dict[str, Evaluation]
    figures: Figures


async def _begun(home: Path, spec: str, size: Size) -> _Begun:
    async with open_worlds(size.taught) as worlds:
        todo = tasks_for(worlds, "test", 0, size.held_out)
        few = tasks_for(worlds, "test", 0, size.untouched)
        untouched = await _alone(home / "untouched", lambda: spec, worlds, few)
        begun = await imitated(begun_with(home / "begun", spec, size), worlds, size)
        before = await _alone(home / "begun", lambda: f"hf:{begun}", worlds, todo)
        greedy = await _alone(home / "begun-greedy", lambda: f"hf:{begun}", worlds, todo, temperature=0.0)
        out: Figures = {f"untouched/{name}": (100 * one.rate, "%") for name, one in untouched.items()}
        out |= {f"imitation_greedy/{name}": (100 * one.rate, "%") for name, one in greedy.items()}
        for name, one in before.items():
            gain, low, high = paired_gain(untouched[name], one)
            out |= {f"imitation/{name}": (100 * one.rate, "%"), f"imitation_gain/{name}": (gain, "points")}
            out |= {f"imitation_low/{name}": (low, "points"), f"imitation_high/{name}": (high, "points")}
        out["imitation/demonstrations"] = (float(sum(size.shown.values())), "episodes")
        out |= {f"oracle/{name}": (share, "%") for name, share in (await _oracles(worlds, todo)).items()}
    out["held_out_untouched"] = (float(size.untouched), "tasks of each suite")
    out["held_out"] = (float(size.held_out), "tasks of each suite")
    out["real_after_imitation_min"] = (100 * min(one.rate for one in before.values()), "%")
    return _Begun(begun, before, out)


class _Done(NamedTuple):
    """A round: sampled tokens, and what it took."""

    tokens: float
    seconds: float


class _Arm(NamedTuple):
    """A loop that is over: its rounds, and what its policy solves alone."""

    rounds: list[_Done]
    alone: dict[str, Evaluation]

    @property
    def tokens(self) -> float:
        return sum(one.tokens for one in self.rounds)


def _trained(home: Path, begun: Path, size: Size, arms: Sequence[str]) -> list[dict[str, _Arm]]:
    """By seed and arm. Several loops at once are processes that divide the threads; chains wait for the trees of their
    seed, whose tokens they must reach."""
    if size.beside == 1:
        return [_of_seed(_arm, home, begun, size, arms, seed) for seed in range(size.seeds)]
    threads = max(1, torch.get_num_threads() // size.beside)
    with (
        ProcessPoolExecutor(size.beside, get_context("spawn"), torch.set_num_threads, (threads,)) as pool,
        ThreadPoolExecutor(size.seeds) as waiting,
    ):
        work = partial(_of_seed, lambda *given: pool.submit(_arm, *given).result(), home, begun, size, arms)
        return list(waiting.map(work, range(size.seeds)))


def _of_seed(
    run: Callable[..., _Arm], home: Path, begun: Path, size: Size, arms: Sequence[str], seed: int
) -> dict[str, _Arm]:
    done: dict[str, _Arm] = {}
    for arm in arms:
        wanted = done["trees"].tokens if done else float(size.tokens)
        done[arm] = run(home, begun, size, arm, seed, wanted)
    return done


def _arm(home: Path, begun: Path, size: Size, arm: str, seed: int, wanted: float) -> _Arm:
    """One loop, as far as it is not in its folder yet: so many rounds, or until it has drawn `wanted` tokens."""

    async def work() -> _Arm:
        async with open_worlds(size.taught) as worlds:
            named = "-".join(map(str, (arm, size.trees_a_round, *([size.first] if size.first else []), "new", seed)))
            share, skip = json.dumps(_shares(size.taught, size)), json.dumps(size.shown)
            tasks = (f"loop.suite_tasks={share}", f"loop.skip_tasks={skip}")  # none that were imitated
            more = (*ARMS[arm], *STEP, f"seed={seed}", *tasks)
            cfg = begun_with(home / named, f"hf:{begun}", size, *more)
            done = await _looped(cfg, worlds, size.rounds, wanted)
            todo = tasks_for(worlds, "test", 0, size.held_out)
            return _Arm(done, await _alone(home / f"{named}-{len(done)}", partial(_newest, cfg), worlds, todo))

    return asyncio.run(work())


def _shares(suites: Sequence[str], size: Size) -> dict[str, int]:
    """Trees a round of each suite."""
    first, *others = suites
    most = size.first or size.trees_a_round // len(suites)
    return {first: max(1, most)} | {name: max(1, (size.trees_a_round - most) // len(others)) for name in others}


def gains(arm: str, before: Mapping[str, Evaluation], after: Sequence[Mapping[str, Evaluation]]) -> Figures:
    """By suite, the gain in points of the mean over seeds, with the paired interval over tasks."""
    out: Figures = {}
    for name, one in before.items():
        mean = np.mean([seed[name].success for seed in after], axis=0)
        gain, low, high = paired_gain(one, replace(after[0][name], success=tuple(map(float, mean))))
        out |= {f"{arm}_gain/{name}": (gain, "points"), f"{arm}_low/{name}": (low, "points")}
        out[f"{arm}_high/{name}"] = (high, "points")
    return out


def begun_with(home: Path, spec: str, size: Size, *settings: str) -> Config:
    chunk = min(size.pack, CHUNK)
    given = [f"train.max_tokens={size.pack}", f"train.chunk_tokens={chunk}", f"folder={home}", *settings]
    return load_config(None, given, {"policy.spec": spec, "name": home.name})


def begun_of(spec: str, size: Size) -> dict[str, object]:
    """What tells weights that imitated from others."""
    return {"spec": spec, "demos": size.demos, "suites": size.taught}


def learning_home(spec: str, size: Size) -> Path | None:
    """Where the weights that imitated are kept, and what was trained from them; None where nothing is."""
    return folder_of({"part": "learning", **begun_of(spec, size)})


def from_begun(
    part: Mapping[str, object], spec: str, size: Size, measure: Callable[[Path, str, Size], Figures]
) -> Figures:
    """What `measure` finds with the weights that imitated, in the folder that keeps them, whose figures are kept, too;
    in one of its own where nothing is."""
    home = learning_home(spec, size)
    with tempfile.TemporaryDirectory() as folder:
        return kept({**part, **begun_of(spec, size)}, partial(measure, home or Path(folder), spec, size))


async def begun_model(home: Path, spec: str, size: Size) -> Path:
    """The weights that imitated, as the section `learning` keeps them in `home`; made now where they are not there."""
    async with open_worlds(size.taught) as worlds:
        return await imitated(begun_with(home / "begun", spec, size), worlds, size)


async def imitated(cfg: Config, worlds: Mapping[str, World], size: Size) -> Path:
    """The folder of the weights that imitated the oracles."""
    from treewright.training.recipes.imitate import imitation_rate, learn_rows

    if (done := latest(cfg.home / "checkpoints")) is not None:
        return done.path
    learner = Learner(make_trainer(cfg, model_folder(cfg.policy.spec)), cfg.home / "checkpoints", 1, cfg.policy.spec)
    template = template_for(learner.trainer.tokenizer)
    episodes = await oracle_episodes(worlds, tasks_for(worlds, "train", 0, max(size.demos), size.shown))
    rows = [episode_rows(episode, template) for episode in episodes]
    began = time.monotonic()

    def told(done: int, steps: int, loss: float) -> None:
        if done % 10 == 0 or done == steps:
            print(f"imitation, step {done} of {steps}: {loss:.3f} nats ({time.monotonic() - began:.0f} s)", flush=True)

    learn_rows(learner.trainer, rows, lr=imitation_rate(learner.trainer.model), on_step=told)
    return Path(learner.save({"recipe": "sft"}).path)


async def _oracles(worlds: Mapping[str, World], tasks: Sequence[Task]) -> dict[str, float]:
    """By suite, the percentage of the tasks that its oracle solves, which is not all where a world errs."""
    played = await demonstrations(worlds, tasks)
    solved = {name: [one.reward >= SOLVED for one in played if one.task.suite == name] for name in worlds}
    return {name: 100 * float(np.mean(found)) for name, found in solved.items()}


async def _looped(cfg: Config, worlds: Mapping[str, World], rounds: int, wanted: float) -> list[_Done]:
    """A loop of so many rounds, or of as many as it takes to draw `wanted` tokens."""
    file = cfg.home / "rounds.json"
    done = [_Done(*one) for one in json.loads(file.read_text())] if file.exists() else []

    def over() -> bool:
        drawn = sum(one.tokens for one in done)
        return drawn >= wanted or len(done) >= MOST_ROUNDS * rounds if wanted else len(done) >= rounds

    if over():
        return done
    learner = Learner(make_trainer(cfg, model_folder(cfg.policy.spec)), cfg.home / "checkpoints", 1, cfg.policy.spec)
    model = shared_model(cfg, learner.trainer)
    policy = open_policy(cfg.policy.spec, **({} if model is None else {"model": model}))
    try:
        first = await resume_loop(cfg, learner, policy)
        del done[first:]
        while not over():
            if orphaned():
                raise TreewrightError("whoever measures has ended; the rounds so far are kept")
            began = time.monotonic()
            few = cfg.model_copy(update={"loop": cfg.loop.model_copy(update={"iterations": first + 1})})
            await run_loop(few, worlds, policy, learner, first=first)
            last = learner.rounds[-1]
            done.append(_Done(last.stats["sampled_tokens"], time.monotonic() - began))
            write_whole(file, json.dumps(done) + "\n")
            _tell(f"{cfg.home.name}, round {len(done)}: sampled success of its trees", last.success, began)
            first += 1
    finally:
        await policy.close()
    return done


def _tell(what: str, success: Mapping[str, float], began: float) -> None:
    found = ", ".join(f"{name} {100 * rate:.0f} %" for name, rate in success.items())
    print(f"{what} {found} ({time.monotonic() - began:.0f} s)", flush=True)


def _newest(cfg: Config) -> str:
    found = latest(cfg.home / "checkpoints")
    assert found is not None
    return f"hf:{found.path}"


async def _alone(
    home: Path, spec: Callable[[], str], worlds: Mapping[str, World], tasks: Sequence[Any], **options: Any
) -> dict[str, Evaluation]:
    """One rollout for each task, of the policy that is asked for with these options, where no file keeps them."""
    file = home.with_name(f"{home.name}-alone-{len(tasks)}.json")
    if file.exists():
        return {name: Evaluation(**_tuples(one)) for name, one in json.loads(file.read_text("utf-8")).items()}
    began, policy = time.monotonic(), open_policy(spec(), **options)
    try:
        found = (await evaluate(tasks, worlds, policy))[0]
    finally:
        await policy.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({name: asdict(one) for name, one in found.items()}) + "\n")
    _tell(f"{home.name}: alone, {len(tasks)} tasks,", {name: one.rate for name, one in found.items()}, began)
    return found


def _tuples(one: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in one.items()}
