"""`treewright show` and `treewright config`: what a run holds, and what can be set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treewright.agent.cli.options import (
    Name,
    console,
    must_exist,
    read_config,
)
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    pass


__all__ = ["config", "show"]


def show(
    name: Name = None,
    tree: Annotated[str | None, typer.Argument(help="Tree id or its beginning; none lists the trees.")] = None,
    suite: Annotated[str | None, typer.Option(help="Only trees of this suite.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the trees as one HTML page.")] = None,
    most: Annotated[int, typer.Option(help="Most trees to list or to write.")] = 20,
) -> None:
    """List the trees of a run, print one, or write them as a page.

    treewright show --name first
    treewright show 3fa9 --name first
    treewright show --name first --html trees.html
    """
    from rich.table import Table

    from treewright.agent.view.report import render_text, write_report
    from treewright.search.store import TreeStore

    cfg = read_config(name, None, None, None, None)
    must_exist(cfg)
    store = TreeStore.open(cfg.store_at, read_only=True)
    try:
        rows = [r for r in store.trees(suite=suite) if tree is None or r.tree_id.startswith(tree)]
        if not rows:
            raise TreewrightError(f"no tree of run {cfg.name!r} matches; type: treewright show --name {cfg.name}")
        if html is not None:
            write_report(html, [store.load(r.tree_id) for r in rows[:most]], f"trees of {cfg.name}")
            console.print(f"wrote {html}")
        elif tree is not None:
            for row in rows[:most]:
                console.print(render_text(store.load(row.tree_id), console.width), markup=False, highlight=False)
        else:
            table = Table("tree", "suite", "task", "status", "nodes", "success", "exact")
            for row in rows[:most]:
                exact = "yes" if not row.reasons else "; ".join(row.reasons)
                table.add_row(
                    row.tree_id[:8], row.suite, row.task_id, row.status, f"{row.nodes}",
                    "–" if row.success is None else f"{row.success:g}", exact,
                )  # fmt: skip
            console.print(table)
            if len(rows) > most:
                console.print(f"{len(rows) - most} more; --most {len(rows)} shows all")
    finally:
        store.close()


def config(
    explain: Annotated[bool, typer.Option("--explain", help="Say what each setting means.")] = False,
    key: Annotated[str | None, typer.Argument(help="With --explain: only keys with this in their name.")] = None,
) -> None:
    """Print the whole configuration with its defaults, ready to be saved as TOML.

    treewright config > run.toml
    treewright config --explain search.
    """
    from treewright.agent.config import Config, explained, to_toml

    if not explain and key is None:
        console.print(to_toml(Config()), markup=False, highlight=False)
        return
    word = (key or "").casefold().replace("-", "_").replace(" ", "_")
    found = {name: doc for name, doc in explained().items() if word in name}
    if not found:
        raise TreewrightError(f"no setting has {key!r} in its name; type: treewright config --explain")
    for name, doc in found.items():
        console.print(f"{name}\n    {doc}", markup=False, highlight=False, soft_wrap=True)
