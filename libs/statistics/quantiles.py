"""Quantiles with intervals that assume nothing about how the values are spread."""

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from libs.statistics.intervals import LEVEL

_NOISE = 1e-9
"""0.95 of 20 values are 19 of them, which floating point makes a hair more."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile in the values' unit; an end is None where so few values cannot tell it."""

    value: float
    low: float | None
    high: float | None


def quantile(
    values: npt.ArrayLike, probability: float, *, effect: float = 1.0, level: float = LEVEL
) -> Quantile | None:
    """The least of independent values that so great a share of them does not exceed, and an interval; None of none.

    The ends are two of the values: how many lie below the true quantile is binomial, whatever their distribution. The
    value is one of them too; a straight line between neighbours can lie below the lower end where there are few.
    Source: H. A. David and H. N. Nagaraja (2003), Order Statistics, 3rd edition, section 7.1.

    Where values hang together, `effect` is the design effect of the share at or below the quantile: the ends are then
    the ranks of n / effect independent values, spread over all of them, as Woodruff (1952), Journal of the American
    Statistical Association 47, 635-646, inverts the interval of that share. ValueError for a probability outside (0, 1)
    or an effect below 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"a probability lies between 0 and 1, not at {probability}")
    if effect < 1:
        raise ValueError(f"a design effect is at least 1, not {effect}")
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        return None
    ordered = np.sort(found)
    independent = max(1, floor(ordered.size / effect + _NOISE))
    low, high = ranks(independent, probability, level=level)
    each = ordered.size / independent
    return Quantile(
        value=float(ordered[ceil(ordered.size * probability - _NOISE) - 1]),
        low=None if low is None else float(ordered[floor((low - 1) * each + _NOISE)]),
        high=None if high is None else float(ordered[ceil(high * each - _NOISE) - 1]),
    )


def ranks(n: int, probability: float, *, level: float = LEVEL) -> tuple[int | None, int | None]:
    """Which of n ordered values, counted from 1, are the ends of the interval.

    The lower is the greatest whose chance of lying above the quantile is at most (1 - level) / 2, the upper the least
    whose chance of lying below it is; None where there is none among them.
    """
    tail = (1 - level) / 2
    low = _greatest(n, probability, chance=tail)
    mirrored = _greatest(n, 1 - probability, chance=tail)
    return low or None, n + 1 - mirrored if mirrored else None


def _greatest(n: int, probability: float, *, chance: float) -> int:
    """The greatest rank r with P(fewer than r of n values below the quantile) <= chance; 0 where there is none."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        if float(bdtr(middle - 1, n, probability)) <= chance:
            low = middle
        else:
            high = middle - 1
    return low
