"""The gate and numbers that are none: it answers for them too, and never lets them pass."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from libs.trading.reasons import Reason
from libs.trading.types import Book, Holding
from tests.unit.gate_cases import GOOD, SWITCHES, Case, wild_cases


@given(wild_cases())
def test_it_answers_whatever_comes(case: Case) -> None:
    verdict = case.judged()
    assert verdict.reasons
    assert len(set(verdict.reasons)) == len(verdict.reasons)
    assert (Reason.ALLOW in verdict.reasons) == (verdict.reasons == (Reason.ALLOW,))
    assert verdict.would_have == "allow" or set(verdict.reasons) - {Reason.ALLOW, Reason.KILL_SWITCH}


@given(wild_cases())
def test_no_entry_of_a_nonsensical_size_or_price_passes(case: Case) -> None:
    verdict = case.judged()
    if case.order.reduce_only or not verdict.allowed:
        return
    price, holdings = case.situation.price, case.situation.book.holdings
    assert price is not None
    assert holdings is not None
    told = [case.order.qty, case.order.ref_price, price.price]
    assert all(number.is_finite() and number > 0 for number in told)
    held = [number for one in holdings.values() for number in (one.qty, one.buying, one.selling, one.price)]
    assert all(number.is_finite() for number in (*held, case.situation.book.lost_today))


@given(wild_cases())
def test_no_reducing_order_of_a_nonsensical_size_passes(case: Case) -> None:
    order = replace(case.order, reduce_only=True)
    verdict = replace(case, order=order).judged()
    assert not verdict.allowed or (order.qty.is_finite() and order.qty > 0)


@given(st.data())
def test_nothing_about_the_account_is_believed_that_is_no_number(data: st.DataObject) -> None:
    wrong = data.draw(st.sampled_from([Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity")]))
    holding = replace(
        Holding(Decimal(1), Decimal(0), Decimal(0), Decimal(10)),
        **{data.draw(st.sampled_from(["qty", "buying", "selling", "price"])): wrong},
    )
    books = [Book({data.draw(st.sampled_from(["AAPL", "MSFT"])): holding}), Book(lost_today=wrong)]
    for book in books:
        for switches in SWITCHES:
            assert not GOOD.judged(book=book, switches=switches).allowed
