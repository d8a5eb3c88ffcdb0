"""What the journal of panic exits says about halts: which began, and which were asked to last longer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import structlog

from libs.trading.halt import Halt, new_halt
from libs.trading.journal import Entry

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Longer:
    """A request that joined an exit. `asked` is the halt it asked for, under its own id; `halt_id` is the exit's."""

    halt_id: UUID
    asked: Halt


def begun_halts(entries: Sequence[Entry]) -> list[Halt]:
    """The halts that exits began with, dry runs aside. Whether one has ended is not the disk's to say."""
    found = [_halt_of(entry) for entry in entries if entry.action == "begun" and not entry.result.get("dry_run")]
    return [one for one in found if one is not None]


def longer_halts(entries: Sequence[Entry]) -> list[Longer]:
    """What requests asked for that joined an exit; one that did not say is left out."""
    found = [_longer_of(entry) for entry in entries if entry.action == "joined" and "ttl_minutes" in entry.result]
    return [one for one in found if one is not None]


def _halt_of(entry: Entry) -> Halt | None:
    said = entry.result
    try:
        minutes = int(said["ttl_minutes"])
        return new_halt(entry.subject, str(said["reason"]), at=entry.at, ttl_minutes=minutes)
    except (KeyError, TypeError, ValueError, OverflowError):
        # The file halts all the same.
        log.exception("exit_with_unreadable_begin", exit_id=str(entry.subject), action=entry.action)
        return None


def _longer_of(entry: Entry) -> Longer | None:
    asked = _halt_of(entry)
    try:
        other = UUID(str(entry.result["exit_id"]))
    except (KeyError, ValueError):
        log.exception("join_without_an_exit", exit_id=str(entry.subject))
        return None
    if asked is None:
        return None
    until = _moment(entry.result.get("halted_until")) or asked.halted_until
    return Longer(other, replace(asked, halted_until=max(until, asked.halted_until)))


def _moment(said: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(said))
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment
