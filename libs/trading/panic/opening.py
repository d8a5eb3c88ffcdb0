"""How a panic exit begins, before httpx is loaded: the lock that makes it the only one, the halt, and whom to join."""

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from libs.trading.halt import EntryLock, HaltFile, new_halt
from libs.trading.journal import Journal
from libs.trading.panic.ground import ThreadDisk
from libs.trading.panic.report import JOURNAL_NAME, ended, entries_of, unfinished

LOCK_NAME = "panic.lock"
STALLED_S = 30.0
"""A running exit writes to its journal more often than this; one that does not has died without letting go."""

NAMELESS_S = 0.5
"""Whoever holds the lock for longer than this without a running exit's name in it is re-arming, or has died."""

_FOLLOW_S = 0.05


@dataclass(slots=True)
class Place:
    """The files of a panic exit in one state folder."""

    state: Path
    disk: ThreadDisk = field(default_factory=ThreadDisk)
    journal: Journal = field(init=False)
    halt_file: HaltFile = field(init=False)
    entry_lock: EntryLock = field(init=False)
    troubles: dict[str, str] = field(default_factory=dict[str, str])
    lock: int | None = None
    halted: bool = False

    def __post_init__(self) -> None:
        self.journal = Journal(self.state / JOURNAL_NAME)
        self.halt_file = HaltFile(self.state)
        self.entry_lock = EntryLock(self.state)

    def halt(self, exit_id: UUID, reason: str, *, ttl_minutes: int) -> None:
        """Put the halt in place. A failure is kept; the exit tries again in each of its rounds."""
        wanted = new_halt(exit_id, reason, at=datetime.now(UTC), ttl_minutes=ttl_minutes)
        try:
            note = self.disk.wait(lambda: self.halt_file.write(wanted))
        except OSError as error:
            self.troubles["halt"] = f"the halt file could not be written: {error}"
        else:
            self.halted = True
            self.troubles |= {"halt content": note} if note else {}

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
        """Let the next exit begin."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def unfinished(self) -> UUID | None:
        """An exit that was interrupted and is to be gone on with."""
        try:
            return self.disk.wait(lambda: unfinished(self.journal))
        except OSError as error:
            self.troubles["journal"] = f"the journal could not be read: {error}"
            return None

    def answer(self, exit_id: UUID) -> dict[str, Any] | None:
        """The answer of an exit that has ended, its own or that of the one it joined."""
        try:
            return ended(self.disk.wait(lambda: entries_of(self.journal, exit_id)))
        except OSError:
            return None

    def note_joined(self, mine: UUID, other: UUID) -> None:
        """Write down that a request is answered by another exit."""
        if mine == other:
            return
        try:
            self.disk.wait(lambda: self.journal.append(mine, "joined", {"exit_id": str(other)}))
        except OSError as error:
            self.troubles["journal"] = f"the journal could not be written: {error}"

    def holder(self) -> UUID | None:
        """Whose exit runs, as the lock says."""
        try:
            return UUID(self.disk.wait(lambda: (self.state / LOCK_NAME).read_text(encoding="ascii")).strip())
        except (OSError, ValueError):
            return self.unfinished()


def follow(place: Place, mine: UUID, *, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Follow the exit that runs to its end and give its answer. None: go on alone, with the lock where it is free.

    An exit that ended before this request came does not answer it, although its process may still be there.
    """
    other: UUID | None = None
    began = time.monotonic()
    size, moved = -1, began
    while True:
        other = other or _join(place, mine, say)
        free = place.take_lock()
        answer = None if other is None else place.answer(other)
        if answer is not None:
            return answer
        if free:
            return None
        size, moved = _progress(place, size, moved)
        if time.monotonic() - (began if other is None else moved) >= (NAMELESS_S if other is None else STALLED_S):
            place.troubles["lock"] = "somebody else holds the lock of panic exits and does nothing; went on beside it"
            say(place.troubles["lock"])
            return None
        time.sleep(_FOLLOW_S)


def _join(place: Place, mine: UUID, say: Callable[[str], None]) -> UUID | None:
    """Whom to follow; None while the lock still bears the name of an exit that has ended."""
    other = place.holder()
    if other is None or place.answer(other) is not None:
        return None
    say(f"a panic exit runs already; following {other}")
    place.note_joined(mine, other)
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
