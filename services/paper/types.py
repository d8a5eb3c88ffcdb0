"""What the broker keeps: orders, fills, positions, marks. Quantities and money are decimals, moments aware UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal
from typing import Literal, TypeAlias

Side: TypeAlias = Literal["buy", "sell"]
OrderType: TypeAlias = Literal["market", "limit"]
TimeInForce: TypeAlias = Literal["day", "gtc"]
Status: TypeAlias = Literal[
    "accepted", "new", "partially_filled", "pending_cancel", "filled", "canceled", "expired", "rejected"
]

FINAL: frozenset[Status] = frozenset({"filled", "canceled", "expired", "rejected"})
ZERO = Decimal(0)
UNIT = Decimal("1e-9")
"""The smallest part of a quantity, a price or a sum of money."""
LARGEST = Decimal(1_000_000_000)
"""No quantity of an order and no price is larger."""
WIDE = Context(prec=60)
"""Wide enough for the product of any two of them."""

INVALID = 40010001
NOT_ALLOWED = 40310000
NOT_FOUND = 40410000
UNPROCESSABLE = 42210000


def money(qty: Decimal, price: Decimal) -> Decimal:
    """Quantity times price, rounded to 9 decimals."""
    return WIDE.quantize(WIDE.multiply(qty, price), UNIT)


def is_pair(symbol: str) -> bool:
    """Whether a symbol is a pair of currencies, such as BTC/USD: crypto."""
    return "/" in symbol


def listed(symbol: str) -> str:
    """A symbol as positions are listed: the pair BTC/USD is BTCUSD there, while its orders and fills keep the slash."""
    return symbol.replace("/", "")


def number(value: Decimal) -> str:
    """A decimal as the wire writes it: plain digits, no needless zeros."""
    text = f"{value:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


class Refusal(Exception):
    """The broker does not do what was asked: an HTTP status, Alpaca's code, a sentence, and what else its body says."""

    def __init__(self, status: int, code: int, message: str, **extra: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.extra = extra

    @property
    def body(self) -> dict[str, str | int]:
        """The refusal as JSON on the wire."""
        return {"code": self.code, "message": self.message, **self.extra}


@dataclass(frozen=True, slots=True)
class NewOrder:
    """An order as asked for. `closing` orders come from the close-position calls: they only ever shrink a position."""

    symbol: str
    side: Side
    qty: Decimal
    type: OrderType = "market"
    limit_price: Decimal | None = None
    time_in_force: TimeInForce = "day"
    client_order_id: str = ""
    closing: bool = False


@dataclass(slots=True)
class Order:
    """An order in the book. `seq` counts orders from 1.

    `due_at` is when the next slice may fill, None while the market has not been open for it yet; `slices_left` counts
    slices to come; `expires_at` is the end of the session it works in, None where it has no end. `cancel_at` is when a
    pending cancel comes through, None where nothing says when.
    """

    id: str
    seq: int
    client_order_id: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    qty: Decimal
    limit_price: Decimal | None
    closing: bool
    slices_left: int
    submitted_at: datetime
    updated_at: datetime
    status: Status = "accepted"
    filled_qty: Decimal = ZERO
    filled_value: Decimal = ZERO
    due_at: datetime | None = None
    expires_at: datetime | None = None
    cancel_at: datetime | None = None
    reject_at: datetime | None = None
    filled_at: datetime | None = None
    canceled_at: datetime | None = None
    expired_at: datetime | None = None
    failed_at: datetime | None = None

    @property
    def open(self) -> bool:
        """Whether it may still fill."""
        return self.status not in FINAL

    @property
    def leaves(self) -> Decimal:
        """What is not filled."""
        return self.qty - self.filled_qty

    @property
    def filled_avg_price(self) -> Decimal | None:
        """The average price of what filled, None where nothing did."""
        return (self.filled_value / self.filled_qty).quantize(UNIT) if self.filled_qty else None


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution. `cum_qty` and `leaves_qty` are the order's after it."""

    id: str
    seq: int
    order_id: str
    symbol: str
    side: Side
    qty: Decimal
    price: Decimal
    at: datetime
    cum_qty: Decimal
    leaves_qty: Decimal


@dataclass(frozen=True, slots=True)
class Position:
    """What is held of a symbol: `qty` is positive for a long position, negative for a short one, never zero."""

    symbol: str
    qty: Decimal
    avg_entry_price: Decimal


@dataclass(frozen=True, slots=True)
class Mark:
    """The price that orders fill at; one set `by_hand` stays until it is taken away."""

    symbol: str
    price: Decimal
    by_hand: bool = False


@dataclass(slots=True)
class Account:
    """The account. `day` is the last UTC midnight that passed, `last_equity` the equity then."""

    id: str
    cash: Decimal
    last_equity: Decimal
    day: datetime
    created_at: datetime

    @property
    def number(self) -> str:
        """The number that people know it by."""
        return f"PAPER{self.id.replace('-', '')[:8].upper()}"


@dataclass(slots=True)
class Changes:
    """What changed since it was last stored; None stands for what is gone."""

    account: bool = False
    orders: dict[str, Order] = field(default_factory=dict[str, Order])
    fills: list[Fill] = field(default_factory=list[Fill])
    positions: dict[str, Position | None] = field(default_factory=dict[str, Position | None])
    marks: dict[str, Mark] = field(default_factory=dict[str, Mark])

    def __bool__(self) -> bool:
        return bool(self.account or self.orders or self.fills or self.positions or self.marks)

    def clear(self) -> None:
        """Forget them, once they are stored."""
        self.account = False
        for part in (self.orders, self.fills, self.positions, self.marks):
            part.clear()


@dataclass(frozen=True, slots=True)
class Kept:
    """The whole state as a store kept it; orders and fills in the order in which they came."""

    account: Account
    orders: tuple[Order, ...] = ()
    fills: tuple[Fill, ...] = ()
    positions: Mapping[str, Position] = field(default_factory=dict[str, Position])
    marks: Mapping[str, Mark] = field(default_factory=dict[str, Mark])
