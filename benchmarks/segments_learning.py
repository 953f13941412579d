"""`make bench-segments`: what trees and credit inside a response are worth in learning, on two reasoning suites.

The plan is this file and docs/segments-learning.md, both written before the first run that counts. It goes through the
engine, the loop and the trainer, with weights that `treewright train sft` makes of the packaged ones. Runs are kept in
runs/segments-learning, each as one file once it is whole; a sweep that was stopped goes on with those that are missing.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from treewright.agent.config import Config, load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.prompt_text import THOUGHT
from treewright.agent.policies.template import MARKS
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.compared import Arm, Curve, arms_of
from treewright.agent.runs.evaluate import evaluate
from treewright.agent.runs.figures import write_result
from treewright.agent.runs.loop import Learner, make_trainer, run_loop
from treewright.benchmarks.learning.cells import whole_seeds
from treewright.envs.reasoning.answering import answer
from treewright.envs.reasoning.puzzles import puzzle, puzzles_suite
from treewright.envs.types import Suite, Task
from treewright.envs.whole import write_whole
from treewright.search.meter import Meter
from treewright.training.credit import Credit, TreeArrays
from treewright.training.credit.rows import Advantage, Rows

__all__ = ["ARMS", "PAIRS", "PLAN", "QUICK", "SUITES", "Cell", "Plan", "best_of_n", "cells", "figures", "main", "tuned"]

SUITES: Mapping[str, str] = {"sorting": "puzzles:sorting-2", "countdown": "puzzles:countdown-0"}
SEEN = "think, then answer"
CHAINS = ("search.rule=chains", "search.root_draws=8")
CUT = 'search.segments={"by": "length", "length": 6, "most": 4}'
ARMS: Mapping[str, tuple[str, ...]] = {
    "grpo": (*CHAINS, "train.estimator=grpo"),
    "tempo": (*CHAINS, "train.estimator=tempo", "train.unit=token"),
    "chains": (*CHAINS, "train.tau=0"),
    "segments": ("search.rule=treepo", "search.options.leaves=8", "search.options.spread=4", CUT,
                 "search.evaluator=entropy"),
    "best_of_n": (*CHAINS, "train.estimator=treewright.benchmarks.segments_learning:best_of_n"),
    "vstar": ("search.rule=vstar", "search.root_draws=4", "search.options.extra=4", CUT, "search.evaluator=vstar",
              "loop.prm_every=2", "train.estimator=sibling"),
}  # fmt: skip
APART = 100
"""Training tasks between those of two seeds; 101, 102 and 103 come behind 1 to 5."""
TOGETHER = 2
"""Updates between two looks at what was spent: as many as the trees that a PRM learns from."""
PAIRS: Mapping[str, str] = {"tempo": "grpo", "segments": "chains", "vstar": "best_of_n"}
"""Each arm and what it is compared with."""


def best_of_n(arrays: TreeArrays) -> Credit:
    """Imitates the best of a tree's answers, the first of equal ones, where it earned anything: an estimator."""
    rows = Rows(arrays)
    chosen = np.zeros(len(rows.total))
    for group in np.unique(rows.group):
        mine = np.flatnonzero(rows.group == group)
        best = mine[int(np.argmax(rows.total[mine]))]
        chosen[best] = float(rows.total[best] > 0)
    return rows.credit(Advantage(row=chosen))


@dataclass(frozen=True, slots=True)
class Plan:
    """tokens sampled in a run, `tasks` of an update, `checks` of success on `held_out` tasks, one rollout each.

    demos, epochs, enough  of the imitation that the first weights come from, see `begun`
    """

    suites: tuple[str, ...] = tuple(SUITES)
    arms: tuple[str, ...] = tuple(ARMS)
    rates: tuple[float, ...] = (1e-3, 3e-3)
    tuning: tuple[int, ...] = (101, 102, 103)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    tokens: int = 6_000
    tasks: int = 4
    checks: int = 3
    held_out: int = 50
    demos: int = 400
    epochs: int = 20
    enough: float = 0.2


