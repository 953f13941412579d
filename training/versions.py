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
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from treewright.envs.errors import TreewrightError

__all__ = ["StaleTrees", "age_of", "hash_weights", "put_random", "random_state", "require_fresh",
           "weights_version"]  # fmt: skip


class StaleTrees(TreewrightError):
    """Trees drawn by weights that are too old, or not known to the trainer."""


def weights_version(model: Any) -> str:
    """32 hex digits that name the model's weights: equal for equal tensors, whatever file they came from.

    Those of a model with an adapter name its base and the adapter's tensors.
    """
    base, state = getattr(model, "treewright_base", None), model.state_dict()
    if base is None:
        return hash_weights(sorted(state.items()))
    return hash_weights(sorted((n, t) for n, t in state.items() if ".lora_" in n), str(base["version"]))


def hash_weights(named: Iterable[tuple[str, Tensor]], base: str = "") -> str:
    """`weights_version` of tensors that come one by one, by rising name."""
    h = hashlib.blake2b(base.encode(), digest_size=16)
    for name, tensor in named:
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
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


def random_state() -> str:
    """The state of this process's random numbers, as hexadecimal digits."""
    return bytes(torch.get_rng_state().tolist()).hex()


def put_random(states: Sequence[str], rank: int) -> None:
    """The state that a rank had; where there are more ranks now, that of one of the former. Nothing for no states."""
    if states:
        digits = bytes.fromhex(states[rank % len(states)])
        torch.set_rng_state(torch.frombuffer(bytearray(digits), dtype=torch.uint8))
