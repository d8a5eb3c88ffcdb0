"""Rates over repeated cases: Wilson's interval where nothing repeats, and no free proof from asking twice."""

import random
from importlib import import_module
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.statistics.intervals import wilson
from libs.statistics.repeats import repeated_rate

proportion: Any = import_module("statsmodels.stats.proportion")  # which says nothing of its types

REPEATED = st.integers(1, 8).flatmap(
    lambda each: st.tuples(st.just(each), st.lists(st.integers(0, each), min_size=1, max_size=60))
)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 300), (300, 300), (299, 300), (17, 40), (1, 2)])
def test_asked_once_each_it_is_wilsons_interval_as_statsmodels_has_it(hits: int, n: int) -> None:
    found = repeated_rate([1] * n, [1] * hits + [0] * (n - hits))
    assert found is not None
    low, high = proportion.proportion_confint(hits, n, method="wilson")
    assert found.value == pytest.approx(hits / n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_zero_failures_in_300_prove_98_7_percent() -> None:
    found = repeated_rate([1] * 300, [1] * 300)
    assert found is not None
    assert found.low == pytest.approx(0.987, abs=5e-4)


@pytest.mark.parametrize(("hits", "cases"), [(20, 20), (0, 20), (13, 20), (59, 60)])
def test_repeats_that_are_all_alike_tell_as_much_as_the_cases(hits: int, cases: int) -> None:
    found = repeated_rate([10] * cases, [10] * hits + [0] * (cases - hits))
    wanted = wilson(hits, cases)
    assert found is not None
    assert wanted is not None
    assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high))


def test_repeats_that_fail_by_themselves_tell_nearly_as_much_as_cases_of_their_own() -> None:
    throw = random.Random(4)
    totals = [sum(throw.random() < 0.8 for _ in range(3)) for _ in range(2_000)]
    found, alone = repeated_rate([3] * 2_000, totals), wilson(sum(totals), 6_000)
    assert found is not None
    assert alone is not None
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.06)


@given(REPEATED)
def test_it_lies_between_that_of_the_cases_and_that_of_all_answers(repeated: tuple[int, list[int]]) -> None:
    each, totals = repeated
    n, hits = each * len(totals), sum(totals)
    found = repeated_rate([each] * len(totals), totals)
    widest, narrowest = wilson(hits / each, len(totals)), wilson(hits, n)
    assert found is not None
    assert widest is not None
    assert narrowest is not None
    assert found.value == pytest.approx(hits / n)
    assert widest.low - 1e-9 <= found.low <= narrowest.low + 1e-9
    assert narrowest.high - 1e-9 <= found.high <= widest.high + 1e-9


@given(REPEATED)
def test_hits_and_misses_mirror_each_other(repeated: tuple[int, list[int]]) -> None:
    each, totals = repeated
    found = repeated_rate([each] * len(totals), totals)
    missed = repeated_rate([each] * len(totals), [each - total for total in totals])
    assert found is not None
    assert missed is not None
    assert (found.low, found.high) == pytest.approx((1 - missed.high, 1 - missed.low), abs=1e-9)


def test_cases_without_an_answer_count_for_nothing() -> None:
    assert repeated_rate([3, 0, 2], [3, 0, 1]) == repeated_rate([3, 2], [3, 1])
    assert repeated_rate([0, 0], [0, 0]) is None


@given(st.integers(1, 5), st.integers(1, 5))
def test_more_hits_than_answers_are_refused(n: int, more: int) -> None:
    assume(more)
    with pytest.raises(ValueError, match="more hits than answers"):
        repeated_rate([n], [n + more])
