"""Paired answers: p values agree with scipy's and statsmodels', intervals with a likelihood maximised by hand."""

from importlib import import_module
from math import log, sqrt
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.statistics.intervals import LEVEL, normal_quantile, wilson
from libs.statistics.paired import mcnemar, paired_difference

stats: Any = import_module("scipy.stats")  # which say nothing of their types
optimize: Any = import_module("scipy.optimize")
tables: Any = import_module("statsmodels.stats.contingency_tables")

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (7, 1), (9, 2), (10, 10), (40, 20), (0, 25), (300, 250)])
def test_p_is_that_of_a_fair_coin_and_of_statsmodels(first: int, second: int) -> None:
    found = mcnemar(first, second)
    if first + second:
        assert found == pytest.approx(stats.binomtest(first, first + second, 0.5).pvalue, rel=1e-9)
        table = [[50, first], [second, 70]]
        assert found == pytest.approx(tables.mcnemar(table, exact=True).pvalue, rel=1e-9)
    else:
        assert found == 1.0
    assert found == mcnemar(second, first)


@pytest.mark.parametrize(
    ("first", "second", "n", "low", "high"),
    [
        # Airway hyper-responsiveness before and after, in Fagerland, Lydersen and Laake (2014): -0.517 to -0.026.
        (1, 7, 21, -0.517, -0.026),
        # By hand, in the limit of Tango's equations where no pair differs: z^2 / (n + z^2).
        (0, 0, 30, -0.1135, 0.1135),
    ],
)
def test_intervals_known_from_elsewhere(first: int, second: int, n: int, low: float, high: float) -> None:
    found = paired_difference(first, second, n=n)
    assert found is not None
    assert found.value == pytest.approx((first - second) / n)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))


def by_hand(difference: float, first: int, second: int, n: int) -> float:
    """The score statistic, from the likeliest rates under the difference, found by search instead of by formula."""

    def unlikely(rate: float) -> float:
        both = (first, rate + difference), (second, rate), (n - first - second, 1 - 2 * rate - difference)
        return -sum(count * log(max(chance, 1e-300)) for count, chance in both if count)

    least, most = max(0.0, -difference), (1 - difference) / 2
    found = optimize.minimize_scalar(unlikely, bounds=(least, most), method="bounded", options={"xatol": 1e-12})
    variance = n * (2 * found.x + difference * (1 - difference))
    return (first - second - n * difference) / sqrt(variance)


@pytest.mark.parametrize(("first", "second", "n"), [(40, 20, 160), (1, 7, 21), (12, 2, 50), (3, 3, 400), (90, 5, 100)])
def test_the_ends_are_where_the_score_test_of_the_likeliest_rates_turns(first: int, second: int, n: int) -> None:
    found = paired_difference(first, second, n=n)
    assert found is not None
    z = normal_quantile(0.5 + LEVEL / 2)
    assert by_hand(found.low, first, second, n) == pytest.approx(z, abs=1e-4)
    assert by_hand(found.high, first, second, n) == pytest.approx(-z, abs=1e-4)


@given(COUNTS)
def test_it_holds_the_estimate_stays_in_bounds_and_turns_with_the_sides(counts: tuple[int, int, int]) -> None:
    first, second, alike = counts
    n = first + second + alike
    assume(n)
    found, turned = paired_difference(first, second, n=n), paired_difference(second, first, n=n)
    assert found is not None
    assert turned is not None
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert (turned.low, turned.high) == (pytest.approx(-found.high, abs=1e-9), pytest.approx(-found.low, abs=1e-9))


@given(COUNTS)
def test_it_leaves_zero_out_exactly_where_mcnemars_statistic_is_beyond_the_quantile(
    counts: tuple[int, int, int],
) -> None:
    first, second, alike = counts
    assume(first + second)
    found = paired_difference(first, second, n=first + second + alike)
    assert found is not None
    z = abs(first - second) / sqrt(first + second)
    assume(abs(z - normal_quantile(0.975)) > 1e-9)
    assert found.excludes_zero == (z > normal_quantile(0.975))


def test_pairs_that_always_differ_are_told_as_a_rate() -> None:
    """Where every pair is discordant, the difference is twice a rate less one, and so is its interval."""
    found, rate = paired_difference(30, 10, n=40), wilson(30, 40)
    assert found is not None
    assert rate is not None
    assert found.low <= 2 * rate.low - 1 + 0.02
    assert found.value == 2 * rate.value - 1


def test_no_pairs_have_no_difference() -> None:
    assert paired_difference(0, 0, n=0) is None


@pytest.mark.parametrize(("first", "second", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_counts_that_cannot_be_are_refused(first: int, second: int, n: int) -> None:
    with pytest.raises(ValueError, match="discordant pairs of 5"):
        paired_difference(first, second, n=n)


def test_a_count_below_zero_has_no_p() -> None:
    with pytest.raises(ValueError, match="below zero: -1 and 2"):
        mcnemar(-1, 2)
