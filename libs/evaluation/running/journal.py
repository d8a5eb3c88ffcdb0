"""Rows on disk: appended, never rewritten, each there before whoever brought it goes on.

All rows that wait are written and synced together, in a thread: while one group is on its way to the disk the next one
gathers, so that a slow disk costs latency, not throughput. A process killed in the middle of a line costs that line,
which nobody was told was kept: the next one to open the file cuts it off.
"""

import asyncio
import fcntl
import os
from array import array
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from libs.evaluation.running.folder import sync_folder
from libs.evaluation.running.plan import MOST_ITEMS
from libs.evaluation.running.row import Row, RowError, row_from

MOST_TRIES: Final = 65_535

log = structlog.get_logger(__name__)


class JournalError(Exception):
    """The file of rows cannot be used or written; the message names it and the way out."""


class Items(Collection[int]):
    """A set of items, two bytes for each item there may be. It shows the journal as it is now."""

    def __init__(self, marks: "array[int]") -> None:
        self._marks = marks

    def __contains__(self, item: object) -> bool:
        return isinstance(item, int) and 0 <= item < len(self._marks) and self._marks[item] > 0

    def __iter__(self) -> Iterator[int]:
        return (item for item, mark in enumerate(self._marks) if mark)

    def __len__(self) -> int:
        return sum(1 for mark in self._marks if mark)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row on its way to the disk."""

    row: Row
    line: bytes
    kept: "asyncio.Future[None]"


class Journal:
    """The file of a run's rows, held by one process at a time. Opens at once, and must be closed.

    `items` is how many items the plan has. `cut` counts the bytes of a torn last line that opening cut off. Raises
    `JournalError`: another process holds the file, it cannot be read, or a line in it is no row.
    """

    def __init__(self, path: Path, *, items: int = MOST_ITEMS) -> None:
        self.path = path
        self.cut = 0
        self._items = items
        self._tries, self._answers = array("H"), array("H")
        self._rows = self._safe = 0
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        self._broken: JournalError | None = None
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise JournalError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self._take_over()
        except BaseException:
            os.close(self._handle)
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    @property
    def done(self) -> Items:
        """The items that have a row, whatever it says."""
        return Items(self._tries)

    @property
    def answered(self) -> Items:
        """The items that have a row with a reply of the model. What is done and not answered may be tried again."""
        return Items(self._answers)

    @property
    def rows(self) -> int:
        """How many rows are on disk."""
        return self._rows

    async def keep(self, row: Row) -> None:
        """Return when the row is on disk. Its `try_` is set to one more than the item has rows; an item that is
        answered keeps the answer it has, and the row is let go.

        Raises `JournalError` when the disk refuses; what was kept before stays, and no more is taken.
        """
        if self._broken is not None:
            raise self._broken
        self._make_room(row.item)
        if self._answers[row.item]:
            return
        if row.try_ != (number := min(self._tries[row.item] + 1, MOST_TRIES)):
            row = replace(row, try_=number)
        waiting = _Waiting(row, row.line(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="journal")
        await waiting.kept

    async def close(self) -> None:
        """Write what waits, and let the file go."""
        if self._writer is not None:
            await self._writer
        self._thread.shutdown()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self._broken = self._broken or JournalError(f"{self.path} is closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._thread, self._append, b"".join(one.line for one in group))
            except OSError as error:
                self._break(error, [*group, *self._waiting])
                return
            for one in group:
                self._mark(one.row)
                if not one.kept.done():  # who brought it may have left
                    one.kept.set_result(None)
                    await asyncio.sleep(0)  # one at a time: a crowd that goes on together holds up answers coming in

    def _append(self, data: bytes) -> None:
        """In the thread: all of it on disk, or `OSError`, after which the file is as long as before."""
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fdatasync(self._handle)
        except OSError:
            with suppress(OSError):  # what cannot be taken back is a torn line, which the next one to open cuts off
                os.ftruncate(self._handle, self._safe)
            raise
        self._safe += len(data)

    def _break(self, error: OSError, lost: list[_Waiting]) -> None:
        self._waiting = []
        self._broken = JournalError(
            f"{self.path} cannot be written: {error.strerror or error}. {self._rows:,} rows are safe in it; "
            "make room, then resume the run"
        )
        for one in lost:
            if not one.kept.done():
                one.kept.set_exception(self._broken)

    def _take_over(self) -> None:
        """Lock the file, learn what is in it and cut off a torn last line."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(f"{self.path} is being written by another process; wait for it, or stop it") from error
        try:
            for offset, row in read_rows(self.path):
                self._make_room(row.item)
                self._mark(row)
                self._safe = offset
            size = os.fstat(self._handle).st_size
            self.cut = size - self._safe
            if self.cut:
                os.ftruncate(self._handle, self._safe)
                log.warning("journal_torn_line_cut", path=str(self.path), bytes=self.cut)
            os.fsync(self._handle)
            sync_folder(self.path.parent)
        except OSError as error:
            raise JournalError(f"{self.path} cannot be used: {error.strerror or error}") from error

    def _mark(self, row: Row) -> None:
        self._rows += 1
        self._tries[row.item] = max(self._tries[row.item], min(row.try_, MOST_TRIES))
        if row.answered:
            self._answers[row.item] = 1

    def _make_room(self, item: int) -> None:
        """Have a mark for the item. Raises `JournalError` for one that the plan does not have."""
        if item >= self._items:
            raise JournalError(f"{self.path}: there is no item {item}, the plan has {self._items}")
        if item >= len(self._tries):
            more = max(item + 1, min(2 * len(self._tries), self._items)) - len(self._tries)
            self._tries.extend(bytes(more))
            self._answers.extend(bytes(more))


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a file, each with the offset behind it; a torn last line is left out.

    Raises `JournalError` naming the line that is no row.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                row = row_from(line)
            except RowError as error:
                raise JournalError(
                    f"{path}, line {number}: {error}; take the line out, its item is asked again"
                ) from error
            yield offset, row


def latest_rows(path: Path) -> Iterator[Row]:
    """One row of each item, in the order of the file: the last one with an answer, else the last one.

    Reads the file twice and keeps eight bytes per item, so that a million rows do not have to fit in memory. A file
    that is not there has no rows. Raises `JournalError`.
    """
    if not path.exists():
        return
    chosen, answered, whole = array("q"), bytearray(), 0
    for offset, row in read_rows(path):
        if row.item >= len(chosen):
            if row.item >= MOST_ITEMS:
                raise JournalError(f"{path}: there is no item {row.item}")
            more = max(row.item + 1, 2 * len(chosen)) - len(chosen)
            chosen.extend([-1] * more)
            answered.extend(bytes(more))
        if row.answered or not answered[row.item]:
            chosen[row.item], answered[row.item] = offset, row.answered
        whole = offset
    for offset, row in read_rows(path):
        if chosen[row.item] == offset:
            yield row
        if offset == whole:
            return
