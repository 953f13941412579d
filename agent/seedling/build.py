"""Builds the seedling: demonstrations, tokenizer, training, held-out success, files.

The demonstrations come from train tasks only and are kept as JSONL in a work folder, so that an interrupted build
goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from treewright.agent.seedling import FOLDER
from treewright.agent.seedling.card import SEEDLING, About, write_card
from treewright.agent.seedling.demos import (
    VALUE,
    WORD,
    Bank,
    Demo,
    Noise,
    collect_demos,
    load_demos,
    renamed,
    save_demos,
)
from treewright.agent.seedling.evaluate import evaluate
from treewright.agent.seedling.text import LINE, Encoder, Example, demo_pieces, frame_words, train_tokenizer
from treewright.agent.seedling.train import Recipe, train
from treewright.envs.registry import suite as suite_named
from treewright.envs.types import Action, Suite, Task

__all__ = ["PLANS", "Plan", "build_seedling", "gather", "load_seedling"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one suite is demonstrated.

    tasks     most train tasks
    episodes  demonstrations of each, with other mistakes
    noise     how the demonstrator errs
    share     how often the suite takes a step of training, relative to the others
    gentle    demonstrations without mistakes: alone in the first part of the training, mixed with the others later,
              since what a model has learned from them is soon lost among mistakes
    rename    whether a second copy of every demonstration gets other names, so that copying is learned
    right     whether the first part of the training shows the oracle's steps alone, of all demonstrations, and the
              later part only demonstrations with mistakes
    gives_up  the answer of a demonstrator who gives up, where the oracle never answers; a mistake like any other
    """

    tasks: int
    episodes: int = 1
    noise: Noise = field(default_factory=Noise)
    share: float = 1.0
    gentle: int = 0
    rename: bool = False
    right: bool = False
    gives_up: str = ""


PLANS: Mapping[str, Plan] = {
    "kg": Plan(40_000, noise=Noise(rate=0.33), share=1.2, gentle=16_000),
    "stdlib": Plan(2_800, episodes=6, noise=Noise(rate=0.42, terminal=0.33), share=2.0, gentle=2_800, rename=True),
    "workbench": Plan(2_400, noise=Noise(rate=0.38, terminal=0.3), share=0.7),
    "market": Plan(700, noise=Noise(rate=0.35), share=0.8),
}


def _tasks(suite: Suite, most: int) -> Sequence[Task]:
    """The first `most` train tasks, or all where there are fewer."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        try:
            suite.tasks("train", middle)
        except Exception:  # a suite says in its own words that it has fewer
            high = middle - 1
        else:
            low = middle
    return suite.tasks("train", low)


async def _parts(source: AsyncIterator[Demo], most: int = 5000, seconds: float = 10.0) -> AsyncIterator[list[Demo]]:
    """The demonstrations in lists that are worth saving."""
    part: list[Demo] = []
    since = time.monotonic()
    async for demo in source:
        part.append(demo)
        if len(part) >= most or time.monotonic() - since > seconds:
            yield part
            part, since = [], time.monotonic()
    if part:
        yield part


async def gather(suite: Suite, plan: Plan, seed: int, path: Path, say: Say = print) -> list[Demo]:
    """The suite's demonstrations, from `path` as far as they are there."""
    found = list(load_demos(path))
    tasks = _tasks(suite, plan.tasks)
    wanted = plan.episodes * len(tasks)
    bank = Bank()
    if len(found) < wanted:
        async for _ in collect_demos(suite, tasks[:100], Noise(rate=0.0), seed, bank):
            pass  # fills the bank of argument values
    if plan.gives_up:
        bank.add(Action.of("answer", text=plan.gives_up))
    began = time.monotonic()
    try:
        for episode in range(plan.episodes):
            done = max(0, min(len(tasks), len(found) - episode * len(tasks)))
            source = collect_demos(suite, tasks[done:], plan.noise, seed * 1000 + episode, bank)
            async for part in _parts(source):
                save_demos(path, part)
                found += part
                say(f"{suite.name}: {len(found)}/{wanted} demonstrations")
    finally:
        _spend(path, time.monotonic() - began)
        if suite.close is not None:
            await suite.close()
    won = sum(demo.reward > 0 for demo in found) / max(1, len(found))
    say(f"{suite.name}: {len(found)} demonstrations of {len(tasks)} tasks, {won:.0%} succeed")
    return found


