"""`treewright plan`: what a run on many GPUs would take, and where each constant comes from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treewright.agent.cli.options import console, say
from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value

if TYPE_CHECKING:
    from treewright.training.simulate import Recorded, Shape

__all__ = ["plan_command"]


def plan_command(
    gpus: Annotated[int, typer.Option(min=2, help="GPUs in all.")] = 8,
    model: Annotated[str, typer.Option(help="0.6b, 4b, 8b, 9b, 32b, 70b, or a folder with config.json.")] = "9b",
    machine: Annotated[str, typer.Option(help="h200, h100 or a100.")] = "h200",
    engines: Annotated[int | None, typer.Option(min=1, help="GPUs of them that sample; half unless given.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="A run: the forest is that of its trees, not a random one.")
    ] = None,
    trees: Annotated[int, typer.Option(min=1, help="Trees of a round.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="Unique tokens of a tree.")] = 8192,
    depth: Annotated[int, typer.Option(min=1, help="Tokens of a path.")] = 4096,
    pack: Annotated[int, typer.Option(min=1, help="Tokens of a pack, train.max_tokens.")] = 16384,
    sampled: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of a tree's tokens that is sampled.")] = 0.5,
    behind: Annotated[int, typer.Option(min=0, max=1, help="1: sampling and training side by side.")] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", help="A constant, e.g. --set linear=0.5.")] = None,
) -> None:
    """What a round takes on many GPUs: time, memory, and who waits for whom. Every constant says where it comes from.

    treewright plan --gpus 64 --model 9b
    treewright plan --gpus 8 --model 0.6b --name first
    treewright plan --gpus 16 --model 4b --machine h100 --engines 12 --set linear=0.5
    """
    from rich.table import Table

    from treewright.training.simulate import forecast, machine_named, with_constants

    shape = _shape(model)
    found = with_constants(machine_named(machine), _constants(set_ or []))
    sampling = engines if engines is not None else gpus // 2
    if sampling >= gpus:
        raise TreewrightError(f"--engines {sampling} of --gpus {gpus} leaves none to train on; give fewer")
    f = forecast(
        shape, found, gpus - sampling, engines=sampling, trees=trees, tokens=tokens, depth=depth, pack=pack,
        trainable=sampled, behind=bool(behind), recorded=_recorded(name) if name is not None else None,
    )  # fmt: skip
    say(f"{shape.name}, {shape.weights / 1e9:.1f} billion weights, on {gpus - sampling} GPUs to train and {sampling} "
        f"to sample ({found.name})")  # fmt: skip
    table = Table("of a round", "")
    for name, value in (
        ("sampling", f"{f.sample:.1f} s"),
        (f"training, in {f.slots} steps of one pack on each GPU", f"{f.step:.1f} s"),
        ("handing over the weights", f"{f.weights:.1f} s"),
        ("a round" + (", sampling and training side by side" if behind else ""), f"{f.round_seconds:.1f} s"),
        ("training GPUs wait for each other", f"{100 * f.idle_ranks:.1f} %"),
        ("training GPUs wait for trees", f"{100 * f.idle_trainer:.0f} %"),
        ("sampling GPUs wait for weights", f"{100 * f.idle_engines:.0f} %"),
    ):
        table.add_row(name, value)
    console.print(table)
    memory = Table("memory of a training GPU", "GB")
    for part, size in f.memory.items():
        memory.add_row(part, f"{size / 1e9:.1f}")
    memory.add_row("together", f"{f.memory_total / 1e9:.1f} of {found.memory.value / 1e9:.0f}")
    console.print(memory)
    sources = Table("constant", "value", "where it comes from")
    for name, constant in f.constants.items():
        sources.add_row(name, f"{constant.value:.4g} {constant.unit}".strip(), constant.source)
    sources.add_row("shape", shape.name, shape.source)
    console.print(sources)
    if f.memory_total > found.memory.value:
        say("it does not fit: take a smaller --pack, or more GPUs to train on")


def _recorded(name: str) -> Recorded:
    from treewright.agent.config import load_config
    from treewright.search.store import TreeStore
    from treewright.training.simulate import recorded_forest

    where = load_config(given={"name": name}, remember=True).store_at
    if "://" not in where and not Path(where).exists():
        raise TreewrightError(f"there is no store at {where}; type: treewright collect --name {shlex.quote(name)}")
    with TreeStore.open(where, read_only=True) as store:
        return recorded_forest(store.load(row.tree_id) for row in store.trees(status="done"))


def _shape(model: str) -> Shape:
    from treewright.envs.doors import nearest
    from treewright.training.simulate import MODELS, shape_of

    if model in MODELS:
        return MODELS[model]
    file = Path(model) / "config.json"
    if not file.is_file():
        raise TreewrightError(f"no model {model!r}; {nearest(model, MODELS)}, or name a folder with config.json")
    try:
        return shape_of(json_value(file.read_bytes()), model)
    except (OSError, ValueError) as error:
        raise TreewrightError(f"{file} is no configuration of a model: {error}; name another folder") from error


def _constants(sets: list[str]) -> dict[str, float]:
    out = {}
    for text in sets:
        name, _, value = text.partition("=")
        try:
            out[name] = float(value)
        except ValueError:
            raise TreewrightError(f"--set {text!r}: write --set linear=0.5, a constant's name and a number") from None
    return out
