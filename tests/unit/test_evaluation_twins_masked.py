"""The masked twin: nothing left to remember the case by, and nothing else changed."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.evaluation.cases.attacks import ATTACKS
from libs.evaluation.cases.case import LONGEST_ID, CaseError, EvalCase, case_from, document_of
from libs.evaluation.cases.dataset import CaseFile, write_cases
from libs.evaluation.cases.disguise import invented
from libs.evaluation.cases.injection import hostile
from libs.evaluation.cases.masked import COMPANY, FACTORS, disguise_of, masked, masked_twins, moments_of
from libs.judgement.inputs import prompt_inputs
from libs.judgement.types import Fact, Signal
from libs.llm.untrusted import clean_text
from tests.unit.evaluation_case_values import any_cases, good_case, texts, tickers
from tests.unit.judgement_cases import RULES

seeds = st.integers(0, 2**31)


def texts_of(value: Any) -> list[str]:
    """Every text in some JSON."""
    if isinstance(value, str):
        return [value]
    entries: list[Any] = (
        [*value.values()] if isinstance(value, Mapping) else [*value] if isinstance(value, list) else []
    )
    return [text for entry in entries for text in texts_of(entry)]


def shown(case: EvalCase) -> list[str]:
    """Every text of a case's inputs that is not a name."""
    facts = case.inputs.facts.values()
    return [*case.inputs.headlines, *(fact.source for fact in facts), *texts_of([fact.value for fact in facts])]


@given(any_cases(clean=True), seeds)
def test_the_rules_say_the_same_of_the_twin(case: EvalCase, seed: int) -> None:
    twin = masked(case, seed=seed)
    assert RULES.judge(twin.inputs, twin.feed) == RULES.judge(case.inputs, case.feed)
    assert RULES.known(twin.inputs) == RULES.known(case.inputs)


@given(any_cases(ticker=tickers, clean=True), seeds, st.data())
def test_the_ticker_is_in_no_text_any_more(case: EvalCase, seed: int, data: st.DataObject) -> None:
    ticker = case.inputs.ticker
    around = st.sampled_from(["", " ", "$", "(", "NASDAQ:", "up ", "#", ".", ", ", "'s", "-", "_"])
    parts = st.lists(st.just(ticker) | texts | around, max_size=6).map("".join)
    case = replace(
        case, moments={}, inputs=replace(case.inputs, headlines=tuple(data.draw(st.lists(parts, max_size=3))))
    )
    twin = masked(case, seed=seed)
    word = re.compile(rf"(?<![^\W_]){re.escape(ticker)}(?![^\W_])")
    assert twin.ticker != ticker
    assert not any(word.search(text) for text in shown(twin))
    assert not word.search(str(prompt_inputs(twin.inputs, RULES, feed=twin.feed)["headlines"]))


@given(any_cases(clean=True), seeds)
def test_everything_that_matters_stays(case: EvalCase, seed: int) -> None:
    twin = masked(case, seed=seed)
    old, new = case.inputs, twin.inputs
    span = twin.as_of - case.as_of
    assert span.days % 7 == 0
    assert abs(span) >= timedelta(days=5 * 365)
    assert [one - other for one, other in zip(moments_of(twin), moments_of(case), strict=True)] == [span] * len(
        list(moments_of(case))
    )
    assert (new.factors, new.liquidity_usd, new.coverage_pct) == (old.factors, old.liquidity_usd, old.coverage_pct)
    assert (new.earnings_in_days, new.horizon, len(new.headlines)) == (
        old.earnings_in_days, old.horizon, len(old.headlines))  # fmt: skip
    assert (new.signal.side, new.signal.expected_return) == (old.signal.side, old.signal.expected_return)
    assert (twin.target, twin.made, twin.feed) == (case.target, case.made, case.feed)
    assert (twin.twin, twin.twin_of, twin.id) == ("masked", case.id, f"{case.id}~masked")
    assert masked(case, seed=seed) == twin
    assert case_from(document_of(twin)) == twin


@given(any_cases(clean=True), seeds)
def test_every_ratio_of_prices_stays_to_the_last_bit(case: EvalCase, seed: int) -> None:
    old, new = case.inputs.signal, masked(case, seed=seed).inputs.signal
    factor = new.last_price / old.last_price
    assert factor in FACTORS
    for name in ("mean", "lower", "upper"):
        assert getattr(new, name) == getattr(old, name) * factor


def test_one_ticker_has_one_disguise_in_a_run_and_another_in_the_next() -> None:
    first, second = masked(good_case(), seed=1), masked(good_case(5), seed=1)
    assert first.ticker == second.ticker
    assert second.as_of - first.as_of == timedelta(days=5)
    assert first.inputs.signal == second.inputs.signal
    assert {masked(good_case(), seed=seed).ticker for seed in range(5)} != {first.ticker}
    assert len({invented(f"T{number}", 1) for number in range(300)}) == 300


