"""Inputs from bars, facts and headlines; the variables of the prompts."""

import json
import math
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.calendar import open_calendar
from libs.judgement.bars import Bars, coverage_pct, liquidity_usd
from libs.judgement.factors import CLIP, FACTORS, factors
from libs.judgement.inputs import build_inputs, day_of, latest_facts, prompt_inputs, side_of, signal_of
from libs.judgement.notes import market_notes
from libs.judgement.rules import factor_dispersion
from libs.judgement.types import Fact, Inputs, PriceForecast
from tests.unit.judgement_cases import AS_OF, FORECAST, RULES, any_inputs, bars_of, fact, finite, good_inputs, walk

XNYS = open_calendar("XNYS")
NO_CALENDAR = open_calendar("bars")
RULES_SHOWN = {
    "earnings_days": 3,
    "max_factor_dispersion": 1.5,
    "min_coverage_pct": 85,
    "min_liquidity_usd": 5_000_000,
}


def build(bars: Bars, **changes: Any) -> Inputs:
    """Inputs of AAPL at `AS_OF`."""
    arguments: dict[str, Any] = {
        "horizon": "1d",
        "as_of": AS_OF,
        "forecast": FORECAST,
        "rules": RULES,
        "calendar": XNYS,
        **changes,
    }
    return build_inputs("AAPL", bars, **arguments)


def sessions(count: int, *, end: datetime = AS_OF, leave_out: frozenset[int] = frozenset()) -> Bars:
    """Bars at midnight UTC of the last XNYS sessions up to `end`, without those at some places from the end."""
    days = [end.date() - timedelta(days=back) for back in range(count * 2)]
    open_days = [day for day in days if XNYS.expected_bars(day, day) == 1][:count]
    kept = [day for place, day in enumerate(open_days) if place not in leave_out]
    bars = bars_of(100 + np.arange(len(kept)) % 7, end=end)
    return replace(bars, as_of=np.array(sorted(kept), dtype="datetime64[s]"))


# --- never later than as_of -------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(130, 260))
def test_bars_after_as_of_change_nothing(later: int, length: int) -> None:
    whole = walk(length + later)
    end = AS_OF - timedelta(days=later)
    early = whole.where(np.arange(len(whole)) < length)
    assert build(whole, as_of=end) == build(early, as_of=end)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(-48, 48)), max_size=12))
def test_the_latest_fact_known_then_counts(raw: list[tuple[str, int]]) -> None:
    given_facts = [Fact(name, place, AS_OF + timedelta(hours=h), "desk") for place, (name, h) in enumerate(raw)]
    known = latest_facts(given_facts, AS_OF)
    for name in {one.name for one in given_facts}:
        past = [one for one in given_facts if one.name == name and one.as_of <= AS_OF]
        assert (name in known) is bool(past)
        if past:
            newest = max(one.as_of for one in past)
            assert known[name] == [one for one in past if one.as_of == newest][-1]


def test_a_moment_without_a_zone_is_refused() -> None:
    naive = AS_OF.replace(tzinfo=None)
    with pytest.raises(ValueError, match="as_of"):
        build(walk(130), as_of=naive)
    with pytest.raises(ValueError, match="fact borrow"):
        build(walk(130), facts=[Fact("borrow", "none", naive, "desk")])


# --- bars -------------------------------------------------------------------------------------------------------------


def test_columns_of_one_history_must_agree() -> None:
    bars = walk(10)
    with pytest.raises(ValueError, match="length"):
        replace(bars, volume=bars.volume[:-1])
    with pytest.raises(ValueError, match="rise"):
        replace(bars, as_of=bars.as_of[::-1])


def test_unusable_bars_count_as_absent() -> None:
    bars = walk(130)
    close, volume = bars.close.copy(), bars.volume.copy()
    close[100], close[101], volume[102], volume[103] = math.nan, 0.0, -1.0, math.inf
    damaged = replace(bars, close=close, volume=volume).until(AS_OF)
    assert len(damaged) == 126
    assert np.isfinite(list(factors(damaged).values())).all()


