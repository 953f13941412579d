"""The model card: how the seedling was made, from what, and what it can do."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["SEEDLING", "WEB", "About", "write_card"]


@dataclass(frozen=True, slots=True)
class About:
    """What a card calls a model: its title, what it knows, how its training went, and the command that rebuilds it."""

    title: str
    knows: str
    training: str
    windowed: str
    began: str
    command: str


SEEDLING = About(
    title="The seedling",
    knows="four small worlds a little",
    training="A part of the training shows `kg` and `stdlib` without mistakes, and half of the `stdlib` episodes have "
    "other names put into them, so that copying is learned and not names.",
    windowed="`market`",
    began="random weights",
    command="treewright seedling FOLDER",
)
WEB = About(
    title="The seedling for the web",
    knows="web pages a little: a small shop, a larger one, and twenty pages of MiniWoB",
    training="The first part of the training shows the oracle's own steps alone, wherever the mistakes had led; the "
    "rest shows all steps. 1,400 more demonstrations of `miniwob:simple` are without mistakes. Two fifths of the "
    "steps are drills: a page, the name of an element of it, and its reference or the text behind it. Demonstrations "
    "and success in `market` and `bazaar` are taken without a browser, from the sites' HTML, which gives the same "
    "observations.",
    windowed="all of them",
    began="the seedling's weights",
    command="treewright seedling --web FOLDER",
)

_CARD = """---
license: apache-2.0
library_name: transformers
tags: [treewright, agent]
---
# {title}

A language model of {parameters:,} parameters (Qwen3 architecture, float32, own byte-level BPE of {vocab} tokens) that
knows {knows}. It was trained from {began}, on a CPU, on demonstrations that the environments' own oracles computed on
train tasks. No text and no weights from elsewhere went into it.

The demonstrator errs on purpose: at each step, with the probability below, it takes another well-formed action and
goes on from there. So the model does the right thing most often, but not reliably, and training on tree rollouts has
something to sharpen. {training}

| suite | demonstrations | error rate | held-out success, sampled | greedy |
|---|---|---|---|---|
{table}

Success is that of the model alone, without search, on the first {tasks} test tasks of each suite, which were in no
demonstration; sampled at temperature 1.

Prompt: `<|task|>{{suite}} {{goal}}<|obs|>{{observation}}<|act|>`, the answer ends with `<|end|>`, then
`<|obs|>{{observation}}<|act|>` and so on; an answer is one line, `name {{"argument": "value"}}`. In {windowed}, older
observations are left out of the prompt.

{made}Python {python}, torch {torch}, transformers {transformers}. `seedling.json` beside this file holds every setting.

Rebuild: `{command}` (seed {seed}, {steps} steps; {minutes:.0f} minutes of training after {gathering:.0f} of collecting,
on a busy machine).

It is meant for trying out treewright and for its tests. It cannot converse and knows nothing of the world.
"""


def write_card(out: Path, report: Mapping[str, Any], about: About = SEEDLING) -> None:
    """README.md and seedling.json in the folder `out`."""
    rows = [
        f"| {name} | {report['demonstrations'][name]:,} | {report['plans'][name]['noise']['rate']:.2f} "
        f"| {score['sampled']:.1%} | {score['greedy']:.1%} |"
        for name, score in report["held_out"].items()
    ]
    text = _CARD.format(
        **asdict(about),
        parameters=report["parameters"],
        vocab=report["recipe"]["vocab"],
        table="\n".join(rows),
        tasks=report["tasks"],
        seed=report["recipe"]["seed"],
        steps=report["recipe"]["steps"],
        minutes=report["seconds"]["training"] / 60,
        gathering=report["seconds"]["demonstrations"] / 60,
        threads=report["threads"],
        made=report.get("made", ""),
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    (out / "seedling.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
