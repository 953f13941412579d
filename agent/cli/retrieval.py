"""`treewright train treehop`: a retriever of several hops, from a corpus' own links or from stored trees."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treewright.agent.cli.options import (
    ANEW,
    console,
    resumable,
    say,
)
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.envs.retrieval.corpus import Corpus
    from treewright.envs.retrieval.treehop import Jump

__all__ = ["treehop_command"]


def treehop_command(
    folder: Annotated[Path, typer.Argument(help="Where treehop.npz goes.")],
    corpus: Annotated[Path, typer.Option(help="Documents: JSONL with id and text, or a folder of texts.")],
    store: Annotated[
        str | None, typer.Option(help="Learn from the solved paths of this store too: a file, a run's name or a URL.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="'minilm', or a sentence-transformers encoder.")] = "minilm",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the jumps.")] = 30,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Train TreeHop's gate: the second hop of dense retrieval without a word in between.

    treewright train treehop runs/hop --corpus passages.jsonl
    treewright collect --corpus passages.jsonl --questions q.jsonl --set worlds.retriever=treehop:runs/hop
    """
    from treewright.envs.retrieval.corpus import load_corpus
    from treewright.envs.retrieval.dense import DenseIndex
    from treewright.envs.retrieval.encoders import SentenceEncoder
    from treewright.envs.retrieval.opening import cache_folder
    from treewright.envs.retrieval.treehop import linked_jumps
    from treewright.training.track import Update, open_metrics
    from treewright.training.treehop import train_gate

    docs = load_corpus(corpus)
    jumps = [*linked_jumps(docs), *(_of_store(store, docs) if store is not None else [])]
    if not jumps:
        raise TreewrightError(f"in {corpus} no passage names another one's title; give --store with solved trees")
    dense = DenseIndex(docs, SentenceEncoder(encoder), cache=cache_folder())
    last: list[float] = []
    began = time.monotonic()
    with resumable(ANEW), open_metrics(folder, run=folder.name) as metrics:

        def note(epoch: int, loss: float) -> None:
            last.append(loss)
            took = time.monotonic() - began
            stats = {"loss": loss, "jumps": float(len(jumps))}
            metrics.log(Update(step=epoch + 1, iteration=0, version="", stats=stats, seconds=took, recipe="treehop"))

        gate = train_gate(dense, jumps, epochs=epochs, seed=seed, note=note)
    console.print(f"{len(jumps)} jumps, loss {last[0]:.3f} in the first pass, {last[-1]:.3f} in the last")
    path = gate.save(folder)
    words = [
        "--corpus",
        str(corpus),
        "--set",
        f"worlds.retriever=treehop:{folder}",
        "--set",
        f"worlds.encoder={encoder}",
    ]
    say(f"wrote {path}; it is used by collect, run, eval and loop with your --questions and {shlex.join(words)}")


def _of_store(store: str, docs: Corpus) -> list[Jump]:
    from treewright.agent.cli.store import find_store
    from treewright.search.store import TreeStore
    from treewright.training.treehop import jumps_of_trees

    with TreeStore.open(find_store(store), read_only=True) as opened:
        return list(jumps_of_trees((opened.load(row.tree_id) for row in opened.trees(status="done")), docs))
