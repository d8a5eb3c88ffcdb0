"""One call to a model as it is kept, and its two rows: narrow (`llm_calls`) and whole (`llm_bodies`)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, cast
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
    set and `retry_of` naming the call it repairs. Times are in `time`, milliseconds.
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
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)
    time: TimeSplit = field(default_factory=TimeSplit)


def row_of(record: CallRecord, service: str) -> dict[str, Any]:
    """The columns of both tables as JSON can carry them (ids and times as text, documents as JSON text)."""
    return {
        "ts": time_of(record.id).isoformat(),
        "id": str(record.id),
        "service": service,
        "prompt_key": record.prompt_key,
        "prompt_version": record.prompt_version,
        "prompt_hash": record.prompt_hash,
        "arm": record.arm,
        "upstream": record.upstream,
        "model": record.model,
        "subject": storable_text(record.subject),
        "success": record.status == "ok",
        "status": record.status,
        "error": None if record.error is None else storable_text(record.error),
        "cached": record.cached,
        "attempts": record.attempts,
        "repaired": record.repaired,
        "retry_of": None if record.retry_of is None else str(record.retry_of),
        "queue_ms": record.time.queue_ms,
        "connect_ms": record.time.connect_ms,
        "first_token_ms": record.time.first_token_ms,
        "total_ms": record.time.total_ms,
        "tokens_in": record.usage.tokens_in,
        "tokens_out": record.usage.tokens_out,
        "finish_reason": storable_text(record.finish_reason),
        "messages": _json([{"role": message.role, "content": message.content} for message in record.messages]),
        "sampling": _json({name: getattr(record.sampling, name) for name in _SAMPLING_FIELDS}),
        "inputs": None if record.inputs is None else _json(record.inputs),
        "reply": storable_text(record.reply),
    }


def storable_text(text: str) -> str:
    """The text as Postgres can keep it: NUL and lone surrogates become U+FFFD, everything else stays."""
    if is_storable(text):
        return text
    return "".join(char if is_storable(char) else REPLACEMENT for char in text)


def _json(value: Any) -> str:
    """JSON text that Postgres takes as jsonb. What JSON has no form for (dates, decimals) is written as text."""
    try:
        encoded = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
        if b"\\u0000" not in encoded:
            return encoded.decode()
    except (TypeError, ValueError):
        pass
    return json.dumps(_storable(value), ensure_ascii=False, default=str)


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
