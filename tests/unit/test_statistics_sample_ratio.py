"""The sample-ratio check: scipy's chi-square, exact binomials, and cases that are in print."""

from importlib import import_module
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.statistics.sample_ratio import sample_ratio

stats: Any = import_module("scipy.stats")  # which says nothing of its types


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(0.1, 10)), min_size=2, max_size=5),
)
def test_it_is_scipys_chi_square_where_all_may_expect_five(arms: list[tuple[int, float]]) -> None:
    units, whole = sum(n for n, _ in arms), sum(weight for _, weight in arms)
    expected = [units * weight / whole for _, weight in arms]
    assume(min(expected) >= 5)
    found = sample_ratio({str(at): n for at, (n, _) in enumerate(arms)}, {str(at): w for at, (_, w) in enumerate(arms)})
    wanted = stats.chisquare([n for n, _ in arms], expected)
    assert found is not None
    assert found.chi_square == pytest.approx(float(wanted.statistic), rel=1e-9, abs=1e-9)
    assert found.p_value == pytest.approx(float(wanted.pvalue), rel=1e-9, abs=1e-300)
    assert found.freedom == len(arms) - 1
    assert found.alarm == (found.p_value < 0.001)


@pytest.mark.parametrize(
    ("counts", "weights", "p_value", "alarm"),
    [
        # Kohavi, Tang and Xu (2020), Trustworthy Online Controlled Experiments, chapter 3: a p value of 1.8e-6.
        ({"control": 821_588, "treatment": 815_482}, {"control": 50, "treatment": 50}, 1.8e-6, True),
        ({"1.0.0": 9_000, "1.1.0": 1_000}, {"1.0.0": 90, "1.1.0": 10}, 1.0, False),
        ({"1.0.0": 9_050, "1.1.0": 950}, {"1.0.0": 90, "1.1.0": 10}, 0.0956, False),
        ({"1.0.0": 9_200, "1.1.0": 800}, {"1.0.0": 90, "1.1.0": 10}, 2.6e-11, True),
    ],
)
def test_known_cases(counts: dict[str, int], weights: dict[str, float], p_value: float, alarm: bool) -> None:
    found = sample_ratio(counts, weights)
    assert found is not None
    assert found.p_value == pytest.approx(p_value, rel=0.02)
    assert found.alarm is alarm


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_few_units_get_the_exact_binomial(counts: tuple[int, int]) -> None:
    hits, n = counts
    found = sample_ratio({"a": n - hits, "b": hits}, {"a": 95, "b": 5})
    tails = [float(stats.binom.cdf(hits, n, 0.05)), float(stats.binom.sf(hits - 1, n, 0.05))]
    assert found is not None
    assert found.p_value == pytest.approx(min(1.0, 2 * min(tails)), rel=1e-9)


def test_three_of_fifty_at_one_in_a_hundred_are_no_alarm_though_chi_square_says_so() -> None:
    counts, weights = {"a": 47, "b": 3}, {"a": 99, "b": 1}
    found = sample_ratio(counts, weights)
    assert found is not None
    assert float(stats.chi2.sf(found.chi_square, 1)) < 0.001
    assert found.p_value == pytest.approx(2 * 0.0138, rel=0.01)
    assert not found.alarm


def test_an_alarm_of_few_units_among_three_arms_is_exact_for_the_furthest() -> None:
    found = sample_ratio({"a": 0, "b": 4, "c": 6}, {"a": 8, "b": 1, "c": 1})
    assert found is not None
    assert found.p_value == pytest.approx(3 * 2 * 0.2**10, rel=1e-9)
    assert found.freedom == 2


def test_an_arm_without_weight_must_have_no_units() -> None:
    assert sample_ratio({"a": 50, "b": 50, "c": 0}, {"a": 1, "b": 1, "c": 0}) == sample_ratio(
        {"a": 50, "b": 50}, {"a": 1, "b": 1}
    )
    for weights in ({"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 1.0, "b": 1.0}):
        found = sample_ratio({"a": 50, "b": 50, "c": 1}, weights)
        assert found is not None
        assert (found.p_value, found.alarm) == (0.0, True)


def test_an_arm_that_was_never_counted_counts_as_none() -> None:
    found = sample_ratio({"a": 100}, {"a": 50, "b": 50})
    assert found is not None
    assert found.alarm


def test_with_nothing_to_compare_nothing_is_said() -> None:
    assert sample_ratio({}, {"a": 1, "b": 1}) is None
    assert sample_ratio({"a": 0, "b": 0}, {"a": 1, "b": 1}) is None
    assert sample_ratio({"a": 10}, {"a": 1}) is None
    assert sample_ratio({"a": 10, "b": 5}, {"a": 1, "b": 0}) is None