def _spend(path: Path, seconds: float) -> None:
    """Adds to the time that a file of demonstrations took, over all the calls that wrote it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".seconds").write_text(f"{_spent(path) + seconds:.1f}\n", encoding="utf-8")


def _spent(path: Path) -> float:
    beside = path.with_suffix(".seconds")
    return float(beside.read_text(encoding="utf-8")) if beside.exists() else 0.0


def _tokenizer(demos: Mapping[str, Sequence[Demo]], recipe: Recipe, kept: Path) -> Any:
    """Trained once per work folder: a checkpoint is only good with its own tokens."""
    if not kept.exists():
        frame = frame_words({name: found[:2000] for name, found in demos.items()})
        train_tokenizer(_pieces(demos, recipe.seed), frame, recipe.vocab).save_pretrained(kept)
    return AutoTokenizer.from_pretrained(kept)


def _pieces(demos: Mapping[str, Sequence[Demo]], seed: int, most: int = 4000) -> Iterator[str]:
    """What the tokenizer is trained on: the same number of demonstrations from each suite."""
    for name in sorted(demos):
        for demo in random.Random(seed).sample(list(demos[name]), min(most, len(demos[name]))):
            yield from demo_pieces(demo)


def _gentle(plan: Plan) -> Plan:
    return replace(plan, tasks=plan.gentle, episodes=1, noise=Noise(rate=0.0))


def _rows(encoder: Encoder, demos: Iterable[Demo], right: bool = False) -> list[Example]:
    """The rows of demonstrations; with `right`, in suites that have one row per action, those of the oracle's steps."""
    if not right:
        return [row for demo in demos for row in encoder.examples(demo)]
    return [row for demo in demos for row, step in zip(encoder.examples(demo), demo.steps, strict=True) if step.right]


def _drills(encoder: Encoder, demos: Mapping[str, Sequence[Demo]], seed: int, most: int = 20_000) -> list[Example]:
    """Questions about the distinct pages of the demonstrations."""
    rng = random.Random(seed)
    seen = {
        (name, text) for name in demos for d in demos[name] for text in (d.first, *(s.observation for s in d.steps))
    }
    pages = rng.sample(sorted(seen), min(most, len(seen)))
    often = Counter(line for _, page in pages for line in {m[1] for m in map(LINE.match, page.splitlines()) if m})
    menu = {line for line, count in often.items() if count > 0.2 * len(pages)}
    return [row for name, page in pages if (row := encoder.drill(name, page, rng, menu)) is not None]


def _renamed(demos: Sequence[Demo], frame: Iterable[str], seed: int) -> list[Demo]:
    """Every demonstration once more, with other names than those around which the suite's sentences are built."""
    keep, rng = frozenset(frame), random.Random(seed)
    names = sorted({w for d in demos for s in d.steps for v in VALUE.findall(s.action) for w in WORD.findall(v)} - keep)
    return [renamed(demo, names, keep, rng) for demo in demos]