PLAN = Plan()
QUICK = Plan(("sorting",), ("grpo", "tempo"), (1e-3,), (), (1,), 400, 2, 1, 4, 24, 1)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    suite: str
    arm: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.suite}-{self.arm}-{self.rate:g}-{self.seed}"


def cells(plan: Plan, seeds: Sequence[int], rates: Mapping[tuple[str, str], float] | None = None) -> list[Cell]:
    """Whole seeds first; every rate where `rates` names none."""
    return [Cell(*one) for one in whole_seeds(plan.suites, plan.arms, plan.rates, seeds, rates)]


PIECES = r'answer \{"text": "|</think>|"\}|[a-z]{2,}| ?[0-9]|\n\n|.'


def tiny(folder: Path, plan: Plan) -> Path:
    """A random model of two layers with a token for each word and digit of the suites, in `save_pretrained` layout."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    texts = []
    for name in plan.suites:
        suite = puzzles_suite(SUITES[name].partition(":")[2])
        for task in suite.tasks("train", 200):
            texts += [f"{suite.name} {task.goal}", puzzle(task).steps, f"{THOUGHT}\n\n{answer(puzzle(task).solution)}"]
    known = sorted({piece for text in (*texts, SEEN, *"0123456789") for piece in re.findall(PIECES, text)})
    vocabulary = {text: i for i, text in enumerate(dict.fromkeys([*MARKS, "<|pad|>", "<|unknown|>", *known]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=MARKS[3], pad_token="<|pad|>", unk_token="<|unknown|>",
        additional_special_tokens=list(MARKS[:3]),
    )  # fmt: skip
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=4096, tie_word_embeddings=True,
        eos_token_id=vocabulary[MARKS[3]], pad_token_id=vocabulary["<|pad|>"], bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def begun(home: Path, plan: Plan, suite: str) -> Path:
    """The folder of the weights that the runs of a suite begin with, made where they are not there yet.

    The command that imitates the suite's oracle, steps included, goes on an epoch at a time until the policy alone
    solves `enough` of the suite's first training tasks, at most `epochs` times.
    """
    from typer.testing import CliRunner

    from treewright.agent.cli.main import app

    at = home / f"{suite}-tiny"
    if not (at / "config.json").is_file():
        tiny(at, plan)
    for epoch in range(plan.epochs):
        folder = home / f"{suite}-epoch-{epoch}"
        if not (folder / "solves.json").is_file():
            line = ["train", "sft", "--name", folder.name, "--policy", f"hf:{at}", "--suites", SUITES[suite],
                    "--demos", str(plan.demos), "--batch", "16", "--rate", "0.003", "--held-out", "0",
                    "--set", f"folder={folder}", "--set", "policy.options.template=compact",
                    "--set", f"seed={epoch}"]  # fmt: skip
            done = CliRunner().invoke(app, line) if not any(folder.glob("checkpoints/step-*")) else None
            if done is not None and done.exit_code:
                raise RuntimeError(f"treewright {' '.join(line)}\n{done.output}")
            write_whole(folder / "solves.json", json.dumps(asyncio.run(_solves(_newest(folder), suite, plan))))
        at = _newest(folder)
        if json.loads((folder / "solves.json").read_text()) >= plan.enough:
            break
    return at


def _newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/step-*"))


async def _solves(weights: Path, suite: str, plan: Plan) -> float:
    """Success of weights alone on the suite's first training tasks."""
    made = puzzles_suite(SUITES[suite].partition(":")[2])
    policy = open_policy(f"hf:{weights}", template="compact")
    try:
        async with open_worlds([made]) as worlds:
            found, _ = await evaluate(made.tasks("train", plan.held_out), worlds, policy)
    finally:
        await policy.close()
    return float(found[made.name].rate)


def _config(cell: Cell, folder: Path, first: Path, plan: Plan) -> Config:
    return load_config(
        None, [f"folder={folder}", f"name={cell.name}", f"seed={1000 * cell.seed}", "search.expansions=64",
               "search.merge=false", "search.max_tokens=64", *ARMS[cell.arm], f"train.lr={cell.rate}",
               f"loop.tasks={plan.tasks}", "loop.checkpoints=1", f"policy.spec=hf:{first}",
               "policy.options.template=compact", f'worlds.suites=["{SUITES[cell.suite]}"]']
    )  # fmt: skip


