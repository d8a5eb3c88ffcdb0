"""services.jobs as a process beside the real paper broker: it comes, goes and comes back; so does the process."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.intent import broker_order_id
from services.jobs.reconcile.reconciler import Reconciler
from tests.integration.paper_server import Paper, paper_broker

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


class Jobs:
    """The process and its readiness."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}/ready"

    async def until_ready_says(self, *words: str) -> str:
        """What `/ready` says once it says all of this."""
        said = ""
        async with httpx.AsyncClient() as http:
            while not all(word in said for word in words):
                assert self.process.returncode is None, (await self.process.communicate())[1].decode()
                await asyncio.sleep(0.05)
                with suppress(httpx.TransportError):
                    said = (await http.get(self._url)).text
        return said


@asynccontextmanager
async def jobs(database_url: str, state: Path, **settings: str) -> AsyncGenerator[Jobs, None]:
    port = free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAPER_", "BROKER", "ALERT_"))}
    own = {"DATABASE_URL": database_url, "LOCAL_STATE": str(state), "JOBS_METRICS_PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.jobs", cwd=ROOT, env=clean | own | settings, stderr=PIPE
    )
    try:
        yield Jobs(process, port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    while not await holds():  # noqa: ASYNC110 - the rows have no event for it
        await asyncio.sleep(0.05)


async def value(engine: AsyncEngine, statement: str) -> object:
    async with engine.connect() as connection:
        return await connection.scalar(text(statement))


async def put_order(engine: AsyncEngine, paper: Paper, qty: int) -> None:
    """An entry of ours whose process died after it was sent."""
    order_id = uuid4()
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "insert into orders (id, origin, ticker, side, qty, status) "
                "values (:id, 'entry', 'AAPL', 'buy', :qty, 'submitting')"
            ),
            {"id": order_id, "qty": qty},
        )
    async with Broker(BrokerAddress(name="paper", base_url=paper.url)) as broker:
        await broker.submit_limit(
            symbol="AAPL",
            side="buy",
            qty=Decimal(qty),
            limit_price=Decimal(105),
            client_order_id=broker_order_id(order_id),
        )


async def test_a_broker_that_is_away_is_yellow_and_stops_no_other_job(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    async with jobs(database_url, tmp_path, PAPER_PORT=str(free_port())) as process:
        away = ("yellow broker: paper away since", "cannot be reached", "yellow reconciled")
        said = await process.until_ready_says(*away, "green  queue")
        assert "red " not in said
        async with engine.begin() as connection:
            await connection.execute(text("insert into alerts (key, kind, text) values ('k', 'test', 'hello')"))

        async def sent() -> bool:
            return await value(engine, "select sent_at is not null from alerts") is True

        await until(sent)
        process.process.send_signal(signal.SIGTERM)
        assert await process.process.wait() == 0


async def test_it_reconciles_and_goes_on_after_being_killed(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    async with paper_broker() as paper:
        async with jobs(database_url, tmp_path, PAPER_URL=paper.url) as process:
            await process.until_ready_says("green  broker", "green  reconciled")
            await put_order(engine, paper, 10)

            async def held() -> bool:
                return await value(engine, "select expected_qty from positions where ticker = 'AAPL'") == 10

            await until(held)
            process.process.kill()
            await process.process.wait()
        await put_order(engine, paper, 5)
        async with jobs(database_url, tmp_path, PAPER_URL=paper.url):

            async def all_held() -> bool:
                return await value(engine, "select expected_qty from positions where ticker = 'AAPL'") == 15

            await until(all_held)
        assert await value(engine, "select count(*) from differences") == 0
        assert await value(engine, "select count(*) from orders where status = 'filled'") == 2


async def test_a_real_panic_exit_is_no_difference(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    async with paper_broker() as paper, jobs(database_url, tmp_path, PAPER_URL=paper.url) as process:
        await process.until_ready_says("green  reconciled")
        await put_order(engine, paper, 10)

        async def held() -> bool:
            return await value(engine, "select qty from positions where ticker = 'AAPL'") == 10

        await until(held)
        leaving = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "libs.trading.panic", "--reason", "test", "--state", str(tmp_path)),
            cwd=ROOT,
            env={**os.environ, "PAPER_URL": paper.url},
            stdout=PIPE,
            stderr=PIPE,
        )
        said, words = await leaving.communicate()
        assert leaving.returncode == 0, (said, words)

        async def twice_read_since() -> bool:
            done = "select count(*) from orders where origin = 'panic' and status = 'filled' and side = 'sell'"
            flat = (
                "select count(*) = 0 and (select reconciled_at > at + interval '6 s' from broker_state) from positions"
            )
            ended = f"({flat}) from (select max(at) as at from panic_journal) as journal"
            return await value(engine, done) == 1 and await value(engine, f"select {ended}") is True

        await until(twice_read_since)
        assert await value(engine, "select count(*) from differences") == 0
        assert await value(engine, "select count(*) from halts where rearmed_at is null") == 1


async def test_a_halt_file_of_this_disk_gets_its_row(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "halt").touch()
    async with jobs(database_url, tmp_path, PAPER_PORT=str(free_port())):

        async def recorded() -> bool:
            return await value(engine, "select count(*) from halts where rearmed_at is null") == 1

        await until(recorded)


async def test_a_missing_broker_key_stops_the_start_and_is_named(database_url: str, tmp_path: Path) -> None:
    async with jobs(database_url, tmp_path, BROKER="alpaca") as process:
        _, words = await process.process.communicate()
    assert process.process.returncode == 2
    assert b"ALPACA_KEY_ID" in words.splitlines()[-1]


async def test_a_whole_trade_over_the_real_wire_leaves_no_difference(engine: AsyncEngine) -> None:
    async with paper_broker() as paper, Broker(BrokerAddress(name="paper", base_url=paper.url)) as broker:
        reconciler = Reconciler(engine, broker, every_s=0)
        assert await reconciler.step() is not None
        await put_order(engine, paper, 10)
        for _ in range(3):
            assert await reconciler.step() is not None
            await asyncio.sleep(0.02)
        assert await value(engine, "select qty from positions where ticker = 'AAPL'") == 10
        closing = await broker.close_position("AAPL", Decimal(4))
        async with engine.begin() as connection:
            await connection.execute(
                text(
                    "insert into orders (id, origin, ticker, side, qty, status, broker_id) "
                    "values (gen_random_uuid(), 'exit', 'AAPL', 'sell', 4, 'new', :broker_id)"
                ),
                {"broker_id": closing.id},
            )
        for _ in range(3):
            assert await reconciler.step() is not None
            await asyncio.sleep(0.02)
        assert await value(engine, "select qty = 6 and expected_qty = 6 from positions") is True
        assert await value(engine, "select count(*) from fills") == 2
        assert await value(engine, "select count(*) from differences") == 0
