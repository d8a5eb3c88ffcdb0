"""Arms that are equal are called different no more often than alpha, however often one looks.

AA_RUNS sets the number of simulated experiments of each kind, 200 by default.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import gammaln

from libs.exposures.evidence import worse_than_both
from libs.exposures.report import report
from libs.exposures.sums import MetricSums, PhaseSums
from libs.llm.experiments import METRICS, Experiment
from libs.statistics.clustering import Clustered, clustered_pair_difference, clustered_pair_mean
from libs.statistics.intervals import student_quantile
from libs.statistics.sample_ratio import sample_ratio
from libs.statistics.sequential import (
    LEAST_CLUSTERS,
    LEAST_CLUSTERS_OF_A_MEAN,
    confidence_sequence,
    lower_bound,
    rate_evidence,
)
from tests.statistics.rates import RATE, RUNS, Note, noted
from tests.statistics.worlds import Look, World, runs, true_difference, true_means

ALPHA = 0.05
GUARD_ALPHA = 0.01

WORLDS = [
    World("rate"),
    World("rate", tickers=50, days=80),
    World("rate", level=4.5, share=0.1),
    World("rate", level=4.5, tickers=50, share=0.02, days=80),
    World("rate", level=-4.5, unit="forecast", share=0.1),
    World("rate", level=-4.5, unit="forecast", tickers=50, share=0.02, days=80),
    World("skewed", share=0.1),
    World("skewed", unit="forecast", share=0.02),
    World("normal", share=0.1),
    World("normal", tickers=50, days=80),
    World("heavy", share=0.1),
    World("heavy", unit="ticker", tickers=60, days=60),
    World("rate", unit="ticker", tickers=60, days=60, level=2.0),
    World("normal", unit="forecast", tickers=50, days=80, share=0.1),
]
"""Not a fiftieth of five tickers by day: such an arm has fewer than twenty days in all, and nothing is looked at."""


def found_in(looks: Iterator[Look], world: World) -> Iterator[Clustered]:
    """What the statistics have to say after each day on which they say something."""
    for look in looks:
        found = clustered_pair_difference(*look, rate=world.kind == "rate")
        if found is not None and found.clusters >= LEAST_CLUSTERS:
            yield found


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_equal_arms_are_called_different_no_more_often_than_alpha(world: World, record_property: Note) -> None:
    seen = alarms = bounds = 0
    for looks in runs(world, RUNS, seed=11):
        found = list(found_in(looks, world))
        seen += bool(found)
        alarms += any(confidence_sequence(each).excludes_zero for each in found)
        bounds += any(lower_bound(each, level=1 - GUARD_ALPHA) > 0 for each in found)
    assert seen >= 0.9 * RUNS
    assert noted(record_property, what=f"two-sided, {world}", alarms=alarms, runs=RUNS, alpha=ALPHA) <= ALPHA
    rate = noted(record_property, what=f"one-sided, {world}", alarms=bounds, runs=RUNS, alpha=GUARD_ALPHA)
    assert rate <= GUARD_ALPHA


def test_five_tickers_drawn_once_for_all_tell_nothing_for_ever() -> None:
    world = World("normal", unit="ticker")
    assert not any(list(found_in(looks, world)) for looks in runs(world, RUNS, seed=12))


def test_a_classical_interval_looked_at_like_that_is_wrong_much_more_often(record_property: Note) -> None:
    world, alarms = World("normal"), 0
    for looks in runs(world, RUNS, seed=13):
        alarms += any(
            abs(each.value) > student_quantile(1 - ALPHA / 2, freedom=each.clusters - 1) * each.error
            for each in found_in(looks, world)
        )
    what = f"Student's interval instead, {world}"
    assert noted(record_property, what=what, alarms=alarms, runs=RUNS, alpha=ALPHA) > 2 * ALPHA


@pytest.mark.parametrize(
    "world",
    [
        World("rate", level=-3.0, share=0.1, shift=1.0),
        World("rate", tickers=50, days=80, shift=1.0),
        World("normal", shift=1.0),
    ],
    ids=str,
)
def test_arms_that_differ_are_never_said_to_differ_the_other_way(world: World, record_property: Note) -> None:
    called = wrong = 0
    for looks in runs(world, RUNS, seed=14):
        found = [confidence_sequence(each) for each in found_in(looks, world)]
        called += any(each.low > 0 for each in found)
        wrong += any(each.high < 0 for each in found)
    noted(record_property, what=f"called better where it is, {world}", alarms=called, runs=RUNS, alpha=1)
    rate = noted(
        record_property, what=f"called worse where it is better, {world}", alarms=wrong, runs=RUNS, alpha=ALPHA
    )
    assert rate <= ALPHA
    assert called > wrong


@pytest.mark.parametrize(
    "world",
    [
        World("rate", level=-1.0, shift=1.0),
        World("rate", level=-3.0, shift=2.0, share=0.1),
        World("rate", level=3.0, shift=-2.0, share=0.1),
        World("skewed", shift=0.5, share=0.1),
    ],
    ids=str,
)
def test_a_true_difference_lies_within_its_sequence_at_all_times(world: World, record_property: Note) -> None:
    missed = below = 0
    truth = true_difference(world)
    for looks in runs(replace(world, ticker=0.0), RUNS, seed=15):
        found = list(found_in(looks, world))
        intervals = [confidence_sequence(each) for each in found]
        missed += any(not each.low <= truth <= each.high for each in intervals)
        below += any(lower_bound(each, level=1 - GUARD_ALPHA) > truth for each in found)
    what = f"missed a difference of {truth:.2f}, two-sided, {world}"
    assert noted(record_property, what=what, alarms=missed, runs=RUNS, alpha=ALPHA) <= ALPHA
    what = f"missed a difference of {truth:.2f}, one-sided, {world}"
    assert noted(record_property, what=what, alarms=below, runs=RUNS, alpha=GUARD_ALPHA) <= GUARD_ALPHA


@pytest.mark.parametrize("world", [World("normal"), World("skewed"), World("rate", level=0.5)], ids=str)
def test_the_mean_of_an_arm_lies_within_its_sequence_at_all_times(world: World, record_property: Note) -> None:
    missed = means_missed(world)
    assert noted(record_property, what=f"mean of an arm, {world}", alarms=missed, runs=RUNS, alpha=ALPHA) <= ALPHA


def test_the_mean_of_a_rate_with_rare_outages_is_missed_somewhat_more_often(record_property: Note) -> None:
    """What LEAST_CLUSTERS_OF_A_MEAN admits: no number of days is enough for what comes once in fifty."""
    world = World("rate", level=3.0)
    rate = noted(
        record_property,
        what=f"mean of an arm with rare outages, {world}",
        alarms=means_missed(world),
        runs=RUNS,
        alpha=2 * ALPHA,
    )
    assert rate <= 2 * ALPHA


def means_missed(world: World) -> int:
    """In how many runs the mean of the candidate's arm ever lay outside."""
    missed, truth = 0, true_means(world)[1]
    for looks in runs(replace(world, ticker=0.0, days=200), RUNS, seed=19):
        found = [clustered_pair_mean(*look, which=2, rate=world.kind == "rate") for look in looks]
        known = [each for each in found if each is not None and each.clusters >= LEAST_CLUSTERS_OF_A_MEAN]
        intervals = [confidence_sequence(each) for each in known]
        missed += any(not each.low <= truth <= each.high for each in intervals)
    return missed


