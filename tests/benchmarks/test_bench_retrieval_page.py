"""docs/retrieval.md says what docs/retrieval.json holds."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_committed_recall_of_each_retriever() -> None:
    made, page = json.loads((DOCS / "retrieval.json").read_text()), (DOCS / "retrieval.md").read_text()
    value = {name: figure["value"] for name, figure in made["figures"].items()}
    assert made["commit"] and made["hardware"]["cores"]
    for kind in ("lexical", "dense", "hybrid", "rewrite", "treehop", "hypergraph"):
        assert f"| {value[f'almanac_{kind}_recall5']:.3f} | {value[f'given_{kind}_recall5']:.3f} |" in page, kind
    for name in ("among10k_lexical_recall5", "among10k_hypergraph_recall5", "treehop_elsewhere_recall5"):
        assert f"{value[name]:.3f}" in page, name
    assert f"{value['hypergraph_over_hybrid']:.2f} times" in " ".join(page.split())
