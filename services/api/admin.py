"""What was asked of the model, and with which prompts."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from libs.json_numbers import JsonValue, Number
from libs.keys import require
from libs.llm import call_pages
from libs.llm.in_force import Source
from libs.llm.prompts import Prompts
from libs.llm.types import PromptVersion
from libs.problems import NotFound
from services.api import repository
from services.api.deps import Reader, State

MAX_HOURS = 24 * 366

router = APIRouter(prefix="/llm/admin", dependencies=[Depends(require("admin"))])


class Call(BaseModel):
    """One call to a model. `status` is ok, invalid, failed, timed_out or cancelled; times in milliseconds.

    A call that came through `/v1` has its path as `prompt_key` and no version; `caller` is the name of its key.
    `http_status` is null and `caller` empty for calls of the house's own. `replay_of` is the call that this one asks
    again, null for all others.
    """

    id: UUID
    ts: datetime
    service: str
    prompt_key: str
    prompt_version: str
    prompt_hash: str
    arm: str
    upstream: str
    model: str
    subject: str
    success: bool
    status: str
    error: str | None
    cached: bool
    attempts: int
    repaired: bool
    retry_of: UUID | None
    queue_ms: Number
    connect_ms: Number
    first_token_ms: Number
    total_ms: Number
    tokens_in: int
    tokens_out: int
    finish_reason: str
    caller: str
    request_id: str
    http_status: int | None
    streamed: bool
    replay_of: UUID | None


class CallPage(BaseModel):
    """Calls, newest first. `next_before` goes into `before` for the next page; null on the last."""

    calls: Sequence[Call]
    next_before: UUID | None


class Body(BaseModel):
    """What was sent and what came back."""

    messages: JsonValue
    sampling: JsonValue
    inputs: JsonValue
    reply: str


class WholeCall(Call):
    """A call with its bodies; null where they were not kept."""

    body: Body | None


class Totals(BaseModel):
    """All calls of the window. Percentiles are of successful answers that did not come from the cache."""

    total: int
    success_count: int
    failure_count: int
    cached_count: int
    p50_ms: Number | None
    p95_ms: Number | None
    p99_ms: Number | None
    tokens_in: int
    tokens_out: int


class Share(BaseModel):
    """How many calls one version made, by success."""

    prompt_key: str
    prompt_version: str
    success: bool
    n: int


class Stats(BaseModel):
    """What the window held."""

    since: datetime
    totals: Totals
    breakdown: Sequence[Share]


class Activated(BaseModel):
    """The latest activation on what file and environment say here, which rules where `source` says so.

    Where there is none, it is the latest of the key on whatever ground; that one does not rule.
    """

    id: int
    version: str
    who: str
    why: str
    at: datetime


class Prompt(BaseModel):
    """A prompt as this process asks it now.

    `active` is the version in force; `arms` are the weights of the experiment in force and `phase` its name, empty
    where none runs. `source` says by whose word: file, environment or activation.
    """

    key: str
    active: str
    source: Source
    arms: Mapping[str, Number]
    phase: str
    activation: Activated | None
    versions: Mapping[str, JsonValue]


class CallsQuery(BaseModel):
    """Which calls a page holds. Unknown names are refused: a misspelt one would filter nothing in silence."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    before: Annotated[UUID | None, Field(description="the id of a call; the page holds older ones")] = None
    prompt_key: Annotated[str | None, Field(max_length=64)] = None
    version: Annotated[str | None, Field(max_length=64)] = None
    success: bool | None = None
    caller: Annotated[str | None, Field(min_length=1, max_length=64, description="the name of a key")] = None


class StatsQuery(BaseModel):
    """The window. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    hours: Annotated[float, Field(gt=0, le=MAX_HOURS, allow_inf_nan=False)] = 24


@router.get("/calls")
async def calls(reader: Reader, asked: Annotated[CallsQuery, Query()]) -> CallPage:
    """A page of calls, newest first."""
    where = call_pages.CallFilter(
        prompt_key=asked.prompt_key, version=asked.version, success=asked.success, caller=asked.caller
    )
    rows = await call_pages.calls(reader, limit=asked.limit + 1, before=asked.before, where=where)
    page = [Call.model_validate(row) for row in rows[: asked.limit]]
    return CallPage(calls=page, next_before=page[-1].id if len(rows) > asked.limit else None)


@router.get("/call/{call_id}")
async def call(reader: Reader, call_id: UUID) -> WholeCall:
    """One call, whole. A call is there moments after its answer, since the recorder writes in batches."""
    row = await call_pages.call(reader, call_id)
    if row is None:
        raise NotFound(f"there is no call {call_id}")
    return WholeCall.model_validate({**row, "body": row if row["has_body"] else None})


@router.get("/stats")
async def stats(reader: Reader, asked: Annotated[StatsQuery, Query()]) -> Stats:
    """Counts, latency and tokens of the last `hours`."""
    since = datetime.now(UTC) - timedelta(hours=asked.hours)
    found = await repository.totals(reader, since)
    p50, p95, p99 = found["percentiles"] or (None, None, None)
    totals = Totals.model_validate({**found, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99})
    shares = [Share.model_validate(row) for row in await repository.breakdown(reader, since)]
    return Stats(since=since, totals=totals, breakdown=shares)


def _version(prompt: PromptVersion) -> dict[str, Any]:
    constraint = prompt.constraint
    return {
        "hash": prompt.sha256,
        "released_at": prompt.released_at,
        "system": prompt.system,
        "user_template": prompt.user_template,
        "inputs": prompt.inputs_schema,
        "untrusted": prompt.untrusted,
        "output": None if constraint is None else constraint.schema or {"choice": constraint.choice},
        "sampling": {name: getattr(prompt.sampling, name) for name in sorted(prompt.sampling_fields)},
    }


def _prompt(now: Prompts, key: str) -> Prompt:
    one = now.in_force[key]
    experiment, activation = one.experiment, one.activation
    return Prompt(
        key=key,
        active=one.version,
        source=one.source,
        arms={} if experiment is None else dict(experiment.arms),
        phase="" if experiment is None else experiment.phase,
        activation=None if activation is None else Activated.model_validate(activation, from_attributes=True),
        versions={number: _version(version) for number, version in now.registry.versions(key).items()},
    )


@router.get("/prompts")
async def prompts(state: State) -> Sequence[Prompt]:
    """Every prompt, with what is in force in this process."""
    now = state.prompts.now
    return [_prompt(now, key) for key in now.in_force]


@router.get("/prompts/{key}")
async def prompt(state: State, key: str) -> Prompt:
    """One prompt."""
    now = state.prompts.now
    if key not in now.in_force:
        raise NotFound(f"there is no prompt {key}")
    return _prompt(now, key)