def test_a_pair_keeps_what_it_is_quoted_in() -> None:
    case = good_case(
        inputs=replace(good_case().inputs, ticker="BTC/USDT", headlines=("BTC up, BTC/USDT too, in USDT",))
    )
    twin = masked(case, seed=1)
    name = twin.ticker.removesuffix("/USDT")
    assert twin.ticker == f"{name}/USDT"
    assert twin.inputs.headlines == (f"{name} up, {name}/USDT too, in USDT",)


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("AAPL closed at 100 on 2012-11-20, up 1.0%", "TICK closed at 200 on 2004-11-23, up 1.0%"),
        ("Apple beats; $aapl and #AAPL fly, AAPLX does not", "TICK beats; $TICK and #TICK fly, AAPLX does not"),
        ("price target of 1,00.5 and $95.20, 95.2 million", "price target of 1,00.5 and $190.40, 95.2 million"),
        ("Nov 20, 2012 and 20 November 2012", "Nov 23, 2004 and 23 November 2004"),
        ("since 20 November, by March 5th", "since 23 November, by March 8"),
        ("11/20/2012, then 20/11/2012, 2012/11/20", "11/23/2004, then 23/11/2004, 2004/11/23"),
        ("in 2011, FY12, FY2013, November 2012, Q3 2012", "in 2003, FY04, FY2005, November 2004, Q3 2004"),
        ("at 60 sessions, 3.5 times, up 2000%, 2012 shares", "at 60 sessions, 3.5 times, up 2000%, 2012 shares"),
        ("99/99/9999 and 2012-13-45 are no dates, v1.2.3", "99/99/9999 and 2012-13-45 are no dates, v1.2.3"),
        ("It may 5 times out of 10", "It may 5 times out of 10"),
        ("20.11.2012, 20.11.12, 2012.11.20, 20121120", "23.11.2004, 23.11.04, 2004.11.23, 20041123"),
        ("11/20/12, 20/11/12, 03/05/2012", "11/23/04, 23/11/04, 03/08/2004"),
        ("20-Nov-12, 20-Nov-2012, 3-Mar-12", "23-Nov-04, 23-Nov-2004, 6-Mar-04"),
        ("3Q11, Q3'11, Q3 '11, 1H12, 3Q2011E, H1/12", "3Q03, Q3'03, Q3 '03, 1H04, 3Q2003E, H1/04"),
        ("CY2011, FY2011E, FY 12, FY'12, 2011E EPS", "CY2003, FY2003E, FY 04, FY'04, 2003E EPS"),
        ("in 2011 shares fell, Since 2011 points", "in 2003 shares fell, Since 2003 points"),
        ("in 2000 days, of 2010 million, of 2010.5 and", "in 2000 days, of 2010 million, of 2010.5 and"),
        ("USD 99.5, USD99.5, 99.5 USD, 95 dollars", "USD 199.0, USD199.0, 199.0 USD, 190 dollars"),
        ("trades 99.1, opened 98.0, last: 101", "trades 198.2, opened 196.0, last: 202"),
        ("between 95.25 and 105.5, between $95 and $96", "between 190.50 and 211.0, between $190 and $192"),
        ("AAPL 100.0 -1.2%, 100.0% of 100", "TICK 200.0 -1.2%, 100.0% of 200"),
        ("rose 3 and 100 more, USD 5 million, 99.5 USDA", "rose 3 and 100 more, USD 5 million, 99.5 USDA"),
        ("99.99.12, 31-Feb-12, 20129999, v1.12.10", "99.99.12, 31-Feb-12, 20129999, v1.12.10"),
        ("aapl, Aapl, APPLE and aaplx", "TICK, TICK, TICK and aaplx"),
    ],
)  # fmt: skip
def test_texts_are_rewritten_with_the_rest(text: str, rewritten: str) -> None:
    disguise = replace(disguise_of(good_case(), seed=1), invented="TICK", factor=2.0, span=timedelta(weeks=-417))
    assert disguise.text(text) == rewritten


@pytest.mark.parametrize(
    ("headline", "rewritten"),
    [
        ("\uff21\uff21\uff30\uff2c up in \uff12\uff10\uff11\uff11", "TICK up in 2003"),
        ("A\u200bAPL, AA\u00adPL and \uff21\uff50\uff50\uff4c\uff45 2\u200b011", "TICK, TICK and TICK 2003"),
        ("closed at \uff19\uff19.\uff15", "closed at 199.0"),
    ],
)
def test_headlines_are_cleaned_before_they_are_rewritten(headline: str, rewritten: str) -> None:
    disguise = replace(disguise_of(good_case(), seed=1), invented="TICK", factor=2.0, span=timedelta(weeks=-417))
    assert disguise.headline(headline) == rewritten


@given(st.sampled_from(["AAPL", "IBM", "XOM", "BRK.B"]), st.integers(0, 2**31), st.data())
def test_no_spelling_of_the_ticker_reaches_the_prompt(ticker: str, seed: int, data: st.DataObject) -> None:
    hidden = st.sampled_from(["", "", "\u200b", "\u00ad", "\u202e"])
    spelt = [
        data.draw(hidden) + data.draw(st.sampled_from([sign.lower(), sign.upper(), chr(ord(sign) + 0xFEE0)]))
        for sign in ticker
    ]
    headline = f"{data.draw(texts)} {''.join(spelt)} rises"
    case = good_case(inputs=replace(good_case().inputs, ticker=ticker, headlines=(headline,)))
    twin = masked(case, seed=seed)
    sent = clean_text(twin.inputs.headlines[0])
    assert not re.search(rf"(?<![^\W_]){re.escape(ticker)}(?![^\W_])", sent, re.IGNORECASE)
    assert clean_text(twin.inputs.headlines[0], max_chars=10_000) == twin.inputs.headlines[0]


