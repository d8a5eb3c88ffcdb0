"""Intervals of quantiles: ranks from tables, the promised coverage summed up exactly, and what few values tell."""

from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.statistics.quantiles import quantile, ranks

stats: Any = import_module("scipy.stats")  # which says nothing of its types


@pytest.mark.parametrize(
    ("n", "wanted"),
    # A table of intervals for the median in print: the narrowest symmetric ones of at least 95 %.
    [
        (6, (1, 6)),
        (9, (2, 8)),
        (10, (2, 9)),
        (12, (3, 10)),
        (15, (4, 12)),
        (17, (5, 13)),
        (20, (6, 15)),
        (100, (40, 61)),
    ],
)
def test_ranks_of_the_median_are_those_of_a_table(n: int, wanted: tuple[int, int]) -> None:
    assert ranks(n, 0.5) == wanted


@pytest.mark.parametrize("n", [30, 200, 1_000, 5_000])
@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95, 0.99])
def test_each_end_is_the_narrowest_that_misses_as_rarely_as_promised(n: int, probability: float) -> None:
    low, high = ranks(n, probability)
    below = stats.binom(n, probability)
    if low is not None:
        assert below.cdf(low - 1) <= 0.025 < below.cdf(low)
    else:
        assert below.cdf(0) > 0.025
    if high is not None:
        assert below.sf(high - 1) <= 0.025 < below.sf(high - 2)
    else:
        assert below.sf(n - 1) > 0.025


def test_few_values_have_no_upper_end_far_out() -> None:
    found = quantile(np.arange(60.0), 0.95)
    assert found is not None
    assert found.high is None
    assert found.low == 52.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80), st.sampled_from([0.5, 0.95, 0.99]))
def test_the_value_lies_between_its_ends_and_the_ends_among_the_values(values: list[float], probability: float) -> None:
    found = quantile(values, probability)
    assert found is not None
    assert found.value == np.quantile(values, probability, method="inverted_cdf")
    for end in (found.low, found.high):
        assert end is None or end in values
    assert found.low is None or found.low <= found.value
    assert found.high is None or found.high >= found.value


def test_no_values_have_no_quantile() -> None:
    assert quantile([], 0.5) is None


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1])
def test_a_probability_lies_between(probability: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile([1.0], probability)


@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_values_that_come_several_times_tell_no_more_than_once(times: int, probability: float) -> None:
    values = [float(value) for value in range(137)]
    assert quantile(values * times, probability, effect=times) == quantile(values, probability)


def test_the_more_values_hang_together_the_wider_the_interval() -> None:
    found = [quantile(range(1_000), 0.5, effect=effect) for effect in (1, 1.5, 4, 20)]
    ends = [(each.low, each.high) for each in found if each is not None and each.low is not None and each.high]
    assert len(ends) == 4
    assert all(wide[0] < narrow[0] and wide[1] > narrow[1] for narrow, wide in pairwise(ends))


def test_no_effect_is_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        quantile([1.0], 0.5, effect=0.5)
