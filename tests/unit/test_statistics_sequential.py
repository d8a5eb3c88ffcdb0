"""Confidence sequences and e-processes: their formulas, how they belong together, and figures other packages gave."""

import json
from importlib import import_module
from math import asin, exp, inf, isfinite, log, pi, sin, sqrt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.statistics.clustering import Clustered
from libs.statistics.intervals import normal_quantile
from libs.statistics.sequential import (
    LEAST_CLUSTERS,
    PEAK,
    always_valid_p,
    confidence_sequence,
    lower_bound,
    mixture_variance,
    rate_evidence,
)
from tests.oracle.cases import ours
from tests.oracle.comparison import compare

integrate: Any = import_module("scipy.integrate")  # which says nothing of its types

FOUND = st.builds(Clustered, st.floats(-3, 3), st.floats(1e-3, 3), st.integers(1, 5000))
LEVELS = st.sampled_from([0.8, 0.9, 0.95, 0.99, 0.999])
BOUNDS = st.floats(0.005, 0.95)
FEW = st.integers(0, 100).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
HITS = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def unit(clusters: int) -> Clustered:
    """No difference, one unit of error."""
    return Clustered(0.0, 1.0, clusters)


@given(FOUND, LEVELS)
def test_p_is_at_most_alpha_where_the_interval_leaves_zero_out(found: Clustered, level: float) -> None:
    assume(found.value != 0)
    estimate, p_value = confidence_sequence(found, level=level), always_valid_p(found)
    assume(abs(p_value / (1 - level) - 1) > 1e-9)
    assert estimate.excludes_zero == (p_value <= 1 - level)


@given(FOUND, LEVELS)
def test_an_interval_is_symmetric_and_wider_than_a_classical_one(found: Clustered, level: float) -> None:
    estimate = confidence_sequence(found, level=level)
    half = found.error * normal_quantile(0.5 + level / 2)
    assert estimate.value == found.value
    assert estimate.high - found.value == pytest.approx(found.value - estimate.low, rel=1e-9)
    assert estimate.high - found.value > half
    assert lower_bound(found, level=level) < found.value - found.error * normal_quantile(level)


@given(FOUND, LEVELS)
def test_looking_at_one_side_alone_gives_a_nearer_bound(found: Clustered, level: float) -> None:
    assume(found.clusters >= LEAST_CLUSTERS and found.clusters <= 500 and level >= 0.9)
    assert lower_bound(found, level=level) > confidence_sequence(found, level=level).low


@given(FOUND)
def test_a_higher_level_asks_for_more(found: Clustered) -> None:
    wide, narrow = (confidence_sequence(found, level=level) for level in (0.99, 0.95))
    assert wide.low < narrow.low
    assert narrow.high < wide.high
    assert lower_bound(found, level=0.99) < lower_bound(found, level=0.95)


@given(st.integers(1, 2000), st.floats(0.05, 0.5), st.floats(1, 2000))
def test_the_p_value_is_one_over_robbins_mixture(clusters: int, z: float, peak: float) -> None:
    """The likelihood ratio of a mean drawn from N(0, rho^2), integrated number by number."""
    z, variance = 10 * z, mixture_variance(peak)
    total = z * sqrt(clusters)  # of clusters with unit variance

    def ratio(mean: float) -> float:
        at = mean * total - mean * mean * clusters / 2 - mean * mean / (2 * variance)
        return exp(at) / sqrt(2 * pi * variance)

    middle, width = total / (clusters + 1 / variance), 1 / sqrt(clusters + 1 / variance)
    mixed = float(integrate.quad(ratio, middle - 12 * width, middle + 12 * width)[0])
    assert always_valid_p(Clustered(z, 1.0, clusters), peak=peak) == pytest.approx(min(1.0, 1 / mixed), rel=1e-6)


def test_it_is_tightest_at_its_peak() -> None:
    """Times as wide as a classical interval for a fixed number of clusters would be, in standard errors."""
    at_peak = confidence_sequence(unit(int(PEAK))).high
    least = min(range(20, 1000), key=lambda clusters: confidence_sequence(unit(clusters)).high)
    assert least == pytest.approx(PEAK, rel=0.1)  # the tuning is a formula for about the best
    assert at_peak == pytest.approx(3.035, abs=0.001)
    for clusters in (20, 30, 100, 250, 1000):
        best = min(confidence_sequence(unit(clusters), peak=peak).high for peak in range(5, 3000, 5))
        assert confidence_sequence(unit(clusters)).high <= 1.1 * best


def test_without_clusters_or_difference_nothing_is_said() -> None:
    nothing = confidence_sequence(unit(0))
    assert (nothing.low, nothing.high) == (-inf, inf)
    assert lower_bound(unit(0), level=0.99) == -inf
    assert -inf < lower_bound(unit(50), level=0.5) < lower_bound(unit(50), level=0.1) < 0
    assert always_valid_p(Clustered(5.0, 1.0, 0)) == 1.0
    assert always_valid_p(unit(100)) == 1.0
    assert always_valid_p(Clustered(0.0, 0.0, 100)) == 1.0
    assert always_valid_p(Clustered(0.5, 0.0, 100)) == 0.0
    assert always_valid_p(Clustered(1e9, 1.0, 100)) == 0.0


