"""The gate as a pure function, over its whole input space: what must hold whatever comes."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.trading.gate import WITHOUT_DECISION, Authority, Situation, Verdict, judge, judge_again, with_order
from libs.trading.limits import Limits
from libs.trading.reasons import Kind, Reason
from libs.trading.types import Book, Holding, Order, SwitchState
from tests.unit.gate_cases import (
    DECISION,
    GOOD,
    GOOD_DECISION,
    GOOD_SITUATION,
    LIMITS,
    ORDER,
    SWITCHES,
    Case,
    cases,
    changed,
)

POLICY = {
    "NO_DECISION",
    "STALE_DECISION",
    "INVALID_DECISION",
    "MODEL_UNAVAILABLE",
    "MODEL_FALLBACK",
    "MISMATCH",
    "DECISION_USED",
    "POLICY_DENY",
    "RULE_DENY",
    "UNKNOWN_EARNINGS",
    "UNKNOWN_DISPERSION",
    "UNKNOWN_COVERAGE",
    "UNKNOWN_LIQUIDITY",
    "UNKNOWN_BORROW",
    "UNKNOWN_MACRO",
}
HARD = {
    "HALTED",
    "RECONCILING",
    "RESTRICTED",
    "LIMIT_QTY",
    "LIMIT_NOTIONAL",
    "LIMIT_RATE",
    "LIMIT_POSITION",
    "LIMIT_GROSS",
    "LIMIT_DAILY_LOSS",
    "STALE_PRICE",
    "PRICE_COLLAR",
    "DUPLICATE",
    "NOT_REDUCING",
    "GATE_TIMEOUT",
    "GATE_ERROR",
}
WITHOUT_A_DECISION = {"NO_DECISION", "STALE_DECISION", "INVALID_DECISION", "MODEL_UNAVAILABLE"}


def codes(verdict: Verdict) -> set[str]:
    """The codes that speak against the order."""
    return {str(reason) for reason in verdict.reasons} - {"ALLOW", "KILL_SWITCH"}


def test_the_codes_and_what_they_do_are_those_that_users_know() -> None:
    assert {str(reason) for reason in Reason} == POLICY | HARD | {"ALLOW", "KILL_SWITCH"}
    assert {str(reason) for reason in Reason if reason.kind is Kind.POLICY} == POLICY
    assert {str(reason) for reason in Reason if reason.kind is Kind.HARD} == HARD


@pytest.mark.parametrize("switches", SWITCHES)
def test_a_good_order_passes_in_every_mode(switches: SwitchState) -> None:
    verdict = GOOD.judged(switches=switches)
    reason = Reason.KILL_SWITCH if switches.gate_disabled else Reason.ALLOW
    assert (verdict.verdict, verdict.would_have, verdict.reasons) == ("allow", "allow", (reason,))


@given(cases())
def test_enforce_allows_nothing_without_a_valid_fresh_matching_unused_decision(case: Case) -> None:
    terms = replace(case.situation.terms, allow_without=False)
    case = replace(case, situation=replace(case.situation, terms=terms))
    if case.order.reduce_only or not case.switched().allowed:
        return
    order, decision = case.order, case.decision
    assert decision is not None
    assert decision.status == "ok"
    assert (decision.allow, decision.reasons) == (True, ())
    assert (decision.rules_allow, decision.rules_reasons) == (True, ())
    assert decision.answered_by == terms.model
    assert decision.age_s is not None
    assert 0 <= decision.age_s <= terms.ttl_s
    assert not decision.past_due
    assert (decision.ticker, decision.side) == (order.ticker, order.side)
    assert order.horizon in {None, decision.horizon}
    assert decision.used_by in {None, order.client_order_id}


@given(cases())
def test_a_hard_reason_denies_in_every_mode_and_a_policy_reason_in_enforce_alone(case: Case) -> None:
    for switches in SWITCHES:
        verdict = case.judged(switches=switches)
        hard, policy = codes(verdict) & HARD, codes(verdict) & POLICY
        waived = case.situation.terms.allow_without and policy <= WITHOUT_A_DECISION
        if hard:
            assert (verdict.verdict, verdict.would_have) == ("deny", "deny")
        elif policy and not waived:
            assert verdict.verdict == ("deny" if verdict.mode == "enforce" else "allow")
            assert verdict.would_have == "deny"
        else:
            assert (verdict.verdict, verdict.would_have) == ("allow", "allow")


@given(cases())
def test_modes_differ_in_nothing_but_what_acts(case: Case) -> None:
    enforced, shadowed = case.switched(), case.switched(shadow=True)
    disabled = case.switched(disabled=True)
    assert case.switched(disabled=True, shadow=True) == disabled
    assert (enforced.mode, shadowed.mode, disabled.mode) == ("enforce", "shadow", "disabled")
    assert enforced.verdict == enforced.would_have == shadowed.would_have == disabled.would_have
    assert shadowed.reasons == enforced.reasons
    assert shadowed.verdict == disabled.verdict
    without_switch = tuple(reason for reason in disabled.reasons if reason is not Reason.KILL_SWITCH)
    assert (without_switch or (Reason.ALLOW,)) == enforced.reasons
    assert enforced.verdict == "deny" or shadowed.verdict == "allow"


@given(cases())
def test_the_kill_switch_is_named_on_every_entry_it_speaks_for_and_on_no_other(case: Case) -> None:
    for switches in SWITCHES:
        named = Reason.KILL_SWITCH in case.judged(switches=switches).reasons
        assert named == (switches.gate_disabled and not case.order.reduce_only)


@given(cases(), ORDER["qty"])
def test_a_reducing_order_passes_whatever_policy_limits_halt_and_switches_say(case: Case, more: Decimal) -> None:
    order = replace(case.order, reduce_only=True)
    held = Holding(qty=order.qty + more if order.side == "sell" else -order.qty - more, price=Decimal(100))
    for kept in (order.qty, order.qty + more):
        holdings = {**(case.situation.book.holdings or {}), order.ticker: held}
        book = replace(case.situation.book, holdings=holdings, reconciled=True)
        verdict = replace(case, order=replace(order, qty=kept)).judged(book=book, duplicate=False)
        assert (verdict.verdict, verdict.would_have, verdict.reasons) == ("allow", "allow", (Reason.ALLOW,))


@given(cases())
def test_a_reducing_order_passes_while_the_account_is_not_known(case: Case) -> None:
    order = replace(case.order, reduce_only=True)
    for book in (Book(None), replace(case.situation.book, reconciled=False)):
        assert replace(case, order=order).judged(book=book, duplicate=False).allowed


@given(cases())
def test_a_claim_to_reduce_that_cannot_be_true_is_refused_in_every_mode(case: Case) -> None:
    held = (case.situation.book.holdings or {}).get(case.order.ticker, Holding())
    most = held.qty + held.buying if case.order.side == "sell" else held.selling - held.qty
    order = replace(case.order, reduce_only=True, qty=max(most, Decimal(0)) + case.order.qty)
    book = replace(case.situation.book, holdings=case.situation.book.holdings or {}, reconciled=True)
    for switches in SWITCHES:
        verdict = replace(case, order=order).judged(book=book, switches=switches, duplicate=False)
        assert (verdict.verdict, verdict.reasons) == ("deny", (Reason.NOT_REDUCING,))


@given(cases(), st.data())
def test_a_worse_situation_never_turns_deny_into_allow(case: Case, data: st.DataObject) -> None:
    assume(not case.order.reduce_only)
    for switches in SWITCHES:
        before = case.judged(switches=switches)
        after = worsened(data, replace(case, situation=replace(case.situation, switches=switches))).judged()
        assert before.allowed or not after.allowed
        assert before.would_have == "allow" or after.would_have == "deny"


def worsened(data: st.DataObject, case: Case) -> Case:
    """The same order where one thing is worse than before."""
    situation, limits, book = case.situation, case.situation.limits, case.situation.book
    tighter = data.draw(
        st.sampled_from([*sorted(LIMITS), "ttl_s", "halted", "duplicate", "lost", "rate", "reconciled"])
    )
    if tighter == "restricted_tickers":
        limits = replace(limits, restricted_tickers=limits.restricted_tickers | {data.draw(ORDER["ticker"])})
    elif tighter in LIMITS:
        limits = replace(limits, **{tighter: min(getattr(limits, tighter), data.draw(LIMITS[tighter]))})
    elif tighter == "ttl_s":
        terms = replace(situation.terms, ttl_s=situation.terms.ttl_s * data.draw(st.floats(0, 1)))
        situation = replace(situation, terms=terms)
    elif tighter in {"halted", "duplicate"}:
        situation = replace(situation, **{tighter: True})
    elif tighter == "lost":
        book = replace(book, lost_today=book.lost_today + data.draw(st.decimals(0, 10_000, places=2)))
    elif tighter == "rate":
        book = replace(book, orders_last_minute=book.orders_last_minute + data.draw(st.integers(0, 60)))
    else:
        book = replace(book, reconciled=False)
    return replace(case, situation=replace(situation, limits=limits, book=book))


@given(cases())
def test_allow_without_waives_the_lack_of_a_decision_and_no_word_against(case: Case) -> None:
    assume(not case.order.reduce_only)
    strict = replace(case, situation=replace(case.situation, terms=replace(case.situation.terms, allow_without=False)))
    loose = replace(case, situation=replace(case.situation, terms=replace(case.situation.terms, allow_without=True)))
    before, after = strict.switched(), loose.switched()
    assert codes(after) == codes(before)
    assert after.allowed == (codes(before) <= WITHOUT_A_DECISION)
    assert after.would_have == after.verdict


@given(cases(), DECISION["age_s"], st.sets(st.sampled_from(sorted(POLICY))))
def test_an_authority_ends_by_age_by_its_mode_and_by_what_denies_in_every_mode(
    case: Case, age: float | None, against: set[str]
) -> None:
    assume(not case.order.reduce_only and age is not None)
    authority = Authority(age or 0.0, tuple(Reason(code) for code in sorted(against)))
    lapsed = not 0 <= authority.age_s <= case.situation.terms.ttl_s
    standing: set[str] = against | ({"STALE_DECISION"} if lapsed else set())
    for switches in SWITCHES:
        situation = replace(case.situation, switches=switches)
        first, again = case.judged(switches=switches), judge_again(case.order, authority, situation)
        assert codes(again) & HARD == codes(first) & HARD
        assert codes(again) & POLICY == standing
        excused = situation.terms.allow_without and standing <= {str(reason) for reason in WITHOUT_DECISION}
        denied_by_policy = bool(standing) and not excused and again.mode == "enforce"
        assert again.allowed == (not codes(again) & HARD and not denied_by_policy)


@given(cases())
def test_a_ticker_spelt_otherwise_is_another_ticker(case: Case) -> None:
    lower = replace(case, order=replace(case.order, ticker="aapl", reduce_only=False), decision=GOOD_DECISION)
    verdict = lower.judged()
    assert "MISMATCH" in codes(verdict)
    assert verdict.would_have == "deny"


@st.composite
def day(draw: st.DrawFn) -> tuple[Situation, list[Order]]:
    """A situation in shadow, and orders that come one after the other before anything fills."""
    limits = changed(draw, Limits(), {name: LIMITS[name] for name in LIMITS if "notional" in name}, most=3)
    orders = draw(st.lists(st.builds(Order, **ORDER | ANYBODY), min_size=1, max_size=12))
    return replace(GOOD_SITUATION, limits=limits, switches=SwitchState()), orders


ANYBODY: dict[str, Any] = {"key_name": st.just("desk"), "reduce_only": st.just(False)}


@given(day())
def test_whatever_fills_of_the_allowed_orders_stays_within_the_limits(day: tuple[Situation, list[Order]]) -> None:
    situation, orders = day
    book = Book({})
    bought: dict[str, Fraction] = {}
    sold: dict[str, Fraction] = {}
    price = Fraction(100)
    for order in orders:
        if not judge(order, GOOD_DECISION, replace(situation, book=book)).allowed:
            continue
        book = with_order(order, book, price=max(order.ref_price, Decimal(100)))
        side = bought if order.side == "buy" else sold
        side[order.ticker] = side.get(order.ticker, Fraction(0)) + Fraction(order.qty)
        worst = {
            ticker: max(bought.get(ticker, Fraction(0)), sold.get(ticker, Fraction(0))) for ticker in {*bought, *sold}
        }
        assert worst[order.ticker] * price <= Fraction(situation.limits.max_position_notional)
        assert sum(worst.values()) * price <= Fraction(situation.limits.max_gross_notional)


@given(cases(), st.data())
def test_an_order_on_its_way_changes_its_own_ticker_alone(case: Case, data: st.DataObject) -> None:
    book, order, price = case.situation.book, case.order, data.draw(ORDER["ref_price"])
    after = with_order(order, book, price=price)
    if book.holdings is None:
        assert after == book
        return
    assert after.holdings is not None
    before_one, after_one = book.holdings.get(order.ticker, Holding()), after.holdings[order.ticker]
    assert {k: v for k, v in after.holdings.items() if k != order.ticker} == {
        k: v for k, v in book.holdings.items() if k != order.ticker
    }
    assert after_one.qty == before_one.qty
    assert after_one.worst_qty >= before_one.worst_qty
    assert after_one.price == max(before_one.price, price)
    moved = (after_one.buying - before_one.buying, after_one.selling - before_one.selling)
    assert moved == ((order.qty, 0) if order.side == "buy" else (0, order.qty))
    assert (after.lost_today, after.reconciled) == (book.lost_today, book.reconciled)
