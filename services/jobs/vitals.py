"""What nobody else measures: room on the disk, partitions that should be there, and when the desk was last called."""

import asyncio
import shutil
from pathlib import Path

from prometheus_client import Gauge
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

EVERY_S = 15.0
AHEAD_H = 6
"""The hourly job makes partitions a day ahead; one that is missing this many hours ahead was missed many times."""

STATE_FREE = Gauge(
    "lexi_state_free_bytes", "Free bytes on the disk of the state folder: halt file, journals, spooled calls."
)
STATE_SIZE = Gauge("lexi_state_size_bytes", "Size of that disk in bytes.")
DATABASE_SIZE = Gauge("lexi_database_bytes", "Size of the database in bytes.")
PARTITION_MISSING = Gauge(
    "lexi_partition_missing", f"1 while the partition for the moment {AHEAD_H} hours ahead is not there.", ["parent"]
)
ALERTED = Gauge(
    "lexi_alert_raised_timestamp_seconds", "When an alert of a kind was last raised, in Unix time.", ["kind"]
)

LOOK = text(
    f"""
    select pg_database_size(current_database()) as size, p.parent, to_regclass(p.child) is null as missing
    from (select (now() + interval '{AHEAD_H} hours') at time zone 'UTC' as moment) m
    cross join lateral (values
      ('llm_calls', 'llm_calls_' || to_char(m.moment, 'YYYYMMDD')),
      ('llm_bodies', 'llm_bodies_' || to_char(m.moment, 'YYYYMMDD')),
      ('forecasts', 'forecasts_' || to_char(m.moment, 'YYYYMM'))
    ) as p (parent, child)
    """
)
LAST_ALERTS = text("select kind, extract(epoch from max(at)) as at from alerts group by kind")


class Vitals:
    """Sets the gauges. One `step` is a look at the disk and two small statements."""

    def __init__(self, engine: AsyncEngine, state: Path) -> None:
        self._engine = engine
        self._state = state

    async def step(self) -> None:
        """Look once. Raises what a database out of reach raises, after the disk was looked at."""
        disk = await asyncio.to_thread(shutil.disk_usage, self._state if self._state.exists() else self._state.parent)
        STATE_FREE.set(disk.free)
        STATE_SIZE.set(disk.total)
        async with self._engine.connect() as connection:
            for row in await connection.execute(LOOK):
                DATABASE_SIZE.set(row.size)
                PARTITION_MISSING.labels(row.parent).set(row.missing)
            for row in await connection.execute(LAST_ALERTS):
                ALERTED.labels(row.kind).set(row.at)