def test_a_ticker_of_two_letters_is_no_word_in_small_ones() -> None:
    case = good_case(inputs=replace(good_case().inputs, ticker="ON", headlines=("ON goes on, $on too",)))
    twin = masked(case, seed=1)
    assert twin.inputs.headlines == (f"{twin.ticker} goes on, ${twin.ticker} too",)


def test_words_that_facts_keep_to_themselves_are_not_made_to_mean_something() -> None:
    case = good_case()
    odd = {**case.inputs.facts, "borrow": Fact("borrow", " none\u200b", case.as_of, "desk")}
    case = replace(case, inputs=replace(case.inputs, facts=odd, signal=replace(case.inputs.signal, side="sell")))
    assert RULES.judge(masked(case, seed=1).inputs, "eval") == RULES.judge(case.inputs, "eval")


def test_dates_in_facts_move_and_words_of_the_rules_stay() -> None:
    case = good_case()
    company = Fact("company", {"name": ["Apple Inc.", 3]}, case.as_of, "AAPL filings")
    moment = Fact("other", "2012-11-20T09:30:00+00:00", case.as_of, "desk")
    facts = {**case.inputs.facts, "company": company, "other": moment}
    twin = masked(replace(case, inputs=replace(case.inputs, facts=facts)), seed=1)
    span = twin.as_of - case.as_of
    found = twin.inputs.facts
    assert found["earnings_date"].value == (datetime(2013, 1, 23, tzinfo=UTC) + span).date().isoformat()
    assert found["other"].value == (datetime(2012, 11, 20, 9, 30, tzinfo=UTC) + span).isoformat()
    assert (found["borrow"].value, found["macro_regime"].value) == ("available", "neutral")
    assert found["company"].value == {"name": [twin.ticker, 3]}
    assert found["company"].source == f"{twin.ticker} filings"


def test_the_name_that_a_fact_tells_is_hidden_too() -> None:
    case = good_case()
    inputs = replace(case.inputs, ticker="XOM", headlines=("Exxon Mobil drills, EXXON MOBIL pays",))
    inputs = replace(inputs, facts={COMPANY: Fact(COMPANY, "Exxon Mobil", case.as_of, "desk")})
    twin = masked(replace(case, inputs=inputs), seed=1)
    assert twin.inputs.headlines == (f"{twin.ticker} drills, {twin.ticker} pays",)


def test_dates_at_the_ends_of_the_calendar() -> None:
    def dated(year: int) -> EvalCase:
        as_of = datetime(year, 6, 1, tzinfo=UTC)
        return replace(good_case(realised=None), as_of=as_of, inputs=replace(good_case().inputs, as_of=as_of, facts={}))

    assert masked(dated(3), seed=1).as_of > dated(3).as_of
    assert masked(dated(9998), seed=1).as_of < dated(9998).as_of
    old = Fact("other", 1, datetime(2, 1, 1, tzinfo=UTC), "desk")
    wide = replace(dated(9998), inputs=replace(dated(9998).inputs, facts={"other": old}))
    with pytest.raises(CaseError, match="lie too far apart"):
        masked(wide, seed=1)


def test_prices_that_cannot_be_scaled_stay() -> None:
    extreme = Signal("buy", 1.7e308, 1.7e308, 5e-324, 1.7e308, 0.01)  # no file of cases takes these
    case = good_case(inputs=replace(good_case().inputs, signal=extreme))
    assert masked(case, seed=1).inputs.signal == extreme


def test_long_names_have_twins_that_can_be_written(tmp_path: Path) -> None:
    ticker = f"{'A' * 16}/{'B' * 15}"
    case = good_case(id="x" * LONGEST_ID, inputs=replace(good_case().inputs, ticker=ticker))
    twins = [hostile(case, attack) for attack in ATTACKS.values()]
    assert write_cases(tmp_path / "cases.jsonl", [case, masked(case, seed=1), *twins])[0] == 2 + len(ATTACKS)


def test_a_file_gets_the_twins_it_lacks(tmp_path: Path) -> None:
    cases = [good_case(), good_case(1)]
    there = [*cases, masked(cases[0], seed=3), hostile(cases[1], ATTACKS["game"])]
    write_cases(tmp_path / "cases.jsonl", there)
    with CaseFile(tmp_path / "cases.jsonl") as file:
        assert list(masked_twins(file, seed=1)) == [masked(cases[1], seed=1)]


def test_a_twin_has_no_twin() -> None:
    with pytest.raises(CaseError, match="is a twin already"):
        masked(masked(good_case(), seed=1), seed=1)
