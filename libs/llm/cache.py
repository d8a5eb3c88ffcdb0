"""Replies kept for the same question: the table `llm_cache`.

The key covers everything that can change the answer, so a changed prompt, model or sampling never meets an old reply.
The cache is a convenience: while the database is away or slow, everything is a miss and nothing fails or waits for it.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
import structlog
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.call_record import storable_text
from libs.llm.coalesce import Coalescer
from libs.llm.types import PromptVersion
from libs.upstreams.types import ChatReply, ChatRequest, Usage

log = structlog.get_logger(__name__)

TIMEOUT_S = 1.0
REST_S = 2.0
SWEEP_EVERY = 100
SWEEP_ROWS = 1_000

cache_total = Counter("lexi_llm_cache_total", "Questions to the reply cache", ["outcome"])

FIND = text(
    "select key, text, finish_reason, model, upstream, tokens_in, tokens_out, call_id from llm_cache "
    "where key = any(cast(:keys as text[])) and expires_at > now()"
)
KEEP = text(
    "insert into llm_cache (key, text, finish_reason, model, upstream, tokens_in, tokens_out, call_id, expires_at) "
    "select key, text, finish_reason, model, upstream, tokens_in, tokens_out, call_id, "
    "now() + make_interval(secs => :ttl_s) "
    "from unnest(cast(:key as text[]), cast(:text as text[]), cast(:finish_reason as text[]), cast(:model as text[]), "
    "cast(:upstream as text[]), cast(:tokens_in as integer[]), cast(:tokens_out as integer[]), "
    "cast(:call_id as uuid[])) "
    "as given(key, text, finish_reason, model, upstream, tokens_in, tokens_out, call_id) "
    "on conflict (key) do update set text = excluded.text, finish_reason = excluded.finish_reason, "
    "model = excluded.model, upstream = excluded.upstream, tokens_in = excluded.tokens_in, "
    "tokens_out = excluded.tokens_out, call_id = excluded.call_id, created_at = now(), "
    "expires_at = excluded.expires_at"
)
SWEEP = text(
    "delete from llm_cache where key in (select key from llm_cache where expires_at < now() "
    "order by expires_at limit :most for update skip locked)"
)
_KEPT = ("key", "text", "finish_reason", "model", "upstream", "tokens_in", "tokens_out", "call_id")


@dataclass(frozen=True, slots=True)
class Cached:
    """A kept reply and the call it came from."""

    reply: ChatReply
    call_id: UUID


def cache_key(request: ChatRequest, prompt: PromptVersion, *, model: str, place: str) -> str:
    """sha256 over the upstream's model and place, the prompt's key, version and hash, messages, sampling, constraint.

    The place (`Engine.place_of`) is in it since servers of different models may go by one model name.
    """
    constraint, sampling = request.constraint, request.sampling
    content: list[Any] = [
        2,
        model,
        place,
        prompt.key,
        prompt.version,
        prompt.sha256,
        [[message.role, message.content] for message in request.messages],
        [sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed],
        None if constraint is None else [constraint.schema, constraint.choice],
    ]
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


class ReplyCache:
    """Kept replies with an end. Both methods answer at once while the database is away, and never raise for it.

    `within_s` is the most seconds they may wait for it; no more than `TIMEOUT_S` in any case.
    """

    def __init__(self, engine: AsyncEngine, *, ttl_s: float) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")  # single statements: no round trips more
        self._ttl_s = ttl_s
        self._resting_until = 0.0
        self._writes = 0
        self._finds = Coalescer[str, Cached | None](self._find)
        self._keeps = Coalescer[tuple[str, Cached], None](self._keep)

    async def get(self, key: str, *, within_s: float = TIMEOUT_S) -> Cached | None:
        """The reply kept under `key`, None where there is none, it has ended, or the database is away."""
        found = None
        if self._usable():
            try:
                async with asyncio.timeout(min(within_s, TIMEOUT_S)):
                    found = await self._finds.ask(key)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                self._rest(error)
        cache_total.labels("miss" if found is None else "hit").inc()
        return found

    async def put(self, key: str, reply: ChatReply, *, call_id: UUID, within_s: float = TIMEOUT_S) -> None:
        """Keep a reply for the cache's time to live."""
        if not self._usable():
            return
        try:
            async with asyncio.timeout(min(within_s, TIMEOUT_S)):
                await self._keeps.ask((key, Cached(reply, call_id)))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            self._rest(error)

    def _usable(self) -> bool:
        return self._ttl_s > 0 and time.monotonic() >= self._resting_until

    def _rest(self, error: Exception) -> None:
        """Leave the database alone for a while, so that calls do not each wait for it."""
        self._resting_until = time.monotonic() + REST_S
        cache_total.labels("away").inc()
        log.warning("cache_away", error=type(error).__name__)

    async def _find(self, keys: Sequence[str]) -> list[Cached | None]:
        async with self._engine.connect() as connection:
            rows = (await connection.execute(FIND, {"keys": list(set(keys))})).all()
        found = {
            row.key: Cached(
                ChatReply(
                    text=row.text,
                    finish_reason=row.finish_reason,
                    upstream=row.upstream,
                    model=row.model,
                    usage=Usage(row.tokens_in, row.tokens_out),
                ),
                row.call_id,
            )
            for row in rows
        }
        return [found.get(key) for key in keys]

    async def _keep(self, entries: Sequence[tuple[str, Cached]]) -> list[None]:
        newest = dict(entries)
        rows = [
            (
                key,
                storable_text(kept.reply.text),
                kept.reply.finish_reason,
                kept.reply.model,
                kept.reply.upstream,
                kept.reply.usage.tokens_in,
                kept.reply.usage.tokens_out,
                kept.call_id,
            )
            for key, kept in sorted(newest.items())
        ]
        columns = {name: [row[number] for row in rows] for number, name in enumerate(_KEPT)}
        self._writes += 1
        async with self._engine.connect() as connection:
            await connection.execute(KEEP, {**columns, "ttl_s": self._ttl_s})
            if self._writes % SWEEP_EVERY == 0:
                await connection.execute(SWEEP, {"most": SWEEP_ROWS})
        return [None] * len(entries)
