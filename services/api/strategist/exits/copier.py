"""Puts exits on record in Postgres, and looks after what is left over of them."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from libs.trading.intent import intent_id
from services.api.strategist.desk.desk import Desk, NoVerdict
from services.api.strategist.desk.record import Asked
from services.api.strategist.exits.exits import Exits
from services.api.strategist.exits.types import Exit

COPY_EVERY_S = 1.0
SETTLE_EVERY_S = 3.0
AWAY_AFTER = 3
"""So many failures in a row are the database's, not the exits'."""
LONGEST_WAIT_S = 15.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Copier:
    """Copies exits one by one. One that fails is tried again later and later, and holds up its own order alone."""

    exits: Exits
    desk: Desk
    _failures: dict[UUID, int] = field(default_factory=dict[UUID, int])
    _not_before: dict[UUID, float] = field(default_factory=dict[UUID, float])
    _away: bool = False

    async def copy(self) -> None:
        """One round. It ends early when the database is plainly away."""
        held_up: set[UUID] = set()
        failed_in_a_row = 0
        now = asyncio.get_running_loop().time()
        for done in self.exits.to_copy():
            intent = intent_id(done.order)
            if intent in held_up or self._not_before.get(done.verdict_id, 0) > now:
                held_up.add(intent)  # what came of an order is recorded in the order in which it came
                continue
            try:
                await self.desk.verdict(Asked(done.order, done=done.record))
            except NoVerdict as error:
                log.info("exit_waits_for_its_record", ticker=done.order.ticker, reason=str(error))
                held_up.add(intent)
                self._put_off(done, now=now)
                failed_in_a_row += 1
                if failed_in_a_row == AWAY_AFTER:
                    self._away = True
                    return
                continue
            failed_in_a_row = 0
            await self._copied(done)

    def _put_off(self, done: Exit, *, now: float) -> None:
        failures = self._failures[done.verdict_id] = self._failures.get(done.verdict_id, 0) + 1
        self._not_before[done.verdict_id] = now + min(2.0 ** (failures - 1), LONGEST_WAIT_S)

    async def _copied(self, done: Exit) -> None:
        if self._away:  # it is back, and nobody has to wait for what was its fault
            self._away = False
            self._failures.clear()
            self._not_before.clear()
        self._failures.pop(done.verdict_id, None)
        self._not_before.pop(done.verdict_id, None)
        await self.exits.copied(done)


async def copy_exits(exits: Exits, desk: Desk) -> None:
    """Put what the exits' journal holds on record, as soon as Postgres takes it, and settle what is open; for ever."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_copy(exits, Copier(exits, desk)))
        tasks.create_task(_settle(exits))


async def _copy(exits: Exits, copier: Copier) -> None:
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(COPY_EVERY_S):
                await exits.news.wait()
        exits.news.clear()
        try:
            await copier.copy()
        except Exception:
            log.exception("exits_not_copied")
            await asyncio.sleep(COPY_EVERY_S)


async def _settle(exits: Exits) -> None:
    while True:
        try:
            await exits.settle()
        except Exception:
            log.exception("exits_not_settled")
        await asyncio.sleep(SETTLE_EVERY_S)
