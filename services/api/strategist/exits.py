"""Reducing orders: not gated, and sent with Postgres down. A local journal comes first, the record follows.

A close goes out only through the broker's close-position call, which can neither open nor flip, and only after the
position read then says that the order reduces it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError, BrokerRefused, BrokerUncertain
from libs.trading.broker.types import BrokerOrder
from libs.trading.gate import reduces
from libs.trading.intent import BROKER_PREFIX, intent_id, plain
from libs.trading.journal import Entry, Journal
from libs.trading.reasons import Reason
from libs.trading.types import ZERO, Order
from services.api.strategist.record import ExitRecord
from services.api.strategist.submission import LOOK_AGAIN_S, NOT_SENT, REJECTED, SENT, SUBMITTING

FILE = "exits.jsonl"
CLOSING, DONE, COPIED = "closing", "done", "copied"
REMEMBERED = timedelta(days=7)
"""How far back an order id is known without Postgres."""
CLOCKS_DIFFER = timedelta(minutes=1)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Exit:
    """A reducing order and what became of it. `refusal` is set where it was not sent since it would not reduce."""

    order: Order
    verdict_id: UUID
    at: datetime
    status: str = SUBMITTING
    detail: str = ""
    broker_id: str | None = None
    filled_qty: Decimal = ZERO
    refusal: Reason | None = None
    copied: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no order at the broker, for certain."""
        return self.status in {NOT_SENT, REJECTED}

    @property
    def record(self) -> ExitRecord:
        """What is put on record."""
        if self.refusal is not None:
            return ExitRecord(self.refusal, self.at, self.verdict_id, detail=self.detail)
        return ExitRecord(Reason.ALLOW, self.at, self.verdict_id, self.status, self.broker_id, self.detail)


class Exits:
    """Sends reducing orders, each once, and remembers them in `exits.jsonl`."""

    def __init__(self, broker: Broker, *, state: Path) -> None:
        self._broker = broker
        self._journal = Journal(state / FILE)
        self._known: dict[str, Exit] = {}
        self._under_way: dict[str, asyncio.Task[Exit]] = {}

    async def load(self) -> None:
        """Read what was done before this start."""
        try:
            entries = await asyncio.to_thread(self._journal.entries)
        except OSError as error:
            log.warning("exits_journal_unreadable", error=str(error))
            return
        since = datetime.now(UTC) - REMEMBERED
        for entry in entries:
            if entry.at >= since:
                self._replay(entry)

    def _replay(self, entry: Entry) -> None:
        if entry.action == CLOSING:
            found = read_exit(entry.result, at=entry.at)
            self._known[found.order.client_order_id] = found
            return
        found = next((each for each in self._known.values() if intent_id(each.order) == entry.subject), None)
        if found is not None:
            self._known[found.order.client_order_id] = finished(found, entry)

    def known(self, client_order_id: str) -> Exit | None:
        """What became of an order id, None where it never came here."""
        return self._known.get(client_order_id)

    def to_copy(self) -> list[Exit]:
        """What is not on record in Postgres yet and is not under way."""
        return [each for name, each in self._known.items() if not each.copied and name not in self._under_way]

    async def copied(self, done: Exit) -> None:
        """Note that an exit is on record."""
        self._known[done.order.client_order_id] = replace(done, copied=True)
        await self._note(done.order, COPIED, {})

    async def reduce(self, order: Order) -> Exit:
        """Send a reducing order. The same one again gets the same answer; another with its id is a DUPLICATE.

        One that certainly never became an order at the broker may be tried again under its id. Raises
        `BrokerError` where the position could not be read; then nothing was sent.
        """
        known = self._known.get(order.client_order_id)
        if known is not None and intent_id(known.order) != intent_id(order):
            return Exit(order, uuid7(), datetime.now(UTC), refusal=Reason.DUPLICATE)
        task = self._under_way.get(order.client_order_id)
        if task is None:
            if known is not None and not known.failed and known.refusal is None:
                return known
            task = asyncio.create_task(self._send(order))
            self._under_way[order.client_order_id] = task
            task.add_done_callback(lambda _done: self._under_way.pop(order.client_order_id, None))
        done = await asyncio.shield(task)
        if intent_id(done.order) != intent_id(order):
            return Exit(order, uuid7(), datetime.now(UTC), refusal=Reason.DUPLICATE)
        return done

    async def _send(self, order: Order) -> Exit:
        position = await self._broker.position(order.ticker)
        held = ZERO if position is None else position.qty
        begun = Exit(order, uuid7(), datetime.now(UTC))
        if not reduces(order, held):
            detail = f"the broker holds {plain(held)} of {order.ticker}"
            return await self._finish(replace(begun, refusal=Reason.NOT_REDUCING, detail=detail), first=True)
        self._known[order.client_order_id] = begun
        await self._note(order, CLOSING, written(begun))
        done = await self._close(begun)
        SENT.labels("exit", done.status if done.failed or done.broker_id is None else "accepted").inc()
        return await self._finish(done)

    async def _close(self, begun: Exit) -> Exit:
        order = begun.order
        try:
            closing = await self._broker.close_position(order.ticker, order.qty)
        except BrokerUncertain as error:
            return await self._look_for(replace(begun, detail=str(error)))
        except BrokerRefused as error:
            return replace(begun, status=REJECTED, detail=str(error))
        except BrokerError as error:
            return replace(begun, status=NOT_SENT, detail=str(error))
        return answered(begun, closing)

    async def _look_for(self, begun: Exit) -> Exit:
        """A close without an answer may have arrived. The broker names such orders itself, so its form has to tell."""
        taken = {each.broker_id for each in self._known.values()}
        for pause in LOOK_AGAIN_S:
            await asyncio.sleep(pause)
            try:
                orders = await self._broker.orders_after(begun.at - CLOCKS_DIFFER)
            except BrokerError as error:
                log.info("exit_not_looked_up", ticker=begun.order.ticker, error=str(error))
                continue
            for found in orders:
                if found.id not in taken and is_close_of(begun.order, found):
                    return answered(begun, found)
        return begun

    async def _finish(self, done: Exit, *, first: bool = False) -> Exit:
        self._known[done.order.client_order_id] = done
        if first:
            await self._note(done.order, CLOSING, written(done))
        await self._note(done.order, DONE, written(done))
        log.info(
            "exit_sent",
            ticker=done.order.ticker,
            status=done.status,
            refusal=done.refusal,
            key=done.order.key_name,
            detail=done.detail,
        )
        return done

    async def _note(self, order: Order, action: str, result: Mapping[str, Any]) -> None:
        """Write to the journal. A disk that refuses stops no exit."""
        try:
            await asyncio.to_thread(self._journal.append, intent_id(order), action, result)
        except OSError as error:
            log.warning("exits_journal_failed", action=action, ticker=order.ticker, error=str(error))


