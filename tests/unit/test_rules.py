"""The rules in code: each by example, and what must hold for any inputs."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.judgement.factors import FACTORS
from libs.judgement.rules import CHECKS, Rules
from libs.judgement.thresholds import MaxAgeDays, Rule, Thresholds
from libs.judgement.types import Inputs, Signal
from tests.unit.judgement_cases import ROOT, RULES, any_inputs, fact, good_inputs

STRICT = "file:prices.csv"
REPLAY = "replay:1"
SELL = Signal("sell", last_price=100.0, mean=99.0, lower=96.0, upper=102.0, expected_return=-0.01)
NONE = Signal("none", last_price=100.0, mean=100.0, lower=97.0, upper=103.0, expected_return=0.0)


def facts(**changes: object) -> dict[str, Any]:
    """The good facts with some values changed; None takes one away."""
    kept = dict(good_inputs().facts)
    for name, value in changes.items():
        kept.pop(name)
        if value is not None:
            kept[name] = fact(name, value)
    return kept


def aged(name: str, days_old: float) -> dict[str, Any]:
    """The good facts, one of them of another age."""
    kept = good_inputs().facts
    return {**kept, name: fact(name, kept[name].value, days_old=days_old)}


def test_good_inputs_are_allowed_everywhere() -> None:
    for feed in (STRICT, REPLAY, "ccxt:kraken", ""):
        assert RULES.judge(good_inputs(), feed).allow
        assert RULES.judge(good_inputs(signal=SELL), feed).allow


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"signal": NONE}, ("NO_SIGNAL",)),
        ({"earnings_in_days": 3}, ("EARNINGS",)),
        ({"earnings_in_days": 0}, ("EARNINGS",)),
        ({"earnings_in_days": 4}, ()),
        ({"earnings_in_days": None}, ("UNKNOWN_EARNINGS",)),
        ({"earnings_in_days": -1}, ("UNKNOWN_EARNINGS",)),
        ({"facts": facts(earnings_date=None)}, ("UNKNOWN_EARNINGS",)),
        ({"facts": aged("earnings_date", 120)}, ()),
        ({"facts": aged("earnings_date", 120.01)}, ("UNKNOWN_EARNINGS",)),
        ({"factors": {"a": 3.0, "b": -3.0, "c": 0.0}}, ("DISPERSION",)),
        ({"factors": {"a": 1.5, "b": -1.5, "c": 1.5, "d": -1.5}}, ()),
        ({"factors": {"a": 1.0, "b": 1.0}}, ("UNKNOWN_DISPERSION",)),
        ({"factors": {"a": 1.0, "b": 1.0, "c": math.nan}}, ("UNKNOWN_DISPERSION",)),
        ({"coverage_pct": 84.99}, ("COVERAGE",)),
        ({"coverage_pct": 85.0}, ()),
        ({"coverage_pct": None}, ("UNKNOWN_COVERAGE",)),
        ({"coverage_pct": math.nan}, ("UNKNOWN_COVERAGE",)),
        ({"liquidity_usd": 4_999_999.0}, ("LIQUIDITY",)),
        ({"liquidity_usd": 5_000_000.0}, ()),
        ({"liquidity_usd": None}, ("UNKNOWN_LIQUIDITY",)),
        ({"signal": SELL, "facts": facts(borrow="none")}, ("BORROW",)),
        ({"signal": SELL, "facts": facts(borrow=None)}, ("UNKNOWN_BORROW",)),
        ({"signal": SELL, "facts": facts(borrow=True)}, ("UNKNOWN_BORROW",)),
        ({"signal": SELL, "facts": aged("borrow", 5)}, ()),
        ({"signal": SELL, "facts": aged("borrow", 5.01)}, ("UNKNOWN_BORROW",)),
        ({"signal": SELL, "facts": aged("borrow", -0.01)}, ("UNKNOWN_BORROW",)),
        ({"facts": facts(borrow="none")}, ()),
        ({"facts": facts(macro_regime="risk_off")}, ("MACRO",)),
        ({"facts": facts(macro_regime="risk_on")}, ()),
        ({"signal": SELL, "facts": facts(macro_regime="risk_on")}, ("MACRO",)),
        ({"signal": SELL, "facts": facts(macro_regime="risk_off")}, ()),
        ({"facts": facts(macro_regime=None)}, ("UNKNOWN_MACRO",)),
        ({"facts": facts(macro_regime="RISK_OFF")}, ("UNKNOWN_MACRO",)),
        ({"facts": aged("macro_regime", 7.01)}, ("UNKNOWN_MACRO",)),
        ({"signal": NONE, "coverage_pct": 1.0, "liquidity_usd": None}, ("NO_SIGNAL", "COVERAGE", "UNKNOWN_LIQUIDITY")),
    ],
)
def test_each_rule_speaks_for_itself(changes: dict[str, Any], reasons: tuple[str, ...]) -> None:
    verdict = RULES.judge(good_inputs(**changes), STRICT)
    assert verdict.reasons == reasons
    assert verdict.allow is (reasons == ())


def test_only_the_replay_feed_goes_without_facts() -> None:
    bare = good_inputs(facts={}, earnings_in_days=None, signal=SELL)
    assert RULES.switched_off(REPLAY) == ("EARNINGS", "BORROW", "MACRO")
    assert RULES.judge(bare, REPLAY).allow
    for feed in (STRICT, "ccxt:kraken", "replays:1", "", "file:replay:1"):
        assert RULES.switched_off(feed) == ()
        assert RULES.judge(bare, feed).reasons == ("UNKNOWN_EARNINGS", "UNKNOWN_BORROW", "UNKNOWN_MACRO")


@given(any_inputs(), st.text(max_size=12) | st.sampled_from([STRICT, REPLAY]))
def test_rules_answer_for_any_inputs_and_allow_only_without_reasons(inputs: Inputs, feed: str) -> None:
    verdict = RULES.judge(inputs, feed)
    assert verdict.allow is (verdict.reasons == ())
    assert len(set(verdict.reasons)) == len(verdict.reasons)
    assert RULES.judge(inputs, feed) == verdict


@given(any_inputs(), st.sampled_from(["factors", "liquidity_usd", "coverage_pct", "earnings_in_days", "facts"]))
def test_taking_a_datum_away_never_allows(inputs: Inputs, name: str) -> None:
    """On a strict feed inputs that lack what some rule needs are denied; a buy alone needs no borrow."""
    without = replace(inputs, **{name: {} if name in {"factors", "facts"} else None})
    verdict = RULES.judge(without, STRICT)
    assert not verdict.allow
    assert any(reason.startswith("UNKNOWN_") for reason in verdict.reasons)


@given(any_inputs())
def test_a_missing_fact_denies_where_it_is_needed(inputs: Inputs) -> None:
    for name, code in (("earnings_date", "UNKNOWN_EARNINGS"), ("macro_regime", "UNKNOWN_MACRO")):
        without = replace(inputs, facts={key: fact for key, fact in inputs.facts.items() if key != name})
        assert code in RULES.judge(without, STRICT).reasons
    without = replace(inputs, facts={key: fact for key, fact in inputs.facts.items() if key != "borrow"})
    assert ("UNKNOWN_BORROW" in RULES.judge(without, STRICT).reasons) is (inputs.signal.side == "sell")


@given(any_inputs())
def test_a_feed_with_rules_off_allows_whatever_a_strict_one_does(inputs: Inputs) -> None:
    strict, loose = RULES.judge(inputs, STRICT), RULES.judge(inputs, REPLAY)
    assert set(loose.reasons) <= set(strict.reasons)
    assert loose.allow or not strict.allow


TIGHTER = {
    "earnings_days": st.integers(0, 10),
    "max_factor_dispersion": st.floats(0, 5),
    "min_coverage_pct": st.floats(0, 100),
    "min_liquidity_usd": st.floats(0, 1e9),
}
sane = st.floats(-1e9, 1e9)


@given(st.data(), any_inputs(numbers=sane), st.sampled_from(sorted(TIGHTER)))
def test_a_tighter_threshold_never_allows_more(data: st.DataObject, inputs: Inputs, name: str) -> None:
    low, high = sorted([data.draw(TIGHTER[name]), data.draw(TIGHTER[name])])
    tight, loose = (low, high) if name == "max_factor_dispersion" else (high, low)
    verdicts = [with_threshold(name, value).judge(inputs, STRICT) for value in (tight, loose)]
    assert set(verdicts[1].reasons) <= set(verdicts[0].reasons)


@given(any_inputs(), st.floats(0, 200), st.floats(0, 200), st.sampled_from(sorted(MaxAgeDays.model_fields)))
def test_a_shorter_age_never_makes_known(inputs: Inputs, a: float, b: float, name: str) -> None:
    short, long = (
        replace(RULES, max_age_days=RULES.max_age_days.model_copy(update={name: days})) for days in sorted([a, b])
    )
    few, many = short.known(inputs), long.known(inputs)
    for seen in ("earnings_in_days", "borrow", "macro_regime"):
        assert getattr(few, seen) in {None, getattr(many, seen)}


def with_threshold(name: str, value: float) -> Rules:
    """The rules with one threshold changed."""
    return replace(RULES, thresholds=RULES.thresholds.model_copy(update={name: value}))


def test_every_rule_has_a_check_and_a_place_in_the_documentation() -> None:
    text = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert set(CHECKS) == set(Rule)
    for rule in Rule:
        assert f"| `{rule}` | " in text
    for name in Thresholds.model_fields:
        assert f"`{name}` ({getattr(RULES.thresholds, name):g})".replace("5e+06", "5000000") in text
    for name in MaxAgeDays.model_fields:
        assert f"`{name}` {getattr(RULES.max_age_days, name):g} days" in text


def test_every_factor_is_documented_as_it_is_measured() -> None:
    text = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    for factor in FACTORS:
        assert f"| `{factor.name}` | {factor.bars} | {factor.formula} | {factor.source} |" in text
    assert text.count("\n| `") == len(FACTORS) + len(Rule)
