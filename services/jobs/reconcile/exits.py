"""Exits whose order at the broker nobody named. The broker names a close itself, so its form and its time have to tell.

An exit has no answer after a time-out, or a bad one that a later attempt overtook. Its order may be new to us, or in
our record as a stranger's: an exit's row may come hours after its order, from a process that was down meanwhile.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.trading.broker.types import BrokerOrder
from libs.trading.intent import BROKER_PREFIX
from services.jobs.reconcile.statements import rows_of

MARKET = "market"
SUBMITTING = "submitting"
CLOCKS_DIFFER = timedelta(minutes=1)
COPIED_WITHIN = timedelta(days=1)
"""How long after its order an exit's row may come, where nothing on record says when it was sent."""
RETRIED_WITHIN = timedelta(hours=1)
"""How long after a failure another attempt may have made the order."""

# When an exit was sent stands in the record of its verdict; the row itself is as old as its copy.
LOST = text(
    """
    with lost as (
      select * from orders where origin = 'exit' and broker_id is null and status = 'submitting'
      union all
      select * from orders where :failed and origin = 'exit' and broker_id is null
        and status in ('not_sent', 'rejected') and created_at > now() - interval '1 day'
    )
    select lost.id, lost.ticker, lost.side, lost.qty, lost.status, lost.created_at, lost.updated_at,
      cast(cast(v.payload as json) #>> '{exit,at}' as timestamptz) as sent_at
    from lost left join gate_verdicts v on v.id = lost.verdict_id
    """
)

STRANGERS_AT_MARKET = text(
    f"""
    select id, broker_id, ticker, side, qty, created_at from orders
    where created_at >= :since and origin = 'broker' and limit_price is null and broker_id is not null
      and not starts_with(client_order_id, '{BROKER_PREFIX}')
    """
)

# Two rows become the exit's one.
TAKE_BACK = text(
    f"""
    delete from orders s using {rows_of("id uuid, broker_id text")}
    where s.broker_id = r.broker_id and s.origin = 'broker'
    returning r.id, s.broker_id, s.status, s.filled_qty, s.filled_avg_price
    """
)

CLAIM = text(
    f"""
    update orders o set broker_id = r.broker_id, status = r.status, filled_qty = r.filled_qty,
      filled_avg_price = r.filled_avg_price, reason = case o.status when 'submitting' then o.reason else '' end,
      updated_at = now()
    from {rows_of("id uuid, broker_id text, status text, filled_qty numeric, filled_avg_price numeric")}
    where o.id = r.id and o.broker_id is null
    returning o.broker_id
    """
)


@dataclass(frozen=True, slots=True)
class Lost:
    """An exit without an order. `sent_at` is None where no record says when it was sent."""

    id: UUID
    ticker: str
    side: str
    qty: Decimal
    status: str
    created_at: datetime
    updated_at: datetime
    sent_at: datetime | None = None

    @property
    def earliest(self) -> datetime:
        """The first moment its order may be from."""
        return self.created_at - COPIED_WITHIN if self.sent_at is None else self.sent_at - CLOCKS_DIFFER

    @property
    def latest(self) -> datetime:
        """The last moment its order may be from."""
        known = max(self.created_at, self.updated_at) + CLOCKS_DIFFER
        return known if self.status == SUBMITTING else known + RETRIED_WITHIN


@dataclass(frozen=True, slots=True)
class Close:
    """An order that looks like a close. `seen_before` when an earlier reconciliation met it."""

    broker_id: str
    ticker: str
    side: str
    qty: Decimal
    created_at: datetime
    seen_before: bool


def pair(lost: Iterable[Lost], closes: Iterable[Close]) -> dict[str, UUID]:
    """Which order at the broker is which exit's, by the broker's id: the same ticker, side and quantity, in time.

    The oldest go first, and exits without an answer before those with a bad one. One with a bad answer waits until an
    order was seen before: until then it may be that of another exit, whose row is on its way.
    """
    left = sorted(lost, key=lambda each: (each.status != SUBMITTING, each.created_at, str(each.id)))
    found: dict[str, UUID] = {}
    for close in sorted(closes, key=lambda each: (each.created_at, each.broker_id)):
        match = next((each for each in left if is_of(each, close)), None)
        if match is not None:
            found[close.broker_id] = match.id
            left.remove(match)
    return found


def is_of(lost: Lost, close: Close) -> bool:
    """Whether an order may be this exit's."""
    same = (lost.ticker, lost.side, lost.qty) == (close.ticker, close.side, close.qty)
    in_time = lost.earliest <= close.created_at <= lost.latest
    return same and in_time and (lost.status == SUBMITTING or close.seen_before)


class ExitClaims:
    """Gives exits their orders, inside its caller's transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def claim(self, strangers: Iterable[BrokerOrder], *, seen_before: Collection[str]) -> set[str]:
        """Give orders that nobody sent to the exits that lack one; returns the broker's ids of those."""
        orders = {order.id: order for order in strangers if may_be_exit(order)}
        if not orders:
            return set()
        closes = [
            Close(each.id, each.symbol, each.side, each.qty, each.submitted_at, each.id in seen_before)
            for each in orders.values()
        ]
        found = pair(await self._lost(failed=True), closes)
        rows = [
            {
                "id": order_id,
                "broker_id": broker_id,
                "status": orders[broker_id].status,
                "filled_qty": orders[broker_id].filled_qty,
                "filled_avg_price": orders[broker_id].filled_avg_price,
            }
            for broker_id, order_id in found.items()
        ]
        return await self._claim(rows)

    async def take_back(self) -> None:
        """Give exits without an answer their orders where these are in our record as a stranger's."""
        lost = await self._lost(failed=False)
        if not lost:
            return
        since = min(each.earliest for each in lost)
        strangers = await self._connection.execute(STRANGERS_AT_MARKET, {"since": since})
        closes = [
            Close(row.broker_id, row.ticker, row.side, row.qty, row.created_at, seen_before=True) for row in strangers
        ]
        pairs = [{"id": order_id, "broker_id": broker_id} for broker_id, order_id in pair(lost, closes).items()]
        if pairs:
            taken = await self._rows(TAKE_BACK, pairs)
            await self._claim([dict(row) for row in taken.mappings()])

    async def _lost(self, *, failed: bool) -> list[Lost]:
        rows = await self._connection.execute(LOST, {"failed": failed})
        return [Lost(**row) for row in rows.mappings()]

    async def _claim(self, rows: Sequence[dict[str, Any]]) -> set[str]:
        return {row.broker_id for row in await self._rows(CLAIM, rows)} if rows else set()

    async def _rows(self, statement: Any, rows: Sequence[dict[str, Any]]) -> Any:
        return await self._connection.execute(statement, {"rows": json.dumps(rows, default=str)})


def may_be_exit(order: BrokerOrder) -> bool:
    """Whether an order looks like the close of a position: at the market, and named by the broker."""
    return order.type == MARKET and not order.client_order_id.startswith(BROKER_PREFIX)
