"""Float32 results of two ways to compute the same: compared to the size of what is compared, not to a fixed number.

Another processor, another number of threads or another kernel rounds elsewhere; how much that shows grows with the
numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SHARE = 1e-4  # about a thousand roundings of float32


def off(found: Any, expected: Any) -> float:
    """The largest difference as a share of the largest expected magnitude. Shapes must agree."""
    a, b = (np.asarray(x.detach() if hasattr(x, "detach") else x, dtype=np.float64) for x in (found, expected))
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    scale, apart = np.abs(b).max(initial=0.0), np.abs(a - b).max(initial=0.0)
    return 0.0 if apart == 0 else apart / scale if scale else np.inf


def assert_near(found: Any, expected: Any, share: float = SHARE) -> None:
    """No entry differs by more than `share` of the largest expected magnitude."""
    apart = off(found, expected)
    assert apart <= share, f"off by {apart:.2e} of the largest magnitude; allowed are {share:.0e}"
