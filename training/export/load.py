"""Trees into a store: raw tables as they were exported, conversations as chains. Importing twice adds nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.search.store import TreeStore
from treewright.search.types import Origin
from treewright.training.export.messages import conversation_tree, parse_conversation
from treewright.training.export.raw import Grown, decode_tree
from treewright.training.export.tables import read_rows

__all__ = ["ImportReport", "grown_trees", "import_trees"]

KINDS = ("auto", "raw", "messages")
ORIGINS = {"demo": Origin.DEMO, "stored": Origin.STORED}


@dataclass(slots=True)
class ImportReport:
    """Trees that were added, and how many were there before with the same content."""

    added: list[str] = field(default_factory=list)
    present: int = 0
    nodes: int = 0


async def import_trees(
    path: str | Path,
    store: TreeStore,
    *,
    kind: str = "auto",
    run: str | None = None,
    suite: str = "imported",
    origin: str = "stored",
) -> ImportReport:
    """Adds every tree of a file or dataset folder to the store.

    path    a .jsonl or .parquet file, or a folder: its raw/ tables, or else all such files in it
    kind    raw | messages | auto: a row with `messages` is a conversation
    run, suite, origin   for conversations only: run (the file's name if None), suite where a line has none, and
                         demo or stored
    Rows are checked one by one before they are stored. Raises TreewrightError naming file, line and field; what came
    before is in the store, and the same call again goes on from there.
    """
    report = ImportReport()
    for grown in grown_trees(path, kind=kind, run=run, suite=suite, origin=origin):
        if await _add(store, grown):
            report.added.append(grown.tree.tree_id)
            report.nodes += len(grown.tree)
        else:
            report.present += 1
    return report


def grown_trees(
    path: str | Path, *, kind: str = "auto", run: str | None = None, suite: str = "imported", origin: str = "stored"
) -> Iterator[Grown]:
    """The trees of a file or folder, one by one, without a store; arguments and errors as in `import_trees`."""
    if kind not in KINDS:
        raise TreewrightError(f"no kind of import named {kind!r}; known: {', '.join(KINDS)}")
    if origin not in ORIGINS:
        raise TreewrightError(f"origin {origin!r} is neither demo nor stored; imported text was not drawn here")
    attempts: Counter[tuple[str, str]] = Counter()
    for file in _files(Path(path)):
        for number, row in read_rows(file):
            talks = kind == "messages" or (kind == "auto" and isinstance(row, Mapping) and "messages" in row)
            try:
                if talks:
                    yield _talk(row, run or file.stem, suite, f"{file.stem}-{number}", ORIGINS[origin], attempts)
                else:
                    yield decode_tree(_object(row))
            except TreewrightError as error:
                raise TreewrightError(f"{file}, line {number}: {error}") from None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in (".jsonl", ".parquet"):
            raise TreewrightError(f"{path} is neither .jsonl nor .parquet; write one JSON object a line")
        return [path]
    if not path.is_dir():
        raise TreewrightError(f"there is no file or folder at {path}")
    folder = path / "raw" if (path / "raw").is_dir() else path
    found = sorted(p for p in folder.iterdir() if p.suffix in (".jsonl", ".parquet"))
    if not found:
        raise TreewrightError(f"{folder} holds no .jsonl or .parquet file; export with --formats raw, or name a file")
    return found


def _object(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise TreewrightError(f"expected an object, found {type(row).__name__}")
    return row


def _talk(row: Any, run: str, suite: str, name: str, origin: Origin, attempts: Counter[tuple[str, str]]) -> Grown:
    talk = parse_conversation(row)
    task = (talk.suite or suite, str(name if talk.id is None else talk.id))
    attempts[task] += 1
    return conversation_tree(
        talk, run=run, suite=task[0], task_id=task[1], attempt=attempts[task] - 1, origin=origin, version="imported"
    )


async def _add(store: TreeStore, grown: Grown) -> bool:
    """True if the tree was added, False if it was there. A tree left half imported is completed."""
    tree, status = grown.tree, store.status(grown.tree.tree_id)
    if status == "done":
        if store.load(tree.tree_id).digest() != tree.digest():
            raise TreewrightError(
                f"tree {tree.tree_id} is in {store.name} with other content; import into another store, or, for "
                "conversations, under another --run"
            )
        return False
    have = 0
    if status is None:
        await store.create(tree.header)
    else:
        begun = store.expansions(tree.tree_id)
        have = len(begun)
        # repr, because NaN is not equal to itself
        if repr(begun) != repr(list(grown.expansions[:have])):
            raise TreewrightError(
                f"tree {tree.tree_id} is {status} in {store.name} and grew otherwise; import into another store"
            )
    first = 1 + sum(len(e.drafts) for e in grown.expansions[:have])
    for expansion in grown.expansions[have:]:
        store.append_nowait(tree.tree_id, expansion, first)
        first += len(expansion.drafts)
    await store.finish(tree)
    return True
