"""An allowed entry on its way to the broker: sent once; what nobody answered for is looked up, never sent again."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import structlog
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError, BrokerRefused, BrokerUncertain, BrokerUnreachable
from libs.trading.broker.types import BrokerOrder
from libs.trading.halt import EntryLock, Halted
from libs.trading.intent import broker_order_id
from libs.trading.types import Order

SUBMITTING, ACCEPTED, NOT_SENT, REJECTED = "submitting", "accepted", "not_sent", "rejected"
LOOK_AGAIN_S = (0.2, 0.5, 1.0)
"""Pauses between looks for an order whose submission got no answer."""

SENT = Counter("lexi_orders_total", "Orders sent to the broker, by what came of it", ["origin", "outcome"])

log = structlog.get_logger(__name__)

# Reconciliation may have been quicker, and then knows better. Fills are its to store, together with the position that
# they make: the limits count what is open and what is held, and a fill must never be in neither.
RECORD = text(
    """
    update orders set status = :status, broker_id = :broker_id, reason = :reason, updated_at = now()
    where id = :id and broker_id is null
    """
)


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of an order. `broker` is the broker's order, None where it has none or did not say."""

    status: str
    reason: str = ""
    broker: BrokerOrder | None = None
    halted: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no order at the broker, for certain."""
        return self.status in {NOT_SENT, REJECTED}


class Submission:
    """Sends entries, one call each, under the lock that a panic exit waits for."""

    def __init__(self, broker: Broker, *, lock: EntryLock, engine: AsyncEngine) -> None:
        self._broker = broker
        self._lock = lock
        self._engine = engine

    async def send(self, order: Order, *, order_id: UUID, limit_price: Decimal) -> Placed:
        """Send an entry that was allowed, and put what came of it on record. Never raises for what a broker does."""
        try:
            with self._lock.sending():
                placed = await self._submit(order, order_id=order_id, limit_price=limit_price)
        except Halted as halt:
            placed = Placed(NOT_SENT, f"halted before it was sent: {halt}", halted=True)
        if placed.status == SUBMITTING:
            placed = await self._look_for(order_id, placed)
        SENT.labels("entry", placed.status if placed.failed or placed.broker is None else "accepted").inc()
        log.info("entry_sent", order_id=str(order_id), ticker=order.ticker, status=placed.status, reason=placed.reason)
        await self._record(order_id, placed)
        return placed

    async def _submit(self, order: Order, *, order_id: UUID, limit_price: Decimal) -> Placed:
        try:
            accepted = await self._broker.submit_limit(
                symbol=order.ticker,
                side=order.side,
                qty=order.qty,
                limit_price=limit_price,
                client_order_id=broker_order_id(order_id),
            )
        except BrokerUnreachable as error:
            return Placed(NOT_SENT, str(error))
        except BrokerUncertain as error:
            return Placed(SUBMITTING, str(error))
        except BrokerRefused as error:
            known = "client_order_id" in error.message  # it is there already: somebody's earlier attempt arrived
            return Placed(SUBMITTING if known else REJECTED, str(error))
        return Placed(accepted.status, broker=accepted)

    async def _look_for(self, order_id: UUID, placed: Placed) -> Placed:
        """An order that may have arrived is presumed alive; reconciliation goes on looking after us."""
        for pause in LOOK_AGAIN_S:
            await asyncio.sleep(pause)
            try:
                found = await self._broker.order_by_client_id(broker_order_id(order_id))
            except BrokerError as error:
                log.info("order_not_looked_up", order_id=str(order_id), error=str(error))
                continue
            if found is not None:
                return Placed(found.status, placed.reason, found)
        return placed

    async def _record(self, order_id: UUID, placed: Placed) -> None:
        if placed.status == SUBMITTING:
            return
        found = placed.broker
        values = {
            "id": order_id,
            "status": ACCEPTED if found is not None and found.filled_qty else placed.status,
            "broker_id": None if found is None else found.id,
            "reason": placed.reason,
        }
        try:
            async with self._engine.begin() as connection:
                await connection.execute(RECORD, values)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("order_not_recorded", order_id=str(order_id), error=type(error).__name__)
