"""A process in which a node has more fields: each is one line, added to its record as types.py is loaded.

python new_fields.py FOLDER   grows a tree of a maze, keeps, reads and exports it; prints what each place has of a field
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # it is run as a program, with a safe path
from not_none import not_none

if TYPE_CHECKING:
    from treewright.search.store.tree_store import TreeStore
    from treewright.search.types import Context, Expansion


LINES = {  # after this line of a record comes the new one
    "    steps: int = 0\n": "    distance: float = stored(default=math.nan, since=3)\n",
    "    hidden: int = stored(default=0, since=3)\n": "    retries: int = stored(default=0, since=3)\n",
    "    score: float = math.nan\n": '    note: str | None = stored(default="", since=3)\n',
}


class OneLineMore(SourceFileLoader):
    def get_data(self, path: str) -> bytes:
        source = super().get_data(path)
        if path.endswith("types.py"):
            text = source.decode()
            for above, line in LINES.items():
                assert text.count(above) == 1, above
                text = text.replace(above, above + line)
            return text.encode()
        return b"" if path.endswith(".pyc") else source

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError("compiled code of the plain module does not count")


class Finder:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name != "treewright.search.types":
            return None
        spec = PathFinder.find_spec(name, path, target)
        not_none(spec).loader = OneLineMore(name, not_none(not_none(spec).origin))
        return spec


async def main(folder: Path) -> None:
    from walker import Walker

    from treewright.envs.maze import SUITE
    from treewright.search import best_first
    from treewright.search.engine import Settings, search
    from treewright.search.store import TreeStore
    from treewright.search.types import Budget
    from treewright.training.credit import arrays_of, tree_arrays
    from treewright.training.export.columns import columns
    from treewright.training.export.raw import decode_tree, encode_tree
    from treewright.training.export.tables import open_table, read_rows
    from treewright.training.export.view import View

    class Retrying(Walker):
        async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Any]:
            done: Sequence[Any] = await super().draw(context, seeds, max_tokens)
            return [replace(d, retries=2) for d in done]

    class Far:
        """Writes down how far each step came, and a note for every draft."""

        def __init__(self, store: TreeStore) -> None:
            self.store, self.header, self.expansions = store, store.header, store.expansions
            self.status, self.create, self.load = store.status, store.create, store.load
            self.flush, self.finish = store.flush, store.finish

        def append_nowait(self, tree_id: str, expansion: Expansion, first_id: int) -> Any:
            def far(draft: Any) -> Any:
                outcome = draft.outcome and replace(draft.outcome, distance=0.25)
                return replace(draft, outcome=outcome, note=f"{draft.slot}")

            executed: Any = expansion.outcome
            popped = executed and replace(executed, distance=0.5)
            changed = replace(expansion, drafts=tuple(map(far, expansion.drafts)), outcome=popped)
            return self.store.append(tree_id, changed, first_id)

    with TreeStore.open(folder / "t.db") as store:
        grown: Any = await search(
            SUITE.tasks("train", 1)[0], SUITE, Retrying(), rule=best_first(eager=False), budget=Budget(expansions=4),
            settings=Settings(close=True), store=Far(store),
        )  # fmt: skip
        name = grown.tree_id
        tree, expansions, stored = store.load(name), store.expansions(name), store.arrays([name])
        assert tree.digest() == grown.digest() and store.check() == []
        with open_table(folder / "raw.parquet", columns("raw"), "parquet") as table:
            table.write(encode_tree(View(tree), expansions))
        ((_, row),) = read_rows(folder / "raw.parquet")
        again = decode_tree(row)
        drafts = [draft for expansion in expansions for draft in expansion.drafts]
        last = max(i for i, draft in enumerate(drafts, 1) if draft.outcome is not None)
        draft: Any = drafts[last - 1]
        late = next(e.node for e in expansions if e.outcome is not None)
        from_tree, from_store = tree_arrays([tree]).more, arrays_of(stored).more
        print(json.dumps({
            "grown": [grown.retries[last], tree[last].retries],
            "read": [draft.outcome.distance, draft.completion.retries, draft.note],
            "tree": [tree[last].distance, tree[last].retries, tree[last].note],
            "stored": [float(stored["distance"][last]), int(stored["retries"][last])],
            "estimators": [float(from_tree["distance"][last]), int(from_store["retries"][last])],
            "exported": [row["nodes"][last]["outcome"]["distance"], row["nodes"][last]["retries"],
                         row["nodes"][last]["note"]],
            "imported": [again.tree[last].distance, again.tree[last].retries, again.tree[last].note],
            "popped": [tree[late].distance, float(stored["distance"][late]), again.tree[late].distance],
            "equal": repr(again.expansions) == repr(tuple(expansions)),
        }))  # fmt: skip


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder)
    sys.path.insert(0, str(Path(__file__).parent))
    asyncio.run(main(Path(sys.argv[1])))
