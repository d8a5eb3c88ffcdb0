"""What makes an order the same order: its id follows from the intent, here and at the broker."""

import hashlib
import json
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from uuid import UUID

from libs.trading.types import Order, OrderSide

BROKER_PREFIX = "lexi-"
TICKS = ((Decimal(1), Decimal("0.01")), (Decimal("0.01"), Decimal("0.0001")), (Decimal(0), Decimal("0.000000001")))
"""The smallest step of a price, by the price from which on it holds."""


def intent_id(order: Order) -> UUID:
    """The id of an order: the same caller, order id and body give the same one, and anything else another."""
    said = [
        order.key_name,
        order.client_order_id,
        order.ticker,
        order.side,
        plain(order.qty),
        plain(order.ref_price),
        order.reduce_only,
        order.horizon,
        order.strategy,
    ]
    digest = hashlib.sha256(json.dumps(said, ensure_ascii=True, separators=(",", ":")).encode()).digest()
    return UUID(bytes=digest[:16], version=5)


def broker_order_id(order_id: UUID) -> str:
    """What the broker knows an order as, its `client_order_id`: 37 characters of the 48 it takes."""
    return BROKER_PREFIX + order_id.hex


def plain(number: Decimal) -> str:
    """A decimal without exponent and without zeros at its end: equal numbers are written alike."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def collar_price(last: Decimal, side: OrderSide, collar_pct: Decimal) -> Decimal:
    """The limit an entry leaves with: our last price moved by the collar, on the tick inside it.

    Ticks are a hundredth from 1 upwards and a ten-thousandth below (SEC rule 612, which US brokers enforce); coins
    below a hundredth have nine decimals.
    """
    factor = 1 + (collar_pct if side == "buy" else -collar_pct) / 100
    limit = last * factor
    tick = next(step for least, step in TICKS if limit >= least)
    rounding = ROUND_FLOOR if side == "buy" else ROUND_CEILING
    return (limit / tick).to_integral_value(rounding=rounding) * tick
