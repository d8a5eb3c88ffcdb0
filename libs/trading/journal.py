"""A journal that works when everything else is down: lines of JSON in one file, synced and hash-chained.

Each line holds one entry about a subject (a panic exit, or an order) and the sha256 of the hash before it in the file
and the entry's canonical JSON. A process killed in the middle of a line leaves a torn last line: readers leave it out,
the next writer cuts it off. Several processes may write; appending holds a file lock. Everything here blocks.
"""

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, cast
from uuid import UUID

from libs.trading.durable import sync_folder

FIRST_HASH = "0" * 64
"""The hash before the first entry."""

_LOCK_WITHIN_S = 1.0
_LOCK_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: what was done about `subject`, the `seq`-th time from 1, and what came of it."""

    subject: UUID
    seq: int
    at: datetime
    action: str
    result: dict[str, Any]
    hash: str


Addition: TypeAlias = tuple[UUID, str, Mapping[str, Any]]
"""Subject, action and result of an entry that is to be added."""


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Journal:
    """One file of entries. `now` is the clock that stamps them."""

    def __init__(self, path: Path, *, now: Callable[[], datetime] = utc_now) -> None:
        self.path = path
        self._now = now
        self._known = _Known()

    def append(self, subject: UUID, action: str, result: Mapping[str, Any]) -> Entry:
        """Add an entry and sync it to the disk. Raises `OSError`, also when another writer holds on for a second."""
        with self._writing() as descriptor:
            [entry] = self._append_to(descriptor, [(subject, action, result)])
        return entry

    def append_after(self, offset: int, choose: Callable[[Sequence[Entry]], Sequence[Addition]]) -> int:
        """Add what `choose` wants once it saw what was added after a byte offset; nobody writes in between.

        All of it is synced at once. Returns the offset behind it. Raises `OSError`; then nothing was added.
        """
        with self._writing() as descriptor:
            self._catch_up(descriptor)
            found, _ = self.read_from(offset)
            chosen = choose(found)
            if chosen:
                self._append_to(descriptor, chosen)
            return self._known.offset

    @contextmanager
    def _writing(self) -> Generator[int]:
        """The file, locked."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with _locked(descriptor):
                yield descriptor
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self.path.parent)

    def _append_to(self, descriptor: int, additions: Sequence[Addition]) -> list[Entry]:
        known = self._catch_up(descriptor)
        before, seqs, lines = known.hash, Counter[UUID](), list[bytes]()
        for subject, action, result in additions:
            seqs[subject] += 1
            body: dict[str, Any] = {
                "subject": str(subject),
                "seq": known.seqs[subject] + seqs[subject],
                "at": self._now().astimezone(UTC).isoformat(),
                "action": action,
                "result": dict(result),
            }
            body = cast("dict[str, Any]", json.loads(_canonical(body)))  # what a reader will see
            before = chain_hash(before, body)
            lines.append(_canonical({**body, "hash": before}) + b"\n")
        try:
            _write_whole(descriptor, b"".join(lines), at=known.offset)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, known.offset)  # half a line of a full disk is no entry
            raise
        self._catch_up(descriptor)
        return [cast("Entry", _entry(line)) for line in lines]

    def _catch_up(self, descriptor: int) -> "_Known":
        """What the file holds now; a torn last line is cut off."""
        status = os.fstat(descriptor)
        known = self._known
        if known.inode != status.st_ino or known.offset > status.st_size:
            known = self._known = _Known(inode=status.st_ino)
        tail = _read_whole(descriptor, known.offset, status.st_size)
        whole = tail[: tail.rfind(b"\n") + 1]
        for line in whole.splitlines():
            entry = _entry(line)
            if entry is not None:
                known.hash, known.seqs[entry.subject] = entry.hash, entry.seq
        known.offset += len(whole)
        if len(whole) < len(tail):
            os.ftruncate(descriptor, known.offset)
        return known

    def entries(self, subject: UUID | None = None) -> list[Entry]:
        """The entries in their order, of one subject or of all. Raises `OSError` other than for a missing file."""
        found, _ = self.read_from(0)
        return [entry for entry in found if subject is None or entry.subject == subject]

    def read_from(self, offset: int) -> tuple[list[Entry], int]:
        """The entries of whole lines after a byte offset, and the offset behind them.

        A file shorter than the offset was replaced and is read from its beginning. Lines that are no entry are left
        out; `first_broken` names them.
        """
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = offset if offset <= size else 0
                file.seek(start)
                data = file.read()
        except FileNotFoundError:
            return [], 0
        whole = data[: data.rfind(b"\n") + 1]
        found = (_entry(line) for line in whole.splitlines())
        return [entry for entry in found if entry is not None], start + len(whole)

    def first_broken(self) -> str | None:
        """Check the chain; the first line that does not fit, named with how, or None."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        before = FIRST_HASH
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
            entry = _entry(line)
            if entry is None:
                return f"line {number}: not an entry"
            body = cast("dict[str, Any]", json.loads(line))
            body.pop("hash")
            if chain_hash(before, body) != entry.hash:
                return f"line {number}: entry {entry.seq} of {entry.subject} ({entry.action}) does not fit the chain"
            before = entry.hash
        return None


@dataclass(slots=True)
class _Known:
    """What was read of the file up to `offset`; only touched under the file's lock."""

    inode: int = -1
    offset: int = 0
    hash: str = FIRST_HASH
    seqs: Counter[UUID] = field(default_factory=Counter[UUID])


def chain_hash(before: str, body: Mapping[str, Any]) -> str:
    """The hash of an entry: of the hash before it and its canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(before.encode() + _canonical(body)).hexdigest()


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), default=str).encode()


def _entry(line: bytes) -> Entry | None:
    try:
        said = cast("dict[str, Any]", json.loads(line))
        return Entry(
            subject=UUID(said["subject"]),
            seq=int(said["seq"]),
            at=datetime.fromisoformat(said["at"]),
            action=str(said["action"]),
            result=dict(said["result"]),
            hash=str(said["hash"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def _locked(descriptor: int) -> Generator[None]:
    until = time.monotonic() + _LOCK_WITHIN_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= until:
                raise TimeoutError("another process holds the journal") from None
            time.sleep(_LOCK_POLL_S)
    yield  # closing the file lets go of the lock


def _write_whole(descriptor: int, data: bytes, *, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)


def _read_whole(descriptor: int, start: int, end: int) -> bytes:
    parts: list[bytes] = []
    while start < end:
        part = os.pread(descriptor, end - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return b"".join(parts)
