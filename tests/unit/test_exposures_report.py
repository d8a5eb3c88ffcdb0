"""What the report says of planted cases."""

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from libs.exposures.figures import SAME, UNKNOWN, ExperimentReport
from libs.exposures.metrics import ALL, metrics_of
from libs.exposures.report import candidates_of, report
from libs.exposures.sums import sums_of
from libs.exposures.words import ALPHA, OVERLAP, shown, verdict
from libs.llm.experiments import Experiment
from libs.statistics.intervals import Estimate
from libs.statistics.sequential import LEAST_CLUSTERS
from tests.unit.exposure_cases import CANDIDATE, CONTROL, Row, phase_of

FIRST = datetime(2024, 1, 1, 21, tzinfo=UTC)
TICKERS = tuple(f"T{number:02d}" for number in range(30))
EVEN = ((CONTROL, 50.0), (CANDIDATE, 50.0))

Plant = Callable[[Row, random.Random], Row]


def experiment(arms: tuple[tuple[str, float], ...] = EVEN, *metrics: str) -> Experiment:
    worths = {name: ALL[name].worth for name in metrics} if metrics else None
    return Experiment(arms, metrics=worths, phase="activation-1", control=CONTROL)


def as_it_is(row: Row, _chance: random.Random) -> Row:
    return row


def planted(days: int, plant: Plant = as_it_is, *, arms: tuple[str, ...] = (CONTROL, CANDIDATE)) -> list[Row]:
    """Every ticker on every day, its arm drawn evenly; the candidate's rows go through `plant`."""
    chance = random.Random(7)
    rows: list[Row] = []
    for day in range(days):
        as_of = FIRST + timedelta(days=day)
        for ticker in TICKERS:
            arm = chance.choice(arms)
            row = Row(
                arm=arm,
                unit=f"{ticker}|{as_of.date()}",
                ticker=ticker,
                as_of=as_of,
                side=chance.choice(["buy", "sell"]),
                status="ok",
                timed_out=False,
                cached=False,
                total_ms=chance.uniform(400, 600),
                tokens=chance.randint(700, 720),
                allow=chance.random() < 0.5,
                rules_allow=True,
                realised=chance.gauss(0, 0.01),
            )
            rows.append(plant(row, chance) if arm == CANDIDATE else row)
    return rows


def told(rows: list[Row], asked: Experiment, *, key: str = "policy", weighted: bool = True) -> ExperimentReport:
    sums = sums_of(
        phase_of(rows),
        control=asked.control,
        candidates=candidates_of(asked),
        metrics=tuple(metrics_of(key, asked.metrics)),
    )
    return report(key, asked, sums, weighted=weighted)


def by_metric(made: ExperimentReport) -> dict[str, str]:
    return {one.metric.name: one.of(CANDIDATE).verdict for one in made.metrics}


def test_a_candidate_that_answers_faster_is_better() -> None:
    made = told(planted(60, lambda row, _: replace(row, total_ms=(row.total_ms or 0) / 2)), experiment())
    assert by_metric(made)["latency"] == "better"
    assert by_metric(made)["validity"] == SAME
    assert made.verdicts == {CANDIDATE: "better"}
    assert made.sentence.startswith("1.1.0 is better than 1.0.0: latency 2")
    assert " ms lower (" in made.sentence


def test_a_candidate_whose_answers_are_invalid_is_worse_even_where_it_is_faster() -> None:
    def plant(row: Row, chance: random.Random) -> Row:
        faster = replace(row, total_ms=(row.total_ms or 0) / 2)
        return replace(faster, status="invalid", allow=None) if chance.random() < 0.2 else faster

    made = told(planted(60, plant), experiment())
    verdicts = by_metric(made)
    assert (verdicts["validity"], verdicts["latency"]) == ("worse", "better")
    assert made.verdicts == {CANDIDATE: "worse"}
    assert "validity" in made.sentence
    assert "percentage points lower" in made.sentence
    assert verdicts["deny_rate"] == "higher"


