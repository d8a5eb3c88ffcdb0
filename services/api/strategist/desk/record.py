"""What goes to the gate, what comes back, and the row of a verdict that is kept."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from libs.trading.gate import Situation
from libs.trading.intent import intent_id, plain
from libs.trading.reasons import Reason
from libs.trading.types import Answer, Mode, Order, StoredDecision


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """A reducing order that was dealt with already, to be put on record: what was said, and what the broker made of it.

    `broker_id` and `status` are None for a refused one. `verdict_id` is what its caller was told.
    """

    reason: Reason
    at: datetime
    verdict_id: UUID
    status: str | None = None
    broker_id: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """An order at the gate; `send` where it is to go out when allowed. `done` puts an exit on record.

    `order_id` is the id that follows from the intent, found here and not behind the gate's lock.
    """

    order: Order
    send: bool = False
    done: ExitRecord | None = None
    order_id: UUID = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order_id", intent_id(self.order))


@dataclass(frozen=True, slots=True)
class Told:
    """What an order was told. `limit_price` is set where the order has to be sent now, by whoever asked.

    `has_order` says that it was sent, or is being sent, by an earlier request. `verdict_id` is None for a verdict that
    could not be stored.
    """

    verdict: Answer
    would_have: Answer
    mode: Mode
    reasons: tuple[str, ...]
    forecast_id: UUID | None
    decision_age_s: float | None
    verdict_id: UUID | None
    limit_price: Decimal | None = None
    has_order: bool = False


def columns_of(
    asked: Asked, told: Told, *, decision: StoredDecision | None, seq: int, now: datetime, first: bool
) -> dict[str, Any]:
    """A row of gate_verdicts without payload and hash, as JSON."""
    order = asked.order
    return {
        "seq": seq,
        "id": as_id(told.verdict_id),
        "at": as_moment(now),
        "key_name": order.key_name,
        "strategy": order.strategy,
        "client_order_id": order.client_order_id,
        "intent": str(asked.order_id),
        "first": first,
        "ticker": order.ticker,
        "side": order.side,
        "qty": plain(order.qty),
        "ref_price": plain(order.ref_price),
        "reduce_only": order.reduce_only,
        "verdict": told.verdict,
        "would_have": told.would_have,
        "mode": told.mode,
        "reasons": list(told.reasons),
        "forecast_id": as_id(told.forecast_id),
        "feed": None if decision is None else decision.feed,
        "horizon": order.horizon if decision is None else decision.horizon,
        "model": None if decision is None else decision.model,
        "as_of": None if decision is None else as_moment(decision.as_of),
        "decision_age_s": told.decision_age_s,
        "prompt_version": None if decision is None else decision.prompt_version,
        "arm": None if decision is None else decision.arm,
    }


def decision_copy(decision: StoredDecision) -> dict[str, Any]:
    """What the gate saw of a decision, for the record."""
    return {
        "side": decision.side,
        "status": decision.status,
        "allow": decision.allow,
        "reasons": list(decision.reasons),
        "rules_allow": decision.rules_allow,
        "rules_reasons": list(decision.rules_reasons),
        "answered_by": decision.answered_by,
        "error": decision.error,
        "past_due": decision.past_due,
        "used_by": decision.used_by,
        "prompt_hash": decision.prompt_hash,
    }


def seen_by(situation: Situation, done: ExitRecord | None) -> dict[str, Any]:
    """What else a verdict rested on. An exit that was dealt with before rests on the broker's word alone."""
    if done is not None:
        return {"exit": {"at": as_moment(done.at), "status": done.status, "broker_id": done.broker_id}}
    price, book = situation.price, situation.book
    return {
        "price": None if price is None else {"price": str(price.price), "age_s": price.age_s},
        "account": {
            "reconciled": book.reconciled,
            "lost_today": plain(book.lost_today),
            "orders_last_minute": book.orders_last_minute,
        },
        "halted": situation.halted,
    }


def as_id(value: UUID | None) -> str | None:
    """An id in JSON."""
    return None if value is None else str(value)


def as_moment(value: datetime) -> str:
    """A moment in JSON, in UTC."""
    return value.astimezone(UTC).isoformat()
