"""Which weights drew a tree, and how many updates ago: the rule for trees of older policy versions.

A trainer knows the versions of its own weights, oldest first. A tree drawn by the newest is fresh; one drawn n updates
ago has age n and is trained on only if n ≤ max_staleness; one drawn by weights that the trainer never had is refused.
Older trees are corrected by the truncated ratio of whole actions, min(π_now(a|s)/π_then(a|s), cap), on log-probs that
the trainer recomputes. That corrects the choice of the action at its state. It does not correct the values: what stands
below an action was drawn by the old policy, so credit is that of Q under the old policy, and states come as often as
the old policy reached them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from treewright.envs.errors import TreewrightError

__all__ = ["StaleTrees", "age_of", "require_fresh", "weights_version"]


class StaleTrees(TreewrightError):
    """Trees drawn by weights that are too old, or not known to the trainer."""


def weights_version(model: Any) -> str:
    """32 hex digits that name the model's weights: equal for equal tensors, whatever file they came from."""
    h = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def age_of(version: str, versions: Sequence[str]) -> int | None:
    """How many updates ago the weights were `version`, 0 = now; None if never. `versions` is oldest first."""
    for age, known in enumerate(reversed(versions)):
        if known == version:
            return age
    return None


def require_fresh(drawn_by: Sequence[str], versions: Sequence[str], most: int) -> list[int]:
    """The ages of trees drawn by these versions. Raises StaleTrees if any is older than `most` updates or unknown."""
    ages = [age_of(v, versions) for v in drawn_by]
    old = sum(1 for age in ages if age is not None and age > most)
    strangers = [version for version, age in zip(drawn_by, ages, strict=True) if age is None]
    if old or strangers:
        named = f" ({', '.join(sorted(set(strangers))[:3])})" if strangers else ""
        raise StaleTrees(
            f"of {len(ages)} trees {old} were drawn more than {most} updates ago and {len(strangers)} by weights that "
            f"this trainer never had{named}; collect with the present weights, or set train.max_staleness=N to correct "
            "trees of up to N updates ago"
        )
    return [age for age in ages if age is not None]
