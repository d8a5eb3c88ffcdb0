"""What the gate costs: the function alone, and a verdict with its durable row beside a bare durable insert.

Both lines get 200 a second by the clock, whether or not the ones before have been answered; time counts from when one
was due. The bare insert has a row of the same size and a pool of connections, so that none waits for another; the gate
gives its verdicts one after the other behind its lock. Lines take turns; ratios are formed within a round.
"""

import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bench.database import migrated
from libs.db.engine import driver_url
from libs.telemetry import configure
from libs.trading.gate import Situation, judge
from libs.trading.limits import Limits, Terms
from libs.trading.types import Book, Holding, LastPrice, Order, StoredDecision, SwitchState
from services.api.strategist.desk.desk import Desk, GateTerms
from services.api.strategist.desk.record import Asked, Told
from tools.local_stack.postgres import EmbeddedPostgres

PER_SECOND = 200
ROUND_S = 8.0
ROUNDS = 3
WARM = 200
MOST_RATIO = 2.0
MOST_US = 50.0
HISTORY = 100_000
TICKERS = [f"T{number:02d}" for number in range(50)]
MODEL = "Lexi"
ACCOUNT = "bench"
FEED = "replay:1"
AS_OF = datetime(2012, 11, 20, 21, tzinfo=UTC)
NUMBERS = count()
ROW = "x" * 1200  # about what a verdict's columns and payload come to

POLICY: dict[str, Any] = {
    "status": "ok",
    "model": MODEL,
    "decision": {"allow": True, "reasons": [], "flags": []},
    "rules": {"allow": True, "reasons": []},
}
FEATURES = json.dumps({"llm": {"v": 1, "policy": POLICY, "inputs": {"signal": {"side": "buy"}}}})

PREPARE = [
    "create table bare (id bigint generated always as identity primary key, at timestamptz default now(), body text)",
    "insert into feeds (feed, source, last_write_at) values (:feed, 'replay', now())",
    """
    insert into broker_state (account, equity, last_equity, market_open, reconciled_at)
    values (:account, 1e6, 1e6, true, now())
    """,
    """
    insert into positions (ticker, qty, avg_entry_price, market_price, expected_qty, reconciled_at)
    select ticker, 10, 100, 100, 10, now() from unnest(cast(:tickers as text[])) as ticker
    """,
    "select ensure_partition('forecasts', 'month', :as_of)",
    """
    insert into bars (feed, ticker, as_of, open, high, low, close, volume)
    select :feed, ticker, :as_of, 100, 100, 100, 100, 1e6 from unnest(cast(:tickers as text[])) as ticker
    """,
    """
    with made as (
      insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features,
        judged_at)
      select :feed, ticker, '1d', 'theta', :as_of, gen_random_uuid(), 100, 101, 99, 103, cast(:features as jsonb), now()
      from unnest(cast(:tickers as text[])) as ticker
      returning ticker, id
    )
    insert into forecast_heads (feed, ticker, horizon, model, as_of, id)
    select :feed, ticker, '1d', 'theta', :as_of, id from made
    """,
    """
    insert into gate_verdicts (seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty,
      ref_price, reduce_only, verdict, would_have, mode, reasons, payload, hash)
    select n, gen_random_uuid(), now() - interval '1 day', 'bench', '', 'old-' || n, 'old', true, 'T00', 'buy', 1, 100,
      false, 'deny', 'deny', 'enforce', '{NO_DECISION}', repeat('x', 800), repeat('0', 64)
    from generate_series(1, :history) as n
    """,
]
SETTLE = ("vacuum (analyze)", "checkpoint")
"""What a server does after so much was written, done before the clock runs: else it falls into one line's turn."""
CONFIRM = text("update broker_state set reconciled_at = now()")
BARE = "insert into bare (body) values ($1)"


def order(number: int) -> Order:
    """An order like no other."""
    return Order(
        ticker=TICKERS[number % len(TICKERS)],
        side="buy",
        qty=Decimal(1),
        ref_price=Decimal(100),
        client_order_id=f"order-{number}",
        key_name="bench",
        horizon="1d",
    )


def function_alone() -> float:
    """Microseconds of CPU of one `judge`, of an order that passes every check in an account with 50 positions."""
    decision = StoredDecision(
        forecast_id=UUID(int=1),
        feed=FEED,
        ticker="T00",
        horizon="1d",
        model="theta",
        as_of=AS_OF,
        side="buy",
        status="ok",
        allow=True,
        reasons=(),
        rules_allow=True,
        rules_reasons=(),
        answered_by=MODEL,
        age_s=10.0,
    )
    held = {ticker: Holding(Decimal(10), Decimal(5), Decimal(0), Decimal("100.25")) for ticker in TICKERS}
    situation = Situation(
        limits=Limits(),
        terms=Terms(MODEL),
        book=Book(held),
        switches=SwitchState(shadow=False),
        price=LastPrice(Decimal("100.5"), 60.0),
    )
    asked = order(0)
    assert judge(asked, decision, situation).allowed
    costs: list[float] = []
    for _ in range(7):
        began = time.process_time_ns()
        for _ in range(2_000):
            judge(asked, decision, situation)
        costs.append((time.process_time_ns() - began) / 2_000 / 1_000)
    return statistics.median(costs)


