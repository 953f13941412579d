"""Writes questions for the agents beside this file, as tasks that `treewright --tasks-file` reads.

    python kg_tasks.py tasks.jsonl 60        # a file and how many
    python kg_tasks.py short.jsonl 60 2      # with two look-ups each

A task's data holds all facts of its world, its truth the answer; the questions are those of the suite `kg`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import treewright
from treewright.envs.retrieval.kg import ENTITIES, RELATIONS, fact, make_suite


def rows(count: int, hops: int | None) -> Iterator[dict[str, Any]]:
    suite = treewright.suite("kg") if hops is None else make_suite(hops=(hops, hops))
    for split in ("train", "test"):
        for task in suite.tasks(split, count):
            facts = {f"{e} {r}": fact(task.seed, e, r) for e in ENTITIES for r in RELATIONS}
            yield {
                "id": task.id, "goal": task.goal, "split": split, "horizon": 10,
                "data": {"facts": facts, "start": task.data["start"], "relations": task.data["relations"]},
                "truth": {"output": task.truth["answer"]},
            }  # fmt: skip


def main(path: str, count: str, hops: str = "") -> None:
    with open(path, "w") as file:
        for row in rows(int(count), int(hops) if hops else None):
            file.write(json.dumps(row) + "\n")


main(*sys.argv[1:4])
