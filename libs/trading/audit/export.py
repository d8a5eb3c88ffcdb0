"""Verdicts as CSV with the chain's proof: anybody can check `hash` from `previous_hash` and `payload` alone.

A last line `# head SEQ HASH` says where the chain stood when the file was made.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.audit.links import START, Broken, Link, check
from libs.trading.audit.verification import HASH, Verified, batches
from libs.trading.chain import link

READABLE = (
    "seq",
    "at",
    "key_name",
    "strategy",
    "client_order_id",
    "ticker",
    "side",
    "qty",
    "ref_price",
    "reduce_only",
    "verdict",
    "would_have",
    "mode",
    "reasons",
    "forecast_id",
)
PROOF = ("previous_hash", "hash", "payload")
HEAD_MARK = "# head"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
LONGEST_FIELD = 2**27

# The part of the chain between two moments: without a hole even where the clock was set back.
PART = text(
    """
    select min(seq) as first, max(seq) as last from gate_verdicts where at >= :since and at < :until
    """
)
HEAD = text("select seq, hash from gate_verdicts order by seq desc limit 1")


class ExportFileError(Exception):
    """A file is not one of our exports; the message says where."""


@dataclass(frozen=True, slots=True)
class Period:
    """From `since` on, before `until`."""

    since: datetime
    until: datetime


async def export(engine: AsyncEngine, period: Period, out: TextIO) -> Verified:
    """Write the verdicts of a period; what comes back says whether the written part of the chain holds.

    A broken row is written all the same, and so are those after it.
    """
    async with engine.connect() as connection:
        part = (await connection.execute(PART, {"since": period.since, "until": period.until})).mappings().one()
        head = (await connection.execute(HEAD)).mappings().one_or_none()
        before = None
        if part["first"] is not None:
            before = await connection.scalar(HASH, {"seq": part["first"] - 1})
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*READABLE, *PROOF])
    outcome = Verified(0, START)
    if part["first"] is not None:
        first = START if part["first"] == 1 else Link(part["first"] - 1, before or "")
        outcome = await _write_rows(engine, writer, start=first, last=part["last"])
    if head is not None:
        out.write(f"{HEAD_MARK} {head['seq']} {head['hash']}\n")
    return outcome


async def _write_rows(engine: AsyncEngine, writer: Any, *, start: Link, last: int) -> Verified:
    place, count, broken = start, 0, None
    async for rows in batches(engine, after=start.seq, last=last):
        for row in rows:
            broken = broken or check(place, row)
            writer.writerow([*(readable(row[name]) for name in READABLE), place.hash, row["hash"], row["payload"]])
            place, count = Link(row["seq"], row["hash"]), count + 1
    return Verified(count, place, broken)


def readable(value: Any) -> str:
    """A column's text. What a spreadsheet would take for a formula gets an apostrophe; the payload has it as it is."""
    if isinstance(value, list):
        return " ".join(str(each) for each in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, datetime):
        return value.isoformat()
    words = "" if value is None else str(value)
    return f"'{words}" if words.startswith(FORMULA_STARTS) else words


def check_file(path: Path) -> Verified:
    """Check an export by itself: each hash from the one before it and the payload.

    Raises `ExportFileError`, `OSError`.
    """
    csv.field_size_limit(min(LONGEST_FIELD, sys.maxsize))
    place: Link | None = None
    count = 0
    for row in _rows_of(path):
        try:
            seq = int(row["seq"])
        except ValueError as error:
            raise ExportFileError(f"{path}: row {count + 1} has no number") from error
        if place is None:
            place = Link(seq - 1, row["previous_hash"])
        broken = _broken(place, row, seq=seq)
        if broken is not None:
            return Verified(count, place, broken)
        place, count = Link(seq, row["hash"]), count + 1
    return Verified(count, place or START)


def _broken(place: Link, row: dict[str, str], *, seq: int) -> Broken | None:
    if seq != place.seq + 1:
        return Broken(place.seq + 1, f"it is gone; row {seq} comes next")
    if row["previous_hash"] != place.hash:
        return Broken(seq, "its previous_hash is not the hash of the row before")
    if link(place.hash, row["payload"]) != row["hash"]:
        return Broken(seq, "its hash does not follow from previous_hash and payload")
    return None


def _rows_of(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(line for line in file if not line.startswith(HEAD_MARK))
        if not {"seq", *PROOF} <= set(reader.fieldnames or ()):
            raise ExportFileError(f"{path}: not an export of verdicts; it needs seq, {', '.join(PROOF)}")
        yield from reader
