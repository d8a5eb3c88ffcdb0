"""Rates and means with their intervals, also where what is counted comes in days that move together.

Orders of one market day share that day's weather, so they tell less than as many independent ones. Here a day is a
cluster: nothing is assumed about how its members hang together, only that different days do not. With few days such
intervals are wide, and rightly so. Horizons longer than a day overlap and make days depend on each other as well; then
the intervals are too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from scipy.special import ndtri, stdtrit

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the ends of its interval, in the value's own unit."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """What belongs together, such as a market day: how many there were, and their sum."""

    n: int
    total: float


NOTHING = Cluster(0, 0.0)


def wilson(hits: float, n: float, *, level: float = LEVEL) -> Estimate | None:
    """The rate hits / n with Wilson's score interval; None for n = 0.

    Both may be fractions, for effective sizes. Source: E. B. Wilson (1927), Journal of the American Statistical
    Association 22, 209-212; recommended by Brown, Cai and DasGupta (2001), Statistical Science 16, 101-133.
    """
    if n <= 0:
        return None
    z = normal_quantile(0.5 + level / 2)
    rate = hits / n
    shrunk = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrunk
    half = z / shrunk * sqrt(max(0.0, rate * (1 - rate) / n + z * z / (4 * n * n)))
    # At the ends the formula is exactly 0 or 1, which floating point misses by a hair.
    low = 0.0 if hits <= 0 else max(0.0, centre - half)
    high = 1.0 if hits >= n else min(1.0, centre + half)
    return Estimate(rate, low, high)


def clustered_rate(clusters: Sequence[Cluster], *, level: float = LEVEL) -> Estimate | None:
    """The rate of hits among all members, `total` being the hits of a cluster; None without members.

    Wilson's interval on the effective size n / d, where the design effect d is the cluster-robust variance of the rate
    over that of independent members, and at least 1. Source: Korn and Graubard (1998), Survey Methodology 24, 193-201,
    who do the same with the Clopper-Pearson interval.
    """
    n, hits = sum(each.n for each in clusters), sum(each.total for each in clusters)
    if n == 0:
        return None
    rate = hits / n
    independent = rate * (1 - rate) / n
    used = [each for each in clusters if each.n]
    if independent <= 0 or len(used) < 2:
        return wilson(hits, n, level=level)
    variance = _sum_of_squares([each.total - each.n * rate for each in used]) / n**2 * len(used) / (len(used) - 1)
    effect = max(1.0, variance / independent)
    return wilson(hits / effect, n / effect, level=level)


def clustered_mean(clusters: Sequence[Cluster], *, level: float = LEVEL) -> Estimate | None:
    """The mean of all members with a cluster-robust t interval; None with fewer than two clusters.

    The variance is the sum over clusters of (total - n * mean)^2, over the square of all members, times G / (G - 1);
    the quantile is Student's with G - 1 degrees of freedom, G being the number of clusters. With one member in each it
    is the classical interval. Source: Cameron and Miller (2015), Journal of Human Resources 50, 317-372, for a
    regression on a constant alone.
    """
    used = [each for each in clusters if each.n]
    if len(used) < 2:
        return None
    n = sum(each.n for each in used)
    mean = sum(each.total for each in used) / n
    errors = [(each.total - each.n * mean) / n for each in used]
    return _around(mean, errors, correction=1.0, level=level)


def clustered_difference(
    first: Sequence[Cluster], second: Sequence[Cluster], *, level: float = LEVEL
) -> Estimate | None:
    """The mean of the first less that of the second, where position i of both is the same cluster, such as a day.

    None when either has no members, or with fewer than two clusters between them. What both have in common on a day
    cancels, as it should. It is the slope of a regression on a dummy with cluster-robust errors and the correction
    G / (G - 1) * (N - 1) / (N - 2), and Student's quantile with G - 1 degrees of freedom. Source: as `clustered_mean`.
    """
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if one.n or other.n]
    n_first, n_second = sum(one.n for one, _ in pairs), sum(other.n for _, other in pairs)
    n = n_first + n_second
    if len(pairs) < 2 or not n_first or not n_second or n < 3:
        return None
    mean_first = sum(one.total for one, _ in pairs) / n_first
    mean_second = sum(other.total for _, other in pairs) / n_second
    errors = [
        (one.total - one.n * mean_first) / n_first - (other.total - other.n * mean_second) / n_second
        for one, other in pairs
    ]
    return _around(mean_first - mean_second, errors, correction=(n - 1) / (n - 2), level=level)


def normal_quantile(probability: float) -> float:
    """Where the standard normal distribution reaches a probability."""
    return float(ndtri(probability))


def student_quantile(probability: float, *, freedom: int) -> float:
    """Where Student's t distribution with so many degrees of freedom reaches a probability."""
    return float(stdtrit(freedom, probability))


def _around(value: float, errors: Sequence[float], *, correction: float, level: float) -> Estimate:
    """An estimate from its clusters' influences on it."""
    freedom = len(errors) - 1
    deviation = sqrt(_sum_of_squares(errors) * correction * len(errors) / freedom)
    half = student_quantile(0.5 + level / 2, freedom=freedom) * deviation
    return Estimate(value, value - half, value + half)


def _sum_of_squares(values: Sequence[float]) -> float:
    return sum(value * value for value in values)
