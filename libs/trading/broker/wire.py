"""Alpaca's JSON as our types. Numbers arrive as strings; whatever cannot be read raises `BrokerUncertain`.

What is read can be worked with: numbers are of a size that arithmetic bears, moments lie within 1900 to 2200, texts are
printable, so that they can be stored and sent again.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NoReturn, TypeVar, cast

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

_UNREADABLE = (KeyError, TypeError, ValueError, ArithmeticError, RecursionError)
_LONGEST_NUMBER = 100
_LARGEST_EXPONENT = 30
_SMALLEST_EXPONENT = -60
_LONGEST_TEXT = 1000
_YEARS = range(1900, 2201)
_STATUSES = range(100, 600)


def content(body: bytes) -> object:
    """A body's JSON with decimals for numbers, None where it is none."""
    try:
        return json.loads(body, parse_float=Decimal, parse_constant=_no_number)
    except _UNREADABLE:
        return None


def _no_number(value: str) -> NoReturn:
    raise ValueError(f"{value} is not JSON")


def read(parse: Callable[[Wire], T], value: object, *, call: str) -> T:
    """One object of an answer."""
    if not isinstance(value, dict):
        raise BrokerUncertain(f"{call}: the answer is not an object")
    try:
        return parse(cast("Wire", value))
    except _UNREADABLE as error:
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
        client_order_id=_words(said.get("client_order_id")),
        symbol=_text(said, "symbol"),
        side=_side(said["side"]),
        qty=_optional(said.get("qty")) or Decimal(0),
        filled_qty=_optional(said.get("filled_qty")) or Decimal(0),
        filled_avg_price=_optional(said.get("filled_avg_price")),
        limit_price=_optional(said.get("limit_price")),
        type=_words(said.get("type") or said.get("order_type")),
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
        status=_words(said.get("status")),
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
    name = _words(said.get(subject))
    try:
        status = _status(said["status"])
    except _UNREADABLE:
        return ItemResult(subject=name, status=0, message="an item of the answer has no status")
    body = cast("Wire", said["body"]) if isinstance(said.get("body"), dict) else {}
    code, message = error_in(body)
    if code is None and body.get("code") is not None:
        return ItemResult(name, status=0, message=message or "an item of the answer has a code that is no number")
    made: BrokerOrder | None = None
    if "symbol" in body and "id" in body and code is None:
        try:
            made = order(body)
        except _UNREADABLE as error:
            return ItemResult(name, status=0, message=f"the order cannot be read: {type(error).__name__} {error}")
    if made is not None and made.status in {"rejected", "canceled", "expired"}:
        return ItemResult(name, status=0, order=made, message=f"the order is {made.status}")
    return ItemResult(name, status, order=made, code=code, message=message)


def error_in(body: object) -> tuple[int | None, str]:
    """The broker's own code and sentence of an error body."""
    if not isinstance(body, dict):
        return None, ""
    said = cast("Wire", body)
    code = said.get("code")
    known = isinstance(code, int) and not isinstance(code, bool) and abs(code) < 10**15
    return (code if known else None), _words(said.get("message"))


def _status(value: object) -> int:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdecimal():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value in _STATUSES:
        return value
    raise ValueError("no status")


def _words(value: object) -> str:
    """A text that is only shown or compared: what cannot be printed is `?`, and what is no text is empty."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else "?" for letter in value[:_LONGEST_TEXT])


def _text(said: Wire, name: str) -> str:
    """A text that something is known by."""
    value = said[name]
    if not isinstance(value, str) or not value or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise ValueError(f"{name} is not a printable text")
    return value


def _number(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise TypeError(f"{type(value).__name__} is not a number")
    if isinstance(value, str) and len(value) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(value)} letters")
    number = Decimal(value)
    if not number.is_finite():
        raise ValueError(f"{value!r} is not a finite number")
    _, digits, exponent = number.as_tuple()
    if len(digits) > _LONGEST_NUMBER or number.adjusted() > _LARGEST_EXPONENT or int(exponent) < _SMALLEST_EXPONENT:
        raise ValueError("a number of no size that money or a quantity has")
    return number


def _optional(value: object) -> Decimal | None:
    return None if value is None or value == "" else _number(value)


def _side(value: object) -> BrokerSide:
    if value == "buy":
        return "buy"
    if value in {"sell", "sell_short"}:
        return "sell"
    raise ValueError("neither buy nor sell")


def _time(value: object) -> datetime:
    if not isinstance(value, str) or len(value) > _LONGEST_NUMBER:
        raise TypeError("not a moment of ISO 8601")
    moment = datetime.fromisoformat(value)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if moment.year not in _YEARS:
        raise ValueError(f"{value!r} is not a moment to trade at")
    return moment
