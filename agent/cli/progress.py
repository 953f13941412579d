"""What the terminal says of an update while a loop runs: the numbers one looks at, and how long it will still take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["time_left", "told_of_update"]

SHOWN = (("loss", "loss"), ("kl", "KL"), ("entropy", "entropy"), ("sampler_gap", "gap"))


def told_of_update(
    iteration: int, success: Mapping[str, float], stats: Mapping[str, float], seconds: float, left: float | None
) -> str:
    """One line: success by suite and of trees from stored nodes, loss, KL, entropy, sampler gap, unique tokens trained
    on a second, time left."""
    rates = "  ".join(f"{suite} {100 * rate:.0f}%" for suite, rate in success.items())
    numbers = [f"{word} {stats[name]:.3g}" for name, word in SHOWN if math.isfinite(stats.get(name, math.nan))]
    if stats.get("starts") and math.isfinite(stats.get("starts_success", math.nan)):
        numbers.insert(0, f"{stats['starts']:.0f} starts {100 * stats['starts_success']:.0f}%")
    tokens = stats.get("tokens", math.nan)
    if math.isfinite(tokens) and seconds > 0:
        numbers.append(f"{tokens / seconds:.0f} tokens/s")
    if left is not None:
        numbers.append(f"{_span(left)} left")
    return f"iteration {iteration}: {rates}  ({seconds:.1f} s)" + "".join(f"  {number}" for number in numbers)


def time_left(seconds: Sequence[float], rounds: int) -> float | None:
    """Seconds that `rounds` more will take, by the median of the last ones; None before the first, and for none."""
    if not seconds or rounds < 1:
        return None
    last = sorted(seconds[-5:])
    return rounds * last[len(last) // 2]


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
