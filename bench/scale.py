"""What a forecast, its judgement, its calls and a verdict take of Postgres: the figures that `docs/scale.md` uses.

3,000 cases of the bundled bars are judged on the production path (a fake engine answers with a decision and a rationale
of 30 words) and stored as the loop stores them; each comes once, so that nothing is answered from the cache. Sizes are
those of Postgres: heap, out-of-line values and indexes, divided by the rows. `packed` is after a full vacuum, `written`
as the loop leaves the table: every forecast is written twice, and the first copy's place is used again later. The log
that a replica is sent (WAL) is counted too, whole pages after a checkpoint included. Verdicts are asked for by so many
at once, each again as soon as it is told, so that the chain's lock is never free.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.database import migrated
from bench.gate import ACCOUNT, MODEL, NUMBERS, order, prepare
from libs import telemetry
from libs.db.engine import DatabaseSettings, create_engine
from libs.evaluation.cases.case import EvalCase
from libs.judgement.assess import assess
from libs.judgement.record import features_llm, pending
from libs.judgement.rules import RULES_FILE, Rules
from libs.model_client import Model, open_model
from libs.trading.limits import Limits, Terms
from services.api.strategist.desk.desk import Desk, GateTerms
from services.api.strategist.desk.record import Asked
from services.forecast.feed.types import Bar
from services.forecast.numbers import Numbers
from services.forecast.repository import Repository
from services.forecast.rows import Forecast, JudgementRow
from services.jobs.outcomes import settle_all
from tests.fakes.engine import FakeEngine
from tools.llm_eval.bundled import bundled_cases
from tools.local_stack.postgres import EmbeddedPostgres

FEED = "replay:1"
TICKERS, MOMENTS = 500, 6
FORECASTS = TICKERS * MOMENTS
AT_ONCE, ROUND_S = (1, 64, 256), 4.0
FIRST = datetime(2012, 6, 4, 20, tzinfo=UTC)
DECISION = '{"allow": false, "reasons": ["EARNINGS", "UNKNOWN_MACRO"], "flags": ["WIDE_RANGE"]}'
RATIONALE = (
    "The forecast expects a small rise by the next close, supported by momentum of 1.3 and steady volume; the range is "
    "wide and a headline about weak sales speaks against it."
)
UPSTREAMS = "upstreams:\n  - {name: lexi, dialect: vllm, slots: 64, shares: {forecast: 64}}\n"
TABLES = ("bars", "forecasts", "forecast_heads", "outcomes", "exposures", "llm_calls", "llm_bodies", "llm_cache")

# As an experiment on the policy leaves them once they are judged and settled.
EXPOSURES = text(
    """
    insert into exposures (key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side, judged_at, call_id,
      status, timed_out, cached, total_ms, tokens, allow, rules_allow, realised_return, settled_at)
    select 'policy', id, md5('phase'), ticker || ' 2012-06-04', '1.1.0', feed, ticker, horizon, as_of, 'buy', now(),
      gen_random_uuid(), 'ok', false, false, 250, 700, false, true, 0.01, now()
    from forecasts
    """
)
SIZE = text(
    """
    select cast(sum(pg_total_relation_size(leaf)) as bigint) from (
      select cast(:table as regclass) as leaf where not exists (select from pg_partition_tree(cast(:table as regclass)))
      union all select relid from pg_partition_tree(cast(:table as regclass)) where isleaf
    ) as leaves
    """
)


LOGGED = text("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")


def answer(body: Mapping[str, Any]) -> str:
    """A decision where a form is asked for, else prose."""
    return DECISION if "structured_outputs" in body else RATIONALE


async def store(repository: Repository, model: Model, rules: Rules, *, cases: Sequence[EvalCase], at: datetime) -> None:
    """One tick, stored, judged, and stored again."""
    rows = [f"T{number:04d}" for number in range(len(cases))]
    waiting: list[Forecast] = []
    for ticker, case in zip(rows, cases, strict=True):
        signal = case.inputs.signal
        numbers = Numbers("theta", signal.mean, signal.lower, signal.upper)
        llm = pending(case.inputs, rules=rules.judge(case.inputs, case.feed), shadow_mode=True)
        waiting.append(Forecast(uuid4(), ticker, signal.last_price, numbers, at + timedelta(days=1), llm))
    bars = dict.fromkeys(rows, Bar(at, 100.0, 101.0, 99.0, 100.5, 1e6))
    await repository.store_tick(FEED, at, bars=bars, forecasts=waiting, complete=True)
    judged = await asyncio.gather(
        *(assess(case.inputs, client=model.client, rules=rules, feed=case.feed) for case in cases)
    )
    pairs = list(zip(waiting, judged, strict=True))
    await repository.store_judgements(
        lambda shadow: [JudgementRow(one.id, at, features_llm(each, shadow), complete=True) for one, each in pairs]
    )


async def fill(engine: AsyncEngine, home: Path) -> None:
    """Everything that the loop and the jobs write of 3,000 forecasts."""
    rules = Rules.load(RULES_FILE)
    cases = list(bundled_cases(n=FORECASTS, seed=1, rules=rules))
    repository = Repository(engine, horizon="1d")
    await repository.begin_run(FEED, "replay")
    async with FakeEngine(reply=answer, slots=64, chunks=1) as fake:
        os.environ["LLM_BASE_URL"] = fake.base_url
        async with open_model(engine, role="forecast", state_dir=home / "state") as model:
            for number in range(MOMENTS):
                some = cases[number * TICKERS : (number + 1) * TICKERS]
                await store(repository, model, rules, cases=some, at=FIRST + timedelta(days=number))
    await settle_all(engine)
    async with engine.begin() as connection:
        await connection.execute(EXPOSURES)


async def logged(engine: AsyncEngine) -> int:
    """Bytes in Postgres's log so far."""
    async with engine.connect() as connection:
        return int(await connection.scalar(LOGGED) or 0)


