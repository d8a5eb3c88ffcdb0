"""Rows of `replays` that no batch made: what came of one call, asked again."""

import json
from dataclasses import dataclass
from typing import Literal, TypeAlias
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.llm.call_record import new_call_id, storable_text
from libs.llm.types import Answer, PromptVersion
from libs.replay.difference import Json, Outcome, difference, flip, outcome_from
from libs.replay.originals import OriginalCall, OriginalForecast

Source: TypeAlias = Literal["recorded", "model"]

STORE = text(
    """
    insert into replays (id, call_id, forecast_id, as_of, ticker, prompt_key, prompt_version, prompt_hash, source,
      new_call_id, status, error, before, after, flip, total_ms, tokens_in, tokens_out, asked_by)
    values (:id, :call_id, :forecast_id, :as_of, :ticker, :prompt_key, :prompt_version, :prompt_hash, :source,
      :new_call_id, :status, :error, cast(:before as jsonb), cast(:after as jsonb), :flip, :total_ms, :tokens_in,
      :tokens_out, :asked_by)
    """
)

# The last time the inputs of a call went through this very version and an answer came.
EARLIER = text(
    """
    select id, status, error, before, after from replays
    where batch_id is null and call_id = :call_id and prompt_version = :prompt_version
      and prompt_hash = :prompt_hash and source = 'model' and status in ('ok', 'invalid')
    order by at desc limit 1
    """
)


@dataclass(frozen=True, slots=True)
class Original:
    """A call, the forecast it was made for if there is one, and what its answer came to.

    `rules_now` is what the rules in code say of the forecast's inputs today.
    """

    call: OriginalCall
    forecast: OriginalForecast | None
    before: Outcome
    rules_now: bool | None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay. `id` is its row in `replays`, `replay_of` the call it started from.

    `status` is that of the answer: ok, invalid or unavailable. `after.value` is None unless it is ok. `cached` says
    that the model was not called for it: the answer is the recorded one, or that of an earlier replay.
    """

    id: UUID
    replay_of: UUID
    before: Outcome
    after: Outcome
    status: str
    error: str | None
    cached: bool
    prompt_key: str
    prompt_version: str
    prompt_hash: str

    @property
    def success(self) -> bool:
        """Whether the answer is valid."""
        return self.status == "ok"

    @property
    def diff(self) -> Json:
        """What differs, as `libs.replay.difference.difference` says it."""
        return difference(self.before, self.after)


async def earlier(connection: AsyncConnection, call: OriginalCall, prompt: PromptVersion) -> Replayed | None:
    """What came of these inputs when they last went through this version; None where they never did."""
    wanted = {"call_id": call.id, "prompt_version": prompt.version, "prompt_hash": prompt.sha256}
    row = (await connection.execute(EARLIER, wanted)).mappings().one_or_none()
    if row is None:
        return None
    return Replayed(
        id=row["id"],
        replay_of=call.id,
        before=outcome_from(row["before"]),
        after=outcome_from(row["after"]),
        status=row["status"],
        error=row["error"],
        cached=True,
        prompt_key=call.prompt_key,
        prompt_version=prompt.version,
        prompt_hash=prompt.sha256,
    )


async def store(
    connection: AsyncConnection, original: Original, answer: Answer, *, after: Outcome, source: Source, asked_by: str
) -> Replayed:
    """Keep a replay: a row beside everything else."""
    call, forecast, asked = original.call, original.forecast, source == "model"
    replayed = Replayed(
        id=new_call_id(),
        replay_of=call.id,
        before=original.before,
        after=after,
        status=answer.status,
        error=None if answer.error is None else storable_text(answer.error),
        cached=not asked,
        prompt_key=call.prompt_key,
        prompt_version=answer.prompt_version,
        prompt_hash=answer.prompt_hash,
    )
    row = {
        "id": replayed.id,
        "call_id": call.id,
        "forecast_id": None if forecast is None else forecast.id,
        "as_of": None if forecast is None else forecast.as_of,
        "ticker": None if forecast is None else forecast.ticker,
        "prompt_key": call.prompt_key,
        "prompt_version": answer.prompt_version,
        "prompt_hash": answer.prompt_hash,
        "source": source,
        "new_call_id": answer.call_id if asked else None,
        "status": answer.status,
        "error": replayed.error,
        "before": json.dumps(original.before.document(), allow_nan=False),
        "after": json.dumps(after.document(), allow_nan=False),
        "flip": flip(original.before, after),
        "total_ms": answer.total_ms,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "asked_by": asked_by,
    }
    await connection.execute(STORE, row)
    return replayed
