"""Where trees are kept: `TreeStore` and what it speaks."""

from treewright.envs.redact import Redactor
from treewright.search.store.arrays import STATUSES
from treewright.search.store.compare import Comparison, compare
from treewright.search.store.errors import Fenced, StoreError, StoreLost
from treewright.search.store.journal import Journal, JournalEntry, JournalState
from treewright.search.store.query import Branch, NodeRow, parse_where
from treewright.search.store.queue import Lease, Queue
from treewright.search.store.reading import TreeRow
from treewright.search.store.tree_store import TreeStore

__all__ = [
    "STATUSES",
    "Branch",
    "Comparison",
    "Fenced",
    "Journal",
    "JournalEntry",
    "JournalState",
    "Lease",
    "NodeRow",
    "Queue",
    "Redactor",
    "StoreError",
    "StoreLost",
    "TreeRow",
    "TreeStore",
    "compare",
    "parse_where",
]
