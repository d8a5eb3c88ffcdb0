"""Cases for the tests of the evaluation, by hand and by Hypothesis."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from libs.evaluation.cases.case import EvalCase, Realised
from libs.evaluation.cases.document import FEATURES
from libs.judgement.types import Fact, Inputs, Signal
from tests.unit.judgement_cases import AS_OF, good_inputs

names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
tickers = st.from_regex(r"[A-Z]{1,6}(\.[A-Z]|/USDT?)?", fullmatch=True)
prices = st.floats(1e-18, 1e18)
scores = st.floats(-1e6, 1e6)
finite = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))  # noqa: DTZ001
ages = st.integers(0, 400 * 86_400).map(lambda seconds: timedelta(seconds=seconds))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
fact_values = st.sampled_from(["available", "none", "risk_on", "risk_off", "neutral", "2012-11-23"]) | json_values
fact_names = st.sampled_from(["earnings_date", "borrow", "macro_regime", "company", "other"])


def good_case(number: int = 0, **changes: Any) -> EvalCase:
    """A case that every rule allows, with changes; `number` makes its id and its day another one."""
    as_of = AS_OF + timedelta(days=number)
    facts = {name: replace(fact, as_of=as_of) for name, fact in good_inputs().facts.items()}
    case = EvalCase(
        id=f"AAPL-{number}",
        as_of=as_of,
        feed="eval",
        inputs=good_inputs(as_of=as_of, facts=facts),
        target=True,
        realised=Realised(0.02, as_of + timedelta(days=1)),
    )
    return replace(case, **changes)


@st.composite
def any_inputs(draw: st.DrawFn, *, ticker: st.SearchStrategy[str] = names) -> Inputs:
    """Any inputs that a data set may hold."""
    as_of = draw(moments)
    facts = st.builds(Fact, name=fact_names, value=fact_values, as_of=ages.map(lambda age: as_of - age), source=texts)
    return Inputs(
        ticker=draw(ticker),
        horizon=draw(st.sampled_from(["1d", "5d", "4h"])),
        as_of=as_of,
        signal=draw(
            st.builds(
                Signal, st.sampled_from(["buy", "sell", "none"]), prices, prices, prices, prices, st.floats(-1, 1e6)
            )
        ),
        factors=draw(st.dictionaries(names, scores, max_size=5)),
        liquidity_usd=draw(st.none() | st.floats(0, 1e15)),
        coverage_pct=draw(st.none() | st.floats(0, 100)),
        headlines=tuple(draw(st.lists(texts, max_size=4))),
        facts={fact.name: fact for fact in draw(st.lists(facts, max_size=4))},
        earnings_in_days=draw(st.none() | st.integers(0, 300)),
    )


@st.composite
def any_cases(draw: st.DrawFn, *, ticker: st.SearchStrategy[str] = names, clean: bool = False) -> EvalCase:
    """Any case that a data set may hold; with `clean` none that is a twin."""
    inputs = draw(any_inputs(ticker=ticker))
    as_of, count = inputs.as_of, len(inputs.headlines)
    before = ages.map(lambda age: as_of - age)
    known: dict[str, datetime | tuple[datetime, ...]] = dict(
        draw(st.dictionaries(st.sampled_from([name for name in FEATURES if name != "headlines"]), before, max_size=3))
    )
    if draw(st.booleans()):
        known["headlines"] = draw(before | st.lists(before, min_size=count, max_size=count).map(tuple))
    later = st.integers(1, 10**7).map(lambda seconds: as_of + timedelta(seconds=seconds))
    case = EvalCase(
        id=draw(names),
        as_of=as_of,
        feed=draw(st.sampled_from(["eval", "replay:eval", "file:bars.csv"])),
        inputs=inputs,
        target=draw(st.none() | st.booleans()),
        realised=draw(st.none() | st.builds(Realised, st.floats(-1, 10), later)),
        moments=known,
    )
    kind = "" if clean else draw(st.sampled_from(["", "masked", "hostile"]))
    if not kind:
        return case
    attack = draw(names) if kind == "hostile" else ""
    return replace(case, twin=kind, twin_of=f"{case.id}~", attack=attack)