@pytest.mark.parametrize("bound", [0.01, 0.05, 0.10, 0.50, 0.95])
@pytest.mark.parametrize("batch", [1, 25])
def test_a_rate_at_its_bound_is_refuted_no_more_often_than_alpha(
    bound: float, batch: int, record_property: Note
) -> None:
    """Not simulated but counted: the chance of each number of hits that has not raised an alarm, batch by batch."""
    looks = 2_000 if batch == 1 else 200
    chance = refuted_by_chance(bound, batch=batch, looks=looks)
    what = f"rate at its bound {bound:.0%}, {looks} looks, every {batch}"
    record_property(RATE, f"{chance:6.2%} (exactly), allowed {GUARD_ALPHA:.0%}: {what}")
    assert GUARD_ALPHA / 20 < chance <= GUARD_ALPHA


def refuted_by_chance(bound: float, *, batch: int, looks: int) -> float:
    """The chance that evidence against a rate at its bound ever reaches 1 / alpha at one of the looks."""
    step = np.exp(
        [
            gammaln(batch + 1) - gammaln(hits + 1) - gammaln(batch - hits + 1)
            + hits * np.log(bound) + (batch - hits) * np.log1p(-bound)
            for hits in range(batch + 1)
        ]
    )  # fmt: skip
    quiet, alarm = np.ones(1), 0
    for look in range(1, looks + 1):
        quiet, n = np.convolve(quiet, step), look * batch
        while alarm <= n and rate_evidence(alarm, n, bound=bound) < 1 / GUARD_ALPHA:
            alarm += 1
        quiet[alarm:] = 0.0
    return float(1 - quiet.sum())