async def open_loop(work: Callable[[int], Awaitable[object]], seconds: float) -> list[float]:
    """Milliseconds from due to done of `seconds` times 200, each begun by the clock."""
    began = time.perf_counter() + 0.05
    took: list[float] = []

    async def one(number: int) -> None:
        due = began + number / PER_SECOND
        await asyncio.sleep(due - time.perf_counter())
        await work(next(NUMBERS))
        took.append((time.perf_counter() - due) * 1000)

    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * PER_SECOND)):
            group.create_task(one(number))
    return took


def percentile(took: Sequence[float], share: float) -> float:
    """The value that so many per cent stay below."""
    return statistics.quantiles(took, n=1000, method="inclusive")[round(share * 10) - 1]


class Lines:
    """The two things that are compared."""

    def __init__(self, desk: Desk, pool: Any, engine: AsyncEngine) -> None:
        self._desk, self._pool, self._engine = desk, pool, engine
        self.allowed = 0

    async def verdict(self, number: int) -> None:
        """A verdict, stored."""
        told: Told = await self._desk.verdict(Asked(order(number)))
        self.allowed += told.verdict == "allow"

    async def bare(self, _number: int) -> None:
        """A row, stored."""
        async with self._pool.acquire() as connection:
            await connection.execute(BARE, ROW)

    async def run(self, work: Callable[[int], Awaitable[object]], seconds: float) -> list[float]:
        """One line's turn; the account counts as just reconciled, the limits rest on it."""
        async with self._engine.begin() as connection:
            await connection.execute(CONFIRM)
        gc.collect()
        return await open_loop(work, seconds)

    async def round(self) -> float:
        """Both lines; prints both and gives the ratio of their p99."""
        bare = await self.run(self.bare, ROUND_S)
        gate = await self.run(self.verdict, ROUND_S)
        ratio = percentile(gate, 99) / percentile(bare, 99)
        print(
            f"    insert p50 {percentile(bare, 50):5.2f} ms, p99 {percentile(bare, 99):6.2f} ms   "
            f"verdict p50 {percentile(gate, 50):5.2f} ms, p99 {percentile(gate, 99):6.2f} ms   p99 x{ratio:.2f}",
            flush=True,
        )
        return ratio


async def durable(url: str, *, limits: Limits, state: Path) -> float:
    """The median ratio of a few rounds."""
    engine = create_async_engine(driver_url(url))
    desk = Desk(url, rests_on=GateTerms(limits, Terms(MODEL), ACCOUNT), state=state, timeout_s=5)
    desk.start()
    create_pool: Any = asyncpg.create_pool  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - untyped
    pool = await create_pool(url, min_size=8, max_size=8, server_settings={"synchronous_commit": "on"})
    lines = Lines(desk, pool, engine)
    try:
        for work in (lines.bare, lines.verdict):
            await lines.run(work, WARM / PER_SECOND)
        lines.allowed = 0
        ratios = [await lines.round() for _ in range(ROUNDS)]
        print(f"    {lines.allowed} of {int(ROUNDS * ROUND_S * PER_SECOND)} verdicts allowed", flush=True)
    finally:
        await desk.close()
        await pool.close()
        await engine.dispose()
    return statistics.median(ratios)


async def prepare(url: str) -> None:
    """An account, forecasts, and a long chain of verdicts."""
    engine = create_async_engine(driver_url(url))
    values = {
        "feed": FEED,
        "account": ACCOUNT,
        "tickers": TICKERS,
        "as_of": AS_OF,
        "features": FEATURES,
        "history": HISTORY,
    }
    async with engine.begin() as connection:
        for statement in PREPARE:
            bound = text(statement)
            names = bound.compile().params
            await connection.execute(bound, {name: values[name] for name in names})
    async with engine.connect() as connection:
        plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in SETTLE:
            await plain.execute(text(statement))
    await engine.dispose()


def main() -> int:
    """Run on a Postgres of its own that really flushes; 1 where a limit was missed."""
    configure("bench", level="WARNING")
    print("gate: what a verdict costs")
    alone = function_alone()
    print(f"  the function alone: {alone:.1f} µs (limit {MOST_US:g} µs){'' if alone <= MOST_US else '  MISSED'}")
    with tempfile.TemporaryDirectory(prefix="lexi-bench-") as name:
        folder = Path(name)
        state = folder / "state"
        state.mkdir()
        server = EmbeddedPostgres(folder / "pg")
        server.start()
        try:
            url = migrated(server, "bench")
            uvloop.run(prepare(url))
            print(f"  {PER_SECOND} a second, {HISTORY:,} verdicts before them, usual limits:")
            ratio = uvloop.run(durable(url, limits=Limits(), state=state))
            print("  the same with every order within the limits:")
            generous = replace(Limits(), max_orders_per_min=10**9, max_gross_notional=Decimal(10**12))
            other = uvloop.run(durable(url, limits=generous, state=state))
        finally:
            server.stop()
    print(
        f"  p99 of a verdict is x{ratio:.2f} of a bare insert (limit x{MOST_RATIO:g}); x{other:.2f} within the limits"
    )
    return 0 if alone <= MOST_US and ratio <= MOST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
