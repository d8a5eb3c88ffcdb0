"""The broker as a state machine: money and positions add up whatever is asked of it, in whatever order."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.paper.exchange import Exchange
from services.paper.types import FINAL, NewOrder, Refusal, Side, money
from tests.unit.paper_cases import CASH, MARKS, START, after, bought, fault, made, order

SYMBOLS = st.sampled_from(sorted(MARKS))
SIDES: st.SearchStrategy[Side] = st.sampled_from(["buy", "sell"])
QTY = st.one_of(
    st.integers(1, 300).map(Decimal), st.decimals("0.000000001", 300, places=9, allow_nan=False, allow_infinity=False)
)
PRICES = st.decimals("0.01", 90000, places=4, allow_nan=False, allow_infinity=False)
FAULTS = st.sampled_from(
    [
        {"kind": "slow_cancel", "for_s": 2},
        {"kind": "slow_cancel"},
        {"kind": "reappear", "after_ms": 20},
        {"kind": "fail_close", "where": "both", "times": 1},
        {"kind": "fail_cancel", "symbols": ["AAPL"]},
        {"kind": "hold_fills", "for_s": 1},
        {"kind": "market", "for_s": 3},
        {"kind": "reject", "how": "later", "times": 2},
    ]
)


class Trading(RuleBasedStateMachine):
    """Orders, closes, cancels, faults and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.exchange: Exchange = made(fill_ms=50, slices=3)

    @rule(symbol=SYMBOLS, side=SIDES, qty=QTY, limit=st.none() | PRICES)
    def submit(self, symbol: str, side: Side, qty: Decimal, limit: Decimal | None) -> None:
        asked = NewOrder(symbol, side, qty, type="limit" if limit else "market", limit_price=limit)
        self.attempt(lambda: self.exchange.submit(asked))

    @rule(symbol=SYMBOLS, qty=st.none() | QTY)
    def close(self, symbol: str, qty: Decimal | None) -> None:
        self.attempt(lambda: self.exchange.close(symbol, qty=qty))

    @rule()
    def close_all(self) -> None:
        self.exchange.close_all()

    @rule()
    def cancel_all(self) -> None:
        self.exchange.cancel_all()

    @precondition(lambda self: self.exchange.book.orders)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        order_id = data.draw(st.sampled_from(sorted(self.exchange.book.orders)))
        self.attempt(lambda: self.exchange.cancel(order_id))

    @rule(ms=st.integers(0, 400) | st.integers(0, 200_000_000))
    def wait(self, ms: int) -> None:
        after(self.exchange, ms)

    @rule(symbol=SYMBOLS, price=PRICES)
    def move(self, symbol: str, price: Decimal) -> None:
        self.exchange.ledger.set_mark(symbol, price)

    @rule(fields=FAULTS)
    def strike(self, fields: dict[str, object]) -> None:
        self.exchange.faults.add(fault(**fields), self.exchange.now)

    @rule()
    def heal(self) -> None:
        self.exchange.faults.clear()

    def attempt(self, act: Callable[[], object]) -> None:
        with suppress(Refusal):
            act()

    @invariant()
    def money_and_positions_are_what_the_fills_say(self) -> None:
        cash, held = CASH, dict.fromkeys(MARKS, Decimal(0))
        for fill in self.exchange.book.fills:
            signed = fill.qty if fill.side == "buy" else -fill.qty
            cash -= money(signed, fill.price)
            held[fill.symbol] += signed
        assert self.exchange.ledger.account.cash == cash
        assert {symbol: self.exchange.ledger.held(symbol) for symbol in MARKS} == held
        assert all(position.qty for position in self.exchange.ledger.positions.values())

    @invariant()
    def a_pair_is_never_sold_short(self) -> None:
        assert self.exchange.ledger.held("BTC/USD") >= 0

    @invariant()
    def no_order_fills_beyond_its_quantity(self) -> None:
        filled = dict.fromkeys(self.exchange.book.orders, Decimal(0))
        for fill in self.exchange.book.fills:
            assert fill.qty > 0
            filled[fill.order_id] += fill.qty
        for placed in self.exchange.book.orders.values():
            assert placed.filled_qty == filled[placed.id] <= placed.qty
            assert (placed.status == "filled") == (placed.filled_qty == placed.qty)

    @invariant()
    def a_close_only_ever_shrinks_a_position(self) -> None:
        held = dict.fromkeys(MARKS, Decimal(0))
        for fill in self.exchange.book.fills:
            before = held[fill.symbol]
            held[fill.symbol] += fill.qty if fill.side == "buy" else -fill.qty
            if self.exchange.book.orders[fill.order_id].closing:
                assert abs(held[fill.symbol]) < abs(before)
                assert held[fill.symbol] * before >= 0

    @invariant()
    def ids_and_moments_are_unique_and_in_order(self) -> None:
        orders, fills = list(self.exchange.book.orders.values()), self.exchange.book.fills
        assert len({placed.client_order_id for placed in orders}) == len(orders)
        assert len({fill.id for fill in fills}) == len(fills)
        for moments in ([placed.submitted_at for placed in orders], [fill.at for fill in fills]):
            assert all(earlier < later for earlier, later in pairwise(moments))

    @invariant()
    def open_orders_are_those_without_an_end(self) -> None:
        still = [placed.id for placed in self.exchange.book.orders.values() if placed.status not in FINAL]
        assert [placed.id for placed in self.exchange.book.open_orders()] == still
        for symbol, position in self.exchange.ledger.positions.items():
            assert 0 <= self.exchange.on_hold(symbol) <= abs(position.qty)


