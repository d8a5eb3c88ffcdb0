"""The table `exposures`, read and filled by tests."""

from collections.abc import Sequence

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.unit.exposure_cases import COLUMNS, Row, record


async def exposures(engine: AsyncEngine) -> list[RowMapping]:
    """Every exposure, oldest market time first."""
    async with engine.connect() as connection:
        return list((await connection.execute(text("select * from exposures order by key, as_of, ticker"))).mappings())


async def insert(engine: AsyncEngine, rows: Sequence[Row], *, phase: str = "activation-1") -> None:
    """Rows as they would stand in the table."""
    marks = ", ".join(f":{name.strip()}" for name in COLUMNS.split(","))
    names = [name.strip() for name in COLUMNS.split(",")]
    statement = text(f"insert into exposures ({COLUMNS}) values ({marks})")
    values = [dict(zip(names, record(row, key="policy", phase=phase), strict=True)) for row in rows]
    async with engine.begin() as connection:
        await connection.execute(statement, values)