def build_seedling(
    out: Path | str,
    suites: Iterable[str] = ("kg", "stdlib", "workbench", "market"),
    *,
    recipe: Recipe | None = None,
    threads: int = 2,
    held_out: int = 200,
    work: Path | str = "runs/seedling",
    plans: Mapping[str, Plan] = PLANS,
    shown: Callable[[Suite], Suite] = lambda suite: suite,
    begin: Path | None = None,
    drills: float = 0.0,
    about: About | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Makes the seedling from nothing and writes it to `out` in the layout of `save_pretrained`, with its card.

    `work` keeps demonstrations and the last checkpoint; the same call goes on after an interruption, and starting
    afresh needs an empty `work`. Returns what the card reports, sizes, seeds and held-out success by suite.

    shown  gives the suite in which demonstrations and held-out success of a suite are taken
    begin  the weights to begin with;  about  what the card calls the model
    drills how often a step goes to questions about the demonstrations' pages (Encoder.drill), relative as `share` is
    """
    out, work, recipe = Path(out), Path(work), recipe or Recipe()
    torch.set_num_threads(threads)
    started = time.monotonic()
    loaded = {name: suite_named(name) for name in suites}
    files = {name: work / "demos" / f"{name.replace(':', '-')}.jsonl" for name in loaded}
    demos = {
        name: asyncio.run(gather(shown(suite), plans[name], recipe.seed, files[name], say))
        for name, suite in loaded.items()
    }
    beside = {name: path.with_name(f"{path.stem}-gentle.jsonl") for name, path in files.items() if plans[name].gentle}
    clean = {
        name: asyncio.run(gather(shown(loaded[name]), _gentle(plans[name]), recipe.seed, path, say))
        for name, path in beside.items()
    }
    tokenizer = _tokenizer(demos, recipe, work / "tokenizer")
    encoder = Encoder(tokenizer)
    frame = frame_words({name: found[:2000] for name, found in demos.items()})
    copies = {name: _renamed(found, frame, recipe.seed) if plans[name].rename else [] for name, found in demos.items()}
    for name in clean:
        if plans[name].rename:
            clean[name] += _renamed(clean[name] * 3, frame, recipe.seed + 1)
    mixed = {name: [] if plans[name].right else clean.get(name, []) for name in demos}
    rows = {name: _rows(encoder, [*found, *copies[name], *mixed[name]]) for name, found in demos.items()}
    sizes = {name: _sizes(encoder, demos[name], rows[name]) for name in rows}
    for name, size in sizes.items():
        say(f"{name}: {size}")
    recipe = replace(recipe, shares={name: plans[name].share for name in rows})
    if drills:
        rows["drills"] = _drills(encoder, demos, recipe.seed)
        recipe = replace(recipe, shares={**recipe.shares, "drills": drills})
    prepared = time.monotonic() - started
    gentle = {name: _rows(encoder, found) for name, found in clean.items()}
    for name, found in demos.items():
        if plans[name].right:
            gentle[name] = gentle.get(name, []) + _rows(encoder, found, right=True)
    model = train(rows, encoder, recipe, gentle=gentle, begin=begin, checkpoint=work / "checkpoint.pt", say=say)
    _spend(work / "training.jsonl", time.monotonic() - started - prepared)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    scores = {name: measure(model, encoder, shown(suite), held_out, say) for name, suite in loaded.items()}
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": asdict(recipe),
        "plans": {name: asdict(plans[name]) for name in demos},
        "drills": drills,
        "demonstrations": {name: len(found) for name, found in demos.items()},
        "tokens": sizes,
        "held_out": scores,
        "tasks": held_out,
        "seconds": {
            "demonstrations": round(sum(map(_spent, [*files.values(), *beside.values()]))),
            "training": round(_spent(work / "training.jsonl")),
            "tokenizer and rows": round(prepared),
        },
        "threads": threads,
    }
    write_card(out, report, about or SEEDLING)
    return report


def measure(model: Any, encoder: Encoder, suite: Suite, count: int, say: Say = print) -> dict[str, float]:
    """Success on the first `count` test tasks, sampled at temperature 1 and greedy."""
    tasks = suite.tasks("test", count)
    sessions = 100 if suite.name in ("kg", "stdlib") or suite.close is None else 4

    async def play(greedy: bool) -> float:
        try:
            episodes = await evaluate(model, encoder, suite, tasks, greedy=greedy, sessions=sessions)
        finally:
            if suite.close is not None:
                await suite.close()
        return sum(episode.reward > 0 for episode in episodes) / len(episodes)

    score = {"sampled": asyncio.run(play(False)), "greedy": asyncio.run(play(True))}
    say(f"{suite.name}: held-out success sampled {score['sampled']:.1%}, greedy {score['greedy']:.1%}")
    return score


def _sizes(encoder: Encoder, demos: Sequence[Demo], rows: Sequence[Example]) -> dict[str, float]:
    """Mean tokens of an observation, an action and a row, and the longest row."""
    steps = [step for demo in demos[:500] for step in demo.steps]
    lengths = [len(row.ids) for row in rows]
    return {
        "observation": round(sum(len(encoder.piece(s.observation)) for s in steps) / len(steps), 1),
        "action": round(sum(len(encoder.piece(s.action)) for s in steps) / len(steps), 1),
        "row": round(sum(lengths) / len(lengths), 1),
        "longest": max(lengths),
    }


def load_seedling(folder: Path | None = None) -> tuple[Any, Encoder]:
    """The model and encoder of a folder; the shipped seedling without one."""
    folder = folder or FOLDER
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), Encoder(AutoTokenizer.from_pretrained(folder))