@given(FEW, st.floats(0.02, 0.9))
def test_rate_evidence_is_the_mixture_of_likelihood_ratios_above_the_bound(
    counts: tuple[int, int], bound: float
) -> None:
    """Both integrals number by number, with u = sin^2 so that the prior is even."""
    hits, n = counts

    def ratio(angle: float) -> float:
        rate = sin(angle) ** 2
        if rate >= 1:
            return 1.0 / bound**n if hits == n else 0.0
        return exp(hits * log(rate / bound) + (n - hits) * log((1 - rate) / (1 - bound)))

    start = asin(sqrt(bound))
    middle = asin(sqrt(max(bound, hits / n))) if n else start
    points = sorted({min(pi / 2, max(start, middle + step)) for step in (-0.2, -0.05, 0, 0.05, 0.2)})
    mixed = float(integrate.quad(ratio, start, pi / 2, points=points, limit=200)[0]) / (pi / 2 - start)
    assert rate_evidence(hits, n, bound=bound) == pytest.approx(mixed, rel=1e-6)


@given(HITS, BOUNDS)
def test_on_average_evidence_grows_by_nothing_at_the_bound_and_never_below(
    counts: tuple[int, int], bound: float
) -> None:
    hits, n = counts
    now = rate_evidence(hits, n, bound=bound)
    hit, miss = rate_evidence(hits + 1, n + 1, bound=bound), rate_evidence(hits, n + 1, bound=bound)
    assume(isfinite(hit) and hit < 1e290)
    assert bound * hit + (1 - bound) * miss == pytest.approx(now, rel=1e-7)
    assert hit > miss


@given(st.integers(10, 10_000), st.floats(0, 0.2), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_evidence_against_a_bound_is_no_weaker_against_a_lower_one(
    n: int, missed: float, one: float, other: float
) -> None:
    """So a bound that is raised while counting only makes an alarm less likely."""
    hits = n - int(n * missed)
    higher = rate_evidence(hits, n, bound=max(one, other))
    assume(higher >= 20)
    assert rate_evidence(hits, n, bound=min(one, other)) >= higher * (1 - 1e-9)


def test_evidence_starts_at_one_and_takes_two_bad_answers_of_two_for_a_lot() -> None:
    assert rate_evidence(0, 0, bound=0.05) == pytest.approx(1.0)
    assert rate_evidence(2, 2, bound=0.05) == pytest.approx(175.1110500904310, rel=1e-12)
    assert rate_evidence(0, 200, bound=0.05) < 0.1


@pytest.mark.parametrize(
    ("hits", "n", "bound", "wanted"),
    [
        # Integrated with mpmath 1.3 to 60 digits.
        (0, 10, 0.05, 0.104823088337442),
        (30, 200, 0.05, 83115.6599544936),
        (1, 1_000, 0.9, 5.18287530998197e-4),
        (10, 100_000, 0.05, 1.62315114810784e-5),
        (0, 10_000_000, 0.01, 3.38284681618937e-7),
        (200_000, 10_000_000, 0.05, 2.70010271264643e-7),
        (478_000, 10_000_000, 0.05, 3.67844418255527e-6),
        (500_000, 10_000_000, 0.05, 1.47330167604284e-4),
        (503_000, 10_000_000, 0.05, 3.76564867643516),
        (5, 10_000_000, 0.999, 5.00167014290492e-8),
    ],
)
def test_evidence_of_many_answers_is_right_to_seven_digits(hits: int, n: int, bound: float, wanted: float) -> None:
    assert rate_evidence(hits, n, bound=bound) == pytest.approx(wanted, rel=2e-7)


def test_evidence_that_is_overwhelming_stays_a_number() -> None:
    assert 1e290 < rate_evidence(10_000_000, 10_000_000, bound=0.05) < inf


@pytest.mark.parametrize(("hits", "n", "bound"), [(1, 2, 0.0), (1, 2, 1.0), (3, 2, 0.5), (-1, 2, 0.5)])
def test_what_makes_no_sense_is_refused(hits: int, n: int, bound: float) -> None:
    with pytest.raises(ValueError, match=r"bound|hits"):
        rate_evidence(hits, n, bound=bound)


def test_it_agrees_with_what_gbstats_and_ville_answered() -> None:
    """Their answers as they were recorded; `make proof` asks them anew."""
    theirs = json.loads((Path(__file__).parents[1] / "oracle" / "recorded.json").read_text(encoding="utf-8"))
    assert [each for each in compare(ours(), theirs) if not each.passed] == []
