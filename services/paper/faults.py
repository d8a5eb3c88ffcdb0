"""What goes wrong on request. No I/O: a fault is a description, and this is the book of those that stand.

Faults on a route act on calls of that route, faults on symbols on what is done with these symbols; `symbols` left out
means all. `nth` is the first call (or the first time for each symbol) that it acts on, `times` how often it acts then
(for each symbol), null without end.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from services.paper.types import listed

LONGEST_S = 10_000_000

ROUTES = (
    "POST /v2/orders",
    "GET /v2/orders",
    "DELETE /v2/orders",
    "GET /v2/orders/{id}",
    "DELETE /v2/orders/{id}",
    "GET /v2/orders:by_client_order_id",
    "GET /v2/positions",
    "DELETE /v2/positions",
    "GET /v2/positions/{symbol}",
    "DELETE /v2/positions/{symbol}",
    "GET /v2/account",
    "GET /v2/clock",
    "GET /v2/account/activities/FILL",
)

When: TypeAlias = Literal["before", "after"]
"""Whether a fault strikes before the work is done, or after: then it is done and nobody was told."""
Where: TypeAlias = Literal["bulk", "single", "both"]


class Counted(BaseModel):
    """A fault that acts a number of times."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nth: int = Field(default=1, ge=1)
    times: int | None = Field(default=None, ge=1)


class OnRoute(Counted):
    """A fault of the wire."""

    route: str = "*"

    @field_validator("route")
    @classmethod
    def must_exist(cls, value: str) -> str:
        """Refuse a route that no call can match."""
        if value != "*" and value not in ROUTES:
            raise ValueError(f"no such route; use * or one of: {', '.join(ROUTES)}")
        return value


class Latency(OnRoute):
    """Each call takes `ms` milliseconds longer, before its work is done."""

    kind: Literal["latency"]
    ms: float = Field(ge=0, le=600_000)


class Reset(OnRoute):
    """The connection is reset instead of an answer, once unless told otherwise."""

    kind: Literal["reset"]
    when: When = "before"
    times: int | None = Field(default=1, ge=1)


class Silence(OnRoute):
    """The socket stays open and no answer ever comes."""

    kind: Literal["silence"]
    when: When = "before"


class Failure(OnRoute):
    """The answer is an error."""

    kind: Literal["error"]
    when: When = "before"
    status: int = Field(default=500, ge=400, le=599)
    code: int = 50010000
    message: str = "internal server error occurred"


class OnSymbols(Counted):
    """A fault of some symbols."""

    symbols: frozenset[str] | None = None


class FailClose(OnSymbols):
    """Closing a position fails: as an item of the 207 list, in the call for one position, or in both."""

    kind: Literal["fail_close"]
    where: Where = "bulk"
    status: int = Field(default=500, ge=400, le=599)
    code: int = 50010000
    message: str = "internal server error occurred"


class FailCancel(OnSymbols):
    """Cancelling an order fails, in the same places; the order stays open."""

    kind: Literal["fail_cancel"]
    where: Where = "bulk"
    status: int = Field(default=500, ge=400, le=599)
    code: int = 50010000
    message: str = "internal server error occurred"


class SlowCancel(OnSymbols):
    """A cancel is accepted and stays pending for `for_s` seconds; null until this fault is taken away."""

    kind: Literal["slow_cancel"]
    for_s: float | None = Field(default=None, ge=0, le=LONGEST_S)


class Reappear(OnSymbols):
    """A position that was closed is there again `after_ms` later, as by a late fill; once for each symbol."""

    kind: Literal["reappear"]
    after_ms: float = Field(default=0, ge=0, le=1000 * LONGEST_S)
    times: int | None = Field(default=1, ge=1)


class Reject(OnSymbols):
    """An order is refused with 403 (`refuse`), or accepted and rejected when it would begin to work (`later`).

    Orders that close positions are left alone: `fail_close` is for them.
    """

    kind: Literal["reject"]
    how: Literal["refuse", "later"] = "refuse"
    code: int = 40310000
    message: str = "this order is rejected"


