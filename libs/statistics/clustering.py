"""Differences and means whose members hang together by market day and by ticker at once, from sums alone.

Two decisions of one day share its weather, two on one ticker share the company, and neither tells as much as two that
share nothing. A cell is a ticker on a day. A database can add up what is needed here in one pass.

The variance is that of Cameron, Gelbach and Miller (2011), Journal of Business & Economic Statistics 29, 238-249: by
day, plus by ticker, less by cell, since both contain the cells. That can come out too small, even below zero, by
chance; so it is never less than each part alone, as MacKinnon, Nielsen and Webb (2024), arXiv:2406.08880, advise.

A difference has one floor more: the variance it would have were there none. A sandwich takes each arm's variance from
that arm alone, and a small arm that has not yet met what is rare looks as if it never could: with a tenth of the units
and one failure in a hundred, arms that are equal were called different in one of seven simulated runs. Pooled over both
arms, as in the score test of two proportions, the rare counts for both. What was assigned together is kept together,
the cell or the ticker: Abadie, Athey, Imbens and Wooldridge (2023), Quarterly Journal of Economics 138, 1-35.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

ENOUGH_TICKERS = 20
"""From how many on the tickers count as clusters. The part they add is a difference of two variances, and the first
has a relative error of about sqrt(2 / tickers): with fewer it is more noise than correction. Where every ticker had
both arms, days and cells then carry it, and it is said of these tickers alone. Where each had only one arm the tickers
are what was drawn, and count however few there are."""

_NOISE = 1e-12
"""A variance below this share of the mean squared is what rounding leaves of none."""


@dataclass(frozen=True, slots=True)
class PairSums:
    """Sums over clusters for two groups: 1 is the control, 2 the candidate.

    n is the members a cluster has in a group, t the total of their values; two names side by side are the sum of the
    products. `clusters` are those with a member in either group.
    """

    clusters: int
    n1: float
    n2: float
    t1: float
    t2: float
    n1n1: float
    n1t1: float
    t1t1: float
    n2n2: float
    n2t2: float
    t2t2: float
    n1n2: float
    n1t2: float
    t1n2: float
    t1t2: float

    @classmethod
    def of(cls, n1: npt.ArrayLike, t1: npt.ArrayLike, n2: npt.ArrayLike, t2: npt.ArrayLike) -> Self:
        """The sums of arrays with one element for each cluster, the same clusters in the same order in all four."""
        rows = np.stack([np.asarray(each, dtype=np.float64) for each in (n1, t1, n2, t2)])
        (n1n1, n1t1, n1n2, n1t2), (_, t1t1, t1n2, t1t2), (_, _, n2n2, n2t2), (_, _, _, t2t2) = (rows @ rows.T).tolist()
        sums: list[float] = rows.sum(axis=1).tolist()
        return cls(
            clusters=int(np.count_nonzero(rows[0] + rows[2])),
            n1=sums[0], t1=sums[1], n2=sums[2], t2=sums[3],
            n1n1=n1n1, n1t1=n1t1, t1t1=t1t1, n2n2=n2n2, n2t2=n2t2, t2t2=t2t2,
            n1n2=n1n2, n1t2=n1t2, t1n2=t1n2, t1t2=t1t2,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clustered:
    """An estimate, its standard error (both in the value's unit), and the effective number of clusters behind it.

    That is how many clusters of equal size would tell as much, in the arm that has fewer: (sum n)^2 / sum n^2. An arm
    seen on three of a hundred days has three. Source: L. Kish (1965), Survey Sampling; for such errors Carter,
    Schnepel and Steigerwald (2017), Review of Economics and Statistics 99, 698-709.
    """

    value: float
    error: float
    clusters: int


def clustered_pair_difference(
    days: PairSums, tickers: PairSums, cells: PairSums, *, rate: bool = False
) -> Clustered | None:
    """The mean of the candidate less that of the control, from the same members summed up in three ways.

    With `rate`, values being 0 or 1, each arm's variance is at least what one cell of hits and one of misses would add
    that have not come yet, so that an arm without a miss still has an interval. It is the remedy of Agresti and Caffo
    (2000), The American Statistician 54, 280-288, for cells in place of members, since a cell's members may fail
    together. None where an arm has no members or only one cluster, or nothing varies: then there is nothing to tell how
    far off it is.
    """
    if days.n1 <= 0 or days.n2 <= 0:
        return None
    first, second = days.t1 / days.n1, days.t2 / days.n2
    parts = [_of_difference(each, first, second) for each in (days, cells, tickers)]
    drawn_by_ticker = tickers.n1n2 <= 0
    floor = _without_difference(tickers if drawn_by_ticker else cells)
    if rate:
        floor = max(floor, _unseen(first, cells.n1, cells.n1n1) + _unseen(second, cells.n2, cells.n2n2))
    sizes = [min(_effective(each.n1, each.n1n1), _effective(each.n2, each.n2n2)) for each in (days, cells, tickers)]
    found = _two_way(parts, sizes, tickers_count=drawn_by_ticker or sizes[2] >= ENOUGH_TICKERS)
    return _clustered(second - first, found, floor=floor, scale=first * first + second * second)


def clustered_pair_mean(
    days: PairSums, tickers: PairSums, cells: PairSums, *, which: Literal[1, 2], rate: bool = False
) -> Clustered | None:
    """The mean of the control (1) or of the candidate (2); the rest is as in `clustered_pair_difference`."""
    n, total = (days.n1, days.t1) if which == 1 else (days.n2, days.t2)
    if n <= 0:
        return None
    mean = total / n
    three = [(each.n1, each.n1n1) if which == 1 else (each.n2, each.n2n2) for each in (days, cells, tickers)]
    parts = [_squares(each, mean, which) / (n * n) for each in (days, cells, tickers)]
    sizes = [_effective(members, squares) for members, squares in three]
    found = _two_way(parts, sizes, tickers_count=sizes[2] >= ENOUGH_TICKERS)
    return _clustered(mean, found, floor=_unseen(mean, *three[1]) if rate else 0.0, scale=mean * mean)


def _two_way(parts: list[float], sizes: list[float], *, tickers_count: bool) -> tuple[float, float] | None:
    """The variance and the effective clusters, from those by day, by cell and by ticker.

    Each part is corrected by G / (G - 1), G being its effective clusters: for equal ones the usual correction, and
    more where a few clusters hold most. None where one of them is a single cluster.
    """
    counted = sizes if tickers_count else sizes[:2]
    if min(counted) <= 1:
        return None
    by = [part * size / (size - 1) for part, size in zip(parts, counted, strict=False)]
    if not tickers_count:
        return max(by), sizes[0]
    # More tickers than enough are known well enough; the days are what goes on, and time is counted by them.
    clusters = sizes[0] if sizes[2] >= ENOUGH_TICKERS else min(sizes[0], sizes[2])
    return max(*by, by[0] + by[2] - by[1]), clusters


def _clustered(value: float, found: tuple[float, float] | None, *, floor: float, scale: float) -> Clustered | None:
    if found is None:
        return None
    variance = max(found[0], floor)
    if variance <= _NOISE * scale or variance <= 0:
        return None
    # Sums of squares in floating point: five equal clusters may come out as 4.999999999.
    return Clustered(value, sqrt(variance), int(found[1] + 1e-6))


def _effective(members: float, squares: float) -> float:
    return members * members / squares if squares > 0 else 0.0


def _squares(sums: PairSums, mean: float, which: Literal[1, 2]) -> float:
    """The sum over clusters of (total - n * mean)^2 in one group."""
    nn, nt, tt = (sums.n1n1, sums.n1t1, sums.t1t1) if which == 1 else (sums.n2n2, sums.n2t2, sums.t2t2)
    return tt - 2 * mean * nt + mean * mean * nn


def _products(sums: PairSums, first: float, second: float) -> float:
    """The sum over clusters of (t1 - n1 * first) * (t2 - n2 * second)."""
    return sums.t1t2 - second * sums.t1n2 - first * sums.n1t2 + first * second * sums.n1n2


def _of_difference(sums: PairSums, first: float, second: float) -> float:
    """The variance of the difference from each cluster's influence on it; what a cluster gives both arms cancels."""
    own = _squares(sums, first, 1) / sums.n1**2 + _squares(sums, second, 2) / sums.n2**2
    return own - 2 * _products(sums, first, second) / (sums.n1 * sums.n2)


def _without_difference(sums: PairSums) -> float:
    """The variance of the difference were both arms alike: residuals around one mean, spread pooled over both.

    A residual is taken to be what a cluster's members share, of mean square `shared`, and what each has for itself, of
    mean square `own`. Where clusters have both arms, the product of their residuals tells the two apart. Where each
    has one arm nothing does, and all of it is taken as shared, which is exact for clusters of equal size.
    """
    n = sums.n1 + sums.n2
    mean = (sums.t1 + sums.t2) / n
    # Below zero where the arms differ: then there is nothing shared, and the difference itself is in the spread.
    crossed = max(0.0, _products(sums, mean, mean))
    total = max(0.0, _squares(sums, mean, 1) + _squares(sums, mean, 2)) + 2 * crossed
    squares = sums.n1n1 + sums.n2n2 + 2 * sums.n1n2
    most = total / squares
    shared = min(most, crossed / sums.n1n2) if sums.n1n2 > 0 else most
    own = max(0.0, total - shared * squares) / n
    uneven = sums.n1n1 / sums.n1**2 + sums.n2n2 / sums.n2**2 - 2 * sums.n1n2 / (sums.n1 * sums.n2)
    return shared * max(0.0, uneven) + own * (1 / sums.n1 + 1 / sums.n2)


def _unseen(rate: float, members: float, squares: float) -> float:
    """The variance of a rate from one cell of hits and one of misses that were not there."""
    return (rate * rate + (1 - rate) ** 2) / (_effective(members, squares) + 2) ** 2
