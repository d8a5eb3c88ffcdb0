"""What a process knows of reducing orders: its own, and what a journal says. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import structlog

from libs.trading.intent import intent_id
from libs.trading.journal import Entry
from services.api.strategist.exits.types import Exit, Name, read_exit, read_mark

CLOSING, DONE, COPIED = "closing", "done", "copied"
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Memory:
    """Exits by name, refusals by intent, and what is not on record in Postgres yet by verdict.

    A refusal takes no order id. Each attempt under an id has a verdict of its own, and each comes on record.
    """

    held: dict[Name, Exit] = field(default_factory=dict[Name, Exit])
    refused: dict[UUID, Exit] = field(default_factory=dict[UUID, Exit])
    unrecorded: dict[UUID, Exit] = field(default_factory=dict[UUID, Exit])

    def put(self, done: Exit) -> None:
        """What just became of an exit; it has to come on record."""
        if done.refusal is None:
            self.held[done.name] = done
        else:
            self.refused[intent_id(done.order)] = done
        self.unrecorded[done.verdict_id] = done

    def recorded(self, done: Exit) -> bool:
        """Note that an exit is on record. False where it has come further since."""
        waiting = self.unrecorded.get(done.verdict_id)
        if waiting is None or waiting.mark != done.mark:
            return False
        del self.unrecorded[done.verdict_id]
        return True

    def taken(self) -> set[str]:
        """The broker's orders that are known to be somebody's."""
        return {each.broker_id for each in self.held.values() if each.broker_id is not None}

    def lost(self) -> list[Exit]:
        """Exits of which nobody knows whether they arrived."""
        return [each for each in self.held.values() if each.lost]

    def forget(self, before: datetime) -> None:
        """Drop what is older than this, and on record, and known to its end."""
        for name in [name for name, each in self.held.items() if self._over(each, before)]:
            del self.held[name]
        for intent in [intent for intent, each in self.refused.items() if self._over(each, before)]:
            del self.refused[intent]

    def _over(self, known: Exit, before: datetime) -> bool:
        return known.at < before and known.verdict_id not in self.unrecorded and not known.lost

    def replay(self, entries: Iterable[Entry], *, alive: bool) -> None:
        """Learn from a journal. `alive` where who wrote it still works on what it began.

        What cannot be read is logged and left out.
        """
        for entry in entries:
            try:
                self._replay(entry, alive=alive)
            except UNREADABLE as error:
                log.warning("exits_journal_entry_unreadable", subject=str(entry.subject), error=repr(error))

    def _replay(self, entry: Entry, *, alive: bool) -> None:
        if entry.action == COPIED:
            self._copied(entry)
            return
        told = read_exit(entry.result, at=entry.at)
        if told.refusal is not None:
            self.put(told)
            return
        known = self.held.get(told.name)
        begun = entry.action == CLOSING
        newer = known is None or supersedes(told, known)
        if known is not None and known.verdict_id == told.verdict_id and (begun or not newer):
            return  # a line that was written late
        if newer:
            self.held[told.name] = told
        if not begun or (not alive and told.verdict_id not in self.unrecorded):
            self.unrecorded[told.verdict_id] = told

    def _copied(self, entry: Entry) -> None:
        if not entry.result:
            return  # it does not say what: it is put on record again, which changes nothing
        mark = read_mark(entry.result)
        waiting = self.unrecorded.get(mark[0])
        if waiting is not None and waiting.mark == mark:
            del self.unrecorded[mark[0]]


def supersedes(told: Exit, known: Exit) -> bool:
    """Whether a journal's word replaces another one on the same order id. An order at the broker is never forgotten."""
    if told.verdict_id == known.verdict_id:
        return known.broker_id is None or told.broker_id is not None
    if known.again:
        return told.at >= known.at or not told.again
    return known.broker_id is None and not told.again


def holder(begun: Exit, before: Exit | None, entries: Iterable[Entry]) -> Exit | None:
    """Who has an order id by what a journal says on top of what was known before; None where it may be tried."""
    memory = Memory()
    if before is not None:
        memory.held[before.name] = before
    memory.replay(entries, alive=True)
    found = memory.held.get(begun.name)
    return None if found is None or found.again or found.verdict_id == begun.verdict_id else found
