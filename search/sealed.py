"""Truth rewards of a tree, which nobody reads before search and choice are over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError

__all__ = ["Sealed"]


class Sealed:
    """The rewards of nodes, by id; `path` is that from the root, and `in_turn` tells a part of a turn."""

    _truth: list[float]
    _revealed = False

    def path(self, node: int) -> Sequence[int]:
        raise NotImplementedError

    def in_turn(self, node: int) -> bool:
        raise NotImplementedError

    def reveal(self) -> None:
        """Unseals the truth rewards; called once search and choice are over."""
        self._revealed = True

    @property
    def revealed(self) -> bool:
        return self._revealed

    def reward(self, node: int) -> float:
        """Truth reward of the transition into `node`; NaN while sealed or unknown."""
        return self._truth[node] if self._revealed else math.nan

    def rewards(self) -> NDArray[np.float32]:
        """[N] float32 truth rewards. Raises TreewrightError while they are sealed."""
        if not self._revealed:
            raise TreewrightError("rewards are sealed until the search is over; call tree.reveal() first")
        return np.asarray(self._truth, dtype=np.float32)

    def outcome_of(self, node: int) -> float:
        """Return of the path to `node`: the sum of its truth rewards.

        NaN where that of `node` itself is not known, as of a fault, of a draft, or of an end that nobody rewarded.
        Before it, one that is not known adds nothing. Raises TreewrightError while sealed.
        """
        if not self._revealed:
            raise TreewrightError("rewards are sealed until the search is over; call tree.reveal() first")
        if math.isnan(self._truth[node]) and not self.in_turn(node):  # a part of a turn is rewarded with its end
            return math.nan
        return float(np.nansum([self._truth[i] for i in self.path(node)]))
