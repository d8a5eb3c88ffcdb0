"""One call to a model as it is kept, and its two rows: narrow (`llm_calls`) and whole (`llm_bodies`).

A row is a tuple in the order of its columns, made once and handed to the driver as it is.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeAlias, cast
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

from libs.llm.structured import is_storable
from libs.upstreams.types import Message, Sampling, TimeSplit, Usage

CallStatus: TypeAlias = Literal["ok", "invalid", "failed", "timed_out", "cancelled"]

REPLACEMENT = "\ufffd"
_SAMPLING_FIELDS = tuple(one.name for one in fields(Sampling))


def new_call_id() -> UUID:
    """A UUIDv7: its first 48 bits are the time, so the id alone finds the partition."""
    return uuid7()


def time_of(call_id: UUID) -> datetime:
    """The moment inside a UUIDv7, to the millisecond: the `ts` of the call's rows."""
    return datetime.fromtimestamp((call_id.int >> 80) / 1000, UTC)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """Everything kept of one call, whatever came of it.

    `attempts` counts requests that went out, 0 for a cached reply. A repair turn is a call of its own with `repaired`
    set and `retry_of` naming the call it repairs. `replay_of` names the call that this one asks again, on purpose and
    outside of every experiment. Times are in `time`, milliseconds. `request_id` is of what the call follows from: an
    HTTP request, a tick, a job.
    """

    id: UUID
    prompt_key: str
    prompt_version: str
    prompt_hash: str
    upstream: str
    model: str
    status: CallStatus
    messages: tuple[Message, ...]
    sampling: Sampling
    inputs: Mapping[str, Any] | None
    reply: str = ""
    arm: str = ""
    subject: str = ""
    error: str | None = None
    cached: bool = False
    attempts: int = 0
    repaired: bool = False
    retry_of: UUID | None = None
    replay_of: UUID | None = None
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)
    time: TimeSplit = field(default_factory=TimeSplit)
    request_id: str = ""


class CallRow(NamedTuple):
    """One row of `llm_calls`. `caller` is the name of a key, empty for the house's own calls."""

    ts: datetime
    id: UUID
    service: str
    prompt_key: str
    prompt_version: str
    prompt_hash: str
    arm: str
    upstream: str
    model: str
    subject: str
    success: bool
    status: CallStatus
    error: str | None
    cached: bool
    attempts: int
    repaired: bool
    retry_of: UUID | None
    queue_ms: float
    connect_ms: float
    first_token_ms: float
    total_ms: float
    tokens_in: int
    tokens_out: int
    finish_reason: str
    caller: str = ""
    request_id: str = ""
    http_status: int | None = None
    streamed: bool = False
    replay_of: UUID | None = None


class BodyRow(NamedTuple):
    """One row of `llm_bodies`; documents are JSON text."""

    ts: datetime
    id: UUID
    messages: str
    sampling: str
    inputs: str | None
    reply: str

    @property
    def size(self) -> int:
        """Characters kept."""
        return len(self.messages) + len(self.sampling) + len(self.inputs or "") + len(self.reply)


class Kept(NamedTuple):
    """What is kept of one call; `body` is None where bodies are not."""

    call: CallRow
    body: BodyRow | None = None


def rows_of(record: CallRecord, service: str) -> Kept:
    """The rows of a call of the house's own."""
    ts = time_of(record.id)
    call = CallRow(
        ts=ts,
        id=record.id,
        service=service,
        prompt_key=record.prompt_key,
        prompt_version=record.prompt_version,
        prompt_hash=record.prompt_hash,
        arm=record.arm,
        upstream=record.upstream,
        model=record.model,
        subject=storable_text(record.subject),
        success=record.status == "ok",
        status=record.status,
        error=None if record.error is None else storable_text(record.error),
        cached=record.cached,
        attempts=record.attempts,
        repaired=record.repaired,
        retry_of=record.retry_of,
        queue_ms=record.time.queue_ms,
        connect_ms=record.time.connect_ms,
        first_token_ms=record.time.first_token_ms,
        total_ms=record.time.total_ms,
        tokens_in=record.usage.tokens_in,
        tokens_out=record.usage.tokens_out,
        finish_reason=storable_text(record.finish_reason),
        request_id=record.request_id,
        replay_of=record.replay_of,
    )
    body = BodyRow(
        ts=ts,
        id=record.id,
        messages=json_text([{"role": message.role, "content": message.content} for message in record.messages]),
        sampling=json_text({name: getattr(record.sampling, name) for name in _SAMPLING_FIELDS}),
        inputs=None if record.inputs is None else json_text(record.inputs),
        reply=storable_text(record.reply),
    )
    return Kept(call, body)


def line_of(kept: Kept) -> bytes:
    """Both rows as one line of JSON."""
    columns = kept.call._asdict() | ({} if kept.body is None else kept.body._asdict())
    return orjson.dumps(columns)


def kept_of(columns: Mapping[str, Any]) -> Kept:
    """The rows of a line as `line_of` wrote it, in this release or an earlier one. Only `ts` and `id` must be there.

    What else is missing or of a wrong type is left for the database to refuse.
    """
    ts, call_id = datetime.fromisoformat(columns["ts"]).astimezone(UTC), UUID(columns["id"])
    given = {**CallRow._field_defaults, **columns, "ts": ts, "id": call_id}
    call = CallRow(*(given.get(name) for name in CallRow._fields))  # pyright: ignore[reportArgumentType]
    if "messages" not in columns:
        return Kept(call)
    return Kept(call, BodyRow(*(given.get(name) for name in BodyRow._fields)))  # pyright: ignore[reportArgumentType]


def storable_text(text: str) -> str:
    """The text as Postgres can keep it: NUL and lone surrogates become U+FFFD, everything else stays."""
    if is_storable(text):
        return text
    return "".join(char if is_storable(char) else REPLACEMENT for char in text)


def json_text(value: Any) -> str:
    """JSON text that Postgres takes as jsonb. What JSON has no form for (dates, decimals) is written as text."""
    try:
        encoded = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
        if b"\\u0000" not in encoded:
            return encoded.decode()
    except (TypeError, ValueError):
        pass
    try:
        return json.dumps(_storable(value), ensure_ascii=False, default=str)
    except RecursionError:
        return '"nested too deeply to be kept"'


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        return {storable_text(str(name)): _storable(entry) for name, entry in entries.items()}
    if isinstance(value, list | tuple):
        return [_storable(entry) for entry in cast("list[Any]", value)]
    return value
