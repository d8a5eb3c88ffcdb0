"""The queries of the control plane; those of calls are in `libs/llm/call_pages.py`."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

Row = RowMapping

# Latency is that of answers a model really gave: cached ones take no time and failures end at a limit. Replays are left
# out: a version on trial, asked behind all live work, says nothing about how live work goes.
TOTALS = text(
    """
    select count(*) as total,
           count(*) filter (where success) as success_count,
           count(*) filter (where not success) as failure_count,
           count(*) filter (where cached) as cached_count,
           percentile_cont(array[0.5, 0.95, 0.99]) within group (order by total_ms)
             filter (where success and not cached) as percentiles,
           coalesce(sum(tokens_in), 0) as tokens_in,
           coalesce(sum(tokens_out), 0) as tokens_out
    from llm_calls where ts >= :since and replay_of is null
    """
)

BREAKDOWN = text(
    """
    select prompt_key, prompt_version, success, count(*) as n
    from llm_calls where ts >= :since and replay_of is null
    group by prompt_key, prompt_version, success
    order by prompt_key, prompt_version, success desc
    """
)

# The newest forecast per ticker and horizon within the feed that wrote last. forecast_heads has one row per series and
# each leads to one row of forecasts by primary key, so the length of history does not matter; the lateral limit keeps
# the planner from joining any other way.
SIGNALS = text(
    """
    with head as (
      select distinct on (h.ticker, h.horizon) h.feed, h.ticker, h.horizon, h.model, h.as_of
      from forecast_heads h
      where h.feed = (select feed from feeds order by last_write_at desc nulls last limit 1)
        and (cast(:tickers as text[]) is null or h.ticker = any(cast(:tickers as text[])))
        and (cast(:horizon as text) is null or h.horizon = :horizon)
      order by h.ticker, h.horizon, h.as_of desc, h.model
    )
    select f.feed, f.as_of, f.ts, f.ticker, f.horizon, f.model, f.mean, f.lower, f.upper, f.features -> 'llm' as llm
    from head
    cross join lateral (
      select * from forecasts f
      where f.feed = head.feed and f.ticker = head.ticker and f.horizon = head.horizon and f.model = head.model
        and f.as_of = head.as_of
      limit 1
    ) f
    order by f.ticker, f.horizon
    """
)

# A partition just begun has no statistics yet, and the planner would read it whole for each ticker.
BY_INDEX_ONLY = text("set local enable_seqscan = off")

# All in one order, so that two batches with the same items wait for each other instead of dying in a deadlock.
INSERT_SOCIAL = text(
    """
    insert into social_messages (source, external_id, ticker, ts, handle, text)
    select source, external_id, ticker, ts, handle, text
    from jsonb_to_recordset(cast(:rows as jsonb)) as r(
      source text, external_id text, ticker text, ts timestamptz, handle text, text text)
    order by source, external_id
    on conflict (source, external_id) do nothing
    """
)

INSERT_RATINGS = text(
    """
    insert into analyst_ratings (source, external_id, ticker, ts, provider, firm, analyst, action, rating, target)
    select source, external_id, ticker, ts, provider, firm, analyst, action, rating, target
    from jsonb_to_recordset(cast(:rows as jsonb)) as r(
      source text, external_id text, ticker text, ts timestamptz, provider text, firm text, analyst text, action text,
      rating text, target double precision)
    order by source, external_id
    on conflict (source, external_id) do nothing
    """
)

INSERT_FACTS = text(
    """
    insert into facts (source, external_id, ticker, name, as_of, value)
    select source, external_id, ticker, name, as_of, value
    from jsonb_to_recordset(cast(:rows as jsonb)) as r(
      source text, external_id text, ticker text, name text, as_of timestamptz, value jsonb)
    order by source, external_id
    on conflict (source, external_id) do nothing
    """
)


async def totals(connection: AsyncConnection, since: datetime) -> Row:
    """Counts, latency percentiles (p50, p95, p99; None without an answer) and tokens of the calls since then."""
    return (await connection.execute(TOTALS, {"since": since})).mappings().one()


async def breakdown(connection: AsyncConnection, since: datetime) -> Sequence[Row]:
    """Counts by prompt, version and success."""
    return (await connection.execute(BREAKDOWN, {"since": since})).mappings().all()


async def latest_signals(
    connection: AsyncConnection, *, tickers: Sequence[str] | None, horizon: str | None
) -> Sequence[Row]:
    """The latest forecast per ticker and horizon of the feed that wrote last."""
    await connection.execute(BY_INDEX_ONLY)
    found = await connection.execute(SIGNALS, {"tickers": tickers, "horizon": horizon})
    return found.mappings().all()


async def insert(connection: AsyncConnection, statement: TextClause, rows: str) -> int:
    """Insert a JSON array of rows with one of the INSERT statements; returns how many were new."""
    return (await connection.execute(statement, {"rows": rows})).rowcount
