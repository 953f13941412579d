"""`treewright view` and `treewright report`, to be registered by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treewright.agent.cli.options import console
from treewright.agent.cli.store import StoreName, find_store

if TYPE_CHECKING:
    from treewright.agent.view.reading import Filters

__all__ = ["report_command", "view_command"]


Text = Annotated[str, typer.Option("--find", help='Words, or a "phrase": goals, actions, observations, names.')]
Suite = Annotated[str | None, typer.Option(help="Only trees of this suite.")]
Run = Annotated[str | None, typer.Option(help="Only trees of this run.")]
Version = Annotated[
    str | None, typer.Option("--policy-version", help="Only trees of these weights: a version, or 'step 12'.")
]


def view_command(
    store: StoreName,
    html: Annotated[Path | None, typer.Option(help="Write one HTML file instead, which needs nothing else.")] = None,
    find: Text = "",
    suite: Suite = None,
    run: Run = None,
    policy_version: Version = None,
    most: Annotated[int, typer.Option(help="Most trees in the file, newest first.")] = 50,
    tokenizer: Annotated[Path | None, typer.Option(help="A model folder or tokenizer.json, to read tokens by.")] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    browse: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Look at trees in the browser, also while a search grows them. The address holds a secret and is for you alone.

    treewright view runs/first/trees.sqlite --open
    treewright view first --html trees.html --suite kg --most 20
    treewright view postgresql://me@host/trees
    """
    from treewright.agent.view import serve, write_page
    from treewright.agent.view.payload import decoder
    from treewright.search.store import TreeStore

    path, decode = find_store(store), decoder(tokenizer) if tokenizer is not None else None
    if html is None:
        serve(path, port, decode, browse, _tell)
        return
    with TreeStore.open(path, read_only=True) as opened:
        write_page(html, opened, _filters(find, suite, run, policy_version), most, decode)
    console.print(f"wrote {html}", soft_wrap=True)


def report_command(
    store: StoreName,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where report.html goes.")] = Path("report"),
    find: Text = "",
    suite: Suite = None,
    run: Run = None,
    policy_version: Version = None,
    png: Annotated[bool, typer.Option(help="Also one PNG for each plot; needs matplotlib.")] = False,
    most_nodes: Annotated[int, typer.Option(help="Read the newest trees until they have so many nodes.")] = 200_000,
) -> None:
    """Plots of finished trees: success against tokens, depth, branching, value calibration, effects.

    treewright report runs/first --out runs/first/report --png
    """
    from treewright.agent.view.charts_report import write_report
    from treewright.search.store import TreeStore

    with TreeStore.open(find_store(store), read_only=True) as opened:
        path = write_report(opened, folder, _filters(find, suite, run, policy_version), png, most_nodes)
    console.print(f"wrote {path}", soft_wrap=True)


def _tell(address: str) -> None:
    console.print(f"{address}\nCtrl-C ends it.", markup=False, highlight=False, soft_wrap=True)


def _filters(text: str, suite: str | None, run: str | None, version: str | None) -> Filters:
    from treewright.agent.view.reading import Filters

    return Filters(text=text, suite=suite, run=run, policy_version=version)
