"""Calls on record: a page of them, and one whole."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.llm.call_record import time_of

Row = RowMapping

UUID_VERSION_WITH_TIME = 7
LAST_MS = 253_402_214_400_000  # the last day of 9999; a datetime cannot say more
MARGIN = timedelta(seconds=1)
"""How far a row's ts and the time in its id may lie apart."""

CALL_COLUMNS = """
    c.id, c.ts, c.service, c.prompt_key, c.prompt_version, c.prompt_hash, c.arm, c.upstream, c.model, c.subject,
    c.success, c.status, c.error, c.cached, c.attempts, c.repaired, c.retry_of, c.queue_ms, c.connect_ms,
    c.first_token_ms, c.total_ms, c.tokens_in, c.tokens_out, c.finish_reason, c.caller, c.request_id, c.http_status,
    c.streamed, c.replay_of
"""

# The conditions of a page of calls. They are put together as needed, not switched off by nulls, so that a prepared plan
# can start at `before` in the index on id. The bound on ts lets partitions above the page be skipped. The conditions on
# caller without a parameter are those of the partial indexes: one of the callers', one of the house's own calls.
CALL_CONDITIONS = {
    "before": "c.id < :before",
    "before_ts": "c.ts <= :before_ts",
    "prompt_key": "c.prompt_key = :prompt_key",
    "version": "c.prompt_version = :version",
    "success": "c.success = :success",
    "caller": "c.caller = :caller and c.caller <> ''",
}
OWN_CALLS = "c.caller = ''"
DATA_PLANE = "v1/"
"""How the prompt keys of calls that callers made begin."""

# One call and what was sent and received, where that was kept. Both bounds on ts prune to one partition or two.
CALL = text(
    f"""
    select {CALL_COLUMNS}, b.messages, b.sampling, b.inputs, b.reply, b.id is not null as has_body
    from llm_calls c
    left join llm_bodies b on b.ts = c.ts and b.id = c.id and b.ts between :since and :until
    where c.id = :id and c.ts between :since and :until
    """
)


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls a page holds; None does not filter."""

    prompt_key: str | None = None
    version: str | None = None
    success: bool | None = None
    caller: str | None = None

    @property
    def own(self) -> bool:
        """Whether only calls of the house's own can match: nobody else's have prompts."""
        return bool(self.version) or (self.prompt_key is not None and not self.prompt_key.startswith(DATA_PLANE))


def _moment(call_id: UUID) -> datetime | None:
    """When a call's id was made; None for an id that is not of a call."""
    if call_id.version != UUID_VERSION_WITH_TIME or call_id.int >> 80 > LAST_MS:
        return None
    return time_of(call_id)


def calls_page(asked: Collection[str], *, own: bool) -> TextClause:
    """The query of a page under the conditions `asked` (names of CALL_CONDITIONS); `own` as `CallFilter.own`."""
    conditions = [CALL_CONDITIONS[name] for name in asked] + ([OWN_CALLS] if own else [])
    given_or_all = " and ".join(conditions) or "true"
    return text(f"select {CALL_COLUMNS} from llm_calls c where {given_or_all} order by c.id desc limit :limit")


async def calls(connection: AsyncConnection, *, limit: int, before: UUID | None, where: CallFilter) -> Sequence[Row]:
    """Up to `limit` calls older than the call `before`, newest first."""
    made = None if before is None else _moment(before)
    given: dict[str, Any] = {
        "before": before,
        "before_ts": None if made is None else made + MARGIN,
        "prompt_key": where.prompt_key,
        "version": where.version,
        "success": where.success,
        "caller": where.caller,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    page = calls_page(asked, own=where.own)
    return (await connection.execute(page, {**asked, "limit": limit})).mappings().all()


async def call(connection: AsyncConnection, call_id: UUID) -> Row | None:
    """One call with its bodies (`has_body` says whether they were kept), None when there is none of that id."""
    ts = _moment(call_id)
    if ts is None:
        return None
    found = await connection.execute(CALL, {"id": call_id, "since": ts - MARGIN, "until": ts + MARGIN})
    return found.mappings().one_or_none()
