"""What a replay starts from: a call as it was kept, and the forecast it was made for."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.judgement.assess import POLICY, RATIONALE
from libs.judgement.inputs import prompt_inputs
from libs.judgement.record import RecordError, inputs_from_record
from libs.judgement.rules import Rules
from libs.judgement.types import Inputs
from libs.llm.call_record import time_of
from libs.upstreams.types import Message, Sampling

JUDGED: Final = frozenset({RATIONALE, POLICY})
"""The prompts whose calls belong to a forecast."""
DATA_PLANE = "v1/"
"""How the prompt keys of calls that clients of the gateway made begin."""
UUID_VERSION_WITH_TIME = 7
LAST_MS = 253_402_214_400_000  # the last day of 9999; a datetime cannot say more
SAMPLING_FIELDS = frozenset(one.name for one in fields(Sampling))
MARGIN = timedelta(seconds=1)
"""How far a row's ts and the time in its id may lie apart."""

# A call and what was sent and received, where that was kept. Both bounds on ts prune to the partitions of the calls.
CALL_WITH_BODY = """
    select c.id, c.prompt_key, c.prompt_version, c.prompt_hash, c.upstream, c.model, c.subject, c.status, c.error,
      c.finish_reason, c.retry_of, c.replay_of, b.messages, b.sampling, b.inputs, b.reply, b.id is not null as has_body
    from llm_calls c
    left join llm_bodies b on b.ts = c.ts and b.id = c.id and b.ts between :since and :until
    where c.ts between :since and :until
"""
CALL = text(f"{CALL_WITH_BODY} and c.id = :id")
CALLS = text(f"{CALL_WITH_BODY} and c.id = any(:ids)")

# The forecasts of a ticker's day, by the primary key of each feed's; newest written first. Those written after the call
# was made come last, and only as far as two clocks may differ: a call is made for what is there.
FORECASTS = text(
    """
    select f.id, f.feed, f.ticker, f.as_of, f.llm
    from feeds cross join lateral (
      select id, feed, ticker, as_of, ts, features -> 'llm' as llm from forecasts
      where feed = feeds.feed and ticker = :ticker and as_of >= :since and as_of < :until and ts <= :latest
    ) as f
    order by f.ts > :made, f.ts desc, f.id
    """
)


@dataclass(frozen=True, slots=True)
class OriginalCall:
    """One call of the house's own as it was kept.

    `status` is ok, invalid, failed, timed_out or cancelled; `reply` is empty where none came. `inputs` are the
    variables of the prompt, with the names inside them in alphabetical order, as they are made: a database keeps
    objects in an order of its own. None where a call had none.
    """

    id: UUID
    prompt_key: str
    prompt_version: str
    prompt_hash: str
    upstream: str
    model: str
    subject: str
    status: str
    error: str | None
    finish_reason: str
    retry_of: UUID | None
    replay_of: UUID | None
    messages: tuple[Message, ...]
    sampling: Sampling
    inputs: Mapping[str, Any] | None
    reply: str
    has_body: bool

    @property
    def ours(self) -> bool:
        """Whether a prompt version of the house stands behind it."""
        return not self.prompt_key.startswith(DATA_PLANE)


@dataclass(frozen=True, slots=True)
class OriginalForecast:
    """The forecast a call was made for. `llm` is its record, `stands` whether this very call is the one in it.

    A forecast that was judged again names its last call only.
    """

    id: UUID
    feed: str
    ticker: str
    as_of: datetime
    llm: Mapping[str, Any]
    inputs: Inputs
    stands: bool


async def call_by_id(connection: AsyncConnection, call_id: UUID) -> OriginalCall | None:
    """A call with what was sent and received, where that was kept; None when there is none of that id."""
    if call_id.version != UUID_VERSION_WITH_TIME or call_id.int >> 80 > LAST_MS:
        return None
    ts = time_of(call_id)
    found = await connection.execute(CALL, {"id": call_id, "since": ts - MARGIN, "until": ts + MARGIN})
    row = found.mappings().one_or_none()
    return None if row is None else call_of(row)


def call_of(row: RowMapping) -> OriginalCall:
    """A call from a row of `CALL`. Of a gateway client's body only the reply is read: it may hold anything."""
    own = not str(row["prompt_key"]).startswith(DATA_PLANE)
    messages = cast("list[dict[str, Any]]", row["messages"] if own and row["messages"] else [])
    sampling = cast("dict[str, Any]", row["sampling"] if own and row["sampling"] else {})
    columns: dict[str, Any] = {one.name: row[one.name] for one in fields(OriginalCall)} | {
        "messages": tuple(Message(one["role"], one["content"]) for one in messages),
        "sampling": Sampling(**{name: value for name, value in sampling.items() if name in SAMPLING_FIELDS}),
        "inputs": in_order(row["inputs"]),
        "reply": row["reply"] or "",
    }
    return OriginalCall(**columns)


def in_order(value: Any) -> Any:
    """The same JSON with the names of every object in alphabetical order."""
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value)
        return {name: in_order(entries[name]) for name in sorted(entries)}
    if isinstance(value, list):
        return [in_order(entry) for entry in cast("list[Any]", value)]
    return value


async def forecast_of(connection: AsyncConnection, call: OriginalCall, *, rules: Rules) -> OriginalForecast | None:
    """The forecast that a call for a policy or a rationale was made for; None for other calls, and where it is gone.

    The call's subject names its ticker and day. Among these forecasts it is the one that names the call (or the call
    that this one replays), else one whose inputs make the same variables: the call was for an earlier judgement of it.
    """
    ticker, _, day = call.subject.rpartition(" ")
    since = day_of(day)
    if call.prompt_key not in JUDGED or not ticker or since is None:
        return None
    made = time_of(call.id)
    day_and_call = {"since": since, "until": since + timedelta(days=1), "made": made, "latest": made + MARGIN}
    found = await connection.execute(FORECASTS, {"ticker": ticker, **day_and_call})
    candidates = [one for row in found.mappings() if (one := candidate(row, call)) is not None]
    for one in candidates:
        if one.stands or is_named(one, call.prompt_key, call.replay_of):
            return one
    return next((one for one in candidates if variables_of(one, rules) == call.inputs), None)


def variables_of(forecast: OriginalForecast, rules: Rules) -> Mapping[str, Any]:
    """The variables that prompts are rendered with for a forecast, in alphabetical order."""
    return in_order(prompt_inputs(forecast.inputs, rules, feed=forecast.feed))


def day_of(text: str) -> datetime | None:
    """The beginning of an ISO day, or None for any other text."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def candidate(row: RowMapping, call: OriginalCall) -> OriginalForecast | None:
    """A forecast with readable inputs; None for any other."""
    llm: Mapping[str, Any] = row["llm"] or {}
    try:
        inputs = inputs_from_record(llm)
    except RecordError:
        return None
    found = OriginalForecast(row["id"], row["feed"], row["ticker"], row["as_of"], llm, inputs, stands=False)
    return replace(found, stands=is_named(found, call.prompt_key, call.id))


def is_named(forecast: OriginalForecast, key: str, call_id: UUID | None) -> bool:
    """Whether a forecast's record names this call under the prompt `key`."""
    block = forecast.llm.get(key)
    named: Any = cast("Mapping[str, Any]", block).get("call_id") if isinstance(block, Mapping) else None
    return call_id is not None and named == str(call_id)
