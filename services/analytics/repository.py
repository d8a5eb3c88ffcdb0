"""Every query of the analytics."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

RECENT_SOCIAL = text(
    """
    select ts, source, handle, text from social_messages
    where ticker = :ticker order by ts desc, source, external_id limit :limit
    """
)

RECENT_RATINGS = text(
    """
    select ts, provider, firm, analyst, action, rating, target from analyst_ratings
    where ticker = :ticker order by ts desc, source, external_id limit :limit
    """
)

# What first verdicts on entries came to, summed up per market day and whatever the report tells apart: a million rows
# become some thousands before they leave the database. A forecast is at most one outcome, so the join multiplies
# nothing. made is the return from ref_price to the realised price in the order's own direction.
ENTRIES = text(
    """
    select (v.as_of at time zone 'UTC')::date as day, v.horizon, v.prompt_version, v.arm, v.would_have, v.reasons,
      count(*) as entries,
      count(*) filter (where v.as_of is null) as without_forecast,
      count(r.made) as settled,
      coalesce(sum(r.made), 0) as made,
      count(*) filter (where r.made > 0) as hits,
      coalesce(sum(r.made * v.qty::double precision * v.ref_price::double precision), 0) as money
    from gate_verdicts v
    left join outcomes o on o.feed = v.feed and o.ticker = v.ticker and o.horizon = v.horizon and o.model = v.model
      and o.as_of = v.as_of
    cross join lateral (
      select (case v.side when 'buy' then 1 else -1 end)
        * (o.realised_price / nullif(v.ref_price::double precision, 0) - 1) as made
    ) r
    where v.first and not v.reduce_only and v.at >= :since and v.at < :until
      and (cast(:ticker as text) is null or v.ticker in (:ticker, upper(:ticker)))
    group by 1, 2, 3, 4, 5, 6
    """
)


async def recent_social(connection: AsyncConnection, ticker: str, limit: int) -> Sequence[RowMapping]:
    """The newest posts about a ticker."""
    return (await connection.execute(RECENT_SOCIAL, {"ticker": ticker, "limit": limit})).mappings().all()


async def recent_ratings(connection: AsyncConnection, ticker: str, limit: int) -> Sequence[RowMapping]:
    """The newest ratings of a ticker."""
    return (await connection.execute(RECENT_RATINGS, {"ticker": ticker, "limit": limit})).mappings().all()


async def entries(
    connection: AsyncConnection, *, since: datetime, until: datetime, ticker: str | None
) -> Sequence[RowMapping]:
    """Sums over the entries the gate judged within a time, and what came of them."""
    asked = {"since": since, "until": until, "ticker": ticker}
    return (await connection.execute(ENTRIES, asked)).mappings().all()
