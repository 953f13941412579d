"""What an update says of experts: how many tokens took those that the sampler took, and how many the model would send
to others by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from treewright.training.decoders.replay import replaying
from treewright.training.packed import PackedBatch

__all__ = ["Routing"]


@dataclass(slots=True)
class Routing:
    """Counts over packs: tokens, those with routes, (token, layer) whose experts were given, and those of them that the
    model by itself would have sent elsewhere."""

    tokens: float = 0.0
    routed: float = 0.0
    given: float = 0.0
    apart: float = 0.0

    @contextmanager
    def replaying(self, model: Any, pack: PackedBatch) -> Iterator[None]:
        """Passes over `pack` in a `with` block take its routes, and are counted."""
        with replaying(model, pack.routes) as replay:
            yield
        self.tokens += len(pack)
        if replay is not None and pack.routes is not None:
            self.routed += float(np.count_nonzero((pack.routes >= 0).any((1, 2))))
            self.given += replay.given
            self.apart += replay.apart

    def told(self) -> dict[str, float]:
        """What to log since it was last asked; {} where nothing was replayed."""
        tokens, routed, given, apart = astuple(self)
        self.tokens = self.routed = self.given = self.apart = 0.0
        share = {"routes_replayed": routed / tokens} if routed else {}
        return share | ({"routing_flips": apart / given} if given else {})
