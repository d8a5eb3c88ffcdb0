"""Every statement the forecast loop sends to Postgres. Transactions are short, and none is open during a call."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.exposures.record import Noted, assign, note_judged
from libs.judgement.record import PENDING
from libs.judgement.types import Fact, PriceForecast
from libs.switches import shadow_mode
from services.forecast.feed.types import Bar, Run
from services.forecast.rows import Forecast, JudgementRow, Known, Stored, bar_row, forecast_row

HEADLINES_PER_TICKER = 5
PARTS = ("rationale", "policy")
LOOK_BACK = 100
"""Ticks that a judgement may be behind its ticker's newest; its deadline ends it long before."""

# The run to go on with: the newest of this source.
NEWEST_RUN = text(
    "select feed, last_as_of, done from feeds where source = :source order by started_at desc, feed desc limit 1"
)

BEGIN_RUN = text("insert into feeds (feed, source) values (:feed, :source) on conflict (feed) do nothing")

END_RUN = text("update feeds set done = true where feed = :feed")

# last_as_of only moves forward, and only with the last part of a tick (:complete).
TOUCH_RUN = text(
    """
    update feeds set last_write_at = now(),
      last_as_of = case when :complete then greatest(last_as_of, :as_of) else last_as_of end
    where feed = :feed
    """
)

# What was known of each ticker at market time as_of: the latest fact of each name ...
KNOWN_FACTS = text(
    """
    select distinct on (ticker, name) ticker, name, value, as_of, source from facts
    where ticker = any(:tickers) and as_of <= :as_of
    order by ticker, name, as_of desc, ts desc
    """
)

# ... and the newest texts about it.
RECENT_TEXTS = text(
    """
    select wanted.ticker, recent.text from unnest(cast(:tickers as text[])) as wanted (ticker),
    lateral (
      select text, ts from social_messages
      where ticker = wanted.ticker and ts <= :as_of and ts > :as_of - interval '7 days'
      order by ts desc limit :per_ticker
    ) as recent
    order by wanted.ticker, recent.ts desc
    """
)

# A bar that comes again is confirmed (delivered_at) and, where the exchange corrected it, corrected.
STORE_BARS = text(
    """
    insert into bars (feed, ticker, as_of, open, high, low, close, volume)
    select :feed, ticker, :as_of, open, high, low, close, volume from jsonb_to_recordset(cast(:rows as jsonb))
      as r (ticker text, open float8, high float8, low float8, close float8, volume float8)
    on conflict (feed, ticker, as_of) do update set open = excluded.open, high = excluded.high, low = excluded.low,
      close = excluded.close, volume = excluded.volume, delivered_at = now()
    """
)

ENSURE_PARTITION = text("select ensure_partition('forecasts', 'month', :as_of)")

# A forecast that is there already stays as it is, with its judgement; the heads only move forward. Those that are new
# come back.
STORE_FORECASTS = text(
    """
    with incoming as materialized (
      select * from jsonb_to_recordset(cast(:rows as jsonb)) as r (
        ticker text, model text, id uuid, due_at timestamptz,
        last_price float8, mean float8, lower float8, upper float8, features jsonb)
    ), stored as (
      insert into forecasts (feed, ticker, horizon, model, as_of, id, due_at, last_price, mean, lower, upper, features)
      select :feed, ticker, :horizon, model, :as_of, id, due_at, last_price, mean, lower, upper, features from incoming
      on conflict (feed, ticker, horizon, model, as_of) do nothing
      returning id
    ), heads as (
      insert into forecast_heads (feed, ticker, horizon, model, as_of, id)
      select :feed, ticker, :horizon, model, :as_of, id from incoming
      on conflict (feed, ticker, horizon, model) do update set as_of = excluded.as_of, id = excluded.id
      where forecast_heads.as_of < excluded.as_of
    )
    select id from stored
    """
)