async def sizes(engine: AsyncEngine, tables: Sequence[str], *, vacuum: str) -> dict[str, float]:
    """Bytes a row of each table, after a vacuum of the given kind."""
    found: dict[str, float] = {}
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for table in tables:
            await connection.execute(text(f"vacuum {vacuum} {table}"))
            size = int(await connection.scalar(SIZE, {"table": table}) or 0)
            count = int(await connection.scalar(text(f"select count(*) from {table}")) or 0)
            found[table] = size / count
    return found


async def rate(desk: Desk, at_once: int) -> float:
    """Verdicts a second while so many orders wait, each followed by the next once it is told."""
    told = 0
    begun = time.monotonic()

    async def one() -> None:
        nonlocal told
        while time.monotonic() - begun < ROUND_S:
            await desk.verdict(Asked(order(next(NUMBERS))))
            told += 1

    await asyncio.gather(*(one() for _ in range(at_once)))
    return told / (time.monotonic() - begun)


async def verdicts(url: str, state: Path) -> tuple[float, list[float]]:
    """Bytes a verdict takes with its authorisation, every order allowed, and verdicts a second by how many wait."""
    await prepare(url)
    engine = create_engine(DatabaseSettings(database_url=SecretStr(url)), application="bench")
    generous = replace(Limits(), max_orders_per_min=10**9, max_gross_notional=Decimal(10**12))
    desk = Desk(url, rests_on=GateTerms(generous, Terms(MODEL), ACCOUNT), state=state, timeout_s=5)
    desk.start()
    try:
        async with engine.begin() as connection:
            await connection.execute(text("truncate gate_verdicts"))
            await connection.execute(text("update broker_state set reconciled_at = now()"))
        rates = [await rate(desk, at_once) for at_once in AT_ONCE]
        both = await sizes(engine, ["gate_verdicts", "authorisations"], vacuum="full")
    finally:
        await desk.close()
        await engine.dispose()
    return both["gate_verdicts"] + both["authorisations"], rates


def cpu_of(server: EmbeddedPostgres) -> float:
    """CPU seconds that Postgres and its connections' processes have used so far."""
    assert server.pid is not None
    root = psutil.Process(server.pid)
    times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
    return sum(one.user + one.system for one in times)


async def measure(url: str, home: Path, server: EmbeddedPostgres) -> None:
    """Fill, then print each table."""
    engine = create_engine(DatabaseSettings(database_url=SecretStr(url)), application="bench")
    try:
        before, cpu = await logged(engine), cpu_of(server)
        await fill(engine, home)
        wal, cpu = (await logged(engine) - before) / FORECASTS, cpu_of(server) - cpu
        written = await sizes(engine, TABLES, vacuum="")
        packed = await sizes(engine, TABLES, vacuum="full")
    finally:
        await engine.dispose()
    for table in TABLES:
        print(f"  {table:<15} {packed[table]:>7,.0f} bytes a row packed, {written[table]:>7,.0f} as written")
    print(f"  {'log':<15} {wal:>7,.0f} bytes a forecast with all of the above")
    print(f"  {'CPU':<15} {cpu / FORECASTS * 1000:>7.2f} ms of Postgres a forecast with all of the above")


def main() -> None:
    """Run on a Postgres of its own."""
    telemetry.configure("bench", level="ERROR")
    print(f"scale: {FORECASTS:,} forecasts of bundled bars with two calls each")
    with tempfile.TemporaryDirectory(prefix="lexi-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "upstreams.yaml").write_text(UPSTREAMS, encoding="utf-8")
        os.environ["UPSTREAMS_FILE"] = str(home / "upstreams.yaml")
        server = EmbeddedPostgres(home / "postgres", report=lambda _: None)
        server.start()
        try:
            asyncio.run(measure(migrated(server, "rows"), home, server))
            each, rates = asyncio.run(verdicts(migrated(server, "verdicts"), home))
        finally:
            server.stop()
    print(f"  {'gate_verdicts':<15} {each:>7,.0f} bytes a verdict with its authorisation")
    for at_once, found in zip(AT_ONCE, rates, strict=True):
        print(f"  {found:>7,.0f} verdicts a second, each on disk, while {at_once} orders wait")


if __name__ == "__main__":
    main()