TestTrading = Trading.TestCase


@given(qty=QTY, slices=st.integers(1, 7))
def test_an_order_fills_whole_in_its_slices(qty: Decimal, slices: int) -> None:
    exchange = made(slices=slices)
    placed = order(exchange, "buy", str(qty), symbol="AAPL")
    for _ in range(slices):
        after(exchange, 50)
    assert placed.status == "filled"
    assert placed.filled_qty == qty
    assert len(exchange.book.fills) <= slices


def test_a_market_order_fills_at_the_mark_after_its_latency() -> None:
    exchange = made(fill_ms=50)
    placed = order(exchange, "buy", 10)
    after(exchange, 49)
    assert placed.status == "new"
    exchange.ledger.set_mark("AAPL", Decimal(101))
    after(exchange, 1)
    assert (placed.status, placed.filled_avg_price) == ("filled", 101)
    assert exchange.ledger.account.cash == CASH - 1010


def test_partial_fills_come_one_after_the_other() -> None:
    exchange = made(fill_ms=50, slices=3)
    placed = order(exchange, "buy", 10)
    seen: list[tuple[str, Decimal]] = []
    for _ in range(3):
        after(exchange, 50)
        seen.append((placed.status, placed.filled_qty))
    assert seen == [("partially_filled", 3), ("partially_filled", 6), ("filled", 10)]


def test_a_limit_order_waits_for_its_price_and_gets_the_better_one() -> None:
    exchange = made()
    placed = order(exchange, "buy", 10, limit=95)
    after(exchange, 1000)
    assert placed.status == "new"
    exchange.ledger.set_mark("AAPL", Decimal(94))
    after(exchange, 0)
    assert (placed.status, placed.filled_avg_price) == ("filled", 94)


def test_a_closing_order_holds_what_it_closes() -> None:
    exchange = made()
    bought(exchange, 10)
    exchange.close("AAPL", qty=Decimal(4))
    with pytest.raises(Refusal) as found:
        exchange.close("AAPL")
    assert found.value.body == {
        "code": 40310000,
        "message": "insufficient qty available for order (requested: 10, available: 6)",
        "symbol": "AAPL",
        "existing_qty": "10",
        "available": "6",
        "held_for_orders": "4",
    }
    exchange.close("AAPL", qty=Decimal(6))
    after(exchange, 1000)
    assert exchange.ledger.positions == {}


