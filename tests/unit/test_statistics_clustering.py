"""Two-way clustered errors: against a regression done by hand, against one-way ones, and where nothing can be said."""

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.statistics.clustering import (
    ENOUGH_TICKERS,
    PairSums,
    clustered_pair_difference,
    clustered_pair_mean,
)
from libs.statistics.intervals import Cluster, clustered_mean, student_quantile

regression: Any = import_module("statsmodels.regression.linear_model")  # which say nothing of their types
sandwiches: Any = import_module("statsmodels.stats.sandwich_covariance")

Row = tuple[int, int, int, float]  # day, ticker, arm (1 or 2), value
Three = tuple[PairSums, PairSums, PairSums]

ROWS = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 4), st.integers(1, 2), st.integers(-9, 9).map(float)),
    min_size=2,
    max_size=60,
)


def of_day(row: Row) -> int:
    return row[0]


def of_ticker(row: Row) -> int:
    return row[1]


def of_cell(row: Row) -> tuple[int, int]:
    return row[0], row[1]


def summed(rows: Sequence[Row], name: Callable[[Row], object]) -> PairSums:
    """Sums over the clusters that `name` makes of the rows."""
    sums: dict[object, list[float]] = {}
    for row in rows:
        mine = sums.setdefault(name(row), [0.0] * 4)
        mine[2 * row[2] - 2] += 1
        mine[2 * row[2] - 1] += row[3]
    return PairSums.of(*np.array(list(sums.values())).T)


def three(rows: Sequence[Row]) -> Three:
    return summed(rows, of_day), summed(rows, of_ticker), summed(rows, of_cell)


def grid(days: int, tickers: int, value: Callable[[int, int, int], float], *, by: str = "cell") -> list[Row]:
    """Two members in every cell: one of each arm, or both of the arm that the cell or the ticker has."""
    arms: dict[str, Callable[[int, int], tuple[int, ...]]] = {
        "forecast": lambda day, ticker: (1, 2),
        "cell": lambda day, ticker: ((day + ticker) % 2 + 1,) * 2,
        "ticker": lambda day, ticker: (ticker % 2 + 1,) * 2,
    }
    return [
        (day, ticker, arm, value(day, ticker, arm))
        for day in range(days)
        for ticker in range(tickers)
        for arm in arms[by](day, ticker)
    ]


def sandwich(rows: Sequence[Row], names: Sequence[object]) -> float:
    """The variance of the slope on a dummy of the second arm, errors clustered by name; no correction."""
    x = np.array([[1.0, float(row[2] == 2)] for row in rows])
    y = np.array([row[3] for row in rows])
    bread = np.linalg.inv(x.T @ x)
    left = y - x @ (bread @ x.T @ y)
    meat = np.zeros((2, 2))
    for name in set(names):
        at = np.array([each == name for each in names])
        score = x[at].T @ left[at]
        meat += np.outer(score, score)
    return float((bread @ meat @ bread)[1, 1])


def kish(sizes: Counter[object]) -> float:
    return sizes.total() ** 2 / sum(n * n for n in sizes.values())


def corrected(rows: Sequence[Row], name: Callable[[Row], object]) -> float:
    """The same with G / (G - 1), G being the effective clusters of the arm that has fewer."""
    names = [name(row) for row in rows]
    sizes = [kish(Counter(each for row, each in zip(rows, names, strict=True) if row[2] == arm)) for arm in (1, 2)]
    return sandwich(rows, names) * min(sizes) / (min(sizes) - 1)


@given(ROWS)
def test_without_enough_tickers_the_error_is_at_least_those_of_regressions_by_day_and_by_cell(rows: list[Row]) -> None:
    days, tickers, cells = three(rows)
    assume(tickers.n1n2 > 0)
    found = clustered_pair_difference(days, tickers, cells)
    assume(found is not None)
    assert found is not None
    by = [corrected(rows, of_day), corrected(rows, of_cell)]
    means = [np.mean([row[3] for row in rows if row[2] == arm]) for arm in (1, 2)]
    assert found.value == pytest.approx(float(means[1] - means[0]), abs=1e-9)
    assert found.error**2 >= max(by) - 1e-9


def test_with_enough_tickers_the_variance_is_by_day_plus_by_ticker_less_by_cell() -> None:
    chance = np.random.default_rng(3)
    day, ticker = chance.normal(0, 1, (30, 2)), chance.normal(0, 1, (40, 2))
    rows = grid(
        30, 40, lambda at, on, arm: float(day[at, arm - 1] + ticker[on, arm - 1] + chance.normal()), by="forecast"
    )
    found = clustered_pair_difference(*three(rows))
    by = [corrected(rows, name) for name in (of_day, of_ticker, of_cell)]
    assert found is not None
    assert found.error**2 == pytest.approx(by[0] + by[1] - by[2], rel=1e-9)
    assert found.error**2 > max(by)
    assert found.clusters == 30


