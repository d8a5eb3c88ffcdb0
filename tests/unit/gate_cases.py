"""Orders, decisions and situations for the tests of the gate: good ones, and ones with anything wrong about them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from libs.trading.gate import Situation, Verdict, judge
from libs.trading.limits import Limits, Terms
from libs.trading.types import Book, Holding, LastPrice, Order, StoredDecision, SwitchState

Thing = TypeVar("Thing", Order, StoredDecision, Limits, Terms, Book, Situation)
D = Decimal

MODEL = "Lexi"
GOOD_ORDER = Order(
    ticker="AAPL", side="buy", qty=D(10), ref_price=D(100), client_order_id="mine", key_name="desk", horizon="1d"
)
GOOD_DECISION = StoredDecision(
    forecast_id=UUID(int=1),
    feed="replay:1",
    ticker="AAPL",
    horizon="1d",
    model="theta",
    as_of=datetime(2012, 11, 20, 21, tzinfo=UTC),
    side="buy",
    status="ok",
    allow=True,
    reasons=(),
    rules_allow=True,
    rules_reasons=(),
    answered_by=MODEL,
    age_s=10.0,
)
GOOD_BOOK = Book({"AAPL": Holding(qty=D(5), price=D(100)), "MSFT": Holding(qty=D(-20), price=D(30))})
GOOD_SITUATION = Situation(
    limits=Limits(),
    terms=Terms(MODEL),
    book=GOOD_BOOK,
    switches=SwitchState(shadow=False),
    price=LastPrice(D(100), 60.0),
)
SWITCHES = tuple(SwitchState(gate_disabled=off, shadow=shadow) for off in (False, True) for shadow in (False, True))


@dataclass(frozen=True, slots=True)
class Case:
    """What one call of the gate gets."""

    order: Order
    decision: StoredDecision | None
    situation: Situation

    def judged(self, **changes: Any) -> Verdict:
        """The gate's verdict, with changes to the situation."""
        return judge(self.order, self.decision, replace(self.situation, **changes))

    def switched(self, *, disabled: bool = False, shadow: bool = False) -> Verdict:
        """The gate's verdict with the switches in a position."""
        return self.judged(switches=SwitchState(gate_disabled=disabled, shadow=shadow))


GOOD = Case(GOOD_ORDER, GOOD_DECISION, GOOD_SITUATION)


def numbers(*edges: str, most: str) -> SearchStrategy[Decimal]:
    """Sensible positive decimals, often at an edge or a hair beside it."""
    near = [D(edge) + hair for edge in edges for hair in (D("-0.0001"), D(0), D("0.0001"))]
    return st.sampled_from([value for value in near if value > 0]) | st.decimals("0.0001", most, places=4)


NONSENSE = st.sampled_from(
    [
        D(word)
        for word in (
            "NaN",
            "sNaN",
            "-NaN",
            "Infinity",
            "-Infinity",
            "0",
            "-0",
            "-1",
            "1E+999999",
            "-1E+999999",
            "1E-999999",
        )
    ]
)
AGES = st.none() | st.sampled_from([-0.001, 0.0, 60.0, 899.999, 900.0, 900.001, 172_800.0, 172_801.0]) | st.floats()
WORDS = st.sampled_from(["AAPL", "MSFT", "TSLA"])
CODES = st.sampled_from(
    ["COVERAGE", "NO_SIGNAL", "UNKNOWN_BORROW", "UNKNOWN_MACRO", "UNKNOWN_", "UNKNOWN_NEW", "", "ALLOW"]
)

QTY = numbers("1", "100", "1000", most="3000")
PRICE = numbers("95", "100", "105", most="400")
MONEY = numbers("1000", "10000", "50000", most="300000") | st.just(D(0))
SIGNED = st.decimals(-1000, 1000, places=2)
HOLDING = st.builds(Holding, qty=SIGNED, buying=QTY | st.just(D(0)), selling=QTY | st.just(D(0)), price=PRICE)

