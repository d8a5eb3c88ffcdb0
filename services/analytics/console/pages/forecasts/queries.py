"""Forecasts, their decisions and what came of them. Every query goes by an index or is bounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

Row: TypeAlias = Mapping[str, Any]

MOST_POINTS = 250
STRETCH = timedelta(days=400)
"""Where the newest points are looked for first: it holds so many trading days."""
LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
MOST_SERIES = 5_000
MOST_VERDICTS = 50
MOST_VERDICTS_READ = 20_000
"""How many verdicts of the gate are looked through for those on one forecast."""

# The series of the feed that wrote last; a head is one row per series, however long the history is.
SERIES = text(
    """
    select h.feed, h.ticker, h.horizon, h.model, h.as_of, h.id
    from (select feed from feeds where last_write_at is not null order by last_write_at desc limit 1) newest
    join forecast_heads h on h.feed = newest.feed
    order by h.ticker, h.horizon, h.model limit :most
    """
)
HEAD = text(
    """
    select h.id
    from (select feed from feeds where last_write_at is not null order by last_write_at desc limit 1) newest
    join forecast_heads h on h.feed = newest.feed
    where h.ticker = :ticker and h.horizon = :horizon and h.model = :model
    """
)
# The newest points of a series, read backwards along the primary key, with the outcomes beside them by theirs.
POINTS = text(
    """
    select f.id, f.as_of, f.due_at, f.last_price, f.mean, f.lower, f.upper, f.status, f.allow, f.rules_allow,
      o.realised_as_of, o.realised_price, o.inside
    from (
      select feed, ticker, horizon, model, as_of, id, due_at, last_price, mean, lower, upper,
        features -> 'llm' -> 'policy' ->> 'status' as status,
        (features -> 'llm' -> 'policy' -> 'decision' ->> 'allow')::boolean as allow,
        (features -> 'llm' -> 'policy' -> 'rules' ->> 'allow')::boolean as rules_allow
      from forecasts
      where feed = :feed and ticker = :ticker and horizon = :horizon and model = :model and as_of >= :since
      order by as_of desc limit :most
    ) f
    left join outcomes o on o.feed = f.feed and o.ticker = f.ticker and o.horizon = f.horizon and o.model = f.model
      and o.as_of = f.as_of
    order by f.as_of desc
    """
)
# One forecast. Its moment names its partition; a link that lacks it makes every partition's index be asked once.
FORECAST = text(
    """
    select f.*, f.features -> 'llm' as llm, o.realised_as_of, o.realised_price, o.realised_return, o.inside
    from forecasts f
    left join outcomes o on o.feed = f.feed and o.ticker = f.ticker and o.horizon = f.horizon and o.model = f.model
      and o.as_of = f.as_of
    where f.id = :id and f.as_of = :as_of
    """
)
LIMIT_SEARCH = text("set local statement_timeout = '1200ms'")
MOMENT = text("select as_of from forecasts where id = :id limit 1")
# An order is told of the newest forecast of its ticker: from when it was written until shortly after the next one was.
# The log of verdicts has no index by forecast, so it is read from there on by time, up to a bound.
VERDICTS = text(
    """
    with stretch as materialized (
      select seq, at, key_name, strategy, client_order_id, first, ticker, side, qty, ref_price, reduce_only, verdict,
        would_have, mode, reasons, forecast_id
      from gate_verdicts
      where at >= :since and at < coalesce(
        (select n.ts + interval '1 minute' from forecasts n
          where n.feed = :feed and n.ticker = :ticker and n.horizon = :horizon and n.model = :model and n.as_of > :as_of
          order by n.as_of limit 1), 'infinity')
      order by at limit :most_read
    )
    select *, (select count(*) from stretch) as looked_through from stretch where forecast_id = :id
    order by seq limit :most
    """
)


@dataclass(frozen=True, slots=True)
class Series:
    """One ticker's forecasts of one horizon by one model, and its newest."""

    feed: str
    ticker: str
    horizon: str
    model: str
    as_of: datetime
    id: UUID

    @property
    def key(self) -> dict[str, Any]:
        """What names the series."""
        return {"feed": self.feed, "ticker": self.ticker, "horizon": self.horizon, "model": self.model}


async def series_of_newest_feed(connection: AsyncConnection) -> Sequence[Series]:
    """What the feed that wrote last forecasts, by ticker."""
    return [Series(**row) for row in await _rows(connection, SERIES, most=MOST_SERIES)]


async def newest_of(connection: AsyncConnection, series: Series) -> UUID | None:
    """The id of the newest forecast of a series now, in whichever feed wrote last."""
    asked = {"ticker": series.ticker, "horizon": series.horizon, "model": series.model}
    return (await connection.execute(HEAD, asked)).scalar_one_or_none()


async def points(connection: AsyncConnection, series: Series, *, most: int = MOST_POINTS) -> Sequence[Row]:
    """The newest forecasts of a series with their outcomes, newest first.

    Decades of forecasts are hundreds of partitions, and planning a read of them all takes longer than reading some.
    """
    found: Sequence[Row] = ()
    for since in (series.as_of - STRETCH, LONG_AGO):
        found = await _rows(connection, POINTS, **series.key, since=since, most=most)
        if len(found) == most:
            break
    return found


async def forecast(connection: AsyncConnection, forecast_id: UUID, as_of: datetime | None) -> Row | None:
    """One forecast with its record (`llm`) and its outcome. Without its moment, or with a wrong one, it is searched."""
    found = [] if as_of is None else await _rows(connection, FORECAST, id=forecast_id, as_of=as_of)
    if not found:
        await connection.execute(LIMIT_SEARCH)
        moment = (await connection.execute(MOMENT, {"id": forecast_id})).scalar()
        found = [] if moment is None else await _rows(connection, FORECAST, id=forecast_id, as_of=moment)
    return found[0] if found else None


async def verdicts_on(connection: AsyncConnection, row: Row) -> Sequence[Row]:
    """What orders were told on a forecast, oldest first; `looked_through` says how many verdicts were read for it."""
    key = {name: row[name] for name in ("feed", "ticker", "horizon", "model", "as_of", "id")}
    bounds = {"since": row["ts"], "most_read": MOST_VERDICTS_READ, "most": MOST_VERDICTS}
    return await _rows(connection, VERDICTS, **key, **bounds)


async def _rows(connection: AsyncConnection, statement: TextClause, **values: Any) -> list[dict[str, Any]]:
    return [{**row} for row in (await connection.execute(statement, values)).mappings()]