def test_liquidity_is_the_median_of_twenty_sessions() -> None:
    volumes = np.concatenate([np.full(50, 1e9), np.full(11, 3e6), np.full(9, 9e6)])
    assert liquidity_usd(bars_of(np.full(70, 10.0), volumes=volumes)) == 3e7
    assert liquidity_usd(bars_of(np.full(19, 10.0))) is None
    assert liquidity_usd(bars_of(np.full(20, 1e300), volumes=np.full(20, 1e300))) is None


@pytest.mark.parametrize(("missing", "percent"), [(0, 100.0), (9, 85.0), (10, 100 * 50 / 60), (60, 0.0)])
def test_coverage_counts_what_the_calendar_expects(missing: int, percent: float) -> None:
    bars = sessions(100, leave_out=frozenset(range(missing)))
    assert coverage_pct(bars, AS_OF, calendar=XNYS) == pytest.approx(percent)


def test_coverage_sees_no_further_than_sixty_sessions() -> None:
    bars = sessions(100, leave_out=frozenset(range(60, 100)))
    assert coverage_pct(bars, AS_OF, calendar=XNYS) == 100.0


def test_a_young_history_has_little_coverage() -> None:
    assert coverage_pct(sessions(30), AS_OF, calendar=XNYS) == pytest.approx(50.0)


def test_coverage_without_a_calendar_is_measured_against_the_feed() -> None:
    feed_days = tuple(sessions(100).as_of.astype("datetime64[D]").tolist())
    bars = sessions(100, leave_out=frozenset(range(1, 16)))
    assert coverage_pct(bars, AS_OF, calendar=NO_CALENDAR, feed_days=feed_days) == 75.0
    assert coverage_pct(bars, AS_OF, calendar=NO_CALENDAR) is None
    later = (*feed_days, AS_OF.date() + timedelta(days=1))
    assert coverage_pct(bars, AS_OF, calendar=NO_CALENDAR, feed_days=later) == 75.0


def test_coverage_around_the_clock() -> None:
    around = open_calendar("24/7")
    assert coverage_pct(walk(90), AS_OF, calendar=around) == 100.0
    holed = walk(90).where(np.arange(90) % 2 == 0)
    assert coverage_pct(holed, AS_OF, calendar=around) == 50.0


# --- factors ----------------------------------------------------------------------------------------------------------

prices = st.floats(1e-6, 1e9) | st.floats(5e-324, 1.7e308)


@given(
    st.lists(st.tuples(prices, st.floats(0, 1.7e308)), min_size=1, max_size=8),
    st.integers(1, 40),
)
def test_factors_are_finite_and_clipped_for_any_history(pattern: list[tuple[float, float]], repeats: int) -> None:
    rows = np.array(pattern * repeats)
    scores = factors(bars_of(rows[:, 0], volumes=rows[:, 1]))
    assert all(math.isfinite(score) and abs(score) <= CLIP for score in scores.values())


def test_a_factor_appears_with_the_bars_it_needs() -> None:
    for factor in FACTORS:
        assert factor.name not in factors(walk(factor.bars - 1))
        assert factor.name in factors(walk(factor.bars))


def test_a_price_that_never_moves_has_no_price_factors() -> None:
    assert factors(bars_of(np.full(200, 50.0), volumes=np.full(200, 1e6))) == {}


def test_factors_point_where_they_should() -> None:
    up, down = factors(walk(200, drift=0.02)), factors(walk(200, drift=-0.02))
    for name in ("momentum_20", "momentum_60", "momentum_120", "trend_50"):
        assert up[name] > 0 > down[name]
    assert up["reversal_5"] < 0 < down["reversal_5"]


def test_a_storm_and_a_crowd_are_seen() -> None:
    random = np.random.default_rng(3)
    calm, storm = random.normal(0, 0.01, 180), random.normal(0, 0.04, 20)
    volumes = np.concatenate([random.lognormal(14, 0.3, 195), random.lognormal(16, 0.3, 5)])
    closes = 100 * np.exp(np.cumsum(np.concatenate([calm, storm])))
    scores = factors(bars_of(closes, volumes=volumes))
    assert scores["volatility_change"] > 1
    assert scores["volume_trend"] == CLIP


