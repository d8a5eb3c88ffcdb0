"""The exits' journal, written by one task in lines that share a sync. A disk that refuses, or hangs, stops no exit."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog

from libs.trading.intent import intent_id
from libs.trading.journal import Addition, Entry, Journal
from services.api.strategist.exits.memory import CLOSING, COPIED, DONE, Memory, holder
from services.api.strategist.exits.types import Exit, copied_mark, written

FILE = "exits.jsonl"
WRITTEN_WITHIN_S = 2.0
"""How long an exit waits for the disk."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Note:
    """An entry on its way to the disk. `claims` where it may only be written while its order id is free.

    `before` is what was known of that id. `refused_by` is answered with who has the id, None once it is written.
    """

    subject: UUID
    action: str
    result: dict[str, Any]
    refused_by: asyncio.Future[Exit | None]
    claims: Exit | None = None
    before: Exit | None = None

    @property
    def addition(self) -> Addition:
        """As the journal takes it."""
        return self.subject, self.action, self.result


class ExitJournal:
    """`exits.jsonl` in the folder `state`. `learn` is told what other processes wrote into it."""

    def __init__(self, state: Path, *, learn: Callable[[Sequence[Entry]], None]) -> None:
        self._journal = Journal(state / FILE)
        self._learn = learn
        self._offset = 0
        self._waiting: list[Note] = []
        self._unwritten: list[Note] = []
        self._writer: asyncio.Task[None] | None = None

    async def load(self) -> Memory:
        """What was done before this start; nothing where the disk refuses."""
        try:
            memory, self._offset = await asyncio.to_thread(self._read)
        except OSError as error:
            log.warning("exits_journal_unreadable", error=str(error))
            return Memory()
        return memory

    def _read(self) -> tuple[Memory, int]:
        entries, offset = self._journal.read_from(0)
        memory = Memory()
        memory.replay(entries, alive=False)
        return memory, offset

    async def claim(self, begun: Exit, *, before: Exit | None) -> Exit | None:
        """Note the begin of an exit, unless another process has its order id: then that one's exit is the answer."""
        return await self._written(self._note(begun, CLOSING, written(begun), claims=begun, before=before))

    async def done(self, done: Exit) -> None:
        """Note what became of an exit."""
        await self._written(self._note(done, DONE, written(done)))

    async def copied(self, done: Exit) -> None:
        """Note that an exit is on record."""
        await self._written(self._note(done, COPIED, copied_mark(done)))

    async def catch_up(self) -> None:
        """Write what the disk refused before, and read what others wrote."""
        self._begin()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=WRITTEN_WITHIN_S)

    async def close(self) -> None:
        """Write what there is to write, as far as the disk takes it."""
        if self._unwritten:
            self._begin()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=WRITTEN_WITHIN_S)

    @property
    def unwritten(self) -> int:
        """How many entries the disk has refused so far."""
        return len(self._unwritten)

    def _note(
        self,
        about: Exit,
        action: str,
        result: dict[str, Any],
        *,
        claims: Exit | None = None,
        before: Exit | None = None,
    ) -> Note:
        answer: asyncio.Future[Exit | None] = asyncio.get_running_loop().create_future()
        return Note(intent_id(about.order), action, result, answer, claims, before)

    async def _written(self, note: Note) -> Exit | None:
        self._waiting.append(note)
        self._begin()
        done, _ = await asyncio.wait([note.refused_by], timeout=WRITTEN_WITHIN_S)
        if not done:
            log.warning("exits_journal_slow", action=note.action)
            note.refused_by.cancel()
            return None
        return note.refused_by.result()

    def _begin(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        while True:
            batch = [*self._unwritten, *self._waiting]
            self._unwritten, self._waiting = [], []
            await self._write_together(batch)
            if not self._waiting:
                return

    async def _write_together(self, batch: Sequence[Note]) -> None:
        try:
            entries, refused = await asyncio.to_thread(self._append, batch)
        except OSError as error:
            log.warning("exits_journal_failed", entries=len(batch), error=str(error))
            self._unwritten = [*batch]
            refused = dict[int, Exit]()
        else:
            self._learn(entries)
        for number, note in enumerate(batch):
            if not note.refused_by.done():
                note.refused_by.set_result(refused.get(number))

    def _append(self, batch: Sequence[Note]) -> tuple[list[Entry], dict[int, Exit]]:
        """Write notes in a thread: what others wrote so far, and which claims they were before."""
        others: list[Entry] = []
        refused: dict[int, Exit] = {}

        def choose(found: Sequence[Entry]) -> Sequence[Addition]:
            others.extend(found)
            for number, note in enumerate(batch):
                free = note.claims is None or note.refused_by.done()  # who did not wait for the disk went on without it
                holds = None if free or note.claims is None else holder(note.claims, note.before, found)
                if holds is not None:
                    refused[number] = holds
            return [note.addition for number, note in enumerate(batch) if number not in refused]

        self._offset = self._journal.append_after(self._offset, choose)
        return others, refused
