"""The broker as one read saw it.

Open orders are read first and positions after, so that an order which fills in between is seen as its position.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from libs.trading.broker.types import BrokerOrder, BrokerPosition
from libs.trading.panic.report import plain

MARKET = "market"
LONGEST_SHARE = 5


@dataclass(frozen=True, slots=True)
class Picture:
    """Open orders and positions."""

    orders: tuple[BrokerOrder, ...]
    positions: tuple[BrokerPosition, ...]

    @property
    def empty(self) -> bool:
        """Whether there is neither an order nor a position."""
        return not self.orders and not self.positions

    @property
    def closing_only(self) -> bool:
        """Whether every position is covered by orders that close it, exactly, and no other order is open."""
        if not self.positions or self.unattended():
            return False
        return all(self.being_closed(position) == abs(position.qty) for position in self.positions)

    @property
    def never_waits(self) -> bool:
        """Whether an order is for a pair of currencies, which trade around the clock: no closed market explains it."""
        return any(is_pair(order.symbol) for order in self.orders)

    def unattended(self) -> frozenset[str]:
        """What waiting does not settle: orders that close nothing, positions that nothing closes whole.

        Between the two reads an order may fill, so one picture alone may name what is settled already.
        """
        stray = {order.id for order in self.orders} - {order.id for order in self.closing_orders()}
        bare = {held.symbol for held in self.positions if self.being_closed(held) < abs(held.qty)}
        return frozenset(stray | bare)

    def closing_orders(self) -> list[BrokerOrder]:
        """The open orders that close a position."""
        held = {plain(position.symbol): position for position in self.positions}
        return [order for order in self.orders if closes(order, held.get(plain(order.symbol)))]

    def being_closed(self, position: BrokerPosition) -> Decimal:
        """How much of a position open orders on its closing side may still close."""
        mine = (order for order in self.orders if closes(order, position))
        return sum((order.remaining for order in mine), Decimal(0))

    def summary(self) -> dict[str, Any]:
        """For the journal: order ids, and quantities by symbol."""
        return {
            "open_orders": [order.id for order in self.orders],
            "positions": {position.symbol: str(position.qty) for position in self.positions},
        }

    def left(self) -> list[str]:
        """What is still there, in words."""
        held = [f"{position.symbol}: {position.qty} still held" for position in self.positions]
        return held + [f"order {order.id} is still open: {words(order)}, {order.status}" for order in self.orders]


def closes(order: BrokerOrder, position: BrokerPosition | None) -> bool:
    """Whether an order is at the market and on the closing side of a position."""
    if position is None or plain(order.symbol) != plain(position.symbol) or order.type != MARKET:
        return False
    return order.side == closing_side(position)


def closing_side(position: BrokerPosition) -> str:
    """The side that closes a position."""
    return "sell" if position.qty > 0 else "buy"


def is_pair(symbol: str) -> bool:
    """Whether a symbol is a pair such as BTC/USD or BTCUSD; a share's has five letters at most."""
    return "/" in symbol or (symbol.isalpha() and len(symbol) > LONGEST_SHARE)


def words(order: BrokerOrder) -> str:
    """An order in a few words."""
    return f"{order.side} {order.qty} {order.symbol} ({order.type})"