def is_close_of(order: Order, found: BrokerOrder) -> bool:
    """Whether a broker's order looks like the close of this one."""
    same = (found.symbol, found.side, found.qty) == (order.ticker, order.side, order.qty)
    return same and found.type == "market" and not found.client_order_id.startswith(BROKER_PREFIX)


def answered(begun: Exit, found: BrokerOrder) -> Exit:
    """The exit with the broker's word."""
    return replace(begun, status=found.status, broker_id=found.id, filled_qty=found.filled_qty)


def written(done: Exit) -> dict[str, Any]:
    """An exit as JSON."""
    order = asdict(done.order) | {"qty": plain(done.order.qty), "ref_price": plain(done.order.ref_price)}
    return {
        "order": order,
        "verdict_id": str(done.verdict_id),
        "status": done.status,
        "detail": done.detail,
        "broker_id": done.broker_id,
        "refusal": None if done.refusal is None else done.refusal.value,
    }


def read_exit(said: Mapping[str, Any], *, at: datetime) -> Exit:
    """An exit from its JSON."""
    fields: dict[str, Any] = dict(said["order"])
    fields.update(qty=Decimal(fields["qty"]), ref_price=Decimal(fields["ref_price"]))
    return Exit(
        order=Order(**fields),
        verdict_id=UUID(said["verdict_id"]),
        at=at,
        status=said["status"],
        detail=said["detail"],
        broker_id=said["broker_id"],
        refusal=None if said["refusal"] is None else Reason(said["refusal"]),
    )


def finished(begun: Exit, entry: Entry) -> Exit:
    """The exit after a later entry of the journal about it."""
    if entry.action == COPIED:
        return replace(begun, copied=True)
    return replace(read_exit(entry.result, at=begun.at), copied=begun.copied)
