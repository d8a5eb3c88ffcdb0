"""Reducing orders: not gated, and sent with Postgres down. A local journal comes first, the record follows.

A close goes out only through the broker's close-position call, which can neither open nor flip, and only after the
position read then says that the order reduces it. Nobody sends an order id twice: not this process, none that shares
its disk (they meet in the journal), and none on another disk whose exit is on record, as far as Postgres answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from libs import tracing
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError, BrokerRefused, BrokerUncertain
from libs.trading.broker.types import FINAL_STATUSES, BrokerPosition
from libs.trading.gate import reduces
from libs.trading.intent import intent_id, plain
from libs.trading.journal import Entry, utc_now
from libs.trading.reasons import Reason
from libs.trading.types import ZERO, Order
from services.api.strategist.exits.journal import ExitJournal
from services.api.strategist.exits.memory import Memory
from services.api.strategist.exits.search import Search
from services.api.strategist.exits.types import (
    GIVEN_UP,
    Exit,
    Name,
    answered,
    form_of,
    name_of,
)
from services.api.strategist.submission import NOT_SENT, REJECTED, SENT
from services.api.strategist.words import printable

REMEMBERED = timedelta(days=7)
"""How far back an order id is known without Postgres."""
SENDER_LOOKS = timedelta(seconds=15)
"""For how long a close is its sender's to look for; after that it is anybody's."""
SENT_WITHIN = timedelta(seconds=20)
"""How old a position may be when the close goes out that rests on it."""
FRESH_S = 2.0

Elsewhere: TypeAlias = Callable[[Order], Awaitable[Exit | None]]
"""What Postgres knows of an order that this process does not know; None too where it does not answer in time."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UnderWay:
    """An order that is being dealt with."""

    intent: UUID
    task: asyncio.Task[Exit]


