"""Prices from the house's own bars: the newest close of each ticker within the feed that wrote last, every second.

The broker stands outside the house and needs no Postgres: while it is away, the last prices stay.
"""

import asyncio
from collections.abc import Sequence
from decimal import Decimal

import structlog
from sqlalchemy import RowMapping, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.probes import Degraded
from services.paper.app import Desk
from services.paper.types import Refusal

EVERY_S = 1.0
FIRST_S = 1.0
"""How long a start waits for its prices."""
NO_DATABASE = "DATABASE_URL is not set"
NOT_YET = "not read yet"

# One step through the index for each ticker, so that the length of history does not matter.
MARKS = text(
    """
    with recursive latest as (
      select feed from feeds where last_write_at is not null order by last_write_at desc limit 1
    ),
    tickers as (
      (select b.ticker from bars b, latest where b.feed = latest.feed order by b.ticker limit 1)
      union all
      select (
        select b.ticker from bars b, latest where b.feed = latest.feed and b.ticker > t.ticker order by b.ticker limit 1
      )
      from tickers t where t.ticker is not null
    )
    select t.ticker, bar.close
    from tickers t
    cross join latest
    cross join lateral (
      select b.close from bars b where b.feed = latest.feed and b.ticker = t.ticker order by b.as_of desc limit 1
    ) bar
    where t.ticker is not null
    """
)

log = structlog.get_logger(__name__)


class Marks:
    """Brings prices to the desk."""

    def __init__(self, desk: Desk, engine: AsyncEngine | None) -> None:
        """`engine` None: there is no database, and the prices stay as they were kept."""
        self._desk = desk
        self._engine = engine
        self._amiss: str | None = NO_DATABASE if engine is None else NOT_YET

    async def check(self) -> str | None:
        """A line of `/ready`: yellow while the prices stand still."""
        return None if self._amiss is None else Degraded(f"{self._amiss}; the last prices stay")

    async def first(self) -> None:
        """Read them once before anybody may ask, where the database answers soon: then the first order has a price."""
        if self._engine is None:
            return
        try:
            async with asyncio.timeout(FIRST_S):
                self._note(await self._bring(self._engine))
        except TimeoutError:
            self._note(f"the database does not answer within {FIRST_S:g} s")

    async def run(self, stop: asyncio.Event) -> None:
        """Read them until told to stop."""
        while self._engine is not None and not stop.is_set():
            self._note(await self._bring(self._engine))
            try:
                async with asyncio.timeout(EVERY_S):
                    await stop.wait()
            except TimeoutError:
                continue

    async def _bring(self, engine: AsyncEngine) -> str | None:
        """Read once; None, or why it did not work."""
        try:
            rows = await read(engine)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            return f"the database does not answer ({type(error).__name__})"
        if not rows:
            return "no feed has written yet"
        self.take(rows)
        return None

    def take(self, rows: Sequence[RowMapping]) -> None:
        """Set the prices that can be prices."""
        for row in rows:
            try:
                self._desk.exchange.ledger.set_mark(row["ticker"], Decimal(str(row["close"])))
            except Refusal as refusal:
                log.debug("mark_left_out", ticker=row["ticker"], reason=refusal.message)

    def _note(self, amiss: str | None) -> None:
        if amiss != self._amiss:
            log.info("marks", amiss=amiss)
        self._amiss = amiss


async def read(engine: AsyncEngine) -> Sequence[RowMapping]:
    """The newest close of each ticker."""
    async with engine.connect() as connection:
        return (await connection.execute(MARKS)).mappings().all()
