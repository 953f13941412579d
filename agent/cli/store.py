"""`treewright store …` and `treewright compare`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from treewright.agent.cli.options import console
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.search.store.copying import Copied
    from treewright.search.store.reading import TreeRow

__all__ = ["StoreName", "compare_command", "find_store", "store_app"]

store_app = typer.Typer(help="Check, repair, compact, merge, empty and measure stores of trees.", no_args_is_help=True)

StoreName = Annotated[str, typer.Argument(help="A file, a run's name or folder, or postgresql://USER@HOST/DATABASE.")]


def find_store(name: str) -> str:
    """A file or URL as it is; else the store in the folder or in the run of this name. Raises TreewrightError."""
    if "://" in name or Path(name).is_file():
        return name
    from treewright.agent.config import load_config

    run = Path("runs") / name / "trees.sqlite"
    for home in (Path(name), Path("runs") / name):
        if (home / "run.toml").is_file() and (kept := load_config(home / "run.toml").store):
            return kept
    for there in (Path(name) / "trees.sqlite", run):
        if there.is_file():
            return str(there)
    raise TreewrightError(
        f"there is no store {name!r}: neither a file of this name nor {run}; type: treewright collect --name {name}"
    )


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
    new: Annotated[str, typer.Argument(help="Where what is whole goes: a file or database without trees.")],
) -> None:
    """Copy what is whole of a damaged store into a new one. The damaged one stays as it is.

    A damaged tree keeps the expansions before the damage; the same collect line then grows it on.

      treewright store repair runs/first/trees.sqlite runs/first/repaired.sqlite
    """
    from treewright.search.store.copying import repair as save

    _tell(save(find_store(store), new))


@store_app.command()
def merge(
    target: Annotated[str, typer.Argument(help="The store that takes the trees; a new file is made.")],
    sources: Annotated[list[str], typer.Argument(help="Stores to copy from.")],
) -> None:
    """Copy the trees of other stores into one. What is there already stays; a tree that went on elsewhere is extended.

    treewright store merge all.sqlite runs/first/trees.sqlite postgresql://me@host/trees
    """
    from treewright.search.store.copying import merge as copy

    _tell(copy(target, [find_store(s) for s in sources]))


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
        list[str] | None, typer.Option("--where", "-w", help='e.g. "run=old", "nodes<3"; all hold.')
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
        table.add_row(run, suite, status, f"{trees}", f"{solved}" if status == "done" else "–")
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


def compare_command(
    first: Annotated[str, typer.Argument(help="A run's name, a store, or STORE#RUN for one run of a store.")],
    second: Annotated[str, typer.Argument(help="The other one; the gain is second minus first.")],
) -> None:
    """Success of two runs on the tasks that both have finished, with the paired bootstrap's 95 % interval.

    treewright compare first second
    treewright compare all.sqlite#first/0 all.sqlite#first/7
    """
    from treewright.search.store import compare

    table = Table(
        "suite", "tasks", "first", "second", "gain, points", "95 % interval", "only first", "only second", "tokens"
    )
    for c in compare(_rows_of(first), _rows_of(second)):
        table.add_row(
            c.suite, f"{c.tasks}", f"{100 * c.first:.1f} %", f"{100 * c.second:.1f} %", f"{100 * c.gain:+.1f}",
            f"{100 * c.low:+.1f} … {100 * c.high:+.1f}", f"{c.only_first}", f"{c.only_second}",
            f"{c.tokens[0]} / {c.tokens[1]}",
        )  # fmt: skip
    console.print(table)


def _rows_of(name: str) -> list[TreeRow]:
    from treewright.search.store import TreeStore

    where, _, run = name.partition("#")
    with TreeStore.open(find_store(where), read_only=True) as store:
        rows = store.trees(run=run or None)
        runs = ", ".join(dict.fromkeys(row.run for row in store.trees())) if not rows else ""
    if not rows:
        raise TreewrightError(f"{name!r} has no trees" + (f"; the store has the runs {runs}" if runs else ""))
    return rows
