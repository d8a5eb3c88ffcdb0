"""The sums behind a batch replay's report, made by Postgres: nothing here grows with the number of decisions."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.replay.batch.report import LISTED
from libs.replay.batch.sums import Figures, Flipped, Kind, Made, Side, Spent

# A turn acts where decision and rules together say something else than before.
ACTS = "(r.before ->> 'allow')::boolean is distinct from (r.after ->> 'allow')::boolean"

KINDS = text(
    f"""
    select r.before ->> 'status' as status_before, r.status,
      (r.before #>> '{{decision,allow}}')::boolean as was, (r.after #>> '{{decision,allow}}')::boolean as now,
      (r.before ->> 'rules')::boolean as rules_before, (r.after ->> 'rules')::boolean as rules_now,
      r.flip, {ACTS} as acts, coalesce((r.after ->> 'same')::boolean, false) as same,
      (r.before ->> 'invented')::integer > 0 as invented_before, (r.after ->> 'invented')::integer > 0 as invented_now,
      count(*) as n
    from replays r where r.batch_id = :id group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
    """
)
BEFORE = text(
    """
    select count(*) as n, percentile_cont(array[0.5, 0.95]) within group (order by total_ms) as percentiles,
      avg(tokens_in) as tokens_in, avg(tokens_out) as tokens_out
    from (
      select (before #>> '{spent,total_ms}')::float8 as total_ms, (before #>> '{spent,tokens_in}')::float8 as tokens_in,
        (before #>> '{spent,tokens_out}')::float8 as tokens_out
      from replays where batch_id = :id and status in ('ok', 'invalid')
    ) as spent
    where total_ms is not null
    """
)
AFTER = text(
    """
    select count(*) as n, percentile_cont(array[0.5, 0.95]) within group (order by total_ms) as percentiles,
      cast(avg(tokens_in) as float8) as tokens_in, cast(avg(tokens_out) as float8) as tokens_out
    from replays where batch_id = :id and status in ('ok', 'invalid')
    """
)

REASON = text(
    """
    select error from replays where batch_id = :id and status not in ('ok', 'invalid')
    group by error order by count(*) desc, error limit 1
    """
)

# What turned, with its forecast's side and what the price did. The limits keep each look-up one of a single row. What
# turned is named also where its forecast was dropped since.
TURNED = f"""
    select r.flip, {ACTS} as acts, r.forecast_id, r.ticker, r.as_of, f.side, f.horizon,
      case f.side when 'buy' then o.realised_return when 'sell' then -o.realised_return end as made,
      r.before, r.after, r.status, r.call_id, r.new_call_id, f.feed
    from replays r
    left join lateral (
      select feed, ticker, horizon, model, features #>> '{{llm,inputs,signal,side}}' as side from forecasts
      where as_of = r.as_of and id = r.forecast_id limit 1
    ) as f on true
    left join lateral (
      select realised_return from outcomes
      where feed = f.feed and ticker = f.ticker and horizon = f.horizon and model = f.model and as_of = r.as_of limit 1
    ) as o on true
    where r.batch_id = :id and r.flip is not null
"""
MADE = text(
    f"""
    select flip, cast(as_of at time zone 'UTC' as date) as day, horizon, count(*) as n, count(made) as settled,
      coalesce(sum(made), 0) as total
    from ({TURNED}) as turned where acts and side <> 'none' group by 1, 2, 3 order by 1, 2, 3
    """
)
FLIPPED = text(
    f"select * from ({TURNED}) as turned order by flip desc, acts desc, as_of, ticker, forecast_id limit :limit"
)


async def figures(connection: AsyncConnection, batch_id: UUID) -> Figures:
    """Everything the report of a batch is made of, as it is now."""
    of = {"id": batch_id}
    kinds = (await connection.execute(KINDS, of)).mappings().all()
    before = (await connection.execute(BEFORE, of)).one()
    after = (await connection.execute(AFTER, of)).one()
    made = (await connection.execute(MADE, of)).mappings().all()
    flipped = (await connection.execute(FLIPPED, {**of, "limit": LISTED})).mappings().all()
    return Figures(
        kinds=[Kind(**dict(row)) for row in kinds],
        before=_spent(before),
        after=_spent(after),
        made=[Made(**dict(row)) for row in made],
        flipped=[_flipped(row) for row in flipped],
        reason=await connection.scalar(REASON, of),
    )


def _spent(row: Any) -> Spent:
    p50, p95 = row.percentiles or (None, None)
    return Spent(n=row.n, p50=p50, p95=p95, tokens_in=row.tokens_in, tokens_out=row.tokens_out)


def _flipped(row: RowMapping) -> Flipped:
    return Flipped(
        flip=row["flip"],
        acts=row["acts"],
        forecast_id=row["forecast_id"],
        ticker=row["ticker"],
        as_of=row["as_of"],
        side=row["side"],
        horizon=row["horizon"],
        made=row["made"],
        before=_side(row["before"], row["before"]["status"]),
        after=_side(row["after"], row["status"]),
        call_id=row["call_id"],
        new_call_id=row["new_call_id"],
        feed=row["feed"],
    )


def _side(document: Mapping[str, Any], status: str) -> Side:
    decision: Mapping[str, Any] | None = document["decision"]
    return Side(
        allow=None if decision is None else decision["allow"],
        reasons=() if decision is None else tuple(decision["reasons"]),
        rules_allow=document["rules"],
        status=status,
    )
