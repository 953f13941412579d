"""Integrity of a whole store: what is damaged is named."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DatabaseError

from treewright.search.store.codec import decode_expansion, decode_header
from treewright.search.store.database import Database
from treewright.search.store.errors import StoreError
from treewright.search.store.models import blobs, nodes, trees
from treewright.search.store.reading import Blobs, end_of, expansion_rows, header_rows
from treewright.search.store.values import expand
from treewright.search.tree import Tree

__all__ = ["check"]


def check(connection: Connection, database: Database) -> list[str]:
    """One line per damage; empty if the store is whole.

    Looks at the pages of a file, the digest of every blob, every reference between rows, parent < child, and the
    checksum of every header and expansion, and grows every tree again.
    """
    try:
        below = [*database.pages(connection), *_blobs(connection), *database.orphans(connection)]
        return [*below, *_nodes(connection), *_trees(connection)]
    except DatabaseError as error:
        return [f"the file is damaged beyond reading: {error.orig}"]


def _blobs(connection: Connection) -> Iterator[str]:
    for name, codec, data in connection.execute(select(blobs)):
        try:
            expand(name, codec, data)
        except StoreError as error:
            yield str(error)


def _nodes(connection: Connection) -> Iterator[str]:
    late = select(nodes.c.tree, nodes.c.id, nodes.c.parent).where(nodes.c.parent >= nodes.c.id)
    for key, node, parent in connection.execute(late):
        yield f"tree number {key}: node {node} has parent {parent}, which is not older"
    wrong = select(nodes.c.tree, nodes.c.id).where(nodes.c.n_tokens * 4 != func.length(nodes.c.ids))
    for key, node in connection.execute(wrong):
        yield f"tree number {key}: node {node} has another number of tokens than its row says"


def _trees(connection: Connection) -> Iterator[str]:
    for key, name in connection.execute(select(trees.c.key, trees.c.id)).all():
        try:
            _grow(connection, key, name)
        except StoreError as error:
            yield str(error)
        except Exception as error:
            yield f"tree {name} cannot be read: {type(error).__name__}: {error}"


def _grow(connection: Connection, key: int, name: str) -> None:
    fetch = Blobs(connection)
    header = decode_header(*header_rows(connection, key), fetch)
    if header.tree_id != name:
        raise StoreError(f"tree {name}: its header belongs to tree {header.tree_id}")
    tree = Tree.start(header)
    for row, below in expansion_rows(connection, key, name):
        tree.apply(decode_expansion(row, below, header.policy_version, fetch))
    chosen = end_of(connection, key).chosen
    if chosen is not None and not 0 <= chosen < len(tree):
        raise StoreError(f"tree {name}: chosen node {chosen} does not exist")
