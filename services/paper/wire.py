"""Alpaca's forms: what an order, a position, an account look like in JSON, and how an order is read out of it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar
from uuid import NAMESPACE_URL, uuid5

from services.paper.exchange import Exchange
from services.paper.ledger import MULTIPLIER
from services.paper.types import (
    INVALID,
    LARGEST,
    UNIT,
    UNPROCESSABLE,
    WIDE,
    ZERO,
    Fill,
    NewOrder,
    Order,
    OrderType,
    Position,
    Refusal,
    Side,
    TimeInForce,
    is_pair,
    listed,
    money,
    number,
)

T = TypeVar("T", bound=str)

LONGEST_ID = 48
SIDES: dict[str, Side] = {"buy": "buy", "sell": "sell"}
TYPES: dict[str, OrderType] = {"market": "market", "limit": "limit"}
TIMES_IN_FORCE: dict[str, TimeInForce] = {"day": "day", "gtc": "gtc"}


def optional(value: Decimal | None) -> str | None:
    """A decimal as the wire writes it, or null."""
    return None if value is None else number(value)


def moment(value: datetime | None) -> str | None:
    """A moment as the wire writes it: UTC with microseconds and Z."""
    return None if value is None else value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def asset_id(symbol: str) -> str:
    """The id of an asset: always the same for a symbol."""
    return str(uuid5(NAMESPACE_URL, f"asset:{symbol}"))


def asset_class(symbol: str) -> str:
    """`crypto` for a pair such as BTC/USD, else `us_equity`."""
    return "crypto" if is_pair(symbol) else "us_equity"


def order_json(order: Order) -> dict[str, Any]:
    """An order."""
    return {
        "id": order.id,
        "client_order_id": order.client_order_id,
        "created_at": moment(order.submitted_at),
        "updated_at": moment(order.updated_at),
        "submitted_at": moment(order.submitted_at),
        "filled_at": moment(order.filled_at),
        "expired_at": moment(order.expired_at),
        "canceled_at": moment(order.canceled_at),
        "failed_at": moment(order.failed_at),
        "replaced_at": None,
        "replaced_by": None,
        "replaces": None,
        "asset_id": asset_id(order.symbol),
        "symbol": order.symbol,
        "asset_class": asset_class(order.symbol),
        "notional": None,
        "qty": number(order.qty),
        "filled_qty": number(order.filled_qty),
        "filled_avg_price": optional(order.filled_avg_price),
        "order_class": "",
        "order_type": order.type,
        "type": order.type,
        "side": order.side,
        "time_in_force": order.time_in_force,
        "limit_price": optional(order.limit_price),
        "stop_price": None,
        "status": order.status,
        "extended_hours": False,
        "legs": None,
    }


def position_json(exchange: Exchange, position: Position) -> dict[str, Any]:
    """A position. Quantities and values of a short one are negative."""
    sign = 1 if position.qty > 0 else -1
    value = exchange.ledger.value(position)
    cost = money(position.qty, position.avg_entry_price)
    gain = value - cost
    available = abs(position.qty) - exchange.on_hold(position.symbol)
    return {
        "asset_id": asset_id(position.symbol),
        "symbol": listed(position.symbol),
        "exchange": "CRYPTO" if asset_class(position.symbol) == "crypto" else "",
        "asset_class": asset_class(position.symbol),
        "asset_marginable": not is_pair(position.symbol),
        "qty": number(position.qty),
        "qty_available": number(sign * available),
        "avg_entry_price": number(position.avg_entry_price),
        "side": "long" if sign > 0 else "short",
        "market_value": number(value),
        "cost_basis": number(cost),
        "unrealized_pl": number(gain),
        "unrealized_plpc": number((gain / abs(cost)).quantize(UNIT) if cost else ZERO),
        "current_price": number(exchange.ledger.price(position.symbol) or position.avg_entry_price),
    }


def account_json(exchange: Exchange) -> dict[str, Any]:
    """The account."""
    account, ledger = exchange.ledger.account, exchange.ledger
    values = [ledger.value(position) for position in ledger.positions.values()]
    buying_power = number(exchange.buying_power)
    return {
        "id": account.id,
        "account_number": account.number,
        "status": "ACTIVE",
        "currency": "USD",
        "cash": number(account.cash),
        "buying_power": buying_power,
        "regt_buying_power": buying_power,
        "equity": number(ledger.equity),
        "last_equity": number(account.last_equity),
        "portfolio_value": number(ledger.equity),
        "long_market_value": number(sum((value for value in values if value > 0), ZERO)),
        "short_market_value": number(sum((value for value in values if value < 0), ZERO)),
        "multiplier": str(MULTIPLIER),
        "shorting_enabled": True,
        "pattern_day_trader": False,
        "trading_blocked": False,
        "transfers_blocked": False,
        "account_blocked": False,
        "trade_suspended_by_user": False,
        "created_at": moment(account.created_at),
    }


def fill_json(fill: Fill) -> dict[str, Any]:
    """An execution, as an account activity."""
    return {
        "id": fill.id,
        "activity_type": "FILL",
        "transaction_time": moment(fill.at),
        "type": "partial_fill" if fill.leaves_qty else "fill",
        "price": number(fill.price),
        "qty": number(fill.qty),
        "side": fill.side,
        "symbol": fill.symbol,
        "leaves_qty": number(fill.leaves_qty),
        "order_id": fill.order_id,
        "cum_qty": number(fill.cum_qty),
        "order_status": "partially_filled" if fill.leaves_qty else "filled",
    }


def clock_json(exchange: Exchange) -> dict[str, Any]:
    """The market's clock."""
    opens, closes = exchange.session()
    return {
        "timestamp": moment(exchange.now),
        "is_open": exchange.market_open,
        "next_open": moment(opens),
        "next_close": moment(closes),
    }


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object whose numbers are decimals. Raises `Refusal` (400)."""
    try:
        read: Any = json.loads(body, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, 40010000, "request body format is invalid") from error
    if not isinstance(read, dict):
        raise Refusal(400, 40010000, "request body format is invalid")
    return read  # pyright: ignore[reportUnknownVariableType] - JSON objects have strings for keys


def read_decimal(name: str, value: object) -> Decimal:
    """A positive decimal with at most 9 places, up to a milliard, from a number or a string. Raises `Refusal` (422)."""
    wrong = Refusal(422, INVALID, f"invalid {name}")
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise wrong
    try:
        read = Decimal(value)
        exact = read.is_finite() and UNIT <= read <= LARGEST and WIDE.quantize(read, UNIT) == read
    except InvalidOperation as error:
        raise wrong from error
    if not exact:
        raise wrong
    return read


def check_text(name: str, value: object) -> str:
    """A short printable text, as it is. Raises `Refusal` (422)."""
    if not isinstance(value, str) or not value or len(value) > LONGEST_ID or not value.isprintable():
        raise Refusal(422, INVALID, f"{name} must be a text of 1 to {LONGEST_ID} printable characters")
    return value


def read_order(body: bytes) -> NewOrder:
    """An order out of a request's body. Fields that change nothing for such an order are left alone.

    Raises `Refusal` for what the real broker would refuse, and for what this one does not do.
    """
    asked = read_object(body)
    symbol, client_order_id = asked.get("symbol"), asked.get("client_order_id") or ""
    symbol = check_text("symbol", symbol)
    if client_order_id:
        client_order_id = check_text("client_order_id", client_order_id)
    if asked.get("notional") is not None or asked.get("order_class") not in (None, "", "simple"):
        raise Refusal(422, UNPROCESSABLE, "only simple orders with a qty are supported")
    kind = read_choice("type", asked.get("type"), TYPES)
    limit = asked.get("limit_price")
    if (limit is not None) != (kind == "limit"):
        raise Refusal(
            422, UNPROCESSABLE, f"{kind} orders {'require' if kind == 'limit' else 'must not have'} limit_price"
        )
    time_in_force = read_choice("time_in_force", asked.get("time_in_force"), TIMES_IN_FORCE)
    if is_pair(symbol) and time_in_force == "day":
        raise Refusal(422, UNPROCESSABLE, "invalid crypto time_in_force")
    return NewOrder(
        symbol=symbol,
        side=read_choice("side", asked.get("side"), SIDES),
        qty=read_decimal("qty", asked.get("qty")),
        type=kind,
        limit_price=None if limit is None else read_decimal("limit_price", limit),
        time_in_force=time_in_force,
        client_order_id=client_order_id,
    )


def read_choice(name: str, value: object, choices: Mapping[str, T]) -> T:
    """One of a few words. Raises `Refusal` (422)."""
    if not isinstance(value, str) or value not in choices:
        raise Refusal(422, INVALID, f"invalid {name}: one of {', '.join(choices)}")
    return choices[value]
