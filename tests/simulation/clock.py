"""One clock for everything: virtual seconds on top of the wall's, in Postgres too.

Postgres keeps its own time. Here its `now()` and `clock_timestamp()` are found in a schema before its own, and are as
far ahead as the simulation's clock; so are the defaults of the tables.
"""

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.simulation.virtual_loop import VirtualLoop

AHEAD = [
    "create schema sim",
    "create unlogged table sim.ahead (seconds float8 not null)",
    "insert into sim.ahead values (0)",
    """
    create function sim.now() returns timestamptz language sql stable as
    'select pg_catalog.now() + seconds * interval ''1 second'' from sim.ahead'
    """,
    """
    create function sim.clock_timestamp() returns timestamptz language sql volatile as
    'select pg_catalog.clock_timestamp() + seconds * interval ''1 second'' from sim.ahead'
    """,
    """
    do $$
    declare found record;
    begin
      for found in select table_name, column_name from information_schema.columns
        where table_schema = 'public' and column_default = 'now()'
      loop
        execute format('alter table %I alter column %I set default sim.now()', found.table_name, found.column_name);
      end loop;
      execute format('alter database %I set search_path = sim, pg_catalog, public', current_database());
    end $$
    """,
]
SET = text("update sim.ahead set seconds = :seconds")


class VirtualClock:
    """The loop's clock as wall time; also the clock of a panic exit."""

    def now(self) -> datetime:
        """Wall time, UTC, as far ahead of the machine's as time has leapt."""
        return datetime.now(UTC) + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Seconds since the simulation began."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Let time leap."""
        await asyncio.sleep(seconds)

    async def skip(self, seconds: float) -> None:
        """Let time pass in one leap, without all that happens every second."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.leap(seconds)
        await asyncio.sleep(0.001)

    async def prepare(self, engine: AsyncEngine) -> None:
        """Put Postgres on this clock; connections made from now on are."""
        async with engine.begin() as connection:
            for statement in AHEAD:
                await connection.execute(text(statement))
        await engine.dispose()

    async def tell(self, engine: AsyncEngine) -> None:
        """Let Postgres know how late it is."""
        async with engine.begin() as connection:
            await connection.execute(SET, {"seconds": self.monotonic()})