# What judging made of forecasts of one moment. :as_of is bound so that only its partition is planned. A judgement may
# have waited for the database, so its age is taken off. What was not judged (superseded, a fault of our own) never
# takes the place of what was; a decision that stands while the model is away does, with its rules judged anew.
STORE_JUDGEMENTS = text(
    """
    update forecasts set features = forecasts.features || jsonb_build_object('llm', judged.llm),
      judged_at = case when judged.complete then now() - make_interval(secs => judged.age_s)
        else forecasts.judged_at end
    from (
      select id, cast(doc as jsonb) as llm, complete, age_s
      from unnest(cast(:ids as uuid[]), cast(:docs as text[]), cast(:complete as boolean[]), cast(:ages as float8[]))
        as given (id, doc, complete, age_s)
    ) as judged
    where forecasts.as_of = :as_of and forecasts.id = judged.id
      and (judged.complete or forecasts.judged_at is null or judged.llm #> '{policy,decision}' <> 'null')
    """
)

# The newest forecasts of a run, and how long ago each was judged by the database's clock; null where a stop or a crash
# came between storing and judging.
NEWEST = text(
    """
    select f.id, f.ticker, f.model, f.last_price, f.mean, f.lower, f.upper,
      cast(extract(epoch from now() - f.judged_at) as float8) as age_s, f.features -> 'llm' as llm
    from forecast_heads h join forecasts f on f.as_of = h.as_of and f.id = h.id
    where h.feed = :feed and h.horizon = :horizon and h.as_of = :as_of and f.as_of = :as_of
    """
)

# Forecasts older than their series' newest that still wait for a judgement: whoever judged them is gone.
ABANDONED = text(
    """
    select older.id, older.as_of, older.llm
    from forecast_heads h
    cross join lateral (
      select id, as_of, judged_at, features -> 'llm' as llm from forecasts
      where feed = h.feed and ticker = h.ticker and horizon = h.horizon and model = h.model and as_of < h.as_of
      order by as_of desc limit :look_back
    ) as older
    where h.feed = :feed and h.horizon = :horizon and older.judged_at is null
      and older.llm #>> '{policy,error}' = :waiting
    """
)

# The feed was asked and has nothing newer, so its newest prices still stand.
CONFIRM_BARS = text(
    """
    update bars set delivered_at = now() from forecast_heads h
    where h.feed = :feed and bars.feed = h.feed and bars.ticker = h.ticker and bars.as_of = h.as_of
    """
)


