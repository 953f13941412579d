"""Which experts a sampler says that tokens took, as engines and servers write it down."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.search.types import PolicyFault

__all__ = ["recorded", "routes_in", "routes_told"]

Rows = NDArray[np.generic]


def recorded(rows: Rows) -> Rows | None:
    """Of what vLLM recorded, [n, every layer, K], the layers that have experts; None where there are none.

    Layers without experts are zeros. No token goes to one expert twice, so these layers are known, and left out,
    wherever a token has more than one expert; and so are tokens, up to the last one, of which a layer was not recorded.
    Raises PolicyFault for anything but whole numbers of three dimensions.
    """
    if rows.ndim != 3 or rows.dtype.kind not in "iu":
        raise PolicyFault(f"vLLM gave experts of the form {rows.dtype} {rows.shape}, not [tokens, layers, experts]")
    if not rows.size or rows.shape[2] == 1:
        return rows if rows.size else None
    rows = rows[:, (rows != 0).any((0, 2))]
    ordered: Any = np.sort(rows, -1)
    wrong = ((ordered[..., 1:] == ordered[..., :-1]).any(-1) | (ordered[..., 0] < 0)).any(-1)
    rows = rows[int(np.flatnonzero(wrong)[-1]) + 1 if wrong.any() else 0 :]
    return rows if rows.size else None


def routes_told(told: Any) -> Rows | None:
    """The experts [n, L, K] of the last n tokens that were read, of what vLLM says of a request; None if it does not.

    vLLM gives them for the prompt, from `routed_experts_prompt_start` on, and the answer without its last token; some
    versions those of the prompt apart. Raises PolicyFault as `recorded` does.
    """
    found, before = getattr(told.outputs[0], "routed_experts", None), getattr(told, "prompt_routed_experts", None)
    if found is None:
        return None
    return recorded(np.asarray(found) if before is None else np.concatenate([np.asarray(before), np.asarray(found)]))


def routes_in(text: str) -> Rows | None:
    """The same from a server's answer, the base64 of a .npy file. Raises ValueError for anything else."""
    try:
        rows = np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"experts that are no .npy file in base64: {error}") from error
    try:
        return recorded(np.asarray(rows))
    except PolicyFault as error:
        raise ValueError(str(error)) from error
