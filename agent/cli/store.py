"""`treewright store …`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from treewright.agent.cli.options import console
from treewright.agent.runs.stores import find_store, new_store, store_to_fill

if TYPE_CHECKING:
    from treewright.search.store.copying import Copied

__all__ = ["StoreName", "find_store", "store_app"]

store_app = typer.Typer(help="Check, repair, compact, merge, empty and measure stores of trees.", no_args_is_help=True)

StoreName = Annotated[str, typer.Argument(help="A file, a run's name or folder, or postgresql://USER@HOST/DATABASE.")]


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"


@store_app.command()
def check(store: StoreName) -> None:
    """Look at everything: pages, contents, references, checksums; grow every tree again. Exit 1 if there is damage.

    treewright store check runs/first/trees.sqlite
    """
    from treewright.search.store import TreeStore

    where = find_store(store)
    with TreeStore.open(where, read_only=True) as opened:
        damage, count = opened.check(), len(opened.trees())
    for line in damage:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if damage:
        console.print(f"{len(damage)} damaged; save what is whole: treewright store repair {store} NEW_FILE")
        raise typer.Exit(1)
    console.print(f"{count} trees, everything is whole")


@store_app.command()
def repair(
    store: StoreName,
    new: Annotated[str, typer.Argument(help="Where what is whole goes: a new file, or a database without trees.")],
) -> None:
    """Copy what is whole of a damaged store into a new one. The damaged one stays as it is.

    A damaged tree keeps the expansions before the damage; the same collect line then grows it on.

      treewright store repair runs/first/trees.sqlite runs/first/repaired.sqlite
    """
    from treewright.search.store.copying import repair as save

    _tell(save(find_store(store), new_store(new)))


@store_app.command()
def merge(
    target: Annotated[
        str, typer.Argument(help="The store that takes the trees; what is no store, run or folder becomes a new file.")
    ],
    sources: Annotated[list[str], typer.Argument(help="Stores to copy from.")],
) -> None:
    """Copy the trees of other stores into one. What is there already stays; a tree that went on elsewhere is extended.

    treewright store merge all.sqlite runs/first/trees.sqlite postgresql://me@host/trees
    """
    from treewright.search.store.copying import merge as copy

    _tell(copy(store_to_fill(target), [find_store(s) for s in sources]))


def _tell(done: Iterable[Copied]) -> None:
    """Names every tree that did not come whole, then counts. Exit 1 if any did not."""
    counts: Counter[str] = Counter()
    for one in done:
        counts[one.how] += 1
        if one.why:
            line = f"tree {one.tree_id} {one.how}, {one.expansions} expansions: {one.why}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print("  ".join(f"{how} {n}" for how, n in counts.items()) or "no trees", highlight=False)
    if counts["cut"] + counts["lost"] + counts["differs"]:
        raise typer.Exit(1)


@store_app.command()
def compact(store: StoreName) -> None:
    """Free contents that no tree refers to and give the space back. Also upgrades a store of an older version.

    treewright store compact first
    """
    from treewright.search.store.upkeep import compact as shrink

    freed, before, after = shrink(find_store(store))
    console.print(f"{freed} contents freed; {_bytes(before)} before, {_bytes(after)} after", highlight=False)


@store_app.command()
def delete(
    store: StoreName,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", "-w", help='e.g. "run=old", "nodes<3", "created<2020-01-31"; all hold.'),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete; without it only count.")] = False,
) -> None:
    """Delete trees. Those with an irreversible action of unknown outcome stay.

    treewright store delete first --where status=interrupted --yes
    """
    from treewright.search.store import parse_where
    from treewright.search.store.upkeep import delete_trees

    gone, stay = delete_trees(find_store(store), parse_where(where or []), dry=not yes)
    for name, why in stay.items():
        console.print(f"tree {name} stays: {why}", highlight=False, soft_wrap=True)
    if not yes:
        console.print(f"{len(gone)} trees would be deleted; add --yes", highlight=False)
    else:
        console.print(f"{len(gone)} trees deleted; free their space: treewright store compact {store}", highlight=False)


@store_app.command()
def stats(store: StoreName) -> None:
    """Count: trees by run, suite and status, rows, tokens, bytes, irreversible actions without an answer.

    treewright store stats first
    """
    from treewright.search.store.upkeep import stats as count

    found = count(find_store(store))
    table = Table("run", "suite", "status", "trees", "solved")
    for (run, suite, status), (trees, solved) in found.groups.items():
        unknown = found.unknown.get((run, suite, status), 0)
        told = f"{solved}" + (f", {unknown} unknown" if unknown else "")
        table.add_row(run, suite, status, f"{trees}", told if status == "done" else "–")
    console.print(table)
    rows = "  ".join(f"{name} {n}" for name, n in found.rows.items())
    console.print(f"{found.name}: schema {found.schema}, written by treewright {found.maker}", highlight=False)
    console.print(f"rows: {rows}", highlight=False)
    console.print(
        f"{found.tokens} tokens; {_bytes(found.bytes)} on disk, {_bytes(found.blob_bytes)} of it contents",
        highlight=False,
    )
    if found.pending:
        console.print(f"[red]{found.pending} irreversible actions have no known answer[/]", markup=True)
