"""What a broker tells us. Money and quantities are decimals, times are aware and UTC."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias

BrokerSide: TypeAlias = Literal["buy", "sell"]

FINAL_STATUSES = frozenset({"filled", "canceled", "expired", "rejected", "replaced", "done_for_day"})
"""Statuses of an order that will not fill any more."""

INSUFFICIENT_QTY = 40310000
"""The broker's code for a quantity that is held by other orders (and for buying power that is not there)."""


@dataclass(frozen=True, slots=True)
class BrokerOrder:
    """An order as the broker has it. `qty` is zero for an order by amount of money; `status` is the broker's word."""

    id: str
    client_order_id: str
    symbol: str
    side: BrokerSide
    qty: Decimal
    filled_qty: Decimal
    filled_avg_price: Decimal | None
    limit_price: Decimal | None
    type: str
    status: str
    submitted_at: datetime

    @property
    def open(self) -> bool:
        """Whether it may still fill."""
        return self.status not in FINAL_STATUSES

    @property
    def remaining(self) -> Decimal:
        """What may still fill."""
        return max(self.qty - self.filled_qty, Decimal(0))


@dataclass(frozen=True, slots=True)
class BrokerPosition:
    """A position; `qty` is negative for a short one, `qty_available` is what no open order holds, signed too."""

    symbol: str
    qty: Decimal
    qty_available: Decimal
    avg_entry_price: Decimal
    current_price: Decimal


@dataclass(frozen=True, slots=True)
class Account:
    """The account. `last_equity` is the equity at the end of the day before."""

    id: str
    account_number: str
    equity: Decimal
    last_equity: Decimal
    status: str


@dataclass(frozen=True, slots=True)
class MarketClock:
    """The broker's clock of the market."""

    at: datetime
    is_open: bool
    next_open: datetime
    next_close: datetime


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution. `id` is the broker's id of it, by which it is known again."""

    id: str
    order_id: str
    symbol: str
    side: BrokerSide
    qty: Decimal
    price: Decimal
    at: datetime


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one item of a call on many: `subject` is the order's id, or the position's symbol.

    `order` is the closing order where the broker gave one; `code` and `message` are the broker's words on a failure.
    """

    subject: str
    status: int
    order: BrokerOrder | None = None
    code: int | None = None
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether the broker took it. A status of success with an error inside is none."""
        return 200 <= self.status < 300 and self.code is None
