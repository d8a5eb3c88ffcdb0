"""The verdicts of one transaction, one after the other: each order sees what those before it were allowed.

No I/O: rows go in, rows to store come out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from libs.trading.chain import GENESIS, link, payload_of
from libs.trading.gate import (
    Authority,
    Situation,
    Verdict,
    judge,
    judge_again,
    mode_of,
    of_reduction,
    order_price,
    with_order,
)
from libs.trading.intent import collar_price, plain
from libs.trading.reasons import Kind, Reason
from libs.trading.types import Book, Order, StoredDecision
from services.api.strategist.desk.record import Asked, Told, as_id, as_moment, columns_of, decision_copy, seen_by


@dataclass(frozen=True, slots=True)
class First:
    """The verdict an order id got when it first came."""

    told: Told
    intent: str
    at: datetime


@dataclass(slots=True)
class Verdicts:
    """The state of a transaction, and what it will store. `seq` and `hash` are the end of the chain so far."""

    seq: int = 0
    hash: str = GENESIS
    book: Book | None = None
    firsts: dict[str, First] = field(default_factory=dict[str, First])
    used: dict[UUID, str] = field(default_factory=dict[UUID, str])
    sent: set[UUID] = field(default_factory=set[UUID])
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    authorisations: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    orders: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def begin(self, row: Mapping[str, Any]) -> None:
        """Go on at the end of the stored chain."""
        if row["head_seq"] is not None:
            self.seq, self.hash = row["head_seq"], row["head_hash"]

    def give(
        self, asked: Asked, *, row: Mapping[str, Any], decision: StoredDecision | None, situation: Situation
    ) -> Told:
        """The verdict on the next order, as read from `row`, with what the orders before it in this transaction did."""
        order, now = asked.order, row["at"]
        if self.book is not None:
            situation = replace(situation, book=self.book)
        if decision is not None and decision.forecast_id in self.used:
            decision = replace(decision, used_by=self.used[decision.forecast_id])
        first = self.firsts.get(order.client_order_id) or first_of(row)
        if asked.done is not None:
            return self._put_on_record(asked, row=row, situation=situation, first=first is None)
        if first is not None and first.intent == str(asked.order_id):
            return self._again(asked, first=first, row=row, situation=situation)
        verdict = judge(order, decision, replace(situation, duplicate=first is not None))
        told = self._record(asked, verdict, decision=decision, situation=situation, now=now, first=first is None)
        if not verdict.allowed or order.reduce_only:
            return told
        self._authorise(order, told, decision=decision, now=now)
        self.book = with_order(order, situation.book, price=order_price(order, situation.price))
        return self._place(asked, told, situation=situation)

    def _put_on_record(self, asked: Asked, *, row: Mapping[str, Any], situation: Situation, first: bool) -> Told:
        """A reducing order that was dealt with already: its verdict once, and what is known of its order by now."""
        done = asked.done
        assert done is not None  # noqa: S101 - the caller asked
        verdict = of_reduction(mode_of(situation.switches), None if done.reason is Reason.ALLOW else done.reason)
        if row["recorded"]:
            told = told_of(verdict, decision=None, verdict_id=done.verdict_id)
        else:
            told = self._record(asked, verdict, decision=None, situation=situation, now=row["at"], first=first)
        if done.status is not None:
            self._order(asked, told, limit=None)
        return told

    def _again(self, asked: Asked, *, first: First, row: Mapping[str, Any], situation: Situation) -> Told:
        """The same order once more: the same verdict, and an entry that has not gone out yet is judged for that."""
        order, has_order = asked.order, row["has_order"] or asked.order_id in self.sent
        told = replace(first.told, has_order=has_order)
        if has_order or told.verdict == "deny" or not asked.send or order.reduce_only:
            return told
        if order.client_order_id in self.firsts:  # judged a moment ago, by this very transaction
            return self._place(asked, told, situation=situation)
        situation = replace(situation, book=without_own(situation.book, counted=bool(row["counted"])))
        verdict = judge_again(order, authority_of(first, now=row["at"]), situation)
        if (verdict.mode, tuple(verdict.reasons)) != (told.mode, told.reasons):
            told = self._record(asked, verdict, decision=None, situation=situation, now=row["at"], first=False)
        if not verdict.allowed:
            return told
        self.book = with_order(order, situation.book, price=order_price(order, situation.price))
        return self._place(asked, told, situation=situation)

    def _record(
        self,
        asked: Asked,
        verdict: Verdict,
        *,
        decision: StoredDecision | None,
        situation: Situation,
        now: datetime,
        first: bool,
    ) -> Told:
        """Add a verdict to the chain."""
        verdict_id = uuid7() if asked.done is None else asked.done.verdict_id
        told = told_of(verdict, decision=decision, verdict_id=verdict_id)
        self.seq += 1
        columns = columns_of(asked, told, decision=decision, seq=self.seq, now=now, first=first)
        seen = {"decision": None if decision is None else decision_copy(decision), **seen_by(situation, asked.done)}
        payload = payload_of({**columns, **seen})
        self.hash = link(self.hash, payload)
        self.rows.append({**columns, "payload": payload, "hash": self.hash})
        if first:
            self.firsts[asked.order.client_order_id] = First(told, str(asked.order_id), now)
        return told

    def _authorise(self, order: Order, told: Told, *, decision: StoredDecision | None, now: datetime) -> None:
        """Bind the entry to its forecast, where that is about this order and still free."""
        binds = decision is not None and Reason.MISMATCH not in told.reasons and decision.used_by is None
        forecast_id = told.forecast_id if binds else None
        if forecast_id is not None:
            self.used[forecast_id] = order.client_order_id
        self.authorisations.append(
            {
                "client_order_id": order.client_order_id,
                "forecast_id": as_id(forecast_id),
                "verdict_id": as_id(told.verdict_id),
                "at": as_moment(now),
            }
        )

    def _place(self, asked: Asked, told: Told, *, situation: Situation) -> Told:
        """The row of an entry that goes out now, with the price it goes out at."""
        if not asked.send or situation.price is None:
            return told
        limit = collar_price(situation.price.price, asked.order.side, situation.limits.price_collar_pct)
        self._order(asked, told, limit=limit)
        return replace(told, limit_price=limit, has_order=True)

    def _order(self, asked: Asked, told: Told, *, limit: Decimal | None) -> None:
        order, done = asked.order, asked.done
        self.sent.add(asked.order_id)
        self.orders.append(
            {
                "id": as_id(asked.order_id),
                "origin": "exit" if order.reduce_only else "entry",
                "verdict_id": as_id(told.verdict_id),
                "key_name": order.key_name,
                "strategy": order.strategy,
                "client_order_id": order.client_order_id,
                "ticker": order.ticker,
                "side": order.side,
                "qty": plain(order.qty),
                "limit_price": None if limit is None else plain(limit),
                "status": "submitting" if done is None else done.status,
                "broker_id": None if done is None else done.broker_id,
                "reason": "" if done is None else done.detail,
            }
        )


def told_of(verdict: Verdict, *, decision: StoredDecision | None, verdict_id: UUID) -> Told:
    """A verdict as it is told."""
    return Told(
        verdict=verdict.verdict,
        would_have=verdict.would_have,
        mode=verdict.mode,
        reasons=tuple(reason.value for reason in verdict.reasons),
        forecast_id=None if decision is None else decision.forecast_id,
        decision_age_s=None if decision is None else decision.age_s,
        verdict_id=verdict_id,
    )


def authority_of(first: First, *, now: datetime) -> Authority:
    """What a first verdict is worth now. One without a decision lives as long as one with a decision just made."""
    told = first.told
    against = tuple(Reason(code) for code in told.reasons if Reason(code).kind is Kind.POLICY)
    age = (told.decision_age_s or 0) + (now - first.at).total_seconds()
    return Authority(age, against if told.would_have == "deny" else ())


def without_own(book: Book, *, counted: bool) -> Book:
    """The book for an order whose own authorisation is counted in it."""
    return replace(book, orders_last_minute=book.orders_last_minute - counted)


def first_of(row: Mapping[str, Any]) -> First | None:
    """The stored first verdict of an order id, None where it never came."""
    if row["told_id"] is None:
        return None
    told = Told(
        verdict=row["told_verdict"],
        would_have=row["told_would_have"],
        mode=row["told_mode"],
        reasons=tuple(row["told_reasons"]),
        forecast_id=None if row["told_forecast_id"] is None else UUID(str(row["told_forecast_id"])),
        decision_age_s=row["told_decision_age_s"],
        verdict_id=UUID(str(row["told_id"])),
    )
    return First(told, row["told_intent"], row["told_at"])