def test_on_random_walks_factors_are_near_standard() -> None:
    """The scales are what the documentation claims: over many random walks the spread of each factor is about one."""
    scores = [factors(walk(140, seed=seed)) for seed in range(400)]
    for factor in FACTORS:
        values = [score[factor.name] for score in scores]
        assert abs(np.mean(values)) < 0.25
        assert 0.4 < np.std(values) < 1.3


def test_momentum_by_hand() -> None:
    bars = walk(130)
    returns = np.diff(np.log(bars.close))
    expected = float(np.sum(returns[-20:-5]) / (np.std(returns[-60:], ddof=1) * math.sqrt(15)))
    assert factors(bars)["momentum_20"] == pytest.approx(expected)


# --- market notes -----------------------------------------------------------------------------------------------------


def test_notes_say_what_happened() -> None:
    closes = np.concatenate([np.full(80, 100.0), [101.0, 102.0, 110.0]])
    opens = closes.copy()
    opens[-1] = 105.0
    volumes = np.full(83, 1e6)
    volumes[-1] = 2.34e6
    assert market_notes("AAPL", bars_of(closes, volumes=volumes, opens=opens)) == (
        "AAPL closed at 110 on 2012-11-20, up 7.8%",
        "AAPL closed at its highest in 60 sessions",
        "AAPL traded 2.3 times its 20-day median volume",
        "AAPL opened 2.9% above the previous close",
        "AAPL rose 3 sessions in a row",
    )


def test_notes_of_a_quiet_day() -> None:
    assert market_notes("IBM", bars_of(np.full(80, 100.0))) == ("IBM closed at 100 on 2012-11-20, about unchanged",)
    assert market_notes("IBM", bars_of([])) == ()
    assert market_notes("IBM", bars_of([100.0])) == ("IBM closed at 100 on 2012-11-20",)


@given(st.integers(1, 120), st.integers(0, 50))
def test_notes_are_true(length: int, seed: int) -> None:
    bars = walk(length, seed=seed)
    notes = market_notes("T", bars)
    assert notes == market_notes("T", bars)
    said = " ".join(notes)
    last = bars.close[-1]
    assert ("highest in 60" in said) is (length >= 60 and bool(last == bars.close[-60:].max()))
    assert ("lowest in 60" in said) is (length >= 60 and bool(last == bars.close[-60:].min()))
    run = re.search(r"(rose|fell) (\d+) sessions in a row", said)
    if run:
        moves = np.diff(bars.close)[-int(run[2]) :] * (1 if run[1] == "rose" else -1)
        assert (moves > 0).all()
    times = re.search(r"traded ([\d.]+) times", said)
    if times:
        assert float(times[1]) == pytest.approx(bars.volume[-1] / np.median(bars.volume[-21:-1]), abs=0.051)


def test_notes_stand_in_only_where_nothing_was_ingested() -> None:
    bars = walk(130)
    assert build(bars).headlines == market_notes("AAPL", bars)
    assert build(bars, headlines=("  fire at a plant ", "", "fire at a plant")).headlines == ("fire at a plant",)
    many = build(bars, headlines=[f"{place} " + "x" * 1000 for place in range(50)]).headlines
    assert len(many) == 12
    assert max(map(len, many)) == 400


# --- signal and earnings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "minimum", "side"),
    [(0.0005, 0.05, "buy"), (0.00049, 0.05, "none"), (-0.0005, 0.05, "sell"), (0.0, 0.0, "none"), (1e-9, 0.0, "buy")],
)
def test_the_side_needs_a_move(expected: float, minimum: float, side: str) -> None:
    assert side_of(expected, min_expected_return_pct=minimum) == side


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["last_price", "mean", "lower", "upper"])
def test_a_forecast_must_be_prices(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        signal_of(replace(FORECAST, **{name: bad}), min_expected_return_pct=0.05)


def test_a_return_beyond_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="no return"):
        signal_of(PriceForecast(1e-300, 1e300, 1e300, 1e300), min_expected_return_pct=0.05)


