"""A figure: a value with its interval, how much it rests on, and its unit."""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from libs.statistics.clustering import Clustered, PairSums, clustered_pair_mean
from libs.statistics.intervals import Estimate, student_quantile
from libs.statistics.quantiles import quantile
from libs.statistics.repeats import design_effect, repeated_rate

Unit: TypeAlias = Literal["rate", "ms", "tokens", "usd", "return", "score"]
Truths: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.int64]

CONFIDENCE = 0.975  # the upper end of a two-sided interval of 95 %


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with the ends of its 95 % interval, in the unit; an end is None where so little cannot tell it.

    `n` counts the answers (for figures of a case, the cases) it is made of. A return is a fraction.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    unit: Unit

    def document(self) -> dict[str, Any]:
        """The figure as JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "unit": self.unit}


@dataclass(frozen=True, slots=True)
class Cells:
    """Which ticker and which day each case belongs to, as codes; the two hang together in a cell."""

    tickers: Codes
    days: Codes

    def at(self, chosen: Truths | Codes) -> "Cells":
        """Those of the chosen cases, as truths or as numbers."""
        return Cells(self.tickers[chosen], self.days[chosen])


def rate(hits: Truths, of: Truths) -> Figure | None:
    """The rate of hits among the answers `of`, both (cases, repeats); repeats of a case hang together.

    `libs.statistics.repeats` has the formula. None without answers.
    """
    found = repeated_rate(of.sum(axis=1), (hits & of).sum(axis=1))
    return figure_of(found, n=int(of.sum()), unit="rate")


def rate_of_cases(hits: Truths) -> Figure | None:
    """The rate of hits among cases, one element each: Wilson's interval. None without cases."""
    return rate(hits[:, None], np.ones((hits.size, 1), dtype=np.bool_))


def mean(values: Numbers, of: Truths, cells: Cells, *, unit: Unit) -> Figure | None:
    """The mean of the values `of`, both (cases, repeats), clustered by ticker and day; None without values.

    The variance is that of `libs.statistics.clustering`, with Student's quantile for the effective clusters less one
    (Cameron and Miller (2015), Journal of Human Resources 50, 317-372). No ends where one cluster is all there is, or
    nothing varies; those of a score are cut to what a score can be, 0 to 1.
    """
    n = of.sum(axis=1).astype(np.float64)
    members = int(n.sum())
    if not members:
        return None
    totals = np.where(of, values, 0.0).sum(axis=1)
    found = clustered_mean_of(n, totals, cells)
    if found is None:
        return Figure(float(totals.sum()) / members, None, None, members, unit)
    half = student_quantile(CONFIDENCE, freedom=max(1, found.clusters - 1)) * found.error
    low, high = found.value - half, found.value + half
    if unit == "score":
        low, high = max(0.0, low), min(1.0, high)
    return Figure(found.value, low, high, members, unit)


def clustered_mean_of(n: Numbers, totals: Numbers, cells: Cells) -> Clustered | None:
    """The mean over cases of so many members with such totals, with its clustered error."""
    both = cells.days * (int(cells.tickers.max(initial=0)) + 1) + cells.tickers
    joint_codes = np.unique(both, return_inverse=True)[1].reshape(-1)
    days, tickers, joint = (_sums(codes, n, totals) for codes in (cells.days, cells.tickers, joint_codes))
    return clustered_pair_mean(days, tickers, joint, which=1)


def quantile_of(times: Numbers, of: Truths, probability: float) -> Figure | None:
    """A quantile of the times `of`, both (cases, repeats), in milliseconds, with an interval between two of them.

    Repeats of a case hang together: the interval stands on the effective size by the design effect of being at or below
    the quantile. Infinite times are longer than any that is known: a value may be infinite, an end then is None. None
    without times.
    """
    chosen = times[of]
    found = quantile(chosen, probability)
    if found is not None and of.shape[1] > 1:
        effect = design_effect(of.sum(axis=1), (of & (times <= found.value)).sum(axis=1))
        found = quantile(chosen, probability, effect=effect)
    if found is None:
        return None
    low, high = (None if end is None or math.isinf(end) else end for end in (found.low, found.high))
    return Figure(found.value, low, high, int(chosen.size), "ms")


def figure_of(found: Estimate | None, *, n: int, unit: Unit) -> Figure | None:
    """An estimate as a figure."""
    return None if found is None else Figure(found.value, found.low, found.high, n, unit)


def _sums(codes: Codes, n: Numbers, totals: Numbers) -> PairSums:
    members, sums = np.bincount(codes, weights=n), np.bincount(codes, weights=totals)
    none = np.zeros_like(members)
    return PairSums.of(members, sums, none, none)
