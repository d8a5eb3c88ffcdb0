"""What became of forecasts: once the horizon has passed, the price that came and the return it made."""

import structlog
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.exposures import record

BATCH = 5_000
PER_SERIES = 500

SETTLED = Counter("lexi_jobs_outcomes_total", "Forecasts whose realised price was stored")

log = structlog.get_logger(__name__)

# A series' outcomes are stored in market order without a hole, since a forecast whose horizon's bar is missing has no
# later neighbour with one. So the newest outcome says where to go on, and old history is never looked at again; the
# order by as_of keeps that true where the batch ends in the middle of a series.
SETTLE = text(
    """
    with series as (
      select h.feed, h.ticker, h.horizon, h.model, cast(substring(h.horizon from '^[0-9]+') as integer) as steps,
        coalesce((select max(o.as_of) from outcomes o where o.feed = h.feed and o.ticker = h.ticker
          and o.horizon = h.horizon and o.model = h.model), '-infinity') as settled
      from forecast_heads h
    )
    insert into outcomes (feed, ticker, horizon, model, as_of, forecast_id, realised_as_of, last_price, realised_price,
      realised_return, inside)
    select s.feed, s.ticker, s.horizon, s.model, f.as_of, f.id, b.as_of, f.last_price, b.close,
      b.close / f.last_price - 1, b.close between f.lower and f.upper
    from series s
    cross join lateral (
      select as_of, id, last_price, lower, upper from forecasts
      where feed = s.feed and ticker = s.ticker and horizon = s.horizon and model = s.model and as_of > s.settled
      order by as_of limit :per_series
    ) as f
    cross join lateral (
      select as_of, close from bars where feed = s.feed and ticker = s.ticker and as_of > f.as_of
      order by as_of offset s.steps - 1 limit 1
    ) as b
    order by f.as_of
    limit :batch
    on conflict (feed, ticker, horizon, model, as_of) do nothing
    returning forecast_id, realised_return
    """
)


async def settle(engine: AsyncEngine, *, batch: int = BATCH, per_series: int = PER_SERIES) -> int:
    """Store the outcomes that are due, at most `batch` of them; returns how many. Running it twice changes nothing.

    The realised price of a forecast `Nd` is the close of the N-th next bar of the same ticker in the same feed.
    Exposures of these forecasts learn of their outcome in the same transaction.
    """
    async with engine.begin() as connection:
        done = await connection.execute(SETTLE, {"batch": batch, "per_series": per_series})
        settled = [record.Settled(row.forecast_id, row.realised_return) for row in done]
        await record.settle(connection, settled)
    SETTLED.inc(len(settled))
    return len(settled)


async def settle_all(engine: AsyncEngine, *, batch: int = BATCH) -> int:
    """Settle batch by batch, a transaction each, until nothing is due."""
    total = 0
    while stored := await settle(engine, batch=batch):
        total += stored
    if total:
        log.info("outcomes_stored", count=total)
    return total