def test_it_is_the_two_way_variance_of_statsmodels() -> None:
    """The same without its small-sample correction, on cells of equal size."""
    chance = np.random.default_rng(8)
    day, ticker = chance.normal(0, 1, (24, 2)), chance.normal(0, 1, (24, 2))
    rows = grid(
        24, 24, lambda at, on, arm: float(day[at, arm - 1] + ticker[on, arm - 1] + chance.normal()), by="forecast"
    )
    x = np.array([[1.0, float(row[2] == 2)] for row in rows])
    fit = regression.OLS(np.array([row[3] for row in rows]), x).fit()
    groups = [np.array([row[at] for row in rows]) for at in (0, 1)]
    both, by_day, by_ticker = sandwiches.cov_cluster_2groups(fit, *groups, use_correction=False)
    by_cell = by_day + by_ticker - both
    found = clustered_pair_difference(*three(rows))
    assert found is not None
    wanted = (by_day[1, 1] + by_ticker[1, 1]) * 24 / 23 - by_cell[1, 1] * 576 / 575
    assert found.value == pytest.approx(float(fit.params[1]), rel=1e-9)
    assert found.error**2 == pytest.approx(float(wanted), rel=1e-9)


def test_a_variance_that_comes_out_too_small_is_that_of_its_largest_part() -> None:
    """Values that turn with day plus ticker cancel within days and within tickers, but not within cells."""
    rows = grid(30, 30, lambda at, on, arm: float((-1) ** (at + on)) * (arm == 2), by="forecast")
    by = [corrected(rows, name) for name in (of_day, of_ticker, of_cell)]
    assert by[0] + by[1] - by[2] < 0
    found = clustered_pair_difference(*three(rows))
    assert found is not None
    assert found.error**2 >= by[2] - 1e-12


@given(ROWS)
def test_the_mean_of_an_arm_with_few_tickers_is_at_least_the_one_way_interval_of_its_days(rows: list[Row]) -> None:
    found = clustered_pair_mean(*three(rows), which=1)
    days = [
        Cluster(len(mine), sum(mine))
        for mine in ([row[3] for row in rows if row[0] == day and row[2] == 1] for day in range(8))
    ]
    used = [day for day in days if day.n]
    one_way = clustered_mean(days)
    if found is None or one_way is None:
        assert len(used) < 2 or found is None
        return
    half = (one_way.high - one_way.low) / 2 / student_quantile(0.975, freedom=len(used) - 1)
    assert found.value == pytest.approx(one_way.value, abs=1e-9)
    assert found.error >= half - 1e-6
    assert found.clusters <= len(used)


def test_equal_days_give_the_usual_error_of_a_mean() -> None:
    rows = [(day, 0, arm, float(day % 3)) for day in range(12) for arm in (1, 2)]
    found = clustered_pair_mean(*three(rows), which=2)
    values = np.array([day % 3 for day in range(12)], dtype=float)
    assert found is not None
    assert found.error == pytest.approx(float(values.std(ddof=1)) / sqrt(12), rel=1e-9)
    assert found.clusters == 12


@given(ROWS)
def test_arms_exchanged_turn_the_sign_and_keep_the_error(rows: list[Row]) -> None:
    there = clustered_pair_difference(*three(rows))
    back = clustered_pair_difference(*three([(day, ticker, 3 - arm, value) for day, ticker, arm, value in rows]))
    if there is None or back is None:
        assert there is None
        assert back is None
        return
    assert back.value == pytest.approx(-there.value, abs=1e-9)
    assert back.error == pytest.approx(there.error, rel=1e-6)
    assert back.clusters == there.clusters


@given(ROWS, st.floats(0.1, 1000), st.floats(-50, 50))
def test_another_unit_of_the_value_is_another_unit_of_the_error(rows: list[Row], scale: float, shift: float) -> None:
    there = clustered_pair_difference(*three(rows))
    other = clustered_pair_difference(*three([(day, on, arm, shift + scale * value) for day, on, arm, value in rows]))
    if there is None or other is None:
        return
    assert other.value == pytest.approx(scale * there.value, rel=1e-6, abs=1e-6)
    assert other.error == pytest.approx(scale * there.error, rel=1e-5, abs=1e-6)


def test_a_day_that_both_arms_share_cancels() -> None:
    chance = np.random.default_rng(4)
    weather = chance.normal(0, 100, 40)
    own = chance.normal(0, 1, (40, 5, 3))
    calm, stormy = (
        clustered_pair_difference(
            *three(grid(40, 5, lambda at, on, arm: float(own[at, on, arm] + loud * weather[at]), by="forecast"))  # noqa: B023
        )
        for loud in (0, 1)
    )
    assert calm is not None
    assert stormy is not None
    assert stormy.value == pytest.approx(calm.value)
    assert stormy.error == pytest.approx(calm.error, rel=0.05)