ORDER: dict[str, SearchStrategy[Any]] = {
    "ticker": WORDS,
    "side": st.sampled_from(["buy", "sell"]),
    "qty": QTY,
    "ref_price": PRICE,
    "client_order_id": st.sampled_from(["mine", "other"]),
    "horizon": st.sampled_from([None, "1d", "1h"]),
    "reduce_only": st.booleans(),
}
DECISION: dict[str, SearchStrategy[Any]] = {
    "ticker": st.sampled_from(["AAPL", "aapl", "MSFT"]),
    "horizon": st.sampled_from(["1d", "1h"]),
    "side": st.sampled_from(["buy", "sell", "none"]),
    "status": st.sampled_from(["ok", "invalid", "unavailable", "skipped"]),
    "allow": st.sampled_from([True, False, None]),
    "reasons": st.sampled_from([(), ("too wide",)]),
    "rules_allow": st.booleans(),
    "rules_reasons": st.lists(CODES, max_size=3).map(tuple),
    "answered_by": st.sampled_from([MODEL, "Hermes", "", None]),
    "age_s": AGES,
    "error": st.sampled_from([None, "pending", "timeout"]),
    "past_due": st.booleans(),
    "used_by": st.sampled_from([None, "mine", "other", ""]),
}
LIMITS: dict[str, SearchStrategy[Any]] = {
    "max_order_notional": MONEY,
    "max_order_qty": QTY | st.just(D(0)),
    "max_orders_per_min": st.integers(0, 60),
    "price_collar_pct": numbers("5", most="99"),
    "max_price_age_s": st.floats(0.001, 1e7),
    "max_position_notional": MONEY,
    "max_gross_notional": MONEY,
    "max_daily_loss": MONEY,
    "restricted_tickers": st.frozensets(WORDS),
}
TERMS: dict[str, SearchStrategy[Any]] = {"ttl_s": st.floats(0.001, 1e6), "allow_without": st.booleans()}
BOOK: dict[str, SearchStrategy[Any]] = {
    "holdings": st.none() | st.dictionaries(WORDS, HOLDING),
    "lost_today": MONEY | MONEY.map(lambda money: -money),
    "orders_last_minute": st.integers(0, 60),
    "reconciled": st.booleans(),
}
SITUATION: dict[str, SearchStrategy[Any]] = {
    "price": st.none() | st.builds(LastPrice, PRICE, AGES.map(lambda age: 0.0 if age is None else age)),
    "halted": st.booleans(),
    "duplicate": st.booleans(),
}


def wrong(fields: dict[str, SearchStrategy[Any]], *names: str) -> dict[str, SearchStrategy[Any]]:
    """The same fields, some of which may be anything a decimal can be."""
    return {**fields, **{name: NONSENSE | fields[name] for name in names}}


WRONG_HOLDING = st.builds(Holding, *[NONSENSE | SIGNED] * 4)
WRONG_ORDER = wrong(ORDER, "qty", "ref_price")
WRONG_BOOK = wrong(BOOK, "lost_today") | {"holdings": st.none() | st.dictionaries(WORDS, WRONG_HOLDING)}
WRONG_SITUATION = SITUATION | {"price": st.builds(LastPrice, NONSENSE | PRICE, st.floats())}


def changed(draw: DrawFn, thing: Thing, fields: Mapping[str, SearchStrategy[Any]], *, most: int = 3) -> Thing:
    """The thing with up to so many of these fields drawn anew."""
    names = draw(st.sets(st.sampled_from(sorted(fields)), max_size=most))
    return replace(thing, **{name: draw(fields[name]) for name in sorted(names)})


@st.composite
def cases(draw: DrawFn) -> Case:
    """Sensible numbers, and anything else about order, decision, limits, account and switches; good to hopeless."""
    order = changed(draw, GOOD_ORDER, ORDER, most=2)
    decision = None if draw(st.integers(0, 9)) == 0 else changed(draw, GOOD_DECISION, DECISION)
    situation = replace(
        changed(draw, GOOD_SITUATION, SITUATION, most=1),
        limits=changed(draw, Limits(), LIMITS, most=2),
        terms=changed(draw, Terms(MODEL), TERMS, most=2),
        book=changed(draw, GOOD_BOOK, BOOK, most=2),
        switches=draw(st.sampled_from(SWITCHES)),
    )
    return Case(order, decision, situation)


@st.composite
def wild_cases(draw: DrawFn) -> Case:
    """The same, with any decimal anywhere: not a number, without end, below zero, too large to multiply."""
    case = draw(cases())
    return Case(
        changed(draw, case.order, WRONG_ORDER, most=2),
        case.decision,
        replace(
            changed(draw, case.situation, WRONG_SITUATION, most=1),
            book=changed(draw, case.situation.book, WRONG_BOOK, most=2),
        ),
    )
