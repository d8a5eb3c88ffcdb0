"""What storing a tick and reading `/signals/latest` cost while the history grows from 10,000 to 1,000,000 forecasts.

Time is the median of many runs in one process; the pages Postgres touched are counted by Postgres itself and do not
depend on how busy the machine is. Prints both at each size, and the ratios.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bench.database import migrated
from libs.db.engine import DatabaseSettings, create_engine
from services.api.repository import SIGNALS, latest_signals
from services.forecast.feed.types import Bar
from services.forecast.numbers import Numbers
from services.forecast.repository import Repository
from services.forecast.rows import Forecast
from tools.local_stack.postgres import EmbeddedPostgres

FEED = "replay:1"
TICKERS = [f"T{number:04d}" for number in range(200)]
SIZES = (10_000, 100_000, 1_000_000)
STEP = timedelta(hours=6)  # 5,000 moments make three and a half years: 42 monthly partitions
FIRST = datetime(2009, 1, 1, tzinfo=UTC)
RUNS = 40

FILL = text(
    """
    insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features, judged_at)
    select :feed, ticker, '1d', 'theta', as_of, gen_random_uuid(), 100, 101, 99, 103, cast(:features as jsonb), now()
    from unnest(cast(:tickers as text[])) as ticker, unnest(cast(:moments as timestamptz[])) as as_of
    """
)
FEATURES = json.dumps({"llm": {"v": 1, "policy": {"raw": "x" * 200}, "rationale": {"text": "y" * 200}}})


@dataclass(frozen=True, slots=True)
class Cost:
    """What one size of history costs."""

    forecasts: int
    store_ms: float
    read_ms: float
    pages: int


async def fill(engine: AsyncEngine, first: int, last: int) -> None:
    """Add the forecasts of the moments first to last, without their heads."""
    for start in range(first, last, 250):
        moments = [FIRST + STEP * number for number in range(start, min(start + 250, last))]
        async with engine.begin() as connection:
            for moment in moments:
                await connection.execute(text("select ensure_partition('forecasts', 'month', :m)"), {"m": moment})
            values = {"feed": FEED, "tickers": TICKERS, "moments": moments, "features": FEATURES}
            await connection.execute(FILL, values)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("vacuum analyze forecasts"))


async def median_ms(action: Callable[[], Awaitable[object]]) -> float:
    """The median time of one run, milliseconds, after three runs to warm up."""
    times: list[float] = []
    for number in range(RUNS + 3):
        started = time.perf_counter()
        await action()
        if number >= 3:
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


async def pages_read(connection: AsyncConnection) -> int:
    """The buffers `/signals/latest` touches, as Postgres counts them."""
    explain = text(f"explain (analyze, buffers, format json) {SIGNALS.text}")
    plan = await connection.scalar(explain, {"tickers": None, "horizon": None})
    node = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
    return int(node["Shared Hit Blocks"]) + int(node["Shared Read Blocks"])


async def measure(engine: AsyncEngine, *, moment: datetime, forecasts: int) -> Cost:
    """Store ticks of all tickers from `moment` on, and read the latest of all."""
    repository = Repository(engine, horizon="1d")
    at = moment

    async def store() -> None:
        nonlocal at
        at += timedelta(seconds=1)
        bar = Bar(at, 100.0, 101.0, 99.0, 100.5, 1e6)
        llm = {"v": 1, "policy": {"raw": "x" * 200}, "rationale": {"text": "y" * 200}}
        rows = [Forecast(uuid4(), ticker, 100.0, Numbers("theta", 101.0, 99.0, 103.0), None, llm) for ticker in TICKERS]
        bars = dict.fromkeys(TICKERS, bar)
        await repository.store_tick(FEED, at, bars=bars, forecasts=rows, complete=True)

    async def read() -> None:
        async with engine.connect() as connection:
            assert len(await latest_signals(connection, tickers=None, horizon=None)) == len(TICKERS)

    store_ms = await median_ms(store)
    read_ms = await median_ms(read)
    async with engine.connect() as connection:
        return Cost(forecasts, store_ms, read_ms, await pages_read(connection))


async def run(url: str) -> list[Cost]:
    """Grow the history and measure at each size."""
    engine = create_engine(DatabaseSettings(database_url=SecretStr(url)), application="bench")
    await Repository(engine, horizon="1d").begin_run(FEED, "replay")
    costs: list[Cost] = []
    filled = 0
    for size in SIZES:
        moments = size // len(TICKERS)
        await fill(engine, filled, moments)
        filled = moments
        costs.append(await measure(engine, moment=FIRST + STEP * moments - STEP / 2, forecasts=size))
        print(
            f"  {size:>9,} forecasts: store {len(TICKERS)} in {costs[-1].store_ms:6.1f} ms, "
            f"read the latest {len(TICKERS)} in {costs[-1].read_ms:5.1f} ms touching {costs[-1].pages:,} pages",
            flush=True,
        )
    await engine.dispose()
    return costs


def main() -> None:
    """Run on a Postgres of its own."""
    print("storage: does history cost anything?")
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "pg", durable=False)
        server.start()
        try:
            costs = asyncio.run(run(migrated(server, "bench")))
        finally:
            server.stop()
    first, last = costs[0], costs[-1]
    print(
        f"  from {first.forecasts:,} to {last.forecasts:,}: storing x{last.store_ms / first.store_ms:.2f}, "
        f"reading x{last.read_ms / first.read_ms:.2f}, pages x{last.pages / first.pages:.2f}"
    )


if __name__ == "__main__":
    main()
