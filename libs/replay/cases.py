"""Judgements as they were recorded, with the calls behind them: what exact replay needs, from a file or the database.

A file holds one case per line, as JSON.
"""

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.judgement.assess import POLICY, RATIONALE
from libs.llm.call_record import time_of
from libs.replay.originals import CALLS, MARGIN, SAMPLING_FIELDS, UUID_VERSION_WITH_TIME, OriginalCall, call_of
from libs.upstreams.types import Message, Sampling

KEYS = (RATIONALE, POLICY)
PAGE = 200

# Which forecasts, gathered once: the order they were written in is that of no index, and looking for each page in it
# would read the whole period every time. The table goes with the connection.
CLEAR = text("drop table if exists pg_temp.replay_cases")
MAKE = text(
    "create temporary table replay_cases (position bigint primary key, id uuid not null, as_of timestamptz not null)"
)
GATHER = text(
    """
    insert into pg_temp.replay_cases (position, id, as_of)
    select row_number() over (order by ts, id), id, as_of from forecasts
    where ts >= :since and ts < :until and judged_at is not null
    """
)

# The limit keeps the look-up one of single rows, each in the one partition that its as_of names.
NEXT = text(
    """
    select f.*, wanted.position
    from (
      select position, id, as_of from pg_temp.replay_cases where position > :after order by position limit :page
    ) as wanted
    left join lateral (
      select id, feed, ticker, as_of, features -> 'llm' as llm from forecasts
      where forecasts.as_of = wanted.as_of and forecasts.id = wanted.id limit 1
    ) as f on true
    order by wanted.position
    """
)


class CaseFileError(Exception):
    """A file of cases cannot be read; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Case:
    """One judged forecast: its record (`features.llm`) and, by prompt, the calls whose answers stand in it.

    The calls of a prompt stand in the order they were made: the question, then its repair turn where there was one.
    A prompt without an answer, and one whose calls are not kept any more, has none.
    """

    forecast_id: UUID
    feed: str
    ticker: str
    as_of: datetime
    llm: Mapping[str, Any]
    calls: Mapping[str, tuple[OriginalCall, ...]]

    def __str__(self) -> str:
        return f"forecast {self.forecast_id} ({self.feed}, {self.ticker}, {self.as_of.isoformat()})"

    def line(self) -> str:
        """The case as one line of a file."""
        document = {
            "forecast_id": str(self.forecast_id),
            "feed": self.feed,
            "ticker": self.ticker,
            "as_of": self.as_of.isoformat(),
            "llm": self.llm,
            "calls": {key: [asdict(call) for call in calls] for key, calls in self.calls.items()},
        }
        return json.dumps(document, default=str, ensure_ascii=False, allow_nan=False)


def read_cases(path: Path) -> Iterator[Case]:
    """The cases of a file. Raises `CaseFileError`."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield case_from(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise CaseFileError(f"{path}, line {number}: {type(error).__name__}: {error}") from error


def case_from(document: Mapping[str, Any]) -> Case:
    """A case as `Case.line` wrote it."""
    return Case(
        forecast_id=UUID(document["forecast_id"]),
        feed=document["feed"],
        ticker=document["ticker"],
        as_of=datetime.fromisoformat(document["as_of"]),
        llm=document["llm"],
        calls={key: tuple(call_from(call) for call in calls) for key, calls in document["calls"].items()},
    )


def call_from(document: Mapping[str, Any]) -> OriginalCall:
    """A call from its JSON."""
    columns: dict[str, Any] = {one.name: document[one.name] for one in fields(OriginalCall)}
    for name in ("id", "retry_of", "replay_of"):
        columns[name] = None if columns[name] is None else UUID(columns[name])
    columns["messages"] = tuple(Message(**message) for message in columns["messages"])
    columns["sampling"] = Sampling(**{name: columns["sampling"][name] for name in SAMPLING_FIELDS})
    return OriginalCall(**columns)


async def stored_cases(engine: AsyncEngine, *, since: datetime, until: datetime) -> AsyncGenerator[Case, None]:
    """The judged forecasts written in [since, until), oldest first, each with the calls behind it.

    No transaction stays open between two pages. A forecast that retention takes meanwhile is passed over.
    """
    async with engine.connect() as connection:
        async with connection.begin():
            await connection.execute(CLEAR)
            await connection.execute(MAKE)
            await connection.execute(GATHER, {"since": since, "until": until})
        after = 0
        while True:
            async with connection.begin():
                rows = (await connection.execute(NEXT, {"after": after, "page": PAGE})).mappings().all()
                there = [row for row in rows if row["id"] is not None]
                calls = await calls_behind(connection, [row["llm"] for row in there])
            for row in there:
                yield case_of(row, calls)
            if len(rows) < PAGE:
                return
            after = rows[-1]["position"]


def case_of(row: RowMapping, calls: Mapping[UUID, OriginalCall]) -> Case:
    """A case from a row of `forecasts` and the calls that are kept."""
    llm: Mapping[str, Any] = row["llm"] or {}
    chains = {key: tuple(chain(call_id_of(llm, key), calls)) for key in KEYS}
    return Case(row["id"], row["feed"], row["ticker"], row["as_of"], llm, chains)


def call_id_of(llm: Mapping[str, Any], key: str) -> UUID | None:
    """The call whose answer stands in a record; None where there is none, or nothing readable."""
    block = llm.get(key)
    named: Any = cast("Mapping[str, Any]", block).get("call_id") if isinstance(block, Mapping) else None
    try:
        call_id = UUID(named) if isinstance(named, str) else None
    except ValueError:
        return None
    return call_id if call_id is not None and call_id.version == UUID_VERSION_WITH_TIME else None


def chain(call_id: UUID | None, calls: Mapping[UUID, OriginalCall]) -> list[OriginalCall]:
    """A call after the one it repairs; empty where one of them, or what it sent and received, is not kept."""
    found: list[OriginalCall] = []
    while call_id is not None:
        call = calls.get(call_id)
        if call is None or not call.has_body:
            return []
        found.insert(0, call)
        call_id = call.retry_of
    return found


async def calls_behind(connection: AsyncConnection, records: list[Mapping[str, Any]]) -> dict[UUID, OriginalCall]:
    """The calls that records name, and those which these repair, as far as they are kept."""
    known: dict[UUID, OriginalCall] = {}
    wanted = {call_id for llm in records for key in KEYS if (call_id := call_id_of(llm or {}, key)) is not None}
    while wanted:
        moments = [time_of(call_id) for call_id in wanted]
        where = {"ids": list(wanted), "since": min(moments) - MARGIN, "until": max(moments) + MARGIN}
        found = [call_of(row) for row in (await connection.execute(CALLS, where)).mappings()]
        known |= {call.id: call for call in found}
        wanted = {call.retry_of for call in found if call.retry_of is not None} - set(known)
    return known
