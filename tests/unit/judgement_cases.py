"""Histories, inputs and answers for the tests of the judgement, by hand and by Hypothesis."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from hypothesis import strategies as st

from libs.judgement.bars import Bars
from libs.judgement.rules import Rules
from libs.judgement.types import Fact, Inputs, PriceForecast, Signal
from libs.llm.types import Answer

ROOT = Path(__file__).parents[2]
RULES = Rules.load(ROOT / "configs" / "rules.yaml")
AS_OF = datetime(2012, 11, 20, 21, tzinfo=UTC)
CALL_ID = UUID("019aa000-0000-7000-8000-000000000001")
FORECAST = PriceForecast(last_price=100.0, mean=101.0, lower=98.0, upper=104.0)


def bars_of(closes: Any, *, volumes: Any = None, end: datetime = AS_OF, opens: Any = None) -> Bars:
    """Daily bars, the last one ending at `end`; every day of the week has one."""
    close = np.asarray(closes, dtype=np.float64)
    days = np.arange(close.size)[::-1]
    last = np.datetime64(end.replace(tzinfo=None), "s")
    return Bars(
        as_of=last - days * np.timedelta64(86_400, "s"),
        open=close if opens is None else np.asarray(opens, dtype=np.float64),
        high=close,
        low=close,
        close=close,
        volume=np.full(close.size, 1e6) if volumes is None else np.asarray(volumes, dtype=np.float64),
    )


def walk(length: int, *, seed: int = 7, drift: float = 0.0) -> Bars:
    """A seeded random walk with random volumes."""
    random = np.random.default_rng(seed)
    closes = 100 * np.exp(np.cumsum(random.normal(drift, 0.02, length)))
    return bars_of(closes, volumes=random.lognormal(14, 0.4, length))


def fact(name: str, value: object, *, days_old: float = 1.0) -> Fact:
    """A fact of that age at `AS_OF`."""
    return Fact(name=name, value=value, as_of=AS_OF - timedelta(days=days_old), source="desk")


def good_inputs(**changes: Any) -> Inputs:
    """Inputs that every rule allows, with changes."""
    inputs = Inputs(
        ticker="AAPL",
        horizon="1d",
        as_of=AS_OF,
        signal=Signal("buy", last_price=100.0, mean=101.0, lower=98.0, upper=104.0, expected_return=0.01),
        factors={"momentum_20": 0.5, "momentum_60": 0.25, "reversal_5": -0.5, "trend_50": 0.75},
        liquidity_usd=5e8,
        coverage_pct=100.0,
        headlines=("AAPL closed at 100 on 2012-11-20, up 1.0%",),
        facts={
            "earnings_date": fact("earnings_date", "2013-01-23"),
            "borrow": fact("borrow", "available"),
            "macro_regime": fact("macro_regime", "neutral"),
        },
        earnings_in_days=40,
    )
    return replace(inputs, **changes)


def answer(key: str, value: Any, *, text: str = "reply", **changes: Any) -> Answer:
    """An answer as the client gives it."""
    given = Answer(
        status="ok",
        text=text,
        value=value,
        error=None,
        cached=False,
        call_id=CALL_ID,
        model="Lexi",
        upstream="lexi",
        prompt_key=key,
        prompt_version="1.0.0",
        prompt_hash="abc",
        arm="1.0.0",
    )
    return replace(given, **changes)


any_number = st.floats() | st.integers(-(10**6), 10**6).map(float)
finite = st.floats(allow_nan=False, allow_infinity=False)
any_text = st.text(max_size=40)
moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))  # noqa: DTZ001
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
fact_values = st.sampled_from(["available", "none", "risk_on", "risk_off", "neutral", "2012-11-23"]) | json_values
fact_names = st.sampled_from(["earnings_date", "borrow", "macro_regime", "other"])


@st.composite
def any_inputs(draw: st.DrawFn, *, numbers: st.SearchStrategy[float] = any_number, texts: Any = any_text) -> Inputs:
    """Any inputs at all, also absurd ones."""
    as_of = draw(moments)
    ages = st.integers(-86_400 * 10, 86_400 * 200).map(lambda seconds: timedelta(seconds=seconds))
    facts = st.builds(Fact, name=fact_names, value=fact_values, as_of=ages.map(lambda age: as_of - age), source=texts)
    return Inputs(
        ticker=draw(texts),
        horizon=draw(texts),
        as_of=as_of,
        signal=Signal(draw(st.sampled_from(["buy", "sell", "none"])), *(draw(numbers) for _ in range(5))),
        factors=draw(st.dictionaries(texts, numbers, max_size=8)),
        liquidity_usd=draw(st.none() | numbers),
        coverage_pct=draw(st.none() | numbers),
        headlines=tuple(draw(st.lists(texts, max_size=3))),
        facts={known.name: known for known in draw(st.lists(facts, max_size=4))},
        earnings_in_days=draw(st.none() | st.integers(-10, 10)),
    )
