"""Postgres goes away in the middle of an order of the real api process, and comes back."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import TEMPLATE, migrate
from tests.faults.gateway_process import eventually
from tests.faults.orders_process import Trading, trading
from tools.local_stack.postgres import EmbeddedPostgres


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A Postgres of this test's own, which it may kill."""
    with tempfile.TemporaryDirectory(prefix="lexi-pg-", ignore_cleanup_errors=True) as folder:
        own = EmbeddedPostgres(Path(folder) / "pg", durable=False)
        own.start()
        own.ensure_database(TEMPLATE)
        migrate(own.url(TEMPLATE))
        try:
            yield own
        finally:
            own.stop()


@pytest.fixture
async def house(server: EmbeddedPostgres) -> AsyncIterator[Trading]:
    """A house on it."""
    async with trading(server) as made:
        yield made


async def test_postgres_gone_between_verdict_and_record(house: Trading, server: EmbeddedPostgres) -> None:
    house.paper.fault(kind="latency", route="POST /v2/orders", ms=1500, times=1)
    entry = asyncio.create_task(house.order(client_order_id="one"))

    async def on_its_way() -> bool:
        return bool(await house.api.query("select 1 from orders where status = 'submitting'"))

    await eventually(on_its_way, what="the order is on its way")
    server.kill()
    told = await entry
    assert (told.status_code, told.json()["verdict"], house.sent()) == (200, "allow", 1)
    assert told.json()["order"]["broker_id"] == house.paper.orders()[0].id

    refused = await house.order(client_order_id="two")
    assert refused.status_code == 409
    assert refused.json()["reasons"][0] in {"GATE_ERROR", "GATE_TIMEOUT"}
    asked = await house.order(path="gate", client_order_id="three")
    assert (asked.status_code, asked.json()["verdict"], asked.json()["verdict_id"]) == (200, "deny", None)
    await house.until_held()
    left = await house.exit("10", client_order_id="leave")
    assert (left.status_code, left.json()["verdict"], house.sent()) == (200, "allow", 1)

    server.start()
    await house.engine.dispose()

    async def on_record() -> bool:
        rows = await house.api.query(
            "select id from gate_verdicts where client_order_id = 'leave' and verdict = 'allow'"
        )
        return [str(row.id) for row in rows] == [left.json()["verdict_id"]]

    await eventually(on_record, what="the exit is on record")
    await house.fresh()
    again = await house.order(client_order_id="one")
    assert (again.status_code, again.json()["verdict_id"], house.sent()) == (200, told.json()["verdict_id"], 1)
    traded = await house.order(client_order_id="four")
    assert (traded.status_code, house.sent()) == (200, 2)
    chain = await house.api.query("select count(*) as n, max(seq) as last from gate_verdicts")
    assert [(row.n, row.last) for row in chain] == [(3, 3)]
