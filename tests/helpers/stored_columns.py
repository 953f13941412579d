"""A small tree as the columns that `load_trees` takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from treewright.envs.types import Action, Observation, Task
from treewright.search.store.bulk import Columns
from treewright.search.tree import TreeHeader
from treewright.search.types import NodeStatus, Outcome

__all__ = ["columns_of", "header_of"]


def header_of(name: str) -> TreeHeader:
    return TreeHeader(
        run="r",
        task=Task("kg", name, "find"),
        attempt=0,
        seed=1,
        policy_version="v1",
        settings={},
        root=Outcome(Observation("root"), NodeStatus.OPEN),
    )


def columns_of(sizes: tuple[int, ...] = (3, 0, 2, 4), **changes: Any) -> Columns:
    n, total = len(sizes), sum(sizes)
    values: dict[str, Any] = {
        "parent": np.array([0, 0, 1, 1][:n]),
        "text": ["go", "né", "stop", "go on"][:n],
        "sizes": np.array(sizes),
        "ids": np.arange(total),
        "logprobs": -np.arange(total, dtype=np.float32) / 8,
        "seed": np.arange(n) + 2**40,
        "mult": np.array([3, 1, 1, 1][:n]),
        "action": [Action.of("go", to=1).key, None, Action.of("stop").key, None][:n],
        "pages": [Observation("a page", "f1"), Observation("done", "f2")],
        "seen": np.array([0, -1, 1, 0][:n]),
        "reward": np.array([0.0, 0.0, 1.0, 0.5][:n]),
        "status": ["open", "open", "terminal", "open"][:n],
    }
    return Columns(**(values | changes))
