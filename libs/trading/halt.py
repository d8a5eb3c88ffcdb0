"""The halt: a file whose existence stops every entry on this disk, and the lock that knows of entries on their way.

Standard library only, since what stops must work when everything else is down. An entry is sent under
`EntryLock.sending()`, which looks for the halt itself. A panic exit writes the halt first and then waits for
`nobody_sending`: whoever held the lock before has finished, whoever takes it later sees the halt. A lock dies with its
process, so each entry also leaves a mark on the disk before it looks for the halt, until it is known what became of it:
either the entry sees the halt, or the exit sees the mark.
"""

import fcntl
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

from libs.trading.durable import sync_folder, write_synced
from libs.trading.entry_marks import Marks

DEFAULT_TTL_MINUTES = 60
_POLL_S = 0.02


class Halted(Exception):
    """Entries are stopped; the message says by what."""


@dataclass(frozen=True, slots=True)
class Halt:
    """One halt. `halted_until` is the earliest time a person may re-arm, never an end by itself."""

    id: UUID
    reason: str
    at: datetime
    ttl_minutes: int
    halted_until: datetime


def new_halt(halt_id: UUID, reason: str, *, at: datetime, ttl_minutes: int) -> Halt:
    """A halt that begins at `at` and may be re-armed `ttl_minutes` later."""
    return Halt(halt_id, reason, at, ttl_minutes, at + timedelta(minutes=ttl_minutes))


class HaltFile:
    """`<state>/halt`. Its existence is the halt; its content says why and until when."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.path = state / "halt"

    def reason(self) -> str | None:
        """Why entries are halted here, None when they are not. A folder that cannot be read halts too."""
        try:
            os.lstat(self.path)
        except FileNotFoundError:
            return self._folder_trouble()
        except OSError as error:
            return f"the folder of the halt file cannot be read: {error}"
        return f"the halt file {self.path} exists"

    def _folder_trouble(self) -> str | None:
        try:
            os.stat(self._state)  # noqa: PTH116 - called before each order
        except OSError as error:
            return f"the folder of the halt file cannot be read: {error}"
        return None

    def read(self) -> Halt | None:
        """What the file says, None without one. Raises `OSError` where the folder cannot be read.

        A file without readable content, such as one made by hand with `touch`, gets an id of its inode and time of
        change, and ends 60 minutes after that time at the earliest.
        """
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        try:
            return _parse(self.path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return _unreadable(found)

    def write(self, halt: Halt) -> str | None:
        """Put the halt in place; an existing one wins. Returns what went less well, None when all did.

        Content and folder are synced to the disk. Where the content cannot be written, an empty file halts all the
        same. Raises `OSError` only when no file can exist.
        """
        if os.path.lexists(self.path):
            return None
        trouble: str | None = None
        temporary = self._state / f".halt-{uuid4().hex}"
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            write_synced(temporary, _render(halt))
            self._put(temporary, _render(halt))
        except FileExistsError:
            trouble = None if os.path.lexists(self.path) else "the folder of the halt file is not a folder"
        except OSError as error:
            trouble = f"the halt file was written without its content: {error}"
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return self._settle(trouble)

    def _put(self, temporary: Path, content: bytes) -> None:
        try:
            os.link(temporary, self.path)  # fails where a halt exists, unlike a rename
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: half a content would still halt
            write_synced(self.path, content)

    def _settle(self, trouble: str | None) -> str | None:
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        try:
            sync_folder(self._state)
        except OSError as error:
            return trouble or f"the folder of the halt file could not be synced to the disk: {error}"
        return trouble

    def remove(self, halt_id: UUID) -> None:
        """Take the halt away, but only the one with this id; raises `OSError` when the disk refuses."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            # The lock is on this very file: whoever removed it first and whoever halted since is not undone.
            fcntl.flock(file, fcntl.LOCK_EX)
            mine = os.fstat(file.fileno())
            standing = self.read()
            if standing is None or standing.id != halt_id or not _is_same(self.path, mine):
                return
            self.path.unlink()
        sync_folder(self._state)


@dataclass(slots=True)
class Sending:
    """An entry on its way. Its mark stays on the disk unless `settled` is set: what became of it is known."""

    settled: bool = False


class EntryLock:
    """`<state>/entries.lock`: shared while an entry is sent, taken alone by whoever must know that none is.

    `marks` are of the entries of which nobody knows yet what became of them.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / "entries.lock"
        self.marks = Marks(state)
        self._halt = HaltFile(state)

    @contextmanager
    def sending(self, order_id: UUID, *, name: str) -> Generator[Sending]:
        """Hold while one entry is sent to the broker, which knows it as `name`.

        Raises `Halted` instead of letting it be sent, also where it cannot be marked.
        """
        try:
            lock = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Halted(f"the lock of entries cannot be opened: {error}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                raise Halted("a panic exit holds the lock of entries") from error
            with self._marked(order_id, name) as sending:
                yield sending
        finally:
            os.close(lock)

    @contextmanager
    def _marked(self, order_id: UUID, name: str) -> Generator[Sending]:
        sending = Sending(settled=True)
        try:
            self._mark_unless_halted(order_id, name)
            sending.settled = False
            yield sending
        finally:
            if sending.settled:
                self.marks.remove(order_id)

    def _mark_unless_halted(self, order_id: UUID, name: str) -> None:
        try:
            self.marks.put(order_id, name)
        except OSError as error:
            raise Halted(f"an entry on its way cannot be marked: {error}") from error
        reason = self._halt.reason()  # after the mark, so that an exit which halts in between sees it
        if reason is not None:
            raise Halted(reason)

    def nobody_sending_now(self) -> bool:
        """Whether no entry is on its way at this moment. Raises `OSError` where the lock cannot be opened."""
        lock = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True

    def nobody_sending(self, within_s: float) -> bool:
        """Wait at most `within_s` seconds until no entry is on its way; blocks. True once none is."""
        until = time.monotonic() + within_s
        while not self.nobody_sending_now():
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_S)
        return True


def _render(halt: Halt) -> bytes:
    content = {
        "id": str(halt.id),
        "reason": halt.reason,
        "at": halt.at.isoformat(),
        "ttl_minutes": halt.ttl_minutes,
        "halted_until": halt.halted_until.isoformat(),
    }
    return json.dumps(content).encode() + b"\n"


def _parse(content: bytes) -> Halt:
    said = cast("dict[str, Any]", json.loads(content))
    halt = Halt(
        id=UUID(str(said["id"])),
        reason=str(said["reason"]),
        at=datetime.fromisoformat(said["at"]),
        ttl_minutes=int(said["ttl_minutes"]),
        halted_until=datetime.fromisoformat(said["halted_until"]),
    )
    if halt.at.tzinfo is None or halt.halted_until.tzinfo is None:
        raise ValueError("a time of the halt file has no zone")
    return halt


def _unreadable(found: os.stat_result) -> Halt:
    return new_halt(
        uuid5(NAMESPACE_OID, f"halt:{found.st_ino}:{found.st_mtime_ns}"),
        "the halt file has no readable content",
        at=datetime.fromtimestamp(found.st_mtime, UTC),
        ttl_minutes=DEFAULT_TTL_MINUTES,
    )


def _is_same(path: Path, opened: os.stat_result) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)
