"""Trees into a store: raw tables as they were exported, conversations as chains. Importing twice adds nothing.

A row or file that cannot be taken is left out and counted by its place; the rest is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import BadLine
from treewright.search.store import StoreError, TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Origin
from treewright.training.export.foreign import conversations_in, read_documents
from treewright.training.export.messages import conversation_tree, parse_conversation
from treewright.training.export.preferences import is_preference, preference_of
from treewright.training.export.raw import Grown, decode_tree
from treewright.training.export.tables import read_rows

__all__ = ["ImportReport", "grown_trees", "import_trees"]

TABLES = (".jsonl", ".parquet")
DOCUMENTS = (".json", ".eval")
KINDS = ("auto", "raw", "messages")
ORIGINS = {"demo": Origin.DEMO, "stored": Origin.STORED}


@dataclass(slots=True)
class ImportReport:
    """Trees that were added, how many were there before with the same content, and what was left out, and why.

    left_out  one sentence each, which begins with file and line
    toolless  conversations with calls in which no tools are listed
    """

    added: list[str] = field(default_factory=list)
    present: int = 0
    nodes: int = 0
    left_out: list[str] = field(default_factory=list)
    toolless: int = 0


async def import_trees(
    path: str | Path,
    store: TreeStore,
    *,
    kind: str = "auto",
    run: str | None = None,
    suite: str = "imported",
    origin: str = "stored",
    strict: bool = False,
) -> ImportReport:
    """Adds every tree of a file or dataset folder to the store.

    path    a .jsonl or .parquet file, a .json document, a .eval log of Inspect, or a folder: its raw/ tables, or else
            all tables in it, or else all documents in it and below
    kind    raw | messages | auto: a row with `messages` is a conversation, and so are ATIF documents, verifiers' traces
            and logs of Inspect (see `foreign`); OpenAI's preference rows are conversations with two ends
    run, suite, origin   for conversations only: run (the file's name if None), suite where a line has none, and
                         demo or stored
    strict  the first row that cannot be taken ends the import; what came before is in the store
    Rows are checked one by one before they are stored, and those that cannot be taken are left out. The same call again
    adds what is new. Raises TreewrightError naming file, line and field if nothing could be taken.
    """
    report = ImportReport()
    leave = None if strict else report.left_out.append
    for place, grown in _placed(path, kind, run, suite, origin, leave):
        try:
            added = await _add(store, grown)
        except TreewrightError as error:
            if leave is None or isinstance(error, StoreError):
                raise
            leave(f"{place}: {error}")
            continue
        report.present += not added
        if added:
            report.added.append(grown.tree.tree_id)
            report.nodes += len(grown.tree)
        report.toolless += _toolless(grown.tree)
    if report.left_out and not report.added and not report.present:
        more = f" (and {len(report.left_out) - 1} more)" if len(report.left_out) > 1 else ""
        raise TreewrightError(report.left_out[0] + more)
    return report


def _toolless(tree: Tree) -> bool:
    imported = tree.header.settings.get("imported") == "messages"
    return imported and "tools" not in tree.task.data and any(a is not None for a in tree.action)


def grown_trees(
    path: str | Path,
    *,
    kind: str = "auto",
    run: str | None = None,
    suite: str = "imported",
    origin: str = "stored",
    leave: Callable[[str], None] | None = None,
) -> Iterator[Grown]:
    """The trees of a file or folder, one by one, without a store; arguments and errors as in `import_trees`.

    leave  gets a sentence for each row or file that cannot be taken, and the next one is read; None: it is raised
    """
    return (grown for _, grown in _placed(path, kind, run, suite, origin, leave))


def _placed(
    path: str | Path, kind: str, run: str | None, suite: str, origin: str, leave: Callable[[str], None] | None
) -> Iterator[tuple[str, Grown]]:
    """(file and line, tree) of every row that can be taken."""
    if kind not in KINDS:
        raise TreewrightError(f"no kind of import named {kind!r}; known: {', '.join(KINDS)}")
    if origin not in ORIGINS:
        raise TreewrightError(f"origin {origin!r} is neither demo nor stored; imported text was not drawn here")
    attempts: Counter[tuple[str, str]] = Counter()
    for file in _files(Path(path)):
        for number, whole in _rows(file, leave):
            for part, row in _parts(whole, kind):
                place = f"{file}, {'line' if file.suffix in TABLES else 'document'} {number}{part}"
                known = isinstance(row, Mapping) and ("messages" in row or is_preference(row))
                talks = kind == "messages" or (kind == "auto" and known)
                try:
                    if isinstance(row, TreewrightError):
                        raise row
                    if talks:
                        name = f"{file.stem}-{number}"
                        grown = _talk(row, run or file.stem, suite, name, ORIGINS[origin], attempts)
                    else:
                        grown = decode_tree(_object(row))
                except TreewrightError as error:
                    if leave is None:
                        raise TreewrightError(f"{place}: {error}") from None
                    leave(f"{place}: {error}")
                else:
                    yield place, grown


def _parts(row: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """The rows in a row: the conversations of a document in another's form, each with its name; else the row itself."""
    if isinstance(row, BadLine):
        yield "", TreewrightError(row.why)
        return
    try:
        found = conversations_in(row) if kind != "raw" else None
    except TreewrightError as error:
        yield "", error
        return
    if found is None:
        yield "", row
    elif not found:
        yield "", TreewrightError("no message of a model is in it, so there is nothing to import; leave it out")
    else:
        yield from ((f", conversation {i}" if len(found) > 1 else "", one) for i, one in enumerate(found, 1))


def _rows(file: Path, leave: Callable[[str], None] | None) -> Iterator[tuple[int, Any]]:
    try:
        yield from read_documents(file) if file.suffix in DOCUMENTS else read_rows(file)
    except TreewrightError as error:
        if leave is None:
            raise
        leave(str(error))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in (*TABLES, *DOCUMENTS):
            raise TreewrightError(
                f"{path} is none of {', '.join((*TABLES, *DOCUMENTS))}; write one JSON object a line into a .jsonl file"
            )
        return [path]
    if not path.is_dir():
        raise TreewrightError(
            f"there is no file or folder at {path}; name a .jsonl or .parquet file, or a folder of them"
        )
    folder = path / "raw" if (path / "raw").is_dir() else path
    found = sorted(p for p in folder.iterdir() if p.suffix in TABLES)
    found = found or sorted(p for p in folder.rglob("*") if p.suffix in DOCUMENTS and p.is_file())
    if not found:
        raise TreewrightError(
            f"{folder} holds no {', '.join((*TABLES, *DOCUMENTS))} file; export with --formats raw, or name a file"
        )
    return found


def _object(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise TreewrightError(f"expected an object, found {type(row).__name__}")
    return row


def _talk(row: Any, run: str, suite: str, name: str, origin: Origin, attempts: Counter[tuple[str, str]]) -> Grown:
    talk, worse = preference_of(row) if is_preference(row) else (parse_conversation(row), None)
    task = (talk.suite or suite, str(name if talk.id is None else talk.id))
    attempts[task] += 1
    return conversation_tree(
        talk, run=run, suite=task[0], task_id=task[1], attempt=attempts[task] - 1, origin=origin, version="imported",
        worse=worse,
    )  # fmt: skip


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
