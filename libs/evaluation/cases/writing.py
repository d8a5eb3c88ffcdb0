"""Files of cases written: whole or not at all, and nothing that could not be read back."""

import hashlib
import os
from array import array
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from zlib import crc32

import orjson

from libs.evaluation.cases.case import CaseError, EvalCase, case_from, document_of
from libs.judgement.record import inputs_block

ID_BYTES = 16
MASKED_SHARES: Final = ("target",)
HOSTILE_SHARES: Final = (
    *MASKED_SHARES,
    *("feed", "inputs.ticker", "inputs.as_of", "inputs.horizon", "inputs.signal", "inputs.factors", "inputs.facts"),
    *("inputs.liquidity_usd", "inputs.coverage_pct", "inputs.earnings_in_days"),
)
"""What a hostile twin has in common with its case: all that the rules read. Only the headlines are others."""


class Ids:
    """The ids seen so far and what their cases say, as digests: a few dozen bytes each, however long they are."""

    def __init__(self) -> None:
        self._seen: dict[bytes, bytes] = {}

    def add(self, case: EvalCase) -> None:
        """Take a case. Raises `CaseError` where its id came before, the case it is a twin of did not, or the two are
        no twins: one says what the other does not.
        """
        digest = digest_of(case.id)
        if digest in self._seen:
            raise CaseError("id", f"{case.id!r} comes twice")
        says = digests_of(case)
        if case.twin_of:
            original = self._seen.get(digest_of(case.twin_of))
            if original is None:
                raise CaseError("twin_of", f"no case before this one has the id {case.twin_of!r}")
            check_shared(case, says, original)
        self._seen[digest] = says


def check_shared(twin: EvalCase, says: bytes, original: bytes) -> None:
    """Refuse a twin that is another case. Raises `CaseError` naming the first field that differs."""
    shared = HOSTILE_SHARES if twin.twin == "hostile" else MASKED_SHARES
    for field, here, there in zip(shared, array("I", says), array("I", original), strict=False):
        if here != there:
            raise CaseError(field, f"differs from that of {twin.twin_of!r}, whose {twin.twin} twin this is said to be")


def digests_of(case: EvalCase) -> bytes:
    """A short digest of each of `HOSTILE_SHARES`, in that order."""
    inputs = inputs_block(case.inputs)
    values: dict[str, Any] = {"target": case.target, "feed": case.feed}
    said = (values[name] if name in values else inputs[name.removeprefix("inputs.")] for name in HOSTILE_SHARES)
    return array("I", (crc32(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)) for value in said)).tobytes()


def digest_of(text: str) -> bytes:
    """A short digest of an id."""
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES).digest()


def write_cases(path: Path, cases: Iterable[EvalCase]) -> tuple[int, str]:
    """Write cases as JSONL, one per line; returns how many, and the file's SHA-256.

    Raises what `CaseWriter` raises, and then leaves no file behind.
    """
    with CaseWriter(path) as writer:
        for case in cases:
            writer.add(case)
        writer.finish()
    return writer.count, writer.sha256


class CaseWriter:
    """Writes a file of cases that appears whole, by `finish`, or not at all.

    Every case is read back before it is written, so that what stands there can be used. Raises `CaseError` for a case
    that cannot be (its id comes twice, say), `OSError` naming the file where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._digest = hashlib.sha256()
        self._ids = Ids()
        with self._named():
            self._file = self._part.open("wb")

    @property
    def sha256(self) -> str:
        """The digest of what was written so far."""
        return self._digest.hexdigest()

    def add(self, case: EvalCase) -> None:
        """Write a case."""
        self._ids.add(case)
        line = line_of(case)
        self._digest.update(line)
        with self._named():
            self._file.write(line)
        self.count += 1

    def finish(self) -> None:
        """Put the file in its place, once it is on disk."""
        with self._named():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._path)

    @contextmanager
    def _named(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"{self._path} cannot be written: {reason}; make room, or name another place") from error

    def __enter__(self) -> "CaseWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what is thrown away here need not be whole
            self._file.close()
        self._part.unlink(missing_ok=True)


def line_of(case: EvalCase) -> bytes:
    """A case as a line. Raises `CaseError` where it could not be read back."""
    document = document_of(case)
    try:
        case_from(document)
        return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
    except CaseError as error:
        raise CaseError(error.place, f"{error.problem} (case {case.id!r})") from error