def test_two_alike_differ_in_nothing_worth_having() -> None:
    made = told(planted(60), experiment(EVEN, "validity", "latency", "tokens"))
    assert set(by_metric(made).values()) == {SAME}
    assert made.verdicts == {CANDIDATE: SAME}
    assert made.sentence == "There is no difference worth having between 1.1.0 and 1.0.0."


def test_a_few_days_are_not_enough_and_the_sentence_says_how_many_are() -> None:
    made = told(planted(8, lambda row, _: replace(row, total_ms=1.0)), experiment())
    assert set(by_metric(made).values()) == {UNKNOWN}
    assert made.verdicts == {CANDIDATE: UNKNOWN}
    assert "yet:" in made.sentence
    assert f"{LEAST_CLUSTERS} are needed" in made.sentence
    latency = next(one for one in made.metrics if one.metric.name == "latency")
    assert latency.of(CANDIDATE).value == pytest.approx(-500, abs=20)
    assert latency.of(CANDIDATE).estimate is None
    assert (latency.of(CANDIDATE).p, latency.of(CANDIDATE).p_adjusted) == (1, 1)


def test_what_stays_open_is_named() -> None:
    made = told(planted(40), experiment(EVEN, "validity", "return_allowed", "return_blocked"))
    assert made.verdicts == {CANDIDATE: UNKNOWN}
    assert "The intervals of return_allowed and return_blocked leave open" in made.sentence


def test_an_arm_that_loses_its_forecasts_shows_at_outcome_and_no_comparison_is_made() -> None:
    def lose(row: Row, chance: random.Random) -> Row:
        lost = replace(row, status="unavailable", timed_out=True, allow=None)
        return lost if chance.random() < 0.4 else replace(row, total_ms=1.0)

    made = told(planted(60, lose), experiment())
    ratios = made.sample_ratio
    assert ratios.assigned is not None
    assert not ratios.assigned.alarm
    assert ratios.settled is not None
    assert ratios.settled.alarm
    assert set(by_metric(made).values()) == {UNKNOWN}
    assert made.verdicts == {CANDIDATE: UNKNOWN}
    assert "units with an answer and an outcome" in made.sentence
    assert "no comparison can be trusted" in made.sentence


def test_weights_that_are_not_kept_show_at_assignment() -> None:
    made = told(planted(30), experiment(((CONTROL, 90.0), (CANDIDATE, 10.0))))
    assert made.sample_ratio.assigned is not None
    assert made.sample_ratio.assigned.alarm
    assert "units that were assigned: 1.0.0 has" in made.sentence
    assert "where 810 were due, 1.1.0 has" in made.sentence


def test_weights_that_nobody_knows_any_more_are_not_checked() -> None:
    made = told(planted(30), experiment(), weighted=False)
    assert made.sample_ratio.assigned is None
    assert [arm.weight for arm in made.arms] == [None, None]


def test_an_arm_that_is_none_is_shown_and_alarms() -> None:
    rows = [*planted(20), *(replace(row, arm="0.9.0", unit=f"x{row.unit}") for row in planted(2))]
    made = told(rows, experiment())
    assert [(arm.arm, arm.weight) for arm in made.arms] == [(CONTROL, 50.0), (CANDIDATE, 50.0), ("0.9.0", None)]
    assert made.sample_ratio.alarm
    assert "0.9.0 has 60 where 0 were due" in made.sentence


def test_every_candidate_is_held_against_the_control_and_all_questions_count() -> None:
    arms = ((CANDIDATE, 1.0), (CONTROL, 1.0), ("1.2.0", 1.0), ("1.3.0", 0.0))
    rows = planted(60, arms=(CONTROL, CANDIDATE, "1.2.0"))
    asked = experiment(arms, "validity", "latency")
    made = told([replace(row, total_ms=5.0) if row.arm == "1.2.0" else row for row in rows], asked)
    assert list(made.verdicts) == [CANDIDATE, "1.2.0"]
    assert made.verdicts["1.2.0"] == "better"
    assert "1.2.0 is better than 1.0.0" in made.sentence
    latency = next(one for one in made.metrics if one.metric.name == "latency")
    assert [figure.arm for figure in latency.arms] == [CONTROL, CANDIDATE, "1.2.0"]
    assert latency.of("1.2.0").p_adjusted == pytest.approx(4 * latency.of("1.2.0").p)


