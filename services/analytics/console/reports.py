"""The reports that services.jobs made, as the pages read them: one row each."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

LATE_S = 300.0
"""Reports are made every minute; one so old says that nobody makes them."""

REPORT = text(
    """
    select content, made_at, extract(epoch from clock_timestamp() - made_at)::float8 as age_s, took_ms
    from reports where name = :name
    """
)


@dataclass(frozen=True, slots=True)
class Made:
    """A report as it was made; `late` where a newer one should be there by now."""

    content: Any
    made_at: datetime
    took_ms: float
    late: bool


async def made(connection: AsyncConnection, name: str) -> Made | None:
    """The newest report of a name, None before the first."""
    row = (await connection.execute(REPORT, {"name": name})).mappings().first()
    return None if row is None else Made(row["content"], row["made_at"], row["took_ms"], row["age_s"] > LATE_S)
