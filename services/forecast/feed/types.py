"""The words of a feed: bars, ticks, histories, and what every feed promises."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol

from libs.judgement.bars import Bars

MIN_BARS = 65
"""Bars a series needs before it is forecast: with as many, most factors are known and every rule can judge."""


class FeedError(Exception):
    """A feed cannot deliver; the message names the place and what is wrong with it."""


class FeedUnreachableError(FeedError):
    """The feed cannot be reached now; asking again later is right."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One closed bar. `as_of` is its end in market time (UTC), prices are adjusted for splits and dividends."""

    as_of: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class Tick:
    """The bars that end at one moment, by ticker."""

    as_of: datetime
    bars: Mapping[str, Bar]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a feed as the database knows it: `replay:1`, how far it came, whether it reached its end."""

    name: str
    last_as_of: datetime | None
    done: bool


class Feed(Protocol):
    """Where bars come from. It is pulled: whoever asks says how far it came, so nothing is lost while nobody asks."""

    @property
    def source(self) -> str:
        """What runs of this feed have in common: `replay`, `file:prices.csv`, `ccxt:kraken:1d`."""
        ...

    def run_name(self, previous: Run | None) -> str:
        """The name of the run to go on with, given the newest run of this source."""
        ...

    async def open(self) -> None:
        """Load what is needed before the first tick. Raises `FeedError`."""
        ...

    async def close(self) -> None:
        """Let go of files and connections."""
        ...

    async def next(self, after: datetime | None) -> Tick | None:
        """The earliest tick after a moment (None: from the beginning), or None while there is none.

        Raises `FeedError` when the place cannot be read; asking again later is right.
        """
        ...

    def ended(self, after: datetime | None) -> bool:
        """Whether no tick after this moment can ever come."""
        ...

    def history(self, ticker: str, as_of: datetime, bars: int) -> Bars:
        """The last `bars` bars of a ticker up to and including `as_of`; fewer where there are not as many."""
        ...

    def days(self, as_of: datetime, count: int) -> tuple[date, ...]:
        """The UTC days of the feed's last `count` moments up to `as_of`: what there was to expect, oldest first."""
        ...
