"""Alpaca's JSON as our types. Numbers arrive as strings; whatever cannot be read raises `BrokerUncertain`."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar, cast

from libs.trading.broker.errors import BrokerUncertain
from libs.trading.broker.types import (
    Account,
    BrokerOrder,
    BrokerPosition,
    BrokerSide,
    Fill,
    ItemResult,
    MarketClock,
)

T = TypeVar("T")
Wire = dict[str, Any]


def read(parse: Callable[[Wire], T], value: object, *, call: str) -> T:
    """One object of an answer."""
    if not isinstance(value, dict):
        raise BrokerUncertain(f"{call}: the answer is not an object")
    try:
        return parse(cast("Wire", value))
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise BrokerUncertain(f"{call}: the answer cannot be read: {type(error).__name__} {error}") from error


def read_list(parse: Callable[[Wire], T], value: object, *, call: str) -> list[T]:
    """A list of an answer; one item that cannot be read spoils it, since a list with holes would mislead."""
    if not isinstance(value, list):
        raise BrokerUncertain(f"{call}: the answer is not a list")
    return [read(parse, item, call=call) for item in cast("list[object]", value)]


def order(said: Wire) -> BrokerOrder:
    """An order."""
    return BrokerOrder(
        id=_text(said, "id"),
        client_order_id=str(said.get("client_order_id") or ""),
        symbol=_text(said, "symbol"),
        side=_side(said["side"]),
        qty=_optional(said.get("qty")) or Decimal(0),
        filled_qty=_optional(said.get("filled_qty")) or Decimal(0),
        filled_avg_price=_optional(said.get("filled_avg_price")),
        limit_price=_optional(said.get("limit_price")),
        type=str(said.get("type") or said.get("order_type") or ""),
        status=_text(said, "status"),
        submitted_at=_time(said.get("submitted_at") or said["created_at"]),
    )


def position(said: Wire) -> BrokerPosition:
    """A position. Its sign is taken from `side` as well, since a short quantity has been seen without one."""
    qty = _number(said["qty"])
    sign = -1 if qty < 0 or said.get("side") == "short" else 1
    available = _optional(said.get("qty_available"))
    return BrokerPosition(
        symbol=_text(said, "symbol"),
        qty=sign * abs(qty),
        qty_available=sign * abs(qty if available is None else available),
        avg_entry_price=_optional(said.get("avg_entry_price")) or Decimal(0),
        current_price=_optional(said.get("current_price")) or Decimal(0),
    )


def account(said: Wire) -> Account:
    """The account."""
    return Account(
        id=_text(said, "id"),
        account_number=_text(said, "account_number"),
        equity=_number(said["equity"]),
        last_equity=_number(said["last_equity"]),
        status=str(said.get("status") or ""),
    )


def clock(said: Wire) -> MarketClock:
    """The market's clock."""
    if not isinstance(said["is_open"], bool):
        raise TypeError("is_open is not a boolean")
    return MarketClock(
        at=_time(said["timestamp"]),
        is_open=said["is_open"],
        next_open=_time(said["next_open"]),
        next_close=_time(said["next_close"]),
    )


def fill(said: Wire) -> Fill:
    """One execution of the account's activities."""
    return Fill(
        id=_text(said, "id"),
        order_id=_text(said, "order_id"),
        symbol=_text(said, "symbol"),
        side=_side(said["side"]),
        qty=abs(_number(said["qty"])),
        price=_number(said["price"]),
        at=_time(said["transaction_time"]),
    )


def items(value: object, *, subject: str, call: str) -> list[ItemResult]:
    """The list of a 207: one result each, `subject` being the field that names it. Nothing in it is left out."""
    if not isinstance(value, list):
        raise BrokerUncertain(f"{call}: the answer is not a list")
    return [_item(entry, subject) for entry in cast("list[object]", value)]


def _item(value: object, subject: str) -> ItemResult:
    if not isinstance(value, dict):
        return ItemResult(subject="", status=0, message="an item of the answer is not an object")
    said = cast("Wire", value)
    name = str(said.get(subject) or "")
    try:
        status = int(said["status"])
    except (KeyError, TypeError, ValueError):
        return ItemResult(subject=name, status=0, message="an item of the answer has no status")
    body = cast("Wire", said["body"]) if isinstance(said.get("body"), dict) else {}
    code, message = error_in(body)
    made: BrokerOrder | None = None
    if "symbol" in body and "id" in body and code is None:
        try:
            made = order(body)
        except (KeyError, TypeError, ValueError, InvalidOperation) as error:
            return ItemResult(name, status=0, message=f"the order cannot be read: {type(error).__name__} {error}")
    if made is not None and made.status in {"rejected", "canceled", "expired"}:
        return ItemResult(name, status=0, order=made, message=f"the order is {made.status}")
    return ItemResult(name, status, order=made, code=code, message=message)


def error_in(body: Wire) -> tuple[int | None, str]:
    """The broker's own code and sentence of an error body."""
    code = body.get("code")
    return (code if isinstance(code, int) else None), str(body.get("message") or "")


def _text(said: Wire, name: str) -> str:
    value = said[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is empty")
    return value


def _number(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise TypeError(f"{value!r} is not a number")
    number = Decimal(value)
    if not number.is_finite():
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _optional(value: object) -> Decimal | None:
    return None if value is None or value == "" else _number(value)


def _side(value: object) -> BrokerSide:
    if value == "buy":
        return "buy"
    if value in {"sell", "sell_short"}:
        return "sell"
    raise ValueError(f"{value!r} is not a side")


def _time(value: object) -> datetime:
    moment = datetime.fromisoformat(str(value))
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
