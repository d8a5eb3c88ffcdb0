"""An allowed entry on its way to the broker: sent once; what nobody answered for is looked up, never sent again."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import structlog
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs import tracing
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError, BrokerRefused, BrokerUncertain, BrokerUnreachable
from libs.trading.broker.types import BrokerOrder
from libs.trading.entry_marks import MAY_STILL_ARRIVE_S
from libs.trading.halt import EntryLock, Halted, Sending
from libs.trading.intent import broker_order_id
from libs.trading.types import Order
from services.api.strategist.words import printable

SUBMITTING, ACCEPTED, NOT_SENT, REJECTED = "submitting", "accepted", "not_sent", "rejected"
LOOK_AGAIN_S = (0.2, 0.5, 1.0)
"""Pauses between looks for an order whose submission got no answer."""
LOOK_EVERY_S = 2.0
LATEST_S = 10.0
"""How old a verdict may be when its order is sent."""
HALTED = "halted before it was sent"

SENT = Counter("lexi_orders_total", "Orders sent to the broker, by what came of it", ["origin", "outcome"])

log = structlog.get_logger(__name__)

# Reconciliation may have been quicker, and then knows better. Fills are its to store, together with the position that
# they make: the limits count what is open and what is held, and a fill must never be in neither.
RECORD = text(
    """
    update orders set status = :status, broker_id = :broker_id, reason = :reason, updated_at = now()
    where id = :id and broker_id is null and status <> 'not_sent'
    """
)


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of an order. `broker` is the broker's order, None where it has none or did not say."""

    status: str
    reason: str = ""
    broker: BrokerOrder | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no order at the broker, for certain."""
        return self.status in {NOT_SENT, REJECTED}


class Submission:
    """Sends entries, one call each, under the lock that a panic exit waits for.

    An entry that nobody answered for keeps the lock until it is found, or so long that it cannot come any more. Its
    mark on the disk says the same once this process is gone.
    """

    def __init__(self, broker: Broker, *, lock: EntryLock, engine: AsyncEngine) -> None:
        self._broker = broker
        self._lock = lock
        self._engine = engine
        self._watched: set[asyncio.Task[None]] = set()
        lock.marks.tidy(datetime.now(UTC))

    async def close(self) -> None:
        """Stop looking for entries that nobody answered for; their marks stay, and reconciliation goes on."""
        for task in self._watched:
            task.cancel()
        await asyncio.gather(*self._watched, return_exceptions=True)

    async def send(
        self, order: Order, *, order_id: UUID, limit_price: Decimal, since: float, verdict_id: UUID | None = None
    ) -> Placed:
        """Send an entry that was allowed, and put what came of it on record. Never raises for what a broker does.

        `since` is when its verdict was asked for (`time.monotonic`): one that is too old is not sent. `verdict_id` is
        for the log.
        """
        with ExitStack() as held:
            try:
                sending = held.enter_context(self._lock.sending(order_id, name=broker_order_id(order_id)))
            except Halted as halt:
                placed = Placed(NOT_SENT, f"{HALTED}: {halt}")
            else:
                placed = await self._submit_in_time(order, order_id=order_id, limit_price=limit_price, since=since)
                if placed.status == SUBMITTING:
                    placed = await self._look_for(order_id, placed)
                sending.settled = placed.status != SUBMITTING
                if not sending.settled:
                    self._watch(order_id, placed, sending=sending, lock=held.pop_all())
        SENT.labels("entry", placed.status if placed.failed or placed.broker is None else "accepted").inc()
        log.info(
            "entry_sent",
            order_id=str(order_id),
            verdict_id=None if verdict_id is None else str(verdict_id),
            broker_id=None if placed.broker is None else placed.broker.id,
            ticker=order.ticker,
            status=placed.status,
            reason=placed.reason,
        )
        await self._record(order_id, placed)
        return placed

    def _watch(self, order_id: UUID, placed: Placed, *, sending: Sending, lock: ExitStack) -> None:
        task = asyncio.create_task(self._watch_for(order_id, placed, sending=sending, lock=lock))
        self._watched.add(task)
        task.add_done_callback(lambda _: lock.close())  # also where it is cancelled before it begins
        task.add_done_callback(self._watched.discard)

    async def _watch_for(self, order_id: UUID, placed: Placed, *, sending: Sending, lock: ExitStack) -> None:
        """Hold the lock until the entry is found, so that no panic exit calls an account flat that it may yet reach."""
        with lock:
            until = time.monotonic() + MAY_STILL_ARRIVE_S
            while placed.status == SUBMITTING and time.monotonic() < until:
                placed = await self._look_for(order_id, placed, pauses=(LOOK_EVERY_S,))
            sending.settled = True
        await self._record(order_id, placed)

    async def _submit_in_time(self, order: Order, *, order_id: UUID, limit_price: Decimal, since: float) -> Placed:
        """This process may have stood still since the verdict, and the order may have been given up meanwhile."""
        late_s = time.monotonic() - since
        if late_s > LATEST_S:
            return Placed(NOT_SENT, f"{late_s:.0f} s passed since its verdict was asked for")
        with tracing.span("broker submit", "client", attributes={"lexi.order_id": str(order_id)}) as span:
            placed = await self._submit(order, order_id=order_id, limit_price=limit_price)
            span.note({"lexi.order.status": placed.status})
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

    async def _look_for(self, order_id: UUID, placed: Placed, *, pauses: Sequence[float] = LOOK_AGAIN_S) -> Placed:
        """An order that may have arrived is presumed alive; reconciliation goes on looking after us."""
        for pause in pauses:
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
            "reason": printable(placed.reason),
        }
        try:
            async with self._engine.begin() as connection:
                await connection.execute(RECORD, values)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("order_not_recorded", order_id=str(order_id), error=type(error).__name__)
