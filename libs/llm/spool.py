"""Where calls wait while the database is away: lines of JSON in bounded files.

`<folder>/<service>.jsonl` takes new lines; when it has grown to a quarter of the cap, or is about to be replayed, it
becomes a numbered segment beside it. Segments are only read and deleted, oldest first. Over the cap the oldest segment
goes and its lines are counted as dropped. A process killed in the middle of a line costs that line: it is skipped and
counted. Several processes of one service on one machine may share the folder: appending and renaming hold a file lock,
and replaying a line twice does no harm. All functions here block; call them in a thread.
"""

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import orjson

DEFAULT_CAP_BYTES = 256 * 1024 * 1024
_SEGMENTS_IN_CAP = 4


class Spool:
    """The spool files of one service."""

    def __init__(self, folder: Path, service: str, *, cap_bytes: int = DEFAULT_CAP_BYTES) -> None:
        self._folder = folder
        self._service = service
        self._active = folder / f"{service}.jsonl"
        self._lock = folder / f"{service}.lock"
        self._cap_bytes = cap_bytes
        self._segment_bytes = max(1, cap_bytes // _SEGMENTS_IN_CAP)

    def append(self, lines: list[bytes]) -> int:
        """Add lines; returns how many old ones had to go for them. Raises `OSError` when the disk refuses."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds prompts
        with self._locked():
            self._write(b"".join(line + b"\n" for line in lines))
            if self._active.stat().st_size >= self._segment_bytes:
                self._rotate()
            return self._trim()

    def _write(self, data: bytes) -> None:
        with self._active.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
                data = b"\n" + data if torn else data
            file.write(data)

    def waiting(self) -> bool:
        """Whether any line waits."""
        return bool(self.segments()) or (self._active.exists() and self._active.stat().st_size > 0)

    def seal(self) -> list[Path]:
        """Close the file that takes new lines, so that all lines are in segments; returns them, oldest first."""
        if not self._folder.exists():
            return []
        with self._locked():
            if self._active.exists() and self._active.stat().st_size > 0:
                self._rotate()
        return self.segments()

    def segments(self) -> list[Path]:
        """The closed files, oldest first."""
        numbered = [(self._number(path), path) for path in self._folder.glob(f"{self._service}.*.jsonl")]
        return [path for number, path in sorted(numbered) if number >= 0]

    def delete(self, segment: Path) -> None:
        """Remove a segment whose lines are stored."""
        segment.unlink(missing_ok=True)

    def _number(self, path: Path) -> int:
        middle = path.name.removeprefix(f"{self._service}.").removesuffix(".jsonl")
        return int(middle) if middle.isdigit() else -1

    def _rotate(self) -> None:
        numbers = [self._number(path) for path in self.segments()]
        self._active.rename(self._folder / f"{self._service}.{max(numbers, default=0) + 1:08d}.jsonl")

    def _trim(self) -> int:
        """Delete the oldest segments until what waits fits the cap; returns the lines lost."""
        lost = 0
        segments = self.segments()
        sizes = {path: path.stat().st_size for path in segments}
        total = sum(sizes.values()) + (self._active.stat().st_size if self._active.exists() else 0)
        while total > self._cap_bytes and segments:
            oldest = segments.pop(0)
            with oldest.open("rb") as file:
                lost += sum(1 for _ in file)
            oldest.unlink(missing_ok=True)
            total -= sizes[oldest]
        return lost

    @contextmanager
    def _locked(self) -> Generator[None]:
        with self._lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_segment(path: Path, *, size: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """The rows of a segment in groups of at most `size`, each with the count of torn lines skipped on the way."""
    rows: list[dict[str, Any]] = []
    torn = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            row = _read_line(line)
            if row is None:
                torn += 1 if line.strip() else 0
            else:
                rows.append(row)
            if len(rows) >= size:
                yield rows, torn
                rows, torn = [], 0
    if rows or torn:
        yield rows, torn


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        row: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(row, dict):
        return None
    columns = cast("dict[str, Any]", row)
    try:
        datetime.fromisoformat(columns["ts"])
        UUID(columns["id"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return columns
