"""What the command line keeps transformers from importing: scikit-learn and scipy, seconds for an option never used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

__all__ = ["leave_out_sklearn"]

ASKS = "transformers.generation.candidate_generator"


class _Asked(MetaPathFinder):
    """Lets transformers ask for scikit-learn while there seems to be none; it remembers the answer."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name != ASKS or "sklearn" in sys.modules:
            return
        sys.meta_path.remove(self)
        from transformers.utils import is_sklearn_available

        sys.modules["sklearn"] = None  # type: ignore[assignment]  # import's own sign for "not there"
        try:
            is_sklearn_available()
        finally:
            del sys.modules["sklearn"]


def leave_out_sklearn() -> None:
    """For this process: assisted generation, which nothing here uses, then runs without its confidence threshold.

    Worlds and parts of the user's own import scikit-learn as ever.
    """
    if ASKS not in sys.modules:
        sys.meta_path.insert(0, _Asked())