def test_a_rate_that_moves_below_its_bound_is_refuted_no_more_often_than_alpha(record_property: Note) -> None:
    """Good days and days at the bound, and a bad answer makes the next ones better, never worse than the bound."""
    chance, bound, alarms = np.random.default_rng(17), 0.1, 0
    for _ in range(RUNS):
        hits, evidence = 0, 0.0
        for n in range(1, 401):
            now = bound if n // 40 % 2 else bound * (0.5 + 0.5 / (1 + hits))
            hits += chance.random() < now
            evidence = max(evidence, rate_evidence(hits, n, bound=bound))
        alarms += evidence >= 1 / GUARD_ALPHA
    what = "rate that moves, never above its bound"
    assert noted(record_property, what=what, alarms=alarms, runs=RUNS, alpha=GUARD_ALPHA) <= GUARD_ALPHA


def test_shares_as_configured_raise_an_alarm_once_in_a_thousand_looks_and_seldom_ever(record_property: Note) -> None:
    """One look keeps its alpha. Looking after every batch does not: a chi-square is not made for that."""
    chance, weights = np.random.default_rng(18), {"1.0.0": 90.0, "1.1.0": 10.0}
    candidates = chance.binomial(50, 0.1, (RUNS, 100)).cumsum(axis=1).tolist()
    alarms = ever = 0
    for run in candidates:
        found = [
            sample_ratio({"1.0.0": 50 * (look + 1) - each, "1.1.0": each}, weights) for look, each in enumerate(run)
        ]
        raised = [each is not None and each.alarm for each in found]
        alarms += raised[-1]
        ever += any(raised)
    noted(record_property, what="sample ratio, one look at the end", alarms=alarms, runs=RUNS, alpha=GUARD_ALPHA)
    rate = noted(record_property, what="sample ratio, 100 looks", alarms=ever, runs=RUNS, alpha=ALPHA)
    assert alarms / RUNS <= GUARD_ALPHA
    assert rate <= ALPHA


def test_a_whole_report_calls_equal_arms_better_or_worse_no_more_often_than_alpha(record_property: Note) -> None:
    """Every metric of the policy at once, after Holm, as the report says it: better, worse, higher or lower."""
    experiment = Experiment((("1.0.0", 70.0), ("1.1.0", 30.0)), phase="file-00000000", control="1.0.0")
    family = {name: replace(WORLD_OF_METRIC[name], share=0.3, days=80) for name in METRICS}
    together = zip(*(runs(world, RUNS, seed=20 + place) for place, world in enumerate(family.values())), strict=True)
    alarms = sum(_called_different(experiment, dict(zip(family, looks, strict=True))) for looks in together)
    what = f"a whole report of {len(family)} metrics"
    assert noted(record_property, what=what, alarms=alarms, runs=RUNS, alpha=ALPHA) <= ALPHA


WORLD_OF_METRIC = {
    "validity": World("rate", level=4.0),
    "latency": World("skewed"),
    "tokens": World("normal"),
    "deny_rate": World("rate"),
    "agreement": World("rate", level=2.0),
    "brier": World("rate", ticker=0.3),
    "return_allowed": World("heavy"),
    "return_blocked": World("heavy", ticker=0.3),
}


def _called_different(experiment: Experiment, metrics: dict[str, Iterator[Look]]) -> bool:
    """Whether a report after any day says that an arm differs in any metric."""
    for looks in zip(*metrics.values(), strict=True):
        pairs = {name: MetricSums(*look) for name, look in zip(metrics, looks, strict=True)}
        told = report("policy", experiment, PhaseSums(pairs={"1.1.0": pairs}))
        if any(one.of("1.1.0").verdict in {"better", "worse", "higher", "lower"} for one in told.metrics):
            return True
    return False


@pytest.mark.parametrize(("rate", "share"), [(0.02, 0.5), (0.08, 0.5), (0.08, 0.1), (0.5, 0.1)])
def test_a_guardrail_takes_back_an_arm_that_is_no_worse_no_more_often_than_alpha(
    rate: float, share: float, record_property: Note
) -> None:
    """Equal arms under a bound of 5 %, also where both are beyond it: what both suffer blames neither."""
    chance, alarms = np.random.default_rng(21), 0
    members = chance.binomial(50, share, (RUNS, 16))
    mine, its = chance.binomial(members, rate).cumsum(axis=1), chance.binomial(50 - members, rate).cumsum(axis=1)
    of_mine, of_its = members.cumsum(axis=1), (50 - members).cumsum(axis=1)
    for counts in np.stack([mine, of_mine, its, of_its], axis=-1).tolist():
        alarms += any(
            worse_than_both((hits, n), (its_hits, its_n), bound=0.05) >= 1 / GUARD_ALPHA
            for hits, n, its_hits, its_n in counts
        )
    what = f"guardrail at 5%, both arms at {rate:.0%}, candidate {share:.0%}"
    assert noted(record_property, what=what, alarms=alarms, runs=RUNS, alpha=GUARD_ALPHA) <= GUARD_ALPHA
