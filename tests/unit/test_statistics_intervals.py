"""Intervals agree with scipy's, or with a regression done by hand, and hold the truth as often as they say."""

import random
from importlib import import_module
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.statistics.intervals import (
    Cluster,
    Estimate,
    clustered_difference,
    clustered_mean,
    clustered_rate,
    student_quantile,
    wilson,
)

stats: Any = import_module("scipy.stats")  # which says nothing of its types

VALUES = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 6))
DAYS = st.lists(st.lists(VALUES, max_size=6), min_size=2, max_size=12)
LEVELS = st.sampled_from([0.8, 0.9, 0.95, 0.99])


def clusters(days: list[list[float]]) -> list[Cluster]:
    return [Cluster(len(day), sum(day)) for day in days]


def close(found: Estimate | None, *, value: float, low: float, high: float) -> None:
    assert found is not None
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)


def regression(rows: list[tuple[int, list[float], float]], *, level: float) -> tuple[float, float, float]:
    """The last coefficient of a least squares fit on rows of (cluster, regressors, value), errors clustered (CR1)."""
    x, y = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    bread = np.linalg.inv(x.T @ x)
    beta = bread @ x.T @ y
    names = sorted({row[0] for row in rows})
    scores = [x[at].T @ (y[at] - x[at] @ beta) for at in ([row[0] == name for row in rows] for name in names)]
    n, k, g = len(y), x.shape[1], len(names)
    meat = sum((np.outer(score, score) for score in scores), np.zeros((k, k)))
    variance = bread @ meat @ bread * (g / (g - 1)) * ((n - 1) / (n - k))
    half = float(stats.t.ppf(0.5 + level / 2, g - 1)) * float(np.sqrt(max(0.0, variance[-1, -1])))
    return float(beta[-1]), float(beta[-1]) - half, float(beta[-1]) + half


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), LEVELS)
def test_wilson_is_scipys(counts: tuple[int, int], level: float) -> None:
    hits, n = counts
    wanted = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    close(wilson(hits, n, level=level), value=hits / n, low=wanted.low, high=wanted.high)


@given(st.floats(0.5, 500), st.floats(0, 1))
def test_wilson_of_an_effective_size_stays_within_its_bounds(n: float, rate: float) -> None:
    found = wilson(rate * n, n)
    assert found is not None
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


@given(st.lists(VALUES, min_size=2, max_size=30), LEVELS)
def test_a_mean_with_one_member_a_cluster_is_the_classical_interval(values: list[float], level: float) -> None:
    error = float(stats.sem(values))
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * error
    mean = sum(values) / len(values)
    close(clustered_mean(clusters([[v] for v in values]), level=level), value=mean, low=mean - half, high=mean + half)


@given(DAYS, LEVELS)
def test_a_mean_is_the_constant_of_a_regression_with_clustered_errors(days: list[list[float]], level: float) -> None:
    rows = [(number, [1.0], value) for number, day in enumerate(days) for value in day]
    if sum(1 for day in days if day) < 2:
        assert clustered_mean(clusters(days), level=level) is None
        return
    value, low, high = regression(rows, level=level)
    close(clustered_mean(clusters(days), level=level), value=value, low=low, high=high)


@given(st.lists(st.tuples(st.lists(VALUES, max_size=4), st.lists(VALUES, max_size=4)), min_size=2, max_size=10), LEVELS)
def test_a_difference_is_the_slope_of_a_regression_with_clustered_errors(
    days: list[tuple[list[float], list[float]]], level: float
) -> None:
    rows = [
        (number, [1.0, float(group)], value)
        for number, day in enumerate(days)
        for group, values in ((1, day[0]), (0, day[1]))
        for value in values
    ]
    groups = {row[1][1] for row in rows}
    first, second = clusters([day[0] for day in days]), clusters([day[1] for day in days])
    if len(groups) < 2 or len({row[0] for row in rows}) < 2 or len(rows) < 3:
        assert clustered_difference(first, second, level=level) is None
        return
    value, low, high = regression(rows, level=level)
    close(clustered_difference(first, second, level=level), value=value, low=low, high=high)


@given(DAYS, DAYS)
def test_a_difference_turned_round_has_the_other_sign(one: list[list[float]], two: list[list[float]]) -> None:
    length = min(len(one), len(two))
    first, second = clusters(one[:length]), clusters(two[:length])
    there, back = clustered_difference(first, second), clustered_difference(second, first)
    assume(there is not None and back is not None)
    assert there is not None
    close(back, value=-there.value, low=-there.high, high=-there.low)


@given(DAYS)
def test_members_that_move_together_make_a_rate_less_certain_and_never_more(days: list[list[float]]) -> None:
    hits = [Cluster(len(day), sum(1 for value in day if value > 0)) for day in days]
    found = clustered_rate(hits)
    members = list(chain.from_iterable(days))
    plain = wilson(sum(1 for value in members if value > 0), len(members))
    if plain is None:
        assert found is None
        return
    assert found is not None
    assert found.value == pytest.approx(plain.value)
    assert found.low <= plain.low + 1e-12
    assert found.high >= plain.high - 1e-12


def test_a_rate_of_days_that_are_all_or_nothing_is_about_that_of_the_days() -> None:
    found = clustered_rate([Cluster(50, 50.0 * (day % 2)) for day in range(40)])
    of_days = wilson(20, 40)
    assert found is not None
    assert of_days is not None
    assert found.low == pytest.approx(of_days.low, abs=0.01)


def test_the_interval_of_the_mean_holds_the_truth_about_as_often_as_it_says() -> None:
    held, runs, chance = 0, 600, random.Random(7)
    for _ in range(runs):
        days: list[list[float]] = []
        for _day in range(20):
            weather = chance.gauss(0, 1)
            days.append([0.3 + weather + chance.gauss(0, 1) for _ in range(chance.randint(3, 7))])
        found = clustered_mean(clusters(days))
        assert found is not None
        held += found.low <= 0.3 <= found.high
    assert 0.92 <= held / runs <= 0.98


def test_what_cannot_be_said_is_none() -> None:
    assert wilson(0, 0) is None
    assert clustered_rate([]) is None
    assert clustered_rate([Cluster(0, 0)]) is None
    assert clustered_mean([Cluster(5, 1.0)]) is None
    assert clustered_mean([Cluster(5, 1.0), Cluster(0, 0)]) is None
    assert clustered_difference([Cluster(3, 1.0)], [Cluster(3, 1.0)]) is None
    assert clustered_difference([Cluster(3, 1.0)] * 2, [Cluster(0, 0.0)] * 2) is None


def test_an_estimate_says_on_which_side_of_zero_it_lies() -> None:
    assert Estimate(1, 0.5, 1.5).excludes_zero
    assert Estimate(-1, -1.5, -0.5).excludes_zero
    assert not Estimate(0.1, -0.5, 0.7).excludes_zero


def test_quantiles_are_scipys() -> None:
    assert student_quantile(0.975, freedom=9) == pytest.approx(float(stats.t.ppf(0.975, 9)))