def _from(suite: Suite, seed: int) -> Suite:
    """The suite with other training tasks for each seed; held-out ones are the same for all."""

    def tasks(split: str, count: int) -> Sequence[Task]:
        begin = APART * (seed % 95) if split == "train" else 0
        return suite.tasks(split, begin + count)[begin:]

    return replace(suite, tasks=tasks)


async def run_cell(cell: Cell, home: Path, plan: Plan, first: Path) -> list[dict[str, Any]]:
    """The run's points: success of the policy alone, and what the run had cost by then. What is on file stays."""
    path = home / f"{cell.name}.json"
    if path.exists():
        kept: list[dict[str, Any]] = json.loads(path.read_text())
        return kept
    points: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = _config(cell, Path(folder), first, plan)
        suite = _from(puzzles_suite(SUITES[cell.suite].partition(":")[2]), cell.seed)
        learner = Learner(make_trainer(config, first), config.home / "checkpoints", 1)
        policy = open_policy(config.policy.spec, **config.policy.options)
        spent, rounds = Meter(), 0
        try:
            async with open_worlds([suite]) as worlds:
                held_out = suite.tasks("test", plan.held_out)
                while True:
                    if spent.sampled_tokens >= len(points) * plan.tokens / plan.checks:
                        found, _ = await evaluate(held_out, worlds, policy, seed=cell.seed, run=f"check {cell.seed}")
                        points.append({"success": found[suite.name].rate, "meter": spent.as_dict(), "rounds": rounds})
                        if len(points) > plan.checks:
                            break
                    loop = config.loop.model_copy(update={"iterations": rounds + TOGETHER})
                    await run_loop(config.model_copy(update={"loop": loop}), worlds, policy, learner, first=rounds)
                    spent = sum((done.meter for done in list(learner.rounds)[-TOGETHER:]), spent)
                    rounds += TOGETHER
        finally:
            await policy.close()
    write_whole(path, json.dumps(points))
    return points


def _curves(results: Mapping[Cell, list[dict[str, Any]]]) -> list[Curve]:
    return [
        Curve(cell.name, cell.arm, str(cell.seed), tuple(float(p["meter"]["sampled_tokens"]) for p in points),
              tuple(float(p["success"]) for p in points))
        for cell, points in results.items()
    ]  # fmt: skip


def tuned(results: Mapping[Cell, list[dict[str, Any]]], end: float) -> dict[tuple[str, str], float]:
    """By (suite, arm) the rate of the largest mean area up to `end` tokens; of equal ones the smallest."""
    areas: dict[tuple[str, str], dict[float, list[float]]] = {}
    for cell, curve in zip(results, _curves(results), strict=True):
        areas.setdefault((cell.suite, cell.arm), {}).setdefault(cell.rate, []).append(curve.area(end))
    return {key: min(by, key=lambda rate: (-sum(by[rate]) / len(by[rate]), rate)) for key, by in areas.items()}


def figures(results: Mapping[Cell, list[dict[str, Any]]]) -> dict[str, dict[str, Arm]]:
    """{suite: {arm: its areas against what it is compared with}}, with the paired bootstrap over seeds."""
    out: dict[str, dict[str, Arm]] = {}
    for suite in dict.fromkeys(cell.suite for cell in results):
        for arm, base in PAIRS.items():
            mine = {c: p for one in (base, arm) for c, p in results.items() if c.suite == suite and c.arm == one}
            if {c.arm for c in mine} == {arm, base}:
                out.setdefault(suite, {}).update({a.name: a for a in arms_of(_curves(mine))[0]})
    return out


