"""Features of nodes from their texts, for estimators that smooth over alike states: `train.options.features=text`."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.search.tree import Tree

__all__ = ["hashed_ngrams", "text_features", "with_texts"]

WORD = re.compile(r"\w+|[^\w\s]")


def hashed_ngrams(text: str, size: int, most: int = 2) -> NDArray[np.float64]:
    """[size] signed counts of the words and of up to `most` neighbouring ones, hashed, of length 1 (0 for no words).

    The sign of each n-gram comes from its hash too, so that different ones that share a place cancel on average
    (Weinberger et al., arXiv 0902.2206).
    """
    words = [word.casefold() for word in WORD.findall(text)]
    out = np.zeros(size)
    for n in range(1, most + 1):
        for i in range(len(words) - n + 1):
            code = zlib.crc32(" ".join(words[i : i + n]).encode())
            out[(code >> 1) % size] += 1.0 if code & 1 else -1.0
    length = float(np.linalg.norm(out))
    return out / length if length else out


def text_features(trees: Sequence[Tree], size: int = 24) -> NDArray[np.float64]:
    """[N, size + 2] of all nodes in the order of `tree_arrays(trees)`: what was seen there, hashed; depth, and
    whether the node's action was valid. Nodes that show alike texts are alike."""
    rows = []
    for tree in trees:
        for i in range(len(tree)):
            seen = tree.observation[i]
            words = hashed_ngrams(seen.text if seen is not None else tree.text[i], size)
            rows.append(np.concatenate([words, [tree.depth[i], float(tree.error[i] is None)]]))
    return np.array(rows) if rows else np.zeros((0, size + 2))


def with_texts(options: Mapping[str, Any], trees: Sequence[Tree]) -> dict[str, Any]:
    """An estimator's options with `features = "text"` made what it stands for; other options as they are."""
    features = options.get("features")
    text = isinstance(features, str) and features == "text"
    return {**options, "features": text_features(trees)} if text else dict(options)
