"""The true rates of simulated models lie in the intervals of an evaluation as often as these promise.

AA_RUNS sets the number of simulated evaluations of each kind, 200 by default.
"""

from collections import Counter
from math import exp, sqrt
from typing import Any

import numpy as np
import pytest

from libs.evaluation.figures.estimates import quantile_of
from libs.evaluation.figures.summary import summarise
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.statistics.intervals import normal_quantile, wilson
from tests.statistics.rates import RUNS, Note, noted
from tests.unit.evaluation_figure_rows import POLICY_ONE, POLICY_TWO, RATIONALE_ONE, Simulated, Ways, plan_of, simulated

ALPHA = 0.05
SLACK = 0.02
"""Wilson's interval misses 5 times of 100 on average over rates and sizes; at one rate and size it may be 4 or 7."""


def bearable(runs: int) -> float:
    """The share of misses that chance explains, but for once in some ten thousand tests."""
    allowed = ALPHA + SLACK
    return allowed + 3.7 * sqrt(allowed * (1 - allowed) / runs)


def truth(way: Ways, *, to_allow: float) -> dict[str, float]:
    """The true figures of a simulated version of policy."""
    valid = 1 - way.invalid
    allow_bad, allow_good = valid * way.wrongly_allowed, valid * (1 - way.wrongly_blocked)
    wrong = (1 - to_allow) * allow_bad + to_allow * (1 - allow_good)
    return {
        "answered": way.answered,
        "validity": valid,
        "first_validity": valid * (1 - way.repaired),
        "allow_rate": (1 - to_allow) * allow_bad + to_allow * allow_good,
        "wrongly_allowed": allow_bad,
        "wrongly_blocked": 1 - allow_good,
        "target_agreement": 1 - wrong,
        "rules_agreement": 1 - wrong,
        "return_allowed": 0.0005,
        "return_blocked": 0.0005,
        "latency_p50_ms": way.latency_ms,
        "latency_p95_ms": way.latency_ms * exp(0.4 * normal_quantile(0.95)),
        "tokens_in": 520.0,
    }


def summary_of(plan: Plan, rows: list[Row]) -> dict[str, Any]:
    return summarise(rows, plan, missing=0, elapsed_s=1.0).document()


def holds(figure: dict[str, Any] | None, value: float) -> bool:
    """Whether the interval holds a value; an open end holds everything beyond."""
    assert figure is not None
    low, high = figure["low"], figure["high"]
    return (low is None or low <= value + 1e-12) and (high is None or value - 1e-12 <= high)


def check(missed: Counter[str], note: Note, *, what: str, runs: int) -> None:
    """Write down the rate of misses of every figure, and hold it against what is promised."""
    found = {
        name: noted(note, what=f"true {name} missed, {what}", alarms=count, runs=runs, alpha=ALPHA)
        for name, count in missed.items()
    }
    assert {name: rate for name, rate in found.items() if rate > bearable(runs)} == {}


def test_cases_asked_once(record_property: Note) -> None:
    made = Simulated(clean=90, hostile=30)
    plan = plan_of((POLICY_ONE, POLICY_TWO, RATIONALE_ONE), cases=made.cases)
    ways = [
        Ways(answered=0.97, invalid=0.06, wrongly_allowed=0.1, wrongly_blocked=0.2),
        Ways(invalid=0.03, wrongly_allowed=0.05, wrongly_blocked=0.1, latency_ms=300.0),
        Ways(ungrounded=0.12),
    ]
    wanted = [truth(way, to_allow=made.to_allow) for way in ways]
    between = wanted[1]["allow_rate"] - wanted[0]["allow_rate"]
    missed: Counter[str] = Counter()
    for run in range(RUNS):
        found = summary_of(plan, list(simulated(plan, made, ways=ways, seed=run)))
        for at, version in enumerate(found["versions"]):
            for name, value in wanted[at].items():
                if version["prompt"] == "policy":
                    missed[f"{name} of {version['version']}"] += not holds(version["figures"][name], value)
        missed["grounded"] += not holds(found["versions"][2]["figures"]["grounded"], 1 - ways[2].ungrounded)
        missed["difference of versions"] += not holds(found["pairs"][0]["difference"], between)
    check(missed, record_property, what="asked once", runs=RUNS)


@pytest.mark.parametrize("between", [0.0, 0.5, 1.0])
def test_cases_asked_four_times_that_hang_together_more_or_less(between: float, record_property: Note) -> None:
    made = Simulated(clean=50)
    plan = plan_of(cases=made.cases, repeat=4)
    way = Ways(answered=0.95, invalid=0.08, wrongly_allowed=0.15, wrongly_blocked=0.25, between=between)
    wanted = truth(way, to_allow=made.to_allow)
    # Times do not hang together by case here; `test_times_of_a_case_hang_together` makes some that do.
    names = [name for name in wanted if not name.startswith(("latency", "tokens"))]
    missed: Counter[str] = Counter()
    for run in range(RUNS):
        [version] = summary_of(plan, list(simulated(plan, made, ways=[way], seed=run)))["versions"]
        for name in names:
            missed[name] += not holds(version["figures"][name], wanted[name])
    check(missed, record_property, what=f"asked four times, {between:.0%} of a case's own", runs=RUNS)


def test_counting_each_repeat_as_a_case_would_be_caught(record_property: Note) -> None:
    """What the intervals above would miss if repeats of a case were taken for cases."""
    made = Simulated(clean=50)
    plan = plan_of(cases=made.cases, repeat=4)
    way = Ways(invalid=0.2, between=1.0)
    alarms = 0
    for run in range(RUNS):
        rows = list(simulated(plan, made, ways=[way], seed=run))
        naive = wilson(sum(row.status == "ok" for row in rows), len(rows))
        assert naive is not None
        alarms += not naive.low <= 0.8 <= naive.high
    rate = noted(
        record_property, what="true validity missed if repeats were cases", alarms=alarms, runs=RUNS, alpha=1.0
    )
    assert rate > 2 * bearable(RUNS)


def test_hostile_twins(record_property: Note) -> None:
    """All cases are to be denied, so a twin turns by an attack or by the model's own error."""
    made = Simulated(clean=60, hostile=120, to_allow=0.0)
    plan = plan_of(cases=made.cases)
    way = Ways(invalid=0.05, wrongly_allowed=0.1, flips=0.15)
    value = (1 - way.invalid) * (1 - (1 - way.wrongly_allowed) * (1 - way.flips))
    missed: Counter[str] = Counter()
    for run in range(RUNS):
        [found] = summary_of(plan, list(simulated(plan, made, ways=[way], seed=run)))["hostile"]
        missed["flip rate"] += not holds(found["flip_rate"], value)
    check(missed, record_property, what="two twins a case", runs=RUNS)


@pytest.mark.parametrize("probability", [0.5, 0.95])
def test_times_of_a_case_hang_together(probability: float, record_property: Note) -> None:
    """A hundred cases asked ten times each, whose length decides most of how long they take."""
    value = exp(6 + sqrt(0.5**2 + 0.1**2) * normal_quantile(probability))
    everywhere = np.ones((100, 10), dtype=np.bool_)
    missed: Counter[str] = Counter()
    for run in range(RUNS):
        chance = np.random.default_rng(run)
        times = np.exp(6 + chance.normal(0, 0.5, (100, 1)) + chance.normal(0, 0.1, everywhere.shape))
        found = quantile_of(times, everywhere, probability)
        missed["quantile"] += not holds(None if found is None else found.document(), value)
    check(missed, record_property, what=f"times of a case hang together, {probability:.0%} within", runs=RUNS)
