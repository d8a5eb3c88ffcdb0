"""What a panic exit's journal says: whether one is unfinished, and the answer it gave or would give now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

from libs.trading.broker.address import BrokerAddress
from libs.trading.journal import Entry, Journal

JOURNAL_NAME = "panic_journal.jsonl"
LOCK_NAME = "panic.lock"

EXIT_CODES = {"FLAT": 0, "DRY_RUN": 0, "PENDING_MARKET_OPEN": 3, "PARTIAL": 4, "FAILED": 5}
"""The process's exit code by the state it reached; bad usage is 2."""


@dataclass(slots=True)
class Tally:
    """What an exit has done so far: a sum over its journal's entries, so that a resumed one goes on counting.

    `cancelled`, `closing` and `open` are order ids; `seen` and `held` are plain symbols of positions met at any time
    and at the last read.
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
            symbols = {plain(str(order["symbol"])) for order in made}
            self.seen |= symbols
            self.held |= symbols
        elif action == "read":
            self.held = {plain(symbol) for symbol in cast("dict[str, str]", result.get("positions") or {})}
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


@dataclass(frozen=True, slots=True)
class Whose:
    """Which broker an exit is about: its name and its address, without any key."""

    name: str
    base_url: str

    def __str__(self) -> str:
        return f"{self.name} broker at {self.base_url}"


def whose(address: BrokerAddress | None) -> Whose | None:
    """The broker of an address; a user and a password in it are left out."""
    if address is None:
        return None
    parts = urlsplit(address.base_url)
    return Whose(address.name, urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))


def whose_in(said: Mapping[str, Any]) -> Whose | None:
    """The broker that a `begun` names, None where it names none."""
    name, base_url = said.get("broker"), said.get("base_url")
    return Whose(name, base_url) if isinstance(name, str) and isinstance(base_url, str) else None


def beginning(reason: str, ttl_minutes: int, *, halted_until: datetime | None, broker: Whose | None) -> dict[str, Any]:
    """What an exit writes down at its begin."""
    return {
        "reason": reason,
        "ttl_minutes": ttl_minutes,
        "halted_until": None if halted_until is None else halted_until.isoformat(),
        "dry_run": False,
        "broker": None if broker is None else broker.name,
        "base_url": None if broker is None else broker.base_url,
    }


def plain(symbol: str) -> str:
    """A symbol as it compares: crypto is BTC/USD in orders and BTCUSD in positions."""
    return symbol.replace("/", "")


def tally(entries: Iterable[Entry]) -> Tally:
    """The sum of some entries."""
    counted = Tally()
    for entry in entries:
        counted.take(entry.action, entry.result)
    return counted


def begun(entries: Iterable[Entry]) -> dict[str, Any] | None:
    """What an exit began with, as `beginning` wrote it; None before it was written."""
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
    """The entries of an exit, or of the one that this request joined and that answers it. Raises `OSError`.

    A request that began an exit of its own is answered by that, even if it had joined another before.
    """
    everything = journal.entries()
    visited: set[UUID] = set()
    while True:
        visited.add(exit_id)
        mine = [entry for entry in everything if entry.subject == exit_id]
        other = None if begun(mine) is not None else joined(mine)
        if other is None or other in visited:
            return mine
        exit_id = other


def unfinished(journal: Journal, *, of: Whose | None = None) -> UUID | None:
    """The latest exit that began and did not end, None without one. Raises `OSError`.

    With `of`, those of another broker are left out. An exit that was killed after it took the lock and before it wrote
    its beginning counts: its name still stands in the lock.
    """
    everything = journal.entries()
    open_exits = _open_exits(everything)
    known = [exit_id for exit_id, broker in open_exits.items() if of is None or broker in {None, of}]
    if known:
        return known[-1]
    named = signed(journal)
    is_new = named is not None and not any(entry.subject == named for entry in everything)
    return named if is_new else None


def latest(journal: Journal) -> UUID | None:
    """The exit that began last, ended or not; None without one. Raises `OSError`."""
    begins = [entry for entry in journal.entries() if entry.action == "begun" and not entry.result.get("dry_run")]
    return begins[-1].subject if begins else None


def elsewhere(journal: Journal, *, of: Whose | None) -> dict[UUID, Whose]:
    """The unfinished exits that are known to be of another broker. Raises `OSError`."""
    found = _open_exits(journal.entries())
    return {exit_id: broker for exit_id, broker in found.items() if broker is not None and broker != of}


def signed(journal: Journal) -> UUID | None:
    """Whose exit has the lock beside the journal, or had it when it was killed."""
    try:
        return UUID((journal.path.parent / LOCK_NAME).read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None


def _open_exits(entries: Iterable[Entry]) -> dict[UUID, Whose | None]:
    open_exits: dict[UUID, Whose | None] = {}
    for entry in entries:
        if entry.action == "begun" and not entry.result.get("dry_run"):
            open_exits[entry.subject] = whose_in(entry.result)
        elif entry.action == "ended":
            open_exits.pop(entry.subject, None)
    return open_exits


def _strings(result: Mapping[str, Any], name: str) -> list[str]:
    return [str(value) for value in cast("list[Any]", result.get(name) or [])]
