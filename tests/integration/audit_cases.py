"""Verdicts that a desk stored, and somebody who tampers with them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.limits import Limits, Terms
from libs.trading.types import Order
from services.api.strategist.desk.desk import Desk, GateTerms
from services.api.strategist.desk.record import Asked


@asynccontextmanager
async def open_desk(database_url: str, state: Path) -> AsyncGenerator[Desk, None]:
    """A desk that gives verdicts, which are denials: there is no forecast."""
    made = Desk(database_url, rests_on=GateTerms(Limits(), Terms(model="Lexi"), "paper:1"), state=state, timeout_s=5)
    made.start()
    try:
        yield made
    finally:
        await made.close()


async def tell(desk: Desk, count: int, *, begin: int = 0, strategy: str = "momentum") -> None:
    """Have that many orders told."""
    for number in range(begin, begin + count):
        order = Order("AAPL", "buy", Decimal("1.50"), Decimal("101.25"), f"=o{number}", "desk-1", strategy=strategy)
        await desk.verdict(Asked(order))


async def change(engine: AsyncEngine, statement: str, **values: Any) -> None:
    """Change rows in silence."""
    async with engine.begin() as connection:
        await connection.execute(text(statement), values)
