"""Files of cases: checked whole before anything is asked, sampled by seed, and read case by case.

Nothing here holds more than one case and a few bytes per line, however long the file is.
"""

import hashlib
import os
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from libs.evaluation.cases.case import CaseError, EvalCase, vouched_for
from libs.evaluation.cases.reading import (
    BOM,
    JSONL,
    PARQUET,
    DatasetError,
    LineError,
    checked_lines,
    lines_of,
    parquet_cases,
    quick_case,
)
from libs.evaluation.cases.writing import CaseWriter, Ids, write_cases

__all__ = ["CaseFile", "CaseWriter", "DatasetError", "DatasetInfo", "check", "select", "write_cases"]

HASHED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A file of cases that passed every check.

    `cases` are all its cases, `twins` those of them that are twins of others. `without_moments` is how many cases have
    a feature without a moment of its own: nothing but their `as_of` says that it was known by then. `stamp` tells
    whether the file is still the one that was checked.
    """

    path: Path
    sha256: str
    cases: int
    twins: int
    without_moments: int
    stamp: tuple[int, int]


def check(path: Path) -> DatasetInfo:
    """Read a data set from end to end, a `.jsonl` or a `.parquet` file, and check all of it.

    Raises `DatasetError` naming file, line (or row) and field of the first thing wrong: a broken line, a field that is
    missing, unknown or wrong, an id that comes twice, a feature from after `as_of`, an outcome from before it, a twin
    before its case or not like it, or no case at all.
    """
    digest = hashlib.sha256()
    stamp = stamp_of(path)
    ids = Ids()
    cases = twins = without = 0
    for place, case in opened(path, digest.update):
        try:
            ids.add(case)
        except CaseError as error:
            raise DatasetError(f"{path}, {place}: {error}") from error
        cases += 1
        twins += case.twin != ""
        without += bool(vouched_for(case))
    if cases == 0:
        raise DatasetError(f"{path}: there is no case in it")
    if stamp_of(path) != stamp:
        raise DatasetError(f"{path}: was changed while it was read; try again when nobody writes to it")
    return DatasetInfo(path, digest.hexdigest(), cases, twins, without, stamp)


def opened(path: Path, seen: Callable[[bytes], object]) -> Iterator[tuple[str, EvalCase]]:
    """Every case of a file with its place, while `seen` is shown the file's bytes. Raises `DatasetError`."""
    if path.suffix == JSONL:
        return checked_lines(path, seen=seen)
    if path.suffix == PARQUET:
        try:
            with path.open("rb") as file:
                while part := file.read(HASHED_AT_ONCE):
                    seen(part)
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror or error}") from error
        return parquet_cases(path)
    raise DatasetError(f"{path}: a data set ends in {JSONL} or {PARQUET}")


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of change of a file. Raises `DatasetError`."""
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns


def select(info: DatasetInfo, *, limit: int | None, seed: int) -> Iterator[EvalCase]:
    """`limit` cases of a checked file, drawn by `seed`, in the file's order; all of them without a limit.

    The limit counts cases that are no twins; twins come with the case they belong to. Same file, limit and seed, same
    cases. Raises `DatasetError` where the file is not the one that was checked.
    """
    clean = info.cases - info.twins
    chosen: set[int] | None = None
    if limit is not None and limit < clean:
        chosen = set(random.Random(seed).sample(range(clean), max(0, limit)))  # noqa: S311 - a sample, not a secret
    if stamp_of(info.path) != info.stamp:
        raise DatasetError(f"{info.path}: was changed since it was checked; run again")
    return picked(info.path, chosen)


def picked(path: Path, chosen: set[int] | None) -> Iterator[EvalCase]:
    """The cases at these positions among those that are no twins, and their twins."""
    position = 0
    taken: set[str] = set()
    for case in cases_of(path):
        if chosen is None:
            yield case
        elif case.twin:
            if case.twin_of in taken:
                taken.add(case.id)
                yield case
        else:
            if position in chosen:
                taken.add(case.id)
                yield case
            position += 1


def cases_of(path: Path) -> Iterator[EvalCase]:
    """The cases of a file that was checked before. Raises `DatasetError`."""
    if path.suffix == PARQUET:
        yield from (case for _, case in parquet_cases(path))
        return
    for number, line in lines_of(path, seen=len):
        try:
            yield quick_case(line)
        except (LineError, CaseError) as error:
            raise DatasetError(f"{path}, line {number}: {error}") from error


class CaseFile:
    """A file that `write_cases` made, case by case in any order: eight bytes of memory per case.

    Safe to read from several threads. Raises `DatasetError`, naming the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")
        self._lines = array("Q")
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror or error}") from error
        try:
            self._find_lines()
        except BaseException:
            self._file.close()
            raise

    def _find_lines(self) -> None:
        position = number = 0
        try:
            for line in self._file:
                number += 1
                if line.removeprefix(BOM if number == 1 else b"").strip():
                    self._starts.append(position)
                    self._lines.append(number)
                position += len(line)
        except OSError as error:
            raise DatasetError(f"{self.path}: {error.strerror or error}") from error
        self._starts.append(position)

    def __len__(self) -> int:
        """How many cases there are."""
        return len(self._lines)

    def __iter__(self) -> Iterator[EvalCase]:
        """Every case, in order."""
        return (self.case(number) for number in range(len(self)))

    def case(self, number: int) -> EvalCase:
        """The case at this place, from 0 on. Raises `IndexError` past the end."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path}: there is no case {number} among {len(self)}")
        start, end = self._starts[number], self._starts[number + 1]
        try:
            line = os.pread(self._file.fileno(), end - start, start)
            return quick_case(line.removeprefix(BOM if number == 0 else b""))
        except OSError as error:
            raise DatasetError(f"{self.path}: {error.strerror or error}") from error
        except (LineError, CaseError) as error:
            raise DatasetError(f"{self.path}, line {self._lines[number]}: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> "CaseFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