class Standing(BaseModel):
    """A state rather than an event: it holds for `for_s` seconds, null until it is taken away."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    for_s: float | None = Field(default=None, gt=0, le=LONGEST_S)


class MarketHours(Standing):
    """The market is closed, or open, whatever the calendar says."""

    kind: Literal["market"]
    open: bool = False


class HoldFills(Standing):
    """Nothing fills."""

    kind: Literal["hold_fills"]
    symbols: frozenset[str] | None = None


WireFault: TypeAlias = Latency | Reset | Silence | Failure
SymbolFault: TypeAlias = FailClose | FailCancel | SlowCancel | Reappear | Reject
StateFault: TypeAlias = MarketHours | HoldFills
Fault: TypeAlias = WireFault | SymbolFault | StateFault
FAULT: TypeAdapter[Fault] = TypeAdapter(Annotated[Fault, Field(discriminator="kind")])

S = TypeVar("S", FailClose, FailCancel, SlowCancel, Reappear, Reject)


@dataclass(slots=True)
class Entry:
    """A fault in the book; `seen` counts by symbol ("" for a route), `acted` in all."""

    id: int
    fault: Fault
    until: datetime | None = None
    seen: Counter[str] = field(default_factory=Counter[str])
    acted: int = 0

    def strikes(self, subject: str) -> bool:
        """Count one occasion, and say whether the fault acts on it."""
        assert isinstance(self.fault, Counted)  # noqa: S101 - narrows the type; states are never counted
        self.seen[subject] += 1
        ordinal = self.seen[subject] - self.fault.nth
        if ordinal < 0 or (self.fault.times is not None and ordinal >= self.fault.times):
            return False
        self.acted += 1
        return True


class Faults:
    """The book of faults. It starts empty, and a restart of the process empties it."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._last_id = 0

    def add(self, fault: Fault, now: datetime) -> Entry:
        """Make a fault stand from now on."""
        self._last_id += 1
        for_s = fault.for_s if isinstance(fault, Standing) else None
        entry = Entry(self._last_id, fault, until=None if for_s is None else now + timedelta(seconds=for_s))
        self._entries[entry.id] = entry
        return entry

    def entries(self) -> list[Entry]:
        """Those in the book, oldest first, spent ones too."""
        return list(self._entries.values())

    def remove(self, entry_id: int) -> bool:
        """Take one away; False when there is none of that id."""
        return self._entries.pop(entry_id, None) is not None

    def clear(self) -> None:
        """Take all away."""
        self._entries.clear()

    def on_call(self, route: str) -> list[WireFault]:
        """What strikes this call of a route; counts it."""
        return [
            entry.fault
            for entry in self._entries.values()
            if isinstance(entry.fault, OnRoute) and entry.fault.route in {"*", route} and entry.strikes("")
        ]

    def on_symbol(self, kind: type[S], symbol: str, *, where: Where | None = None) -> S | None:
        """The first fault of a kind that strikes a symbol, None without one; counts it."""
        for entry in self._entries.values():
            fault = entry.fault
            if not isinstance(fault, kind) or not covers(fault.symbols, symbol):
                continue
            if where is not None and getattr(fault, "where", where) not in {where, "both"}:
                continue
            if entry.strikes(symbol):
                return fault
        return None

    def market(self, now: datetime) -> tuple[bool, datetime | None] | None:
        """Whether the market is made open or closed, and until when; None where the calendar rules. The latest wins."""
        for entry in reversed(self._entries.values()):
            if isinstance(entry.fault, MarketHours) and holds(entry, now):
                return entry.fault.open, entry.until
        return None

    def holds_fills(self, symbol: str, now: datetime) -> bool:
        """Whether nothing of this symbol fills."""
        return any(
            isinstance(entry.fault, HoldFills) and holds(entry, now) and covers(entry.fault.symbols, symbol)
            for entry in self._entries.values()
        )

    def holds_cancels(self, symbol: str) -> bool:
        """Whether a cancel without an end of its own stays pending."""
        return any(
            isinstance(entry.fault, SlowCancel) and entry.fault.for_s is None and covers(entry.fault.symbols, symbol)
            for entry in self._entries.values()
        )


def covers(symbols: frozenset[str] | None, symbol: str) -> bool:
    """Whether a fault's symbols hold this one, a pair with its slash or without."""
    return symbols is None or symbol in symbols or listed(symbol) in symbols


def holds(entry: Entry, now: datetime) -> bool:
    """Whether a state still holds."""
    return entry.until is None or now < entry.until
