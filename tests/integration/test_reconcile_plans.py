"""A round of reconciliation reads what is new, however much history lies behind it."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.reconcile_cases import FakeAlpaca, open_desk

OLD = 20_000
LATELY = 1_000  # so many of the latest orders are looked at for how they are written

OLD_ORDERS = f"""
insert into orders (id, origin, ticker, side, qty, limit_price, status, broker_id, filled_qty, created_at, updated_at)
select gen_random_uuid(), case n % 3 when 0 then 'exit' when 1 then 'broker' else 'entry' end, 'T' || n % 50, 'buy', 5,
  100, 'filled', 'b' || n, 5, now() - interval '2 hours' - n * interval '1 minute', now() - interval '2 hours'
from generate_series(1, {OLD}) as n
"""
OLD_FILLS = f"""
insert into fills (id, broker_id, ticker, side, qty, price, at)
select 'f' || n, 'b' || n, 'T' || n % 50, 'buy', 5, 100, now() - interval '2 hours' - n * interval '1 minute'
from generate_series(1, {OLD}) as n
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's node and all below it."""
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


async def rows_read(engine: AsyncEngine, statement: str, parameters: tuple[Any, ...]) -> int:
    """How many rows of orders and fills a statement looks at, planned as a reconciliation plans it."""
    async with engine.connect() as connection:
        await connection.execute(text("set local enable_seqscan = off"))
        driver: Any = (await connection.get_raw_connection()).driver_connection
        (explained,) = await driver.fetchval(f"explain (analyze, format json) {statement}", *parameters)
        await connection.rollback()
    read = 0
    for node in nodes(explained["Plan"]):
        if node.get("Relation Name") in {"orders", "fills"} and node["Node Type"] != "ModifyTable":
            seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            read += seen * node["Actual Loops"]
    return read


async def test_a_round_reads_no_old_orders_and_fills(engine: AsyncEngine) -> None:
    async with open_desk(engine, FakeAlpaca()) as desk:
        await desk.reconcile()
        await desk.change(OLD_ORDERS)
        await desk.change(OLD_FILLS)
        for number in range(20):
            desk.alpaca.fill(desk.at_broker(await desk.send(f"T{number}", 2)), 1)
        statements: list[tuple[str, tuple[Any, ...]]] = []

        def note(*given: Any) -> None:
            statements.append((given[2], given[3]))

        event.listen(engine.sync_engine, "before_cursor_execute", note)
        written = await desk.reconcile()
        event.remove(engine.sync_engine, "before_cursor_execute", note)
        assert (written.orders, written.fills) == (20, 20)
        begins = ("select", "insert", "update", "delete", "with")
        plain = [(said, given) for said, given in statements if said.strip().startswith(begins)]
        read = [await rows_read(engine, said, given) for said, given in plain if "advisory" not in said]
        assert LATELY <= sum(read) < 3 * LATELY
