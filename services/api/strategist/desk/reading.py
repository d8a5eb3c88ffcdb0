"""What the desk reads, as what the gate judges by. Whatever is stored, reading it never raises and never permits."""

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, cast
from uuid import UUID

from libs.switches import CAUTIOUS
from libs.trading.gate import Situation
from libs.trading.limits import Limits, Terms
from libs.trading.types import Book, Holding, LastPrice, PolicyStatus, SignalSide, StoredDecision, SwitchState
from services.api.strategist.desk.repository import Row

MAX_ACCOUNT_AGE_S = 30.0
"""How old the last reconciliation may be for the limits to rest on it; it comes round every 5 s."""

STATUSES: dict[str, PolicyStatus] = {
    "ok": "ok",
    "invalid": "invalid",
    "unavailable": "unavailable",
    "skipped": "skipped",
}
SIDES: dict[str, SignalSide] = {"buy": "buy", "sell": "sell", "none": "none"}


def decision_of(row: Row) -> StoredDecision | None:
    """The latest judged forecast of an order's ticker, None without one. What is unreadable counts as invalid."""
    if row["forecast_id"] is None:
        return None
    policy = _object(None if row["policy"] is None else json.loads(row["policy"]))
    decision, rules = policy.get("decision"), _object(policy.get("rules"))
    allow = _object(decision).get("allow")
    return StoredDecision(
        forecast_id=UUID(str(row["forecast_id"])),
        feed=row["feed"],
        ticker=row["forecast_ticker"],
        horizon=row["forecast_horizon"],
        model=row["model"],
        as_of=row["as_of"],
        side=SIDES.get(str(row["side"]), "none"),
        status=STATUSES.get(str(policy.get("status")), "invalid") if policy else "skipped",
        allow=allow if isinstance(allow, bool) else None,
        reasons=_words(_object(decision).get("reasons")),
        rules_allow=rules.get("allow") is True,
        rules_reasons=_words(rules.get("reasons")),
        answered_by=_text(policy.get("model")),
        age_s=row["age_s"],
        error=_text(policy.get("error")),
        past_due=row["past_due"],
        used_by=row["used_by"],
        prompt_version=_text(policy.get("prompt_version")),
        prompt_hash=_text(policy.get("prompt_hash")),
        arm=_text(policy.get("arm")),
    )


def situation_of(row: Row, *, limits: Limits, terms: Terms, account: str | None, halted_here: bool) -> Situation:
    """What holds for every order of a transaction, without a price. `row` is the first one that was read.

    `account` is the broker's account this process trades on, None while it is not known. `halted_here` is what this
    machine's halt file says.
    """
    age = row["account_age_s"]
    reconciled = account is not None and row["account"] == account and age is not None and 0 <= age <= MAX_ACCOUNT_AGE_S
    return Situation(
        limits=limits,
        terms=terms,
        book=Book(
            holdings=holdings_of(row["positions"], row["open_orders"]) if reconciled else None,
            lost_today=row["lost_today"] or Decimal(0),
            orders_last_minute=row["orders_last_minute"],
            reconciled=reconciled,
        ),
        switches=SwitchState(
            gate_disabled=_or(row["gate_disabled"], default=CAUTIOUS["ORDER_GATE_DISABLED"]),
            shadow=_or(row["shadow"], default=CAUTIOUS["LLM_SHADOW_MODE"]),
        ),
        price=None,
        halted=halted_here or row["halted"],
    )


def price_of(row: Row) -> LastPrice | None:
    """Our own last price of an order's ticker."""
    price = row["last_price"]
    return None if price is None else LastPrice(decimal_of(price), row["price_age_s"])


@lru_cache(maxsize=4)
def holdings_of(positions: str | None, open_orders: str | None) -> Mapping[str, Holding]:
    """Holdings by ticker, from `[[ticker, qty, price], …]` and `[[ticker, buying, selling, price], …]`.

    A holding's price is the highest that is known of it. Kept, because positions only change with the next
    reconciliation, and reading them anew took longer than judging.
    """
    held = _positions(positions)
    if not open_orders:
        return held
    rows: list[list[str]] = json.loads(open_orders)
    return {**held, **{ticker: _with_open(held.get(ticker), *map(Decimal, numbers)) for ticker, *numbers in rows}}


@lru_cache(maxsize=4)
def _positions(document: str | None) -> dict[str, Holding]:
    rows: list[list[str]] = json.loads(document) if document else []
    return {ticker: Holding(qty=Decimal(qty), price=Decimal(price)) for ticker, qty, price in rows}


def _with_open(held: Holding | None, buying: Decimal, selling: Decimal, price: Decimal) -> Holding:
    if held is None:
        return Holding(buying=buying, selling=selling, price=price)
    known = price.is_nan() or (not held.price.is_nan() and held.price < price)
    return Holding(held.qty, buying, selling, price if known else held.price)


def decimal_of(price: float) -> Decimal:
    """A stored double as a decimal of the digits it is written with; NaN where it is no number."""
    try:
        return Decimal(repr(price))
    except InvalidOperation:
        return Decimal("NaN")


def _or(value: bool | None, *, default: bool) -> bool:
    return default if value is None else value


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _words(value: Any) -> tuple[str, ...]:
    """A list of codes; anything else is a reason against, since nobody can say what it means."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(str(each) for each in cast("list[Any]", value))
    return (str(value),)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
