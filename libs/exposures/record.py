"""The table `exposures`: written when an arm is given, filled in once by the first judgement and once by the outcome.

A row says what a forecast was assigned, whatever was asked in the end: repairs and fallbacks stay with their arm, and
so does an answer that never came. Replays and later judgements of the same forecast leave it alone. Retention drops
partitions of `forecasts` and never touches this table, which has all that a report needs: one row for each forecast
and prompt that an experiment gave an arm, about 500 bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.judgement.types import Decision, Side
from libs.llm.types import Answer, AnswerStatus
from libs.upstreams.errors import DeadlineExceeded, FirstTokenTimeout, IdleTimeout, PromptTooLong, Refused

# Waiting for a slot of our own is no fault of an arm, so that `NoSlot` is none of these.
TIMEOUTS: Final = frozenset({DeadlineExceeded.code, FirstTokenTimeout.code, IdleTimeout.code})

# Statuses of a refusal that say nothing of the request: what to try again, and what is wrong with the address or key.
NOT_OF_THE_REQUEST: Final = frozenset({401, 403, 404, 408, 409, 425, 429})
_ANSWERED: Final = re.compile(r"answered (\d{3})\b")

Status: TypeAlias = AnswerStatus | Literal["skipped"]

ASSIGN = text(
    """
    insert into exposures (key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side)
    select * from unnest(cast(:keys as text[]), cast(:ids as uuid[]), cast(:phases as text[]), cast(:units as text[]),
      cast(:arms as text[]), cast(:feeds as text[]), cast(:tickers as text[]), cast(:horizons as text[]),
      cast(:moments as timestamptz[]), cast(:sides as text[]))
    on conflict (forecast_id, key) do nothing
    """
)

# Only the first judgement counts, and no answer counts for an arm that did not give it: where the arms changed between
# the assignment and the call, the call was another arm's or nobody's.
NOTE_JUDGED = text(
    """
    update exposures set judged_at = now(), call_id = judged.call_id, status = judged.status,
      timed_out = judged.timed_out, cached = judged.cached, total_ms = judged.total_ms, tokens = judged.tokens,
      allow = judged.allow, rules_allow = judged.rules_allow
    from unnest(cast(:keys as text[]), cast(:ids as uuid[]), cast(:arms as text[]), cast(:calls as uuid[]),
      cast(:statuses as text[]), cast(:timed_out as boolean[]), cast(:cached as boolean[]), cast(:total_ms as float4[]),
      cast(:tokens as integer[]), cast(:allow as boolean[]), cast(:rules_allow as boolean[]))
      as judged (key, forecast_id, arm, call_id, status, timed_out, cached, total_ms, tokens, allow, rules_allow)
    where exposures.forecast_id = judged.forecast_id and exposures.key = judged.key and exposures.judged_at is null
      and (judged.arm is null or exposures.arm = judged.arm)
    """
)

SETTLE = text(
    """
    update exposures set realised_return = come.made, settled_at = now()
    from unnest(cast(:ids as uuid[]), cast(:returns as float8[])) as come (forecast_id, made)
    where exposures.forecast_id = come.forecast_id and exposures.settled_at is null
    """
)


@dataclass(frozen=True, slots=True)
class Assigned:
    """A forecast that an experiment on the prompt `key` gave an arm. `unit` is the text it was drawn by."""

    key: str
    forecast_id: UUID
    phase: str
    unit: str
    arm: str
    feed: str
    ticker: str
    horizon: str
    as_of: datetime
    side: Side


@dataclass(frozen=True, slots=True)
class Noted:
    """What the first judgement of an exposure brought. `arm` is the arm that was asked, None where none was.

    `tokens` are those in and out and `total_ms` the whole time, a repair included; both are None where nothing could be
    asked. `allow` is None without a valid decision, and `rules_allow` where the prompt decides nothing.
    """

    key: str
    forecast_id: UUID
    arm: str | None
    call_id: UUID | None = None
    status: Status = "skipped"
    timed_out: bool = False
    cached: bool = False
    total_ms: float | None = None
    tokens: int | None = None
    allow: bool | None = None
    rules_allow: bool | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """The return that came of a forecast, as the price moved: the direction of an entry is not in it."""

    forecast_id: UUID
    realised_return: float


def note(
    key: str,
    forecast_id: UUID,
    *,
    answer: Answer | None,
    decision: Decision | None = None,
    rules_allow: bool | None = None,
    fault: str | None = None,
) -> Noted | None:
    """What to note of an answer to the prompt `key`; None for one that no experiment asked for.

    A version that cannot be asked must not stay unseen: where the request itself is why there is no answer, it is
    noted as an invalid answer that took no time and no tokens. `fault` says what broke before anything was asked, such
    as a template; it is None where nothing did, so that nobody is to blame.
    """
    if answer is None:
        status: Status = "skipped" if fault is None else "invalid"
        return Noted(key, forecast_id, None, status=status, rules_allow=rules_allow)
    if not answer.arm:
        return None
    if answer.status == "unavailable" and _of_the_request(answer.error or ""):
        return Noted(key, forecast_id, answer.arm, answer.call_id, status="invalid", rules_allow=rules_allow)
    code = (answer.error or "").partition(":")[0]
    return Noted(
        key=key,
        forecast_id=forecast_id,
        arm=answer.arm,
        call_id=answer.call_id,
        status=answer.status,
        timed_out=answer.status == "unavailable" and code in TIMEOUTS,
        cached=answer.cached,
        total_ms=answer.total_ms,
        tokens=answer.tokens_in + answer.tokens_out,
        allow=None if decision is None else decision.allow,
        rules_allow=rules_allow,
    )


def _of_the_request(error: str) -> bool:
    """Whether the error of an answer, as `CODE: words`, says that this request would never be answered."""
    code, _, said = error.partition(": ")
    if code != Refused.code:
        return code == PromptTooLong.code
    answered = _ANSWERED.match(said)  # else the engine refused inside its stream, which it does with 4xx only
    status = 400 if answered is None else int(answered[1])
    return 400 <= status < 500 and status not in NOT_OF_THE_REQUEST


async def assign(connection: AsyncConnection, rows: Sequence[Assigned]) -> None:
    """Write exposures in the caller's transaction; one that is there stays as it is. Nothing to write costs nothing."""
    if not rows:
        return
    values = {
        "keys": [row.key for row in rows],
        "ids": [row.forecast_id for row in rows],
        "phases": [row.phase for row in rows],
        "units": [row.unit for row in rows],
        "arms": [row.arm for row in rows],
        "feeds": [row.feed for row in rows],
        "tickers": [row.ticker for row in rows],
        "horizons": [row.horizon for row in rows],
        "moments": [row.as_of for row in rows],
        "sides": [row.side for row in rows],
    }
    await connection.execute(ASSIGN, values)


async def note_judged(connection: AsyncConnection, rows: Sequence[Noted]) -> None:
    """Fill in first judgements in the caller's transaction; where one is noted already, nothing changes."""
    if not rows:
        return
    values = {
        "keys": [row.key for row in rows],
        "ids": [row.forecast_id for row in rows],
        "arms": [row.arm for row in rows],
        "calls": [row.call_id for row in rows],
        "statuses": [row.status for row in rows],
        "timed_out": [row.timed_out for row in rows],
        "cached": [row.cached for row in rows],
        "total_ms": [row.total_ms for row in rows],
        "tokens": [row.tokens for row in rows],
        "allow": [row.allow for row in rows],
        "rules_allow": [row.rules_allow for row in rows],
    }
    await connection.execute(NOTE_JUDGED, values)


async def settle(connection: AsyncConnection, rows: Sequence[Settled]) -> None:
    """Fill in outcomes in the caller's transaction; an outcome that is there stays as it is."""
    if not rows:
        return
    values = {"ids": [row.forecast_id for row in rows], "returns": [row.realised_return for row in rows]}
    await connection.execute(SETTLE, values)