def main(
    quick: bool = False, json_path: str | None = None, *, home: str | Path | None = None, plan: Plan | None = None
) -> dict[str, Any]:
    """Runs what is not on file yet, prints a table, returns what the JSON holds.

    quick  tiny runs of two arms: shows that it runs, measures nothing
    """
    plan, console = plan or (QUICK if quick else PLAN), Console(emoji=False)
    with tempfile.TemporaryDirectory() as nowhere:
        at = Path(home) if home is not None else Path(nowhere) if quick else Path("runs/segments-learning")
        at.mkdir(parents=True, exist_ok=True)
        first = {suite: begun(at, plan, suite) for suite in plan.suites}

        def run(which: Sequence[Cell]) -> dict[Cell, list[dict[str, Any]]]:
            out = {}
            for i, cell in enumerate(which, 1):
                console.print(f"{i} of {len(which)}: {cell.name}", highlight=False)
                out[cell] = asyncio.run(run_cell(cell, at, plan, first[cell.suite]))
            return out

        tuning = run(cells(plan, plan.tuning))
        rates = (
            tuned(tuning, plan.tokens) if tuning else {(s, a): plan.rates[0] for s in plan.suites for a in plan.arms}
        )
        results = run(cells(plan, plan.seeds, rates))
    found = figures(results)
    shown = Table("suite", "arm", "against", "rate", "area", "final", "area / that of the other (95 %)")
    for suite, arms in found.items():
        for name, arm in arms.items():
            ratio = "" if arm.ratio is None else f"{arm.ratio:.2f}"
            ratio += "" if arm.low is None else f" ({arm.low:.2f} … {arm.high:.2f})"
            shown.add_row(suite, name, PAIRS.get(name, ""), f"{rates[suite, name]:g}", f"{arm.area:.3f}",
                          f"{arm.final:.3f}", ratio)  # fmt: skip
    console.print(shown)
    result = {
        "quick": quick,
        "rates": {f"{suite} {arm}": rate for (suite, arm), rate in rates.items()},
        "arms": {
            suite: {
                name: {"against": PAIRS.get(name), "area": arm.area, "final": arm.final, "ratio": arm.ratio,
                       "low": arm.low, "high": arm.high, "pairs": arm.pairs}
                for name, arm in arms.items()
            }
            for suite, arms in found.items()
        },
        "runs": {cell.name: points for cell, points in {**tuning, **results}.items()},
    }  # fmt: skip
    if json_path is not None:
        write_result(Path(json_path), result)
    return result


HEADING = "## Results\n\n"


def results_text(result: Mapping[str, Any]) -> str:
    """What the page says below its heading "Results"."""
    ratios = ["| suite | arm | against | rates | area | that of the other | ratio (95 %) | verdict |",
              "|---|---|---|---|---:|---:|---:|---|"]  # fmt: skip
    for suite, arms in result["arms"].items():
        for name, arm in arms.items():
            other = arm["against"]
            if other is None:
                continue
            mine, its = arm["area"], arms[other]["area"]
            told = "–" if arm["ratio"] is None else f"{arm['ratio']:.2f}"
            told += "" if arm["low"] is None else f" ({arm['low']:.2f} … {arm['high']:.2f})"
            rates = " and ".join(f"{result['rates'][f'{suite} {one}']:g}" for one in (name, other))
            ratios.append(
                f"| `{suite}` | `{name}` | `{other}` | {rates} | {mine:.3f} | {its:.3f} | {told} | {_verdict(arm)} |"
            )
    counted = sum(points[-1]["rounds"] for points in result["runs"].values())
    return "\n".join(
        [*ratios, "", f"{len(result['runs'])} runs and {counted} updates, tuning included, at {result['commit']}. "
         "Figures: [segments-learning.json](segments-learning.json), with every run's points.", ""]
    )  # fmt: skip


def _verdict(arm: Mapping[str, Any]) -> str:
    if arm["low"] is None or arm["low"] <= 1 <= arm["high"]:
        return "undecided"
    return "better" if arm["low"] > 1 else "worse"


def write_page(page: Path, json_path: Path) -> None:
    """Puts the JSON's results below the page's heading."""
    head, _, _ = page.read_text().partition(HEADING)
    write_whole(page, head + HEADING + results_text(json.loads(json_path.read_text())))


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else None
    main(json_path=target)
    if target is not None and len(sys.argv) > 2:
        write_page(Path(sys.argv[2]), Path(target))
