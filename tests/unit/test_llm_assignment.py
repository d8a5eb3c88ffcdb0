"""100,000 units, 200 tickers over 500 days: the draw is even, and nothing about a unit tells its arm."""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from libs.llm.experiments import pick, point

Points: TypeAlias = NDArray[np.float64]

TICKERS, DAYS = 200, 500
LEAST_P = 0.001
"""The draw is fixed, so each of these tests holds or fails for good; a fair draw fails one of them once in 1,000."""
STATS: Any = scipy.stats  # carries no types


@cache
def points(key: str) -> Points:
    """Where each ticker's days fall in the experiments of a key, in the shape (tickers, days)."""
    first = datetime(2013, 1, 2, tzinfo=UTC)
    days = [(first + timedelta(days=day)).date().isoformat() for day in range(DAYS)]
    return np.array([[point(key, f"T{ticker:03d}|{day}") for day in days] for ticker in range(TICKERS)])


def as_expected(counts: Any, expected: Any = None) -> float:
    """The p value of counts that should be as expected, alike where nothing is."""
    return float(STATS.chisquare(counts, expected).pvalue)


def independent(first: Points, second: Points) -> float:
    """The p value of two rows of points telling nothing about each other, over a table of ten by ten."""
    table, _, _ = np.histogram2d(first.ravel(), second.ravel(), bins=10, range=[(0, 1), (0, 1)])
    return float(STATS.chi2_contingency(table).pvalue)


@pytest.mark.parametrize("key", ["policy", "rationale"])
@pytest.mark.parametrize("bins", [2, 10, 100])
def test_points_are_uniform(key: str, bins: int) -> None:
    counts, _ = np.histogram(points(key), bins=bins, range=(0, 1))
    assert counts.sum() == 100_000
    assert as_expected(counts) > LEAST_P


def test_shares_are_as_configured() -> None:
    arms = (("1.0.0", 90.0), ("1.1.0", 9.0), ("1.2.0", 1.0))
    given_arms = [pick(arms, float(at)) for at in points("policy").ravel()]
    counts = [given_arms.count(version) for version, _ in arms]
    assert as_expected(counts, [90_000, 9_000, 1_000]) > LEAST_P


def test_one_key_tells_nothing_about_another() -> None:
    assert independent(points("policy"), points("rationale")) > LEAST_P


@pytest.mark.parametrize("lag", [1, 2, 5, 10, 100])
def test_one_day_tells_nothing_about_a_later_one(lag: int) -> None:
    drawn = points("policy")
    assert independent(drawn[:, :-lag], drawn[:, lag:]) > LEAST_P


@pytest.mark.parametrize("lag", [1, 10, 100])
def test_one_ticker_tells_nothing_about_another(lag: int) -> None:
    drawn = points("policy")
    assert independent(drawn[:-lag], drawn[lag:]) > LEAST_P


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("axis", [0, 1], ids=["days", "tickers"])
def test_no_day_and_no_ticker_is_favoured(share: float, axis: int) -> None:
    drawn = points("policy") < share
    hits = drawn.sum(axis=axis)
    assert float(STATS.chi2_contingency(np.stack([hits, drawn.shape[axis] - hits])).pvalue) > LEAST_P
