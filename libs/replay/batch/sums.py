"""The sums that a batch replay's report is made of. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal, TypeAlias
from uuid import UUID

Flip: TypeAlias = Literal["deny_to_allow", "allow_to_deny"]
FLIPS: tuple[Flip, Flip] = ("deny_to_allow", "allow_to_deny")


@dataclass(frozen=True, slots=True)
class Kind:
    """How many decisions have all of this in common.

    `was` and `now` are the decisions, None where none was valid, and `rules_…` what the rules said each time.
    `invented_…` is whether a rationale had numbers from nowhere, None for other prompts. Statuses are of answers.
    """

    n: int
    status_before: str
    status: str
    was: bool | None
    now: bool | None
    rules_before: bool | None = None
    rules_now: bool | None = None
    flip: Flip | None = None
    acts: bool = False
    same: bool = False
    invented_before: bool | None = None
    invented_now: bool | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What `n` answers cost: latency percentiles in milliseconds, tokens each. None where there are no answers."""

    n: int
    p50: float | None
    p95: float | None
    tokens_in: float | None
    tokens_out: float | None


@dataclass(frozen=True, slots=True)
class Made:
    """What the turns of one kind that act made on one market day: `settled` of `n` have an outcome.

    `total` is the sum of their returns in the direction of their side, as fractions.
    """

    flip: Flip
    day: date
    horizon: str
    n: int
    settled: int
    total: float


@dataclass(frozen=True, slots=True)
class Side:
    """What was said on one side of a turn: the decision with its reasons (None: none was valid), and the rules."""

    allow: bool | None
    reasons: Sequence[str]
    rules_allow: bool | None
    status: str

    @property
    def words(self) -> str:
        """The decision in words."""
        if self.allow is None:
            return f"deny ({self.status})"
        return "allow" if self.allow else f"deny ({', '.join(self.reasons) or 'no reason given'})"


@dataclass(frozen=True, slots=True)
class Flipped:
    """One decision that turned. `made` is the return by the horizon in the direction of its side, None without one.

    `side`, `horizon` and `feed` are None where the forecast was dropped since.
    """

    flip: Flip
    acts: bool
    forecast_id: UUID
    ticker: str
    as_of: datetime
    side: str | None
    horizon: str | None
    made: float | None
    before: Side
    after: Side
    call_id: UUID | None = None
    new_call_id: UUID | None = None
    feed: str | None = None

    def words(self, *, with_feed: bool = False) -> str:
        """The turn in a line; with its feed where the same market days came by more than one."""
        feed = f" ({self.feed})" if with_feed and self.feed is not None else ""
        head = f"{self.ticker} {self.as_of:%Y-%m-%d}{feed}"
        tail = "" if self.acts else "; the rules deny it anyway"
        turn = f"{self.before.words} -> {self.after.words}{tail}"
        if self.side is None:
            return f"{head}: {turn}; its forecast is not kept any more"
        made = "no outcome yet" if self.made is None else f"made {signed(self.made)} %"
        return f"{head} {_side(self.side)} {self.horizon}: {turn}; {made if self.side != 'none' else 'no entry'}"


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything a report is made of.

    `flipped` are the turned decisions to name, what decides first; `reason` why most of those failed that did.
    """

    kinds: Sequence[Kind]
    before: Spent
    after: Spent
    made: Sequence[Made]
    flipped: Sequence[Flipped]
    reason: str | None = None


def signed(fraction: float) -> str:
    """A fraction in percent, with its sign."""
    return f"{fraction * 100:+.2f}"


def _side(side: str) -> str:
    return "no side" if side == "none" else side
