"""What a panic exit's journal says: whether one is unfinished, and the answer it gave or would give now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from libs.trading.journal import Entry, Journal

JOURNAL_NAME = "panic_journal.jsonl"

EXIT_CODES = {"FLAT": 0, "DRY_RUN": 0, "PENDING_MARKET_OPEN": 3, "PARTIAL": 4, "FAILED": 5}
"""The process's exit code by the state it reached; bad usage is 2."""


@dataclass(slots=True)
class Tally:
    """What an exit has done so far: a sum over its journal's entries, so that a resumed one goes on counting.

    `cancelled`, `closing` and `open` are order ids; `seen` and `held` are symbols of positions met at any time and
    at the last read.
    """

    cancelled: set[str] = field(default_factory=set[str])
    closing: set[str] = field(default_factory=set[str])
    seen: set[str] = field(default_factory=set[str])
    held: set[str] = field(default_factory=set[str])
    open: set[str] = field(default_factory=set[str])

    def take(self, action: str, result: Mapping[str, Any]) -> None:
        """Count one entry."""
        if action in {"cancel_all_result", "cancel_each_result"}:
            self.cancelled |= set(_strings(result, "cancelled"))
        elif action in {"close_all_result", "close_each_result", "close_seen"}:
            made = cast("list[dict[str, Any]]", result.get("orders") or [])
            self.closing |= {str(order["id"]) for order in made}
            self.seen |= {str(order["symbol"]) for order in made}
            self.held |= {str(order["symbol"]) for order in made}
        elif action == "read":
            self.held = set(cast("dict[str, str]", result.get("positions") or {}))
            self.open = set(_strings(result, "open_orders"))
            self.seen |= self.held

    @property
    def positions_closed(self) -> int:
        """How many positions were met and are no longer held."""
        return len(self.seen - self.held)

    @property
    def orders_cancelled(self) -> int:
        """How many orders the broker agreed to cancel and no longer lists as open; closing orders do not count."""
        return len(self.cancelled - self.closing - self.open)

    @property
    def did_something(self) -> bool:
        """Whether anything was cancelled or closed, or at least taken on by the broker."""
        return bool(self.cancelled or self.closing or self.positions_closed)


def tally(entries: Iterable[Entry]) -> Tally:
    """The sum of some entries."""
    counted = Tally()
    for entry in entries:
        counted.take(entry.action, entry.result)
    return counted


def begun(entries: Iterable[Entry]) -> dict[str, Any] | None:
    """What an exit began with: `{reason, ttl_minutes, halted_until, dry_run}`; None before it was written."""
    return next((entry.result for entry in entries if entry.action == "begun"), None)


def ended(entries: Iterable[Entry]) -> dict[str, Any] | None:
    """The answer an exit gave at its end; None while it has not ended."""
    return next((entry.result for entry in entries if entry.action == "ended"), None)


def joined(entries: Iterable[Entry]) -> UUID | None:
    """The exit that a request joined instead of beginning one, None for one of its own."""
    found = next((entry.result.get("exit_id") for entry in entries if entry.action == "joined"), None)
    return None if found is None else UUID(str(found))


def result_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """The answer of one exit by its entries, its state RUNNING while it has not ended.

    Raises `ValueError` where there is no entry of it.
    """
    if not entries:
        raise ValueError("no entry of this exit in the journal")
    answer = ended(entries)
    if answer is not None:
        return answer
    said, counted = begun(entries) or {}, tally(entries)
    return {
        "ok": False,
        "exit_id": str(entries[0].subject),
        "state": "RUNNING",
        "positions_closed": counted.positions_closed,
        "orders_cancelled": counted.orders_cancelled,
        "failures": [],
        "ttl_minutes": said.get("ttl_minutes"),
        "halted_until": said.get("halted_until"),
    }


def steps_of(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The entries as `{at, action, result}`."""
    return [{"at": entry.at.isoformat(), "action": entry.action, "result": entry.result} for entry in entries]


def entries_of(journal: Journal, exit_id: UUID) -> list[Entry]:
    """The entries of an exit, or of the one that this request joined. Raises `OSError`."""
    everything = journal.entries()
    visited: set[UUID] = set()
    while True:
        visited.add(exit_id)
        mine = [entry for entry in everything if entry.subject == exit_id]
        other = joined(mine)
        if other is None or other in visited:
            return mine
        exit_id = other


def unfinished(journal: Journal) -> UUID | None:
    """The latest exit that began and did not end, None without one. Raises `OSError`."""
    open_exits: dict[UUID, None] = {}
    for entry in journal.entries():
        if entry.action == "begun" and not entry.result.get("dry_run"):
            open_exits[entry.subject] = None
        elif entry.action == "ended":
            open_exits.pop(entry.subject, None)
    return next(reversed(open_exits), None)


def _strings(result: Mapping[str, Any], name: str) -> list[str]:
    return [str(value) for value in cast("list[Any]", result.get(name) or [])]