class Exits:
    """Sends reducing orders, each once, and remembers them in `exits.jsonl`. `now` tells their age."""

    def __init__(
        self,
        broker: Broker,
        *,
        state: Path,
        elsewhere: Elsewhere | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._broker = broker
        self._elsewhere = elsewhere
        self._now = now
        self._memory = Memory()
        self._journal = ExitJournal(state, learn=self._learn)
        self._under_way: dict[Name, UnderWay] = {}
        self._search = Search(broker)
        self.news = asyncio.Event()
        """Set when there is something to put on record."""

    async def load(self) -> None:
        """Read what was done before this start."""
        self._memory = await self._journal.load()
        self._memory.forget(self._now() - REMEMBERED)

    async def close(self, *, within_s: float) -> None:
        """Wait for the exits under way; what is not done by then is looked for at the next start."""
        tasks = [each.task for each in self._under_way.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._journal.close()

    def _learn(self, entries: Sequence[Entry]) -> None:
        """Take in what another process on this disk did."""
        self._memory.replay(entries, alive=True)

    def known(self, order: Order) -> Exit | None:
        """What became of the order id of this one, None where none came here."""
        return self._memory.held.get(name_of(order))

    def to_copy(self) -> list[Exit]:
        """What is not on record in Postgres yet, in the order in which it came about."""
        return list(self._memory.unrecorded.values())

    async def copied(self, done: Exit) -> None:
        """Note that an exit is on record as it was then; what it has come to since is still to be recorded."""
        if self._memory.recorded(done):
            await self._journal.copied(done)

    async def reduce(self, order: Order) -> Exit:
        """Send a reducing order. The same one again gets the same answer; another with its id is a DUPLICATE.

        One that certainly never became an order at the broker may be tried again under its id. Raises
        `BrokerError` where the position could not be read; then nothing was sent.
        """
        name, intent = name_of(order), intent_id(order)
        while (under_way := self._under_way.get(name)) is not None and under_way.intent != intent:
            await asyncio.wait([under_way.task])
        if under_way is None:
            under_way = self._under_way[name] = UnderWay(intent, asyncio.create_task(self._deal_with(order)))
            under_way.task.add_done_callback(lambda task: self._dealt_with(name, task))
        return await asyncio.shield(under_way.task)

    def _dealt_with(self, name: Name, task: asyncio.Task[Exit]) -> None:
        del self._under_way[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("exit_failed", client_order_id=name[1], error=str(error))

    async def _deal_with(self, order: Order) -> Exit:
        known = self.known(order)
        if known is None or known.again:
            return await self._send(order, before=known)
        if intent_id(known.order) != intent_id(order):
            return await self._refuse(order, Reason.DUPLICATE)
        known = await self._as_of_now(known)
        return await self._send(order, before=known) if known.again else known

    async def _send(self, order: Order, *, before: Exit | None) -> Exit:
        if before is not None and intent_id(before.order) != intent_id(order):
            return await self._refuse(order, Reason.DUPLICATE)
        position, there = await self._read(order, before=before)
        if there is not None:
            self._memory.held[there.name] = there
            return await self._as_of_now(there)
        held = ZERO if position is None else position.qty
        if not reduces(order, held):
            return await self._refuse(
                order, Reason.NOT_REDUCING, detail=f"the broker holds {plain(held)} of {order.ticker}"
            )
        begun = self._memory.held[name_of(order)] = Exit(order, uuid7(), self._now())
        other = await self._journal.claim(begun, before=before)
        if other is not None:
            self._memory.held[other.name] = other
            same = intent_id(other.order) == intent_id(order)
            return await self._as_of_now(other) if same else await self._refuse(order, Reason.DUPLICATE)
        done = await self._close(begun)
        SENT.labels("exit", done.status if done.failed or done.broker_id is None else "accepted").inc()
        return await self._finish(done)

    async def _read(self, order: Order, *, before: Exit | None) -> tuple[BrokerPosition | None, Exit | None]:
        """The position, and what is known of the order on other disks, both at once."""
        asking = asyncio.create_task(self._ask_elsewhere(order, before=before))
        try:
            position = await self._broker.position(order.ticker)
            return position, await asking
        finally:
            asking.cancel()

    async def _ask_elsewhere(self, order: Order, *, before: Exit | None) -> Exit | None:
        try:
            found = None if self._elsewhere is None else await self._elsewhere(order)
        except Exception:  # whatever is wrong with a database stops no exit
            log.exception("exit_not_asked_for_elsewhere", ticker=order.ticker)
            return None
        if found is None or found.again:
            return None
        own = before is not None and found.broker_id is None and found.verdict_id == before.verdict_id
        return None if own else found

    async def _close(self, begun: Exit) -> Exit:
        order = begun.order
        if self._now() - begun.at > SENT_WITHIN:
            return replace(begun, status=NOT_SENT, detail="it took too long to send it")
        try:
            with self._search.calling(order), tracing.span("broker close", "client"):
                closing = await self._broker.close_position(order.ticker, order.qty)
                done = self._memory.held[begun.name] = answered(begun, closing)
        except BrokerUncertain as error:
            return await self._search.look_for(replace(begun, detail=printable(str(error))), self._memory)
        except BrokerRefused as error:
            return replace(begun, status=REJECTED, detail=printable(str(error)))
        except BrokerError as error:
            return replace(begun, status=NOT_SENT, detail=printable(str(error)))
        return done

    async def _as_of_now(self, known: Exit) -> Exit:
        """What has become of an exit since."""
        if known.lost:
            await self._journal.catch_up()  # another process on this disk may have sent it
            known = self._memory.held.get(known.name, known)
        if known.lost:
            return await self._settle(known)
        if known.broker_id is None or known.status in FINAL_STATUSES:
            return known
        try:
            async with asyncio.timeout(FRESH_S):
                found = await self._broker.order(known.broker_id)
        except (BrokerError, TimeoutError) as error:
            log.info("exit_not_read_again", broker_id=known.broker_id, error=str(error))
            return known
        fresh = self._memory.held[known.name] = answered(known, found)
        return fresh

    async def _settle(self, lost: Exit) -> Exit:
        """Look once more for a close without an answer; one that cannot arrive any more was not sent."""
        age = self._now() - lost.at
        rivals = (each for each in self._memory.lost() if form_of(each.order) == form_of(lost.order))
        if age < SENDER_LOOKS or any(self._now() - each.at < SENDER_LOOKS for each in rivals):
            return lost
        found = await self._search.match(lost, self._memory)
        if found is None or (found.lost and age < GIVEN_UP):
            return lost
        if found.lost:
            found = replace(lost, status=NOT_SENT, detail=f"the broker never got it; {lost.detail}".rstrip("; "))
        return await self._finish(found)

    async def settle(self) -> None:
        """Look after what is left over: closes without an answer, notes the disk refused, what is too old to keep."""
        if self._journal.unwritten or self._memory.lost():
            await self._journal.catch_up()
        for lost in self._memory.lost():
            if lost.name in self._under_way or self._memory.held.get(lost.name) is not lost:
                continue
            await self._settle(lost)
        self._memory.forget(self._now() - REMEMBERED)

    async def _refuse(self, order: Order, reason: Reason, *, detail: str = "") -> Exit:
        """Refuse an order, and have that on record once for the same cause."""
        before = self._memory.refused.get(intent_id(order))
        if before is not None and (before.refusal, before.detail) == (reason, detail):
            return before
        return await self._finish(Exit(order, uuid7(), self._now(), refusal=reason, detail=detail))

    async def _finish(self, done: Exit) -> Exit:
        self._memory.put(done)
        self.news.set()
        await self._journal.done(done)
        log.info(
            "exit_sent",
            verdict_id=str(done.verdict_id),
            client_order_id=done.order.client_order_id,
            broker_id=done.broker_id,
            ticker=done.order.ticker,
            status=done.status,
            refusal=done.refusal,
            key=done.order.key_name,
            detail=done.detail,
        )
        return done