def test_a_close_that_finds_less_than_it_was_to_close_ends_with_what_there_was() -> None:
    exchange = made()
    exchange.faults.add(fault(kind="reappear", after_ms=5000), START)
    order(exchange, "sell", 5)
    after(exchange, 1000)
    exchange.close("AAPL")
    after(exchange, 1000)
    bought(exchange, 10)
    exchange.faults.add(fault(kind="hold_fills", for_s=60), exchange.now)
    closing = exchange.close("AAPL")
    after(exchange, 30_000)
    assert exchange.ledger.held("AAPL") == 5  # the short position came back
    after(exchange, 31_000)
    after(exchange, 1000)
    assert (closing.status, closing.filled_qty) == ("canceled", 5)
    assert exchange.ledger.positions == {}


def test_a_position_cannot_be_turned_round_by_one_order() -> None:
    exchange = made()
    bought(exchange, 10)
    with pytest.raises(Refusal, match=r"requested: 11, available: 10"):
        order(exchange, "sell", 11)


def test_a_short_position_is_sold_first_and_bought_back() -> None:
    exchange = made()
    order(exchange, "sell", 10)
    after(exchange, 1000)
    assert exchange.ledger.held("AAPL") == -10
    assert exchange.close("AAPL").side == "buy"
    after(exchange, 1000)
    assert exchange.ledger.account.cash == CASH


def test_more_than_the_money_bears_is_refused() -> None:
    exchange = made()
    with pytest.raises(Refusal, match="insufficient buying power") as found:
        order(exchange, "buy", 20_001)
    assert (found.value.status, found.value.code) == (403, 40310000)
    order(exchange, "buy", 15_000, limit=90)
    with pytest.raises(Refusal, match="insufficient buying power"):
        order(exchange, "buy", 6_501)


def test_an_id_of_a_client_is_used_once_in_all_history() -> None:
    exchange = made()
    asked = NewOrder("AAPL", "buy", Decimal(1), client_order_id="mine")
    exchange.submit(asked)
    after(exchange, 1000)
    with pytest.raises(Refusal, match="client_order_id must be unique") as found:
        exchange.submit(asked)
    assert (found.value.status, found.value.code) == (422, 40010001)


def test_what_has_no_price_is_not_known() -> None:
    with pytest.raises(Refusal, match='could not find asset "NONE"'):
        order(made(), "buy", 1, symbol="NONE")


def test_midnight_keeps_the_equity_for_the_day_that_begins() -> None:
    exchange = made()
    bought(exchange, 10)
    exchange.ledger.set_mark("AAPL", Decimal(110))
    exchange.advance(START + timedelta(hours=9))
    exchange.ledger.set_mark("AAPL", Decimal(90))
    exchange.advance(START + timedelta(hours=10))
    assert exchange.ledger.account.last_equity == CASH + 100
    assert exchange.ledger.equity == CASH - 100


def test_a_day_order_ends_at_midnight_and_another_does_not() -> None:
    exchange = made()
    day = order(exchange, "buy", 1, limit=50)
    lasting = exchange.submit(
        NewOrder("AAPL", "buy", Decimal(1), type="limit", limit_price=Decimal(50), time_in_force="gtc")
    )
    exchange.advance(START + timedelta(hours=9))
    assert (day.status, lasting.status) == ("expired", "new")


def test_a_market_order_that_was_due_before_midnight_fills_however_far_the_clock_leaps() -> None:
    exchange = made()
    placed = order(exchange, "buy", 1)
    exchange.advance(START + timedelta(days=3))
    assert placed.status == "filled"


def test_a_clock_that_is_set_back_stands_still() -> None:
    exchange = made()
    exchange.advance(START - timedelta(days=1))
    assert exchange.now == START


def test_an_entry_price_moves_only_where_the_position_grows_or_turns() -> None:
    exchange = made()
    bought(exchange, 10)
    exchange.ledger.set_mark("AAPL", Decimal(130))
    bought(exchange, 20)
    assert exchange.ledger.positions["AAPL"].avg_entry_price == 120
    exchange.close("AAPL", qty=Decimal(5))
    after(exchange, 1000)
    assert exchange.ledger.positions["AAPL"].avg_entry_price == 120
