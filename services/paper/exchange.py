"""The broker as a state machine without I/O, driven by the clock that `advance` is told.

Call `advance(now)` first, then ask or act: everything happens at that moment. `changes` says what is to be stored
before anybody is told.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from services.paper import matching
from services.paper.book import Book
from services.paper.faults import FailCancel, FailClose, Faults, Reappear, Reject, SlowCancel, Where
from services.paper.hours import AlwaysOpen, Hours, midnight
from services.paper.ledger import MULTIPLIER, Ledger
from services.paper.types import (
    NOT_ALLOWED,
    NOT_FOUND,
    UNPROCESSABLE,
    ZERO,
    Account,
    Changes,
    Kept,
    NewOrder,
    Order,
    Refusal,
    Side,
    TimeInForce,
    is_pair,
    money,
    number,
)


@dataclass(frozen=True, slots=True)
class Manners:
    """How orders fill: the first slice `fill_ms` after the order came, each further one `fill_ms` later."""

    fill_ms: float = 50
    slices: int = 1


def new_account(account_id: str, cash: Decimal, now: datetime) -> Account:
    """An account that begins with that much money."""
    return Account(id=account_id, cash=cash, last_equity=cash, day=midnight(now), created_at=now)


def new_exchange(
    account_id: str, cash: Decimal, *, now: datetime, manners: Manners | None = None, hours: Hours | None = None
) -> "Exchange":
    """A broker without a past: one account with that much money, no marks yet."""
    return Exchange(Kept(new_account(account_id, cash, now)), manners=manners, hours=hours)


@dataclass(frozen=True, slots=True)
class Return:
    """A position that comes back."""

    symbol: str
    signed: Decimal
    at: datetime


class Exchange:
    """One account, its orders and its market."""

    def __init__(self, kept: Kept, *, manners: Manners | None = None, hours: Hours | None = None) -> None:
        self.changes = Changes()
        self.ledger = Ledger(kept, self.changes)
        self.book = Book(kept, self.changes)
        self.faults = Faults()
        self.now = kept.account.created_at
        self._manners = manners or Manners()
        self._hours = hours or AlwaysOpen()
        self._returns: list[Return] = []

    # ---- reading

    @property
    def market_open(self) -> bool:
        """Whether orders can fill now."""
        forced = self.faults.market(self.now)
        return self._hours.is_open(self.now) if forced is None else forced[0]

    def session(self) -> tuple[datetime, datetime]:
        """The next opening and the next close."""
        opens, closes = self._hours.next_open(self.now), self._hours.next_close(self.now)
        is_open, until = self.faults.market(self.now) or (False, None)
        if until is None:
            return opens, closes
        return (opens, until) if is_open else (until, max(closes, until))

    def on_hold(self, symbol: str) -> Decimal:
        """How much of a position open orders on the other side hold; never more than there is."""
        held = self.ledger.held(symbol)
        against = "sell" if held > 0 else "buy"
        holding = (
            order.leaves for order in self.book.open_orders() if order.symbol == symbol and order.side == against
        )
        return min(abs(held), sum(holding, ZERO))

    @property
    def buying_power(self) -> Decimal:
        """What new positions may still cost, open orders counted in."""
        waiting = sum((self._cost(order) for order in self.book.open_orders() if self._opens(order)), ZERO)
        return max(ZERO, MULTIPLIER * self.ledger.equity - self.ledger.gross - waiting)

    # ---- time

    def advance(self, now: datetime) -> None:
        """Let time pass: midnight, pending cancels, orders that end or fill. A clock that is set back stands still."""
        self.now = max(self.now, now)
        self.ledger.turn_day(midnight(self.now))
        market_open = self.market_open
        for order in self.book.open_orders():
            if market_open and order.type == "market":
                self._work(order)  # what was due before its session ended has filled, however far the clock leapt
            if order.open and matching.ended(order, self.now, held=self.faults.holds_cancels(order.symbol)):
                self.book.note(order)
            elif market_open:
                self._work(order)
        for back in [back for back in self._returns if back.at <= self.now]:
            self._returns.remove(back)
            self._bring_back(back)

    # ---- acting

    def submit(self, asked: NewOrder) -> Order:
        """Take an order. Raises `Refusal` where the broker would not."""
        self.book.check_unused(asked.client_order_id)
        price = self.ledger.price(asked.symbol)
        if price is None:
            raise Refusal(422, UNPROCESSABLE, f'could not find asset "{asked.symbol}"')
        rejection = None if asked.closing else self.faults.on_symbol(Reject, asked.symbol)
        if rejection is not None and rejection.how == "refuse":
            raise Refusal(403, rejection.code, rejection.message)
        self._check_room(asked, price)
        order = self.book.enter(asked, now=self.now, slices=self._manners.slices)
        if rejection is not None:
            order.reject_at = self.now + timedelta(milliseconds=self._manners.fill_ms)
        elif self.market_open:
            self._begin(order)
        return order

    def cancel(self, order_id: str, *, where: Where = "single") -> Order:
        """Cancel an order, or have it pending where a fault says so. Raises `Refusal` where it has ended already."""
        order = self.book.order(order_id)
        if not order.open:
            raise Refusal(422, UNPROCESSABLE, f'order is already in "{order.status}" state')
        failure = self.faults.on_symbol(FailCancel, order.symbol, where=where)
        if failure is not None:
            raise Refusal(failure.status, failure.code, failure.message)
        if order.status == "pending_cancel":
            return order
        slow = self.faults.on_symbol(SlowCancel, order.symbol)
        if slow is None:
            matching.end(order, "canceled", self.now)
        else:
            order.status, order.updated_at = "pending_cancel", self.now
            order.cancel_at = None if slow.for_s is None else self.now + timedelta(seconds=slow.for_s)
        self.book.note(order)
        return order

    def cancel_all(self) -> list[tuple[str, Refusal | None]]:
        """Cancel every open order: the ids, each with the refusal it met."""
        results: list[tuple[str, Refusal | None]] = []
        for order in self.book.open_orders():
            try:
                self.cancel(order.id, where="bulk")
            except Refusal as refusal:
                results.append((order.id, refusal))
            else:
                results.append((order.id, None))
        return results

    def close(self, symbol: str, *, qty: Decimal | None = None, where: Where = "single") -> Order:
        """Send a market order that shrinks a position by `qty`, None for all of it. It can never turn it round.

        Raises `Refusal`: no such position, or open orders hold what is wanted.
        """
        held = self.ledger.held(symbol)
        if not held:
            raise Refusal(404, NOT_FOUND, f"position does not exist: {symbol}")
        failure = self.faults.on_symbol(FailClose, symbol, where=where)
        if failure is not None:
            raise Refusal(failure.status, failure.code, failure.message)
        wanted = abs(held) if qty is None else qty
        side: Side = "sell" if held > 0 else "buy"
        lasting: TimeInForce = "gtc" if is_pair(symbol) else "day"
        return self.submit(NewOrder(symbol, side, wanted, time_in_force=lasting, closing=True))

    def close_all(self) -> list[tuple[str, Order | Refusal]]:
        """Close every position: the symbols, each with its order or the refusal it met."""
        results: list[tuple[str, Order | Refusal]] = []
        for symbol in sorted(self.ledger.positions):
            try:
                results.append((symbol, self.close(symbol, where="bulk")))
            except Refusal as refusal:
                results.append((symbol, refusal))
        return results

    # ---- within

    def _check_room(self, asked: NewOrder, price: Decimal) -> None:
        """Refuse an order that the position, or the money, does not bear. What is held cannot be turned round.

        Of a pair nothing can be sold that is not held.
        """
        held = self.ledger.held(asked.symbol)
        if not held and asked.side == "sell" and is_pair(asked.symbol):
            coin, _, money_of_it = asked.symbol.partition("/")
            message = f"insufficient balance for {coin} (requested: {number(asked.qty)}, available: 0)"
            raise Refusal(403, NOT_ALLOWED, message, symbol=money_of_it, balance="0", available="0")
        if held and (held > 0) == (asked.side == "sell"):
            on_hold = self.on_hold(asked.symbol)
            available = abs(held) - on_hold
            if asked.qty > available:
                wanted, left = number(asked.qty), number(available)
                message = f"insufficient qty available for order (requested: {wanted}, available: {left})"
                extra = {"existing_qty": number(abs(held)), "held_for_orders": number(on_hold), "available": left}
                raise Refusal(403, NOT_ALLOWED, message, symbol=asked.symbol, **extra)
            return
        cost = asked.qty * (asked.limit_price or price)
        if cost > self.buying_power:
            extra = {"buying_power": number(self.buying_power), "cost_basis": number(cost)}
            raise Refusal(403, NOT_ALLOWED, "insufficient buying power", **extra)

    def _opens(self, order: Order) -> bool:
        """Whether an open order would add to what is held, rather than take away from it."""
        held = self.ledger.held(order.symbol)
        return not held or (held > 0) == (order.side == "buy")

    def _cost(self, order: Order) -> Decimal:
        price = order.limit_price or self.ledger.price(order.symbol) or ZERO
        return order.leaves * price

    def _begin(self, order: Order) -> None:
        """The market is open for this order for the first time."""
        order.due_at = self.now + timedelta(milliseconds=self._manners.fill_ms)
        order.expires_at = self._hours.next_close(self.now) if order.time_in_force == "day" else None
        if order.status == "accepted":
            order.status = "new"
        self.book.note(order)

    def _work(self, order: Order) -> None:
        """Fill what is due of an order while the market is open."""
        if not order.open or order.reject_at is not None or self.faults.holds_fills(order.symbol, self.now):
            return
        if order.due_at is None:
            self._begin(order)
        while order.open and order.due_at is not None and order.due_at <= self.now:
            price = self.ledger.price(order.symbol)
            if price is None or not matching.trades_at(order, price):
                return
            order.due_at += timedelta(milliseconds=self._manners.fill_ms)
            self._fill(order, matching.next_slice(order), price)

    def _fill(self, order: Order, qty: Decimal, price: Decimal) -> None:
        """Execute a part of an order; a closing one never more than is held, and it ends where nothing is."""
        held = self.ledger.held(order.symbol)
        if order.closing:
            room = max(ZERO, held if order.side == "sell" else -held)
            qty = min(qty, room)
        if not qty:
            matching.end(order, "canceled", self.now)
            self.book.note(order)
            return
        self.ledger.book(order.symbol, order.side, qty, price=price)
        order.filled_qty += qty
        order.filled_value += money(qty, price)
        order.slices_left -= 1
        order.updated_at = self.book.record(order, qty, price=price, now=self.now).at
        if not order.leaves:
            matching.end(order, "filled", order.updated_at)
        elif order.status != "pending_cancel":
            order.status = "partially_filled"
        self.book.note(order)
        if held and not self.ledger.held(order.symbol):
            self._plan_return(order)

    def _plan_return(self, order: Order) -> None:
        fault = self.faults.on_symbol(Reappear, order.symbol)
        if fault is not None:
            signed = order.filled_qty if order.side == "sell" else -order.filled_qty
            self._returns.append(Return(order.symbol, signed, self.now + timedelta(milliseconds=fault.after_ms)))

    def _bring_back(self, back: Return) -> None:
        """A closed position is there again, as by an order that somebody else sent: it has an order and a fill."""
        asked = NewOrder(back.symbol, "buy" if back.signed > 0 else "sell", abs(back.signed))
        order = self.book.enter(asked, now=self.now, slices=1)
        price = self.ledger.price(back.symbol)
        assert price is not None  # noqa: S101 - the position that was closed had one
        self._fill(order, order.qty, price)
