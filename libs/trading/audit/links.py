"""One row of the chain checked against the row before it. No I/O."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, cast
from uuid import UUID

from libs.trading.chain import GENESIS, link

COLUMNS = (
    "seq",
    "id",
    "at",
    "key_name",
    "strategy",
    "client_order_id",
    "intent",
    "first",
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
    "feed",
    "horizon",
    "model",
    "as_of",
    "decision_age_s",
    "prompt_version",
    "arm",
)
"""The columns that repeat what a payload says; every one must be in it."""


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: a row's number and its hash."""

    seq: int
    hash: str


START = Link(0, GENESIS)
"""The place before the first row."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The first row that does not hold: its number, and how it is broken."""

    seq: int
    how: str

    def __str__(self) -> str:
        return f"row {self.seq} is broken: {self.how}"


def check(previous: Link, row: Mapping[str, Any]) -> Broken | None:
    """What is wrong with the row that comes after `previous`, None where it holds.

    `row` has COLUMNS as the database gives them, `payload` and `hash`.
    """
    seq: int = row["seq"]
    if seq != previous.seq + 1:
        missing = f"{previous.seq + 1}" if seq == previous.seq + 2 else f"{previous.seq + 1} to {seq - 1}"
        return Broken(previous.seq + 1, f"it is gone ({missing} missing before row {seq})")
    expected = link(previous.hash, row["payload"])
    if row["hash"] != expected:
        return Broken(seq, f"its hash is {row['hash']}; its payload and the row before make {expected}")
    return next((Broken(seq, how) for how in disagreements(row)), None)


def disagreements(row: Mapping[str, Any]) -> Iterator[str]:
    """Where the columns of a row say something else than its payload."""
    try:
        said = json.loads(row["payload"])
    except ValueError:
        yield "its payload is no JSON"
        return
    if not isinstance(said, dict):
        yield "its payload is no JSON object"
        return
    record = cast("dict[str, Any]", said)
    for name in COLUMNS:
        if name not in record:
            yield f"its payload does not say {name}"
        elif not same(row[name], record[name]):
            yield f"its column {name} says {shown(row[name])}, its payload {shown(record[name])}"


def same(stored: Any, said: Any) -> bool:
    """Whether a column's value is what the JSON of the payload says."""
    if stored is None or said is None:
        return stored is said
    if isinstance(stored, bool) or isinstance(said, bool):
        return stored is said
    try:
        if isinstance(stored, datetime):
            return stored == datetime.fromisoformat(said)
        if isinstance(stored, UUID):
            return stored == UUID(said)
        if isinstance(stored, Decimal):
            return stored == Decimal(said)
    except (TypeError, ValueError, AttributeError, InvalidOperation):
        return False
    return bool(stored == said)


def shown(value: Any) -> str:
    """A value for people."""
    return json.dumps(value, default=str, ensure_ascii=False)
