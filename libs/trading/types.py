"""What the gate judges, and what it judges by. Quantities and prices are decimals; ages are seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias
from uuid import UUID

OrderSide: TypeAlias = Literal["buy", "sell"]
SignalSide: TypeAlias = Literal["buy", "sell", "none"]
Answer: TypeAlias = Literal["allow", "deny"]
Mode: TypeAlias = Literal["enforce", "shadow", "disabled"]
PolicyStatus: TypeAlias = Literal["ok", "invalid", "unavailable", "skipped"]

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Order:
    """What a strategy wants to do. `key_name` is the caller's key; `horizon` None means whatever is forecast."""

    ticker: str
    side: OrderSide
    qty: Decimal
    ref_price: Decimal
    client_order_id: str
    key_name: str
    reduce_only: bool = False
    horizon: str | None = None
    strategy: str = ""


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """The latest judged forecast of a ticker, as it stands in the database.

    `allow` and `reasons` are the validated policy answer, None and empty without one; `error` says why there is none.
    `answered_by` is the model that answered. `age_s` counts from when it was last judged, None when it never was.
    `past_due` is True where the next bar of a live feed should have come. `used_by` is the order id that this forecast
    authorised already.
    """

    forecast_id: UUID
    feed: str
    ticker: str
    horizon: str
    model: str
    as_of: datetime
    side: SignalSide
    status: PolicyStatus
    allow: bool | None
    reasons: tuple[str, ...]
    rules_allow: bool
    rules_reasons: tuple[str, ...]
    answered_by: str | None
    age_s: float | None
    error: str | None = None
    past_due: bool = False
    used_by: str | None = None
    prompt_version: str | None = None
    prompt_hash: str | None = None
    arm: str | None = None


@dataclass(frozen=True, slots=True)
class LastPrice:
    """Our own last price of a ticker; `age_s` since the feed delivered or confirmed it."""

    price: Decimal
    age_s: float


@dataclass(frozen=True, slots=True)
class Holding:
    """What is held of a ticker, and what open orders may still add: quantities, positions signed, at `price`."""

    qty: Decimal = ZERO
    buying: Decimal = ZERO
    selling: Decimal = ZERO
    price: Decimal = ZERO

    @property
    def worst_qty(self) -> Decimal:
        """The largest position, long or short, that open orders can lead to."""
        return max(abs(self.qty + self.buying), abs(self.qty - self.selling))


@dataclass(frozen=True, slots=True)
class Book:
    """The account as last reconciled and what has been sent since; None for `holdings` when it is not known."""

    holdings: Mapping[str, Holding] | None = field(default_factory=dict[str, Holding])
    lost_today: Decimal = ZERO
    orders_last_minute: int = 0
    reconciled: bool = True


@dataclass(frozen=True, slots=True)
class SwitchState:
    """What operators have turned."""

    gate_disabled: bool = False
    shadow: bool = True