class Repository:
    """The forecast loop's door to Postgres. Every method is one short transaction and may raise `SQLAlchemyError`."""

    def __init__(self, engine: AsyncEngine, *, horizon: str) -> None:
        self._engine = engine
        self._horizon = horizon
        self._partitions: set[tuple[int, int]] = set()

    async def newest_run(self, source: str) -> Run | None:
        """The newest run of a source."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(NEWEST_RUN, {"source": source})).one_or_none()
        return None if row is None else Run(row.feed, row.last_as_of, row.done)

    async def begin_run(self, feed: str, source: str) -> None:
        """Make sure the run is known."""
        async with self._engine.begin() as connection:
            await connection.execute(BEGIN_RUN, {"feed": feed, "source": source})

    async def end_run(self, feed: str) -> None:
        """Say that the run reached its end."""
        async with self._engine.begin() as connection:
            await connection.execute(END_RUN, {"feed": feed})

    async def known(self, tickers: Sequence[str], as_of: datetime) -> dict[str, Known]:
        """Facts and texts per ticker that were known at a moment; every ticker asked for has an entry.

        They are ingested under tickers in capitals, however a feed writes them.
        """
        facts: dict[str, dict[str, Fact]] = {ticker.upper(): {} for ticker in tickers}
        texts: dict[str, list[str]] = {ticker: [] for ticker in facts}
        async with self._engine.connect() as connection:
            wanted = {"tickers": list(facts), "as_of": as_of}
            for row in await connection.execute(KNOWN_FACTS, wanted):
                facts[row.ticker][row.name] = Fact(row.name, row.value, row.as_of, row.source)
            for row in await connection.execute(RECENT_TEXTS, wanted | {"per_ticker": HEADLINES_PER_TICKER}):
                texts[row.ticker].append(row.text)
        return {ticker: Known(facts[ticker.upper()], tuple(texts[ticker.upper()])) for ticker in tickers}

    async def store_tick(
        self, feed: str, as_of: datetime, *, bars: Mapping[str, Bar], forecasts: Sequence[Forecast], complete: bool
    ) -> None:
        """Store bars and forecasts of (a part of) a tick; `complete` marks its last part. Twice is once.

        What a forecast was assigned is written with it or never: one that is there keeps the arm it was written with.
        """
        # Retention may drop a partition that was known; after a failure the next attempt looks again.
        fresh = (as_of.year, as_of.month) not in self._partitions
        self._partitions.discard((as_of.year, as_of.month))
        async with self._engine.begin() as connection:
            if fresh:
                await connection.execute(ENSURE_PARTITION, {"as_of": as_of})
            rows = json.dumps([bar_row(ticker, bar) for ticker, bar in bars.items()])
            await connection.execute(STORE_BARS, {"feed": feed, "as_of": as_of, "rows": rows})
            if forecasts:
                rows = json.dumps([forecast_row(forecast) for forecast in forecasts], allow_nan=False)
                values = {"feed": feed, "as_of": as_of, "horizon": self._horizon, "rows": rows}
                new = set((await connection.execute(STORE_FORECASTS, values)).scalars())
                await assign(connection, [row for one in forecasts if one.id in new for row in one.assigned])
            await connection.execute(TOUCH_RUN, {"feed": feed, "as_of": as_of, "complete": complete})
        self._partitions.add((as_of.year, as_of.month))

    async def store_judgements(self, rows: Callable[[bool], Sequence[JudgementRow]]) -> None:
        """Write judgements, a statement per moment, in one transaction; `rows` is asked under its shadow mode.

        What they say of exposures is noted in the same transaction.
        """
        noted: list[Noted] = []
        by_moment: dict[datetime, list[JudgementRow]] = {}
        async with self._engine.begin() as connection:
            for row in rows(await shadow_mode(connection)):
                by_moment.setdefault(row.as_of, []).append(row)
                noted.extend(row.noted)
            for as_of, group in by_moment.items():
                values = {
                    "as_of": as_of,
                    "ids": [row.id for row in group],
                    "docs": [json.dumps(row.llm, allow_nan=False) for row in group],
                    "complete": [row.complete for row in group],
                    "ages": [row.age_s for row in group],
                }
                await connection.execute(STORE_JUDGEMENTS, values)
            await note_judged(connection, noted)

    async def shadow_mode(self) -> bool:
        """Whether policy verdicts are only logged."""
        async with self._engine.connect() as connection:
            return await shadow_mode(connection)

    async def newest(self, feed: str, as_of: datetime) -> list[Stored]:
        """The forecasts of a run's newest moment."""
        values = {"feed": feed, "horizon": self._horizon, "as_of": as_of}
        async with self._engine.connect() as connection:
            rows = (await connection.execute(NEWEST, values)).all()
        return [
            Stored(
                row.id, row.ticker, PriceForecast(row.last_price, row.mean, row.lower, row.upper), row.age_s, row.llm
            )
            for row in rows
        ]

    async def give_up_abandoned(self, feed: str, reason: str) -> int:
        """Say of forecasts that a stop or a crash left behind why they are not judged; returns how many there were."""
        values = {"feed": feed, "horizon": self._horizon, "waiting": PENDING, "look_back": LOOK_BACK}
        async with self._engine.connect() as connection:
            found = (await connection.execute(ABANDONED, values)).all()
        rows = [
            JudgementRow(
                row.id,
                row.as_of,
                row.llm | {part: row.llm[part] | {"error": reason} for part in PARTS},
                complete=False,
                noted=tuple(Noted(part, row.id, None) for part in PARTS),
            )
            for row in found
        ]
        if rows:
            await self.store_judgements(lambda _shadow: rows)
        return len(rows)

    async def confirm_bars(self, feed: str) -> None:
        """Say that the newest bars of a feed are still its newest."""
        async with self._engine.begin() as connection:
            await connection.execute(CONFIRM_BARS, {"feed": feed})