def test_tickers_drawn_once_for_all_are_what_counts_however_few() -> None:
    chance = np.random.default_rng(5)
    ways = chance.normal(0, 1, 6)
    rows = grid(200, 6, lambda at, on, arm: float(ways[on] + 0.01 * chance.normal()), by="ticker")
    found = clustered_pair_difference(*three(rows))
    assert found is not None
    assert found.clusters == 3
    # What three tickers a side can say: Welch's error of two samples of three.
    welch = sqrt((ways[0::2].var(ddof=1) + ways[1::2].var(ddof=1)) / 3)
    assert found.error >= 0.9 * welch


def test_with_enough_tickers_the_days_go_on_counting_time() -> None:
    chance = np.random.default_rng(6)
    rows = grid(60, 2 * ENOUGH_TICKERS, lambda at, on, arm: float(chance.normal()), by="ticker")
    found = clustered_pair_difference(*three(rows))
    assert found is not None
    assert found.clusters == 60


def test_an_arm_seen_on_few_days_has_as_few_clusters() -> None:
    rows = [(day, ticker, 1, float(day + ticker)) for day in range(50) for ticker in range(5)]
    rows += [(day, ticker, 2, float(day * ticker)) for day in range(3) for ticker in range(5)]
    found = clustered_pair_difference(*three(rows))
    assert found is not None
    assert found.clusters == 3


def test_a_small_arm_that_has_not_met_what_is_rare_is_not_taken_for_one_that_never_will() -> None:
    """Ten failures in a thousand of the control, none yet in the candidate's hundred: nothing is known."""
    rows = [(at % 100, at % 5, 1, float(at % 100 == 7)) for at in range(1000)]
    rows += [(at, at % 5, 2, 0.0) for at in range(100)]
    found = clustered_pair_difference(*three(rows))
    assert found is not None
    assert found.value == pytest.approx(-0.01)
    assert found.error >= 0.009
    alone = sandwich(rows, [row[:2] for row in rows])
    assert sqrt(alone) < 0.02


def test_what_never_varies_says_nothing_unless_it_is_a_rate() -> None:
    rows = grid(40, 6, lambda at, on, arm: 1.0)
    assert clustered_pair_difference(*three(rows)) is None
    assert clustered_pair_mean(*three(rows), which=1) is None
    found = clustered_pair_difference(*three(rows), rate=True)
    mean = clustered_pair_mean(*three(rows), which=2, rate=True)
    assert found is not None
    assert mean is not None
    assert (found.value, mean.value) == (0.0, 1.0)
    unseen = 1 / (40 * 6 / 2 + 2)  # one cell of misses that has not come, beside half of all cells and one of hits
    assert mean.error == pytest.approx(unseen, rel=1e-9)
    assert found.error == pytest.approx(sqrt(2) * unseen, rel=1e-9)


def test_a_rate_in_the_middle_is_hardly_less_certain_for_what_is_unseen() -> None:
    chance = np.random.default_rng(9)
    rows = grid(60, 6, lambda at, on, arm: float(chance.random() < 0.5))
    with_it, without = (clustered_pair_difference(*three(rows), rate=rate) for rate in (True, False))
    assert with_it == without


def test_arms_that_are_all_and_nothing_differ_by_one_with_an_error() -> None:
    found = clustered_pair_difference(*three(grid(40, 5, lambda at, on, arm: float(arm == 2), by="forecast")))
    assert found is not None
    assert found.value == 1.0
    assert 0 < found.error < 0.1


def test_rounding_of_large_values_is_not_taken_for_a_spread() -> None:
    assert clustered_pair_difference(*three(grid(40, 5, lambda at, on, arm: 1234567.1))) is None


def test_what_cannot_be_said_is_none() -> None:
    empty = PairSums.of([0], [0], [0], [0])
    assert clustered_pair_difference(empty, empty, empty) is None
    assert clustered_pair_mean(empty, empty, empty, which=1) is None
    one_arm = three([(day, 0, 1, float(day)) for day in range(9)])
    assert clustered_pair_difference(*one_arm) is None
    assert clustered_pair_mean(*one_arm, which=2) is None
    assert clustered_pair_mean(*one_arm, which=1) is not None
    one_day = three([(0, ticker, arm, float(ticker)) for ticker in range(9) for arm in (1, 2)])
    assert clustered_pair_difference(*one_day) is None


def test_sums_are_sums() -> None:
    assert PairSums.of([1, 2, 0], [3, 4, 0], [5, 0, 0], [6, 0, 0]) == PairSums(
        clusters=2,
        n1=3, n2=5, t1=7, t2=6,
        n1n1=5, n1t1=11, t1t1=25, n2n2=25, n2t2=30, t2t2=36,
        n1n2=5, n1t2=6, t1n2=15, t1t2=18,
    )  # fmt: skip