def test_metrics_without_data_count_among_the_questions() -> None:
    rows = [replace(row, realised=None) for row in planted(60, lambda row, _: replace(row, total_ms=470.0))]
    made = told(rows, experiment(EVEN, "latency", "brier"))
    latency = next(one for one in made.metrics if one.metric.name == "latency")
    assert latency.of(CANDIDATE).p_adjusted == pytest.approx(min(1, 2 * latency.of(CANDIDATE).p))


def test_outcomes_that_overlap_are_said_to() -> None:
    for metrics, said in ((("latency", "brier"), True), (("latency",), False)):
        asked = experiment(EVEN, *metrics)
        found = sums_of(
            replace(phase_of(planted(20)), overlap=True),
            control=CONTROL,
            candidates=[CANDIDATE],
            metrics=tuple(metrics_of("policy", asked.metrics)),
        )
        assert report("policy", asked, found).sentence.endswith(OVERLAP) is said


def test_nothing_assigned_and_nothing_to_compare_are_said() -> None:
    assert told([], experiment()).sentence == "Nothing has been assigned in this phase yet."
    alone = told(planted(3, arms=(CONTROL,)), experiment(((CONTROL, 1.0),)))
    assert alone.verdicts == {}
    assert "no arm beside 1.0.0" in alone.sentence


@pytest.mark.parametrize(
    ("name", "low", "high", "p", "expected"),
    [
        ("validity", 0.011, 0.05, 0.01, "better"),
        ("validity", -0.05, -0.011, 0.01, "worse"),
        ("latency", -300.0, -20.0, 0.01, "better"),
        ("latency", 20.0, 300.0, 0.01, "worse"),
        ("deny_rate", 0.03, 0.05, 0.01, "higher"),
        ("deny_rate", -0.05, -0.03, 0.01, "lower"),
        ("validity", 0.001, 0.009, 0.0001, SAME),
        ("validity", -0.009, 0.009, 1.0, SAME),
        ("validity", 0.001, 0.05, ALPHA + 1e-9, UNKNOWN),
        ("validity", -0.02, 0.02, 1.0, UNKNOWN),
        ("validity", -0.01, 0.005, 1.0, UNKNOWN),
    ],
)
def test_what_an_interval_means(name: str, low: float, high: float, p: float, expected: str) -> None:
    estimate = Estimate((low + high) / 2, low, high)
    assert verdict(ALL[name], ALL[name].worth, estimate, p_adjusted=p) == expected


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (-12.34, "-12.3"), (1.234, "1.23"), (0.0123, "0.0123"), (0.0, "0.0000")]
)
def test_numbers_are_shown_as_people_read_them(value: float, text: str) -> None:
    assert shown(value) == text


def test_an_arm_that_was_asked_before_is_not_more_valid_for_it() -> None:
    """One version twice, 8 % invalid. The control's valid answers are from the cache, its invalid ones asked again."""
    chance = random.Random(3)
    rows: list[Row] = []
    for row in planted(60):
        bad = chance.random() < 0.08
        if row.arm == CONTROL and not bad:
            rows.append(replace(row, cached=True))
            continue
        bad = chance.random() < 0.08 if row.arm == CONTROL else bad
        rows.append(replace(row, status="invalid", allow=None) if bad else row)
    made = told(rows, experiment())
    assert made.verdicts[CANDIDATE] != "worse"
    assert by_metric(made)["validity"] in {UNKNOWN, SAME}


def test_a_version_that_cannot_be_asked_is_invalid_and_not_fast() -> None:
    asked_in_vain = {"status": "invalid", "total_ms": None, "tokens": None, "allow": None}
    made = told(
        planted(60, lambda row, chance: replace(row, **asked_in_vain) if chance.random() < 0.5 else row), experiment()
    )
    assert by_metric(made)["validity"] == "worse"
    assert by_metric(made)["latency"] == SAME
    assert by_metric(made)["tokens"] == SAME
