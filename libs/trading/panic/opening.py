"""How a panic exit begins, before httpx is loaded: the lock that makes it the only one, the halt, and whom to join."""

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from libs.trading.halt import EntryLock, Halt, HaltFile, new_halt
from libs.trading.journal import Journal
from libs.trading.panic.ground import ThreadDisk
from libs.trading.panic.report import (
    JOURNAL_NAME,
    LOCK_NAME,
    Whose,
    beginning,
    begun,
    elsewhere,
    ended,
    entries_of,
    signed,
    unfinished,
    whose_in,
)

__all__ = ["LOCK_NAME", "NAMELESS_S", "STALLED_S", "Place", "follow"]

STALLED_S = 8.0
"""A running exit writes to its journal more often than this, through a whole call of 5 s and the pauses around it; one
that does not has died without letting go, or was stopped."""

NAMELESS_S = 0.5
"""Whoever holds the lock for longer than this without a running exit's name in it is re-arming, or has died."""

_FOLLOW_S = 0.05

NO_BROKER = Whose("", "")


@dataclass(slots=True)
class Place:
    """The files of a panic exit in one state folder, and the broker that it is about, None where none is named."""

    state: Path
    broker: Whose | None = None
    disk: ThreadDisk = field(default_factory=ThreadDisk)
    journal: Journal = field(init=False)
    halt_file: HaltFile = field(init=False)
    entry_lock: EntryLock = field(init=False)
    troubles: dict[str, str] = field(default_factory=dict[str, str])
    lock: int | None = None
    halted: bool = False
    begun: bool = False
    wanted: Halt | None = None
    beside: bool = False

    def __post_init__(self) -> None:
        self.journal = Journal(self.state / JOURNAL_NAME)
        self.halt_file = HaltFile(self.state)
        self.entry_lock = EntryLock(self.state)

    def halt(self, exit_id: UUID, reason: str, *, ttl_minutes: int) -> None:
        """Put the halt in place. A failure is kept; the exit tries again in each of its rounds."""
        wanted = self.wanted = new_halt(exit_id, reason, at=datetime.now(UTC), ttl_minutes=ttl_minutes)
        try:
            note = self.disk.wait(lambda: self.halt_file.write(wanted))
        except OSError as error:
            self.troubles["halt"] = f"the halt file could not be written: {error}"
        else:
            self.halted = True
            self.troubles |= {"halt content": note} if note else {}

    def begin(self, exit_id: UUID) -> None:
        """Write down the beginning of an exit that has none yet, so that it is gone on with if it is killed."""
        wanted = self.wanted
        if wanted is None:
            raise ValueError("an exit begins with its halt")
        try:
            standing = self.disk.wait(self.halt_file.read)
        except OSError:
            standing = None
        if standing is not None and standing.id == exit_id:
            wanted = standing  # of an exit that was killed before it could write this down
        until = wanted.halted_until if standing is None else max(wanted.halted_until, standing.halted_until)
        said = beginning(wanted.reason, wanted.ttl_minutes, halted_until=until, broker=self.broker)
        try:
            self.begun = self.disk.wait(lambda: self._begin(exit_id, said))
        except OSError as error:
            self.troubles.setdefault("journal", f"the journal could not be written: {error}")

    def _begin(self, exit_id: UUID, said: dict[str, Any]) -> bool:
        if begun(self.journal.entries(exit_id)) is not None:
            return False
        self.journal.append(exit_id, "begun", said)
        return True

    def take_lock(self) -> bool:
        """Become the only exit. False: another one runs. A lock that cannot be opened is gone without."""
        try:
            self.lock = self.disk.wait(self._open_lock)
        except OSError as error:
            self.troubles["lock"] = f"the lock of panic exits could not be taken: {error}"
            return True
        return self.lock is not None

    def _open_lock(self) -> int | None:
        self.state.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def sign(self, exit_id: UUID) -> None:
        """Say in the lock whose it is, for those who join."""
        if self.lock is None:
            return
        lock = self.lock
        try:
            self.disk.wait(lambda: _sign(lock, exit_id))
        except OSError as error:
            self.troubles["lock"] = f"the lock of panic exits could not be signed: {error}"

    def let_go(self) -> None:
        """Let the next exit begin. A name that is left in the lock is of one that was killed."""
        if self.lock is None:
            return
        lock, self.lock = self.lock, None
        with suppress(OSError):
            self.disk.wait(lambda: os.ftruncate(lock, 0))
        os.close(lock)

    def unfinished(self, *, besides: UUID | None = None) -> UUID | None:
        """An exit of this broker that was interrupted and is to be gone on with."""
        try:
            found = self.disk.wait(lambda: unfinished(self.journal, of=self.broker or NO_BROKER))
        except OSError as error:
            self.troubles["journal"] = f"the journal could not be read: {error}"
            return None
        return None if found == besides else found

    def note_elsewhere(self) -> str | None:
        """Unfinished exits of another broker: they stay as they are, and that is a failure to be told."""
        try:
            others = self.disk.wait(lambda: elsewhere(self.journal, of=self.broker))
        except OSError:
            return None
        if not others:
            return None
        named = ", ".join(f"{exit_id} of the {broker}" for exit_id, broker in others.items())
        here = self.broker or "no broker"
        self.troubles["elsewhere"] = f"unfinished, and not gone on with from here, which names the {here}: {named}"
        return self.troubles["elsewhere"]

    def answer(self, exit_id: UUID) -> dict[str, Any] | None:
        """The answer of an exit that has ended, its own or that of the one it joined."""
        try:
            return ended(self.disk.wait(lambda: entries_of(self.journal, exit_id)))
        except OSError:
            return None

    def later_end(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An exit's answer to somebody who joined it: who asks for a longer halt gets it."""
        wanted, said = self.wanted, answer.get("halted_until")
        if wanted is None or (said is not None and datetime.fromisoformat(str(said)) >= wanted.halted_until):
            return answer
        return answer | {"ttl_minutes": wanted.ttl_minutes, "halted_until": wanted.halted_until.isoformat()}

    def note_joined(self, mine: UUID, other: UUID, *, asks: bool) -> None:
        """Write down that a request is answered by another exit, and what it `asks` for, if that is anything."""
        if mine == other:
            return
        result: dict[str, Any] = {"exit_id": str(other)}
        if asks and self.wanted is not None:
            result |= {
                "reason": self.wanted.reason,
                "ttl_minutes": self.wanted.ttl_minutes,
                "halted_until": self.wanted.halted_until.isoformat(),
            }
        try:
            self.disk.wait(lambda: self.journal.append(mine, "joined", result))
        except OSError as error:
            self.troubles.setdefault("journal", f"the journal could not be written: {error}")

    def running(self) -> UUID | None:
        """The exit that has the lock and has begun, as the disk tells; None too where it is of another broker."""
        try:
            return self.disk.wait(self._running)
        except OSError:
            return None

    def _running(self) -> UUID | None:
        named = signed(self.journal) or unfinished(self.journal)
        said = None if named is None else begun(entries_of(self.journal, named))
        if named is None or said is None:
            return None
        broker = whose_in(said)
        self.beside = broker is not None and broker != self.broker
        return None if self.beside else named


def follow(place: Place, mine: UUID, *, asks: bool, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Follow the exit that runs to its end and give its answer. None: go on alone, with the lock where it is free.

    An exit that ended before this request came does not answer it, although its process may still be there; nor does
    one of another broker.
    """
    other: UUID | None = None
    began = time.monotonic()
    size, moved = -1, began
    while True:
        other = other or _join(place, mine, asks=asks, say=say)
        free = place.take_lock()
        answer = None if other is None else place.answer(other)
        if answer is not None:
            return place.later_end(answer) if asks else answer
        if free:
            return None
        size, moved = _progress(place, size, moved)
        stalled = time.monotonic() - (began if other is None else moved) >= (NAMELESS_S if other is None else STALLED_S)
        if stalled or place.beside:
            does = "runs an exit of another broker" if place.beside else "does nothing"
            place.troubles["lock"] = f"somebody else holds the lock of panic exits and {does}; went on beside it"
            say(place.troubles["lock"])
            return None
        time.sleep(_FOLLOW_S)


def _join(place: Place, mine: UUID, *, asks: bool, say: Callable[[str], None]) -> UUID | None:
    """Whom to follow; None while the lock bears no name, or that of an exit that has ended or not begun."""
    other = place.running()
    if other is None or place.answer(other) is not None:
        return None
    say(f"a panic exit runs already; following {other}")
    place.note_joined(mine, other, asks=asks)
    return other


def _progress(place: Place, size: int, moved: float) -> tuple[int, float]:
    try:
        now = place.disk.wait(lambda: place.journal.path.stat().st_size)
    except OSError:
        return size, moved
    return (size, moved) if now == size else (now, time.monotonic())


def _sign(lock: int, exit_id: UUID) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(exit_id).encode(), 0)
