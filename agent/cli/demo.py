"""`treewright demo` and `treewright seedling`: the whole line in minutes, and the packaged model from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treewright.agent.cli.options import (
    Sets,
    console,
    go,
    say,
)

if TYPE_CHECKING:
    pass


__all__ = ["demo", "seedling"]


def demo(
    folder: Annotated[Path, typer.Option(help="For its files; an earlier demo there is removed.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option(help="A few tasks: shows that it works, measures nothing.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="A real model instead: smollm2 (fetched if need be), a folder, or a name; half an hour."),
    ] = None,
    set_: Sets = None,
) -> None:
    """The whole line in a few minutes on a CPU: explore, store, credit, train, and a table before and after.

    With --model, a real model imitates oracles first (docs/real-models.md).
    """
    from treewright.agent.runs.demo import PLAN, QUICK, demo_config, fresh, run_demo

    if model is not None:
        from treewright.agent.runs.demo_real import REAL, REAL_QUICK, fetched_spec, real_demo_config, run_real_demo

        plan = REAL_QUICK if quick else REAL
        real = real_demo_config(folder, fetched_spec(model, say), [*plan.settings, *(set_ or [])])
        fresh(folder)
        go(lambda: run_real_demo(real, plan, console))
        return

    cfg = demo_config(folder, [*(QUICK.settings if quick else ()), *(set_ or [])])
    fresh(folder)
    go(lambda: run_demo(cfg, QUICK.plan if quick else PLAN, console))


def seedling(
    folder: Annotated[Path, typer.Argument(help="Where the model goes, in save_pretrained layout.")],
    suites: Annotated[str, typer.Option(help="Suites it learns, comma separated.")] = "kg,stdlib,workbench,market",
    work: Annotated[
        Path | None, typer.Option(help="Demonstrations and checkpoints; the same line resumes. [runs/seedling]")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of the training.")] = 2,
    web: Annotated[bool, typer.Option("--web", help="The one for web pages, `seedling:web`; needs a browser.")] = False,
) -> None:
    """Rebuild the small packaged model from nothing: demonstrations, tokenizer, training, held-out success.

    treewright seedling my-seedling && treewright eval --policy seedling:my-seedling
    """
    from treewright.agent.seedling.build import build_seedling
    from treewright.agent.seedling.pages import build_web

    if web:
        build_web(folder, threads=threads, work=work or Path("runs/seedling-web"), say=console.print)
        return
    names = [s.strip() for s in suites.split(",")]
    build_seedling(folder, names, work=work or Path("runs/seedling"), threads=threads, say=console.print)
