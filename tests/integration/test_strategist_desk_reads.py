"""What the desk reads: by key from the first day on, months apart, and positions with their open orders."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.gate import sound
from libs.trading.types import Book, Holding
from services.api.strategist.desk.desk import Desk
from services.api.strategist.desk.reading import holdings_of
from services.api.strategist.desk.record import Asked
from services.api.strategist.desk.repository import Months
from services.api.strategist.desk.statements import SESSION
from tests.integration.desk_cases import Judged, an_order, reconciled, store
from tests.integration.desk_running import FILL, desk_on, enforce, says


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncGenerator[Desk, None]:
    """A desk with the default limits."""
    async with desk_on(database_url, tmp_path) as running:
        yield running


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes, all the way down."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def test_forecasts_of_months_far_apart_are_read_in_one_transaction(engine: AsyncEngine, desk: Desk) -> None:
    """The plan names the months of the newest forecasts; one of another month is found all the same, and at once."""
    await reconciled(engine)
    await enforce(engine)
    tickers = [f"T{n}" for n in range(12)]
    for n, ticker in enumerate(tickers):
        await store(engine, Judged(ticker=ticker, as_of=datetime(2011, 1 + n, 28, 20, tzinfo=UTC)))
    told = await asyncio.gather(*(desk.verdict(Asked(an_order(f"a-{each}", ticker=each))) for each in tickers))
    assert {says(each) for each in told} == {("allow", "allow", "enforce", ("ALLOW",))}
    await store(engine, Judged(ticker="T0", as_of=datetime(2011, 12, 31, 23, 59, tzinfo=UTC)))
    await store(engine, Judged(ticker="T1", as_of=datetime(2012, 1, 1, tzinfo=UTC)))
    for ticker in ("T0", "T1", "T0"):
        verdict = await desk.verdict(Asked(an_order(f"b-{ticker}", ticker=ticker)))
        assert says(verdict) == ("allow", "allow", "enforce", ("ALLOW",))


async def test_the_reads_are_by_key_from_the_first_day_on(engine: AsyncEngine, database_url: str) -> None:
    """Nothing that grows is walked through: not with tables that are empty, and not with tables that are full."""
    moment = datetime(2012, 5, 4, 20, tzinfo=UTC)
    await store(engine, Judged(as_of=moment))
    months = Months()
    months.hold([moment])
    connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - untyped
    connection = await connect(database_url, server_settings=SESSION)
    try:
        await connection.execute(f"prepare the_read (text[], text[], text[], uuid[], uuid[], bigint) as {months.read}")
        execute = "execute the_read ('{c1}', '{AAPL}', '{1d}', array[gen_random_uuid()], array[gen_random_uuid()], 31)"
        for fill in (FILL[:0], FILL):
            for statement in fill:
                await connection.execute(statement)
            await connection.execute("analyze")
            [plan] = json.loads(await connection.fetchval(f"explain (format json) {execute}"))
            scans = [node for node in nodes(plan["Plan"]) if "Relation Name" in node]
            walked = {node["Relation Name"] for node in scans if "Index Cond" not in node}
            assert walked <= {"feeds", "positions", "halts", "orders", "gate_verdicts"}
            walks = {node.get("Index Name") for node in scans if "Index Cond" not in node}
            assert walks <= {None, "halts_open", "orders_open", "gate_verdicts_pkey"}  # what is open, and the last link
            [forecast] = [node for node in scans if node["Relation Name"].startswith("forecasts_")]
            assert "id = " in forecast["Index Cond"]
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("open_orders", "expected"),
    [
        (None, {"A": Holding(qty=Decimal(3), price=Decimal(100))}),
        ('[["A", "2", "0", "90"]]', {"A": Holding(Decimal(3), Decimal(2), Decimal(0), Decimal(100))}),
        ('[["A", "0", "1", "110"]]', {"A": Holding(Decimal(3), Decimal(0), Decimal(1), Decimal(110))}),
        ('[["B", "1", "1", "-5"]]', {"B": Holding(Decimal(0), Decimal(1), Decimal(1), Decimal(-5))}),
    ],
)
def test_a_holding_is_its_position_with_its_open_orders_at_the_higher_price(
    open_orders: str | None, expected: dict[str, Holding]
) -> None:
    """A price that makes no sense is not hidden behind another."""
    holdings = holdings_of('[["A", "3", "100"]]', open_orders)
    assert {"A": Holding(qty=Decimal(3), price=Decimal(100)), **expected} == holdings
    for positions, orders in (("100", "NaN"), ("NaN", "100")):
        unknown = holdings_of(f'[["A", "3", "{positions}"]]', f'[["A", "1", "0", "{orders}"]]')
        assert unknown["A"].price.is_nan()
        assert not sound(Book(unknown))
