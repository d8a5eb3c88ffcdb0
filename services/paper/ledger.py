"""Cash, positions and marks: what the account is worth. Pure; every change is noted for the store."""

from datetime import datetime
from decimal import Decimal

from services.paper.types import (
    LARGEST,
    UNIT,
    UNPROCESSABLE,
    ZERO,
    Changes,
    Kept,
    Mark,
    Position,
    Refusal,
    Side,
    money,
)

MULTIPLIER = 2
"""How many times its equity an account may hold, as a margin account overnight."""


class Ledger:
    """The money side of the account."""

    def __init__(self, kept: Kept, changes: Changes) -> None:
        self.account = kept.account
        self.positions = dict(kept.positions)
        self.marks = dict(kept.marks)
        self.changes = changes

    def set_mark(self, symbol: str, price: Decimal, *, by_hand: bool = False) -> None:
        """Set a price, rounded to 9 decimals. One that was set by hand gives way to another set by hand only.

        Raises `Refusal` for a price that is not between 1e-9 and 1e9.
        """
        known = self.marks.get(symbol)
        if known is not None and known.by_hand and not by_hand:
            return
        if not price.is_finite() or not UNIT <= price <= LARGEST:
            raise Refusal(422, UNPROCESSABLE, f"the mark of {symbol} must lie between {UNIT} and {LARGEST}")
        mark = Mark(symbol, price.quantize(UNIT), by_hand)
        if mark != known:
            self.marks[symbol] = self.changes.marks[symbol] = mark

    def release_mark(self, symbol: str) -> None:
        """Let a price that was set by hand follow the market again: it stays until the next one comes."""
        known = self.marks.get(symbol)
        if known is not None and known.by_hand:
            self.marks[symbol] = self.changes.marks[symbol] = Mark(symbol, known.price)

    def price(self, symbol: str) -> Decimal | None:
        """The mark, None without one."""
        mark = self.marks.get(symbol)
        return None if mark is None else mark.price

    def held(self, symbol: str) -> Decimal:
        """The signed quantity held."""
        position = self.positions.get(symbol)
        return ZERO if position is None else position.qty

    def value(self, position: Position) -> Decimal:
        """What a position is worth at its mark (its entry price, had it none), negative for a short one."""
        price = self.price(position.symbol)
        return money(position.qty, position.avg_entry_price if price is None else price)

    @property
    def equity(self) -> Decimal:
        """Cash and the value of all positions."""
        return self.account.cash + sum((self.value(position) for position in self.positions.values()), ZERO)

    @property
    def gross(self) -> Decimal:
        """The value of all positions, short ones counted as positive."""
        return sum((abs(self.value(position)) for position in self.positions.values()), ZERO)

    def turn_day(self, day: datetime) -> None:
        """Remember the equity at a UTC midnight that passed."""
        if day > self.account.day:
            self.account.last_equity = self.equity
            self.account.day = day
            self.changes.account = True

    def book(self, symbol: str, side: Side, qty: Decimal, *, price: Decimal) -> None:
        """Book an execution: cash moves by quantity times price, rounded to 9 decimals, the position by quantity."""
        signed = qty if side == "buy" else -qty
        self.account.cash -= money(signed, price)
        self.changes.account = True
        before = self.positions.get(symbol)
        position = Position(symbol, signed, price) if before is None else moved(before, signed, price)
        if position is None:
            del self.positions[symbol]
        else:
            self.positions[symbol] = position
        self.changes.positions[symbol] = position


def moved(position: Position, signed: Decimal, price: Decimal) -> Position | None:
    """A position after an execution, None when nothing is left. Its entry price moves only where it grows or turns."""
    qty = position.qty + signed
    if not qty:
        return None
    if (qty > 0) != (position.qty > 0):
        return Position(position.symbol, qty, price)
    if abs(qty) < abs(position.qty):
        return Position(position.symbol, qty, position.avg_entry_price)
    cost = money(position.qty, position.avg_entry_price) + money(signed, price)
    return Position(position.symbol, qty, (cost / qty).quantize(UNIT))
