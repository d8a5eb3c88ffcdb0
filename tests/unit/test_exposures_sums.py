"""The sums over a phase are those of a slow computation, row by row."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.exposures.columns import Columns
from libs.exposures.metrics import ALL, POLICY, metrics_of
from libs.exposures.sums import ArmSums, Grid, MetricSums, Phase, sums_of
from libs.llm.experiments import METRICS
from libs.statistics.clustering import PairSums
from tests.unit.exposure_cases import CANDIDATE, CONTROL, SLOW, Row, phase_of, slow_counts, slow_sums

FIRST = datetime(2024, 1, 1, tzinfo=UTC)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """An exposure at any stage of its life, on few days and tickers so that clusters have several members."""
    ticker = draw(st.sampled_from("ABC"))
    hours = draw(st.integers(-30, 24 * 4))
    status = draw(st.sampled_from([None, "ok", "invalid", "unavailable", "skipped"]))
    judged = status in {"ok", "invalid", "unavailable"}
    return Row(
        arm=draw(st.sampled_from([CONTROL, CONTROL, CANDIDATE, "1.2.0"])),
        unit=f"{ticker}|{draw(st.integers(0, 3))}",
        ticker=ticker,
        as_of=FIRST + timedelta(hours=hours, microseconds=draw(st.integers(0, 1))),
        side=draw(st.sampled_from(["buy", "sell", "none"])),
        status=status,
        timed_out=draw(st.booleans()) if status == "unavailable" else False if judged else None,
        cached=draw(st.booleans()) if judged else None,
        total_ms=draw(st.none() | st.integers(0, 90_000).map(lambda half: half / 2)) if judged else None,
        tokens=draw(st.integers(0, 5_000)) if judged else None,
        allow=draw(st.booleans()) if status == "ok" else None,
        rules_allow=draw(st.sampled_from([None, True, False])) if judged else None,
        realised=draw(st.none() | st.floats(-0.5, 0.5)),
    )


def close(found: PairSums, slow: PairSums) -> bool:
    return asdict(found) == pytest.approx(asdict(slow), rel=1e-9, abs=1e-9)


def same(found: MetricSums, slow: MetricSums) -> bool:
    """Days, tickers and cells; no cluster is counted that has no member."""
    return all(close(getattr(found, name), getattr(slow, name)) for name in ("days", "tickers", "cells"))


@given(st.lists(rows(), max_size=40))
def test_sums_are_those_of_a_slow_computation(made: list[Row]) -> None:
    found = sums_of(phase_of(made), control=CONTROL, candidates=[CANDIDATE], metrics=tuple(ALL.values()))
    for name, sums in found.pairs[CANDIDATE].items():
        assert same(sums, slow_sums(made, name)), name
    assert found.arms == {arm: slow_counts(made, arm) for arm in {row.arm for row in made}}


@given(st.lists(rows(), max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_rows_is_of_no_account(made: list[Row], chance: Random) -> None:
    shuffled = sorted(made, key=lambda _: chance.random())
    one, other = (
        sums_of(phase_of(each), control=CONTROL, candidates=[CANDIDATE], metrics=tuple(ALL.values()))
        for each in (made, shuffled)
    )
    assert one.arms == other.arms
    for name, sums in one.pairs[CANDIDATE].items():
        assert same(sums, other.pairs[CANDIDATE][name]), name


def test_every_metric_has_a_definition_a_worth_and_a_slow_one() -> None:
    assert ALL.keys() == METRICS.keys() == SLOW.keys()
    assert all(metric.worth > 0 for metric in ALL.values())


def test_what_decides_nothing_is_compared_by_what_every_answer_has() -> None:
    assert [metric.name for metric in metrics_of("rationale", None)] == ["validity", "latency", "tokens"]
    assert metrics_of(POLICY, {"brier": 0.5}) == {ALL["brier"]: 0.5}
    assert metrics_of("rationale", {"brier": 0.5}) == {}


def test_a_phase_without_exposures_has_no_sums_and_breaks_nothing() -> None:
    found = sums_of(Phase(), control=CONTROL, candidates=[CANDIDATE], metrics=tuple(ALL.values()))
    assert found.arms == {}
    assert all(sums.days.clusters == 0 for sums in found.pairs[CANDIDATE].values())


def test_a_candidate_without_exposures_counts_nothing() -> None:
    row = Row(status="ok", cached=False, total_ms=10.0, tokens=5, allow=True, rules_allow=True, realised=0.01)
    found = sums_of(phase_of([row]), control=CONTROL, candidates=[CANDIDATE], metrics=[ALL["latency"]])
    days = found.pairs[CANDIDATE]["latency"].days
    assert (days.n1, days.t1, days.n2, days.t2) == (1, 10.0, 0, 0)


def test_units_are_counted_once_however_many_forecasts_they_have() -> None:
    row = Row(status="ok", allow=True, realised=0.01)
    waiting = Row(unit="B", status="ok", allow=True)
    lost = Row(unit="C", status="skipped", realised=0.01)
    (arm,) = sums_of(phase_of([row, row, waiting, lost]), control=CONTROL, candidates=[], metrics=[]).arms.values()
    assert arm == ArmSums(
        CONTROL, exposures=4, units=3, judged=4, answered=3, skipped=1, allowed=3, settled=3, units_settled=1
    )


def test_a_return_that_is_no_number_is_no_outcome() -> None:
    rows = Columns.read(phase_of([Row(realised=float("inf")), Row(realised=0.25, side="sell")]).packed)
    assert rows.settled.tolist() == [False, True]
    assert rows.made.tolist() == [0.0, -0.25]


def test_bytes_that_are_no_records_are_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        Columns.read({CONTROL: [b"x" * 45]})


@given(st.lists(rows(), min_size=1, max_size=40))
def test_the_first_days_of_a_grid_are_a_grid_of_these_days(found: list[Row]) -> None:
    whole = Columns.read(phase_of(found).packed)
    grid = Grid(whole)
    for count, day in enumerate(grid.days, start=1):
        alone = Grid(whole.of(whole.day <= day))
        for metric in ALL.values():
            first = grid.cells(metric, control=CONTROL, candidate=CANDIDATE).of_days(count)
            assert first.sums() == alone.cells(metric, control=CONTROL, candidate=CANDIDATE).sums()
