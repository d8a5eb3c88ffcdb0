"""The entries the gate judged and what came of them, summed up by Postgres."""

from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.shadow.report import Sums

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


async def entries(connection: AsyncConnection, *, since: datetime, until: datetime, ticker: str | None) -> list[Sums]:
    """Sums over the entries the gate judged from `since` until before `until`, and what came of them."""
    asked = {"since": since, "until": until, "ticker": ticker}
    found = (await connection.execute(ENTRIES, asked)).mappings().all()
    return [_sums({**row, "reasons": tuple(row["reasons"])}) for row in found]


def _sums(values: dict[str, Any]) -> Sums:
    return Sums(**values)