@pytest.mark.parametrize(
    ("value", "days"),
    [
        ("2012-11-20", 0),
        ("2012-11-26", 3),
        ("2012-11-26T21:30:00-05:00", 4),  # the 27th in UTC
        ("2012-11-19", None),
        ("2199-01-01", None),
        ("soon", None),
        (20121126, None),
        (None, None),
    ],
)
def test_trading_days_until_earnings(value: object, days: int | None) -> None:
    inputs = build(walk(130), facts=[fact("earnings_date", value)])
    assert inputs.earnings_in_days == days


def test_without_a_calendar_earnings_are_unknown() -> None:
    known = [fact("earnings_date", "2012-11-26")]
    assert build(walk(130), facts=known, calendar=NO_CALENDAR).earnings_in_days is None


def test_a_day_is_read_from_iso_only() -> None:
    assert day_of("2012-11-26") == date(2012, 11, 26)
    assert day_of("0001-01-01T00:00:00+14:00") is None
    assert day_of("26.11.2012") is None


# --- prompt variables -------------------------------------------------------------------------------------------------


def test_the_variables_of_the_prompts() -> None:
    inputs = good_inputs(
        signal=signal_of(PriceForecast(123.456789, 124.0, 120.0, 130.0), min_expected_return_pct=0.05),
        factors={"trend_50": 0.123456, "momentum_20": -2.999},
        liquidity_usd=5_000_000.9,
        coverage_pct=84.99,
    )
    assert prompt_inputs(inputs, RULES) == {
        "ticker": "AAPL",
        "horizon": "1d",
        "as_of": "2012-11-20",
        "side": "buy",
        "last_price": 123.457,
        "mean": 124.0,
        "lower": 120.0,
        "upper": 130.0,
        "expected_return_pct": 0.44,
        "factors": {"momentum_20": -3.0, "trend_50": 0.12},
        "factor_dispersion": None,
        "liquidity_usd": 5_000_000,
        "coverage_pct": 84.9,
        "earnings_in_days": 40,
        "borrow": "available",
        "macro_regime": "neutral",
        "rules": RULES_SHOWN,
        "headlines": ["AAPL closed at 100 on 2012-11-20, up 1.0%"],
    }


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=8))
def test_the_dispersion_shown_never_passes_a_rule_that_the_number_breaks(scores: list[float]) -> None:
    inputs = good_inputs(factors={f"factor_{number}": score for number, score in enumerate(scores)})
    spread, shown = factor_dispersion(inputs), prompt_inputs(inputs, RULES)["factor_dispersion"]
    assert spread is not None
    assert isinstance(shown, float)
    assert 0 <= shown - spread < 0.011


def test_the_prompt_is_told_which_rules_the_feed_goes_without() -> None:
    told = prompt_inputs(good_inputs(), RULES, feed="replay:1")["rules"]
    assert told == {**RULES_SHOWN, "off": ["EARNINGS", "BORROW", "MACRO"]}
    assert prompt_inputs(good_inputs(), RULES, feed="file:prices.csv")["rules"] == RULES_SHOWN


def test_the_prompt_sees_stale_facts_as_the_rules_do() -> None:
    stale = good_inputs(facts={"borrow": fact("borrow", "available", days_old=6)})
    variables = prompt_inputs(stale, RULES)
    assert variables["borrow"] is None
    assert variables["earnings_in_days"] is None
    assert variables["macro_regime"] is None


@given(any_inputs(numbers=finite), st.none() | st.floats(0, 100))
def test_variables_are_strict_json(inputs: Inputs, coverage: float | None) -> None:
    known = replace(inputs, signal=good_inputs().signal, coverage_pct=coverage)
    variables = prompt_inputs(known, RULES)
    json.dumps(variables, allow_nan=False)
    shown = variables["coverage_pct"]
    assert shown is None if coverage is None else isinstance(shown, float) and 0 <= coverage - shown < 0.11


def test_inputs_are_in_utc() -> None:
    elsewhere = datetime.fromisoformat("2012-11-20T16:00:00-05:00")
    assert build(walk(130), as_of=elsewhere) == build(walk(130))
    assert build(walk(130), as_of=elsewhere).as_of.tzinfo is UTC
