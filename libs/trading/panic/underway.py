"""Entries that were on their way when the halt came: an account is not flat before it is known what became of them."""

import asyncio
from datetime import timedelta

from libs.trading.broker.client import Broker
from libs.trading.entry_marks import Mark
from libs.trading.halt import EntryLock
from libs.trading.panic.ground import Clock, Disk, Patience
from libs.trading.panic.record import Record

_AT_ONCE = 8
_WAITING = "entries"


class Underway:
    """The entries of this disk that may still reach the broker.

    The halt stands before any of this is looked at, so whoever is not seen here will see the halt. A living sender
    holds the lock. One that was killed left a mark: its entry is looked up until it is found, or too old to come.
    """

    def __init__(
        self, record: Record, broker: Broker, *, lock: EntryLock, disk: Disk, clock: Clock, patience: Patience
    ) -> None:
        self._record, self._broker = record, broker
        self._lock, self._disk, self._clock = lock, disk, clock
        self._entry_s = patience.entry_s
        self._halted_at = clock.monotonic()
        self._free = False
        self._over = False
        self._told = False
        self._found: set[str] = set()
        self._until: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._names: list[str] = []

    async def over(self) -> bool:
        """Whether no entry can reach the broker any more: the halt stands, and none is on its way since it does."""
        record = self._record
        if record.halted and not await record.stands():
            self._free = self._over = False
            self._halted_at = self._clock.monotonic()
            await record.halt()
        if record.halted and not self._over:
            self._free = self._free or await self._nobody_sending()
            self._over = self._free and await self._all_known()
            if self._over:
                record.errors.pop(_WAITING, None)
        return self._over

    async def waits(self) -> None:
        """Say and write down, once, that nothing else is left to wait for."""
        self._record.errors[_WAITING] = f"an entry was still on its way to the broker: {', '.join(self._names) or '?'}"
        if not self._told:
            self._told = True
            self._record.say("an entry is still on its way; not flat before it is found, or too old to come")
            await self._record.write("entry_under_way", {"orders": self._names})

    async def _nobody_sending(self) -> bool:
        try:
            return await self._disk.do(self._lock.nobody_sending_now)
        except OSError as error:
            return self._old_enough(error)

    async def _all_known(self) -> bool:
        try:
            marks = await self._disk.do(self._lock.marks.all)
        except OSError as error:
            return self._old_enough(error)
        waiting = [mark for mark in marks if self._may_arrive(mark)]
        waiting.sort(key=lambda mark: self._asked.get(mark.order_id, 0.0))
        async with asyncio.TaskGroup() as group:
            for mark in waiting[:_AT_ONCE]:
                group.create_task(self._look_for(mark))
        self._names = [mark.name for mark in waiting if mark.order_id not in self._found]
        return not self._names

    def _may_arrive(self, mark: Mark) -> bool:
        """By this process's own clock from the first look on, so that a clock which is set cannot hold it up longer."""
        now = self._clock.monotonic()
        age_s = (self._clock.now() - mark.at) / timedelta(seconds=1)
        left_s = self._entry_s - min(max(age_s, 0.0), self._entry_s)
        return mark.order_id not in self._found and now < self._until.setdefault(mark.order_id, now + left_s)

    async def _look_for(self, mark: Mark) -> None:
        self._asked[mark.order_id] = self._clock.monotonic()
        if not mark.name:
            return
        what = f"look for the entry {mark.name}"
        if await self._record.attempt(what, self._broker.order_by_client_id(mark.name)) is not None:
            self._found.add(mark.order_id)

    def _old_enough(self, error: OSError) -> bool:
        self._record.troubles["entries"] = f"whether an entry was on its way could not be read: {error}"
        return self._clock.monotonic() - self._halted_at >= self._entry_s
