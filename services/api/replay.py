"""One call to a model again."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints
from starlette.responses import Response

from libs.http_leaving import CLIENT_GONE, unless_gone
from libs.json_numbers import JsonValue
from libs.keys import GuardedRoute, Key, require
from libs.problems import Conflict, NotFound, Problem, Unprocessable
from libs.replay.errors import ReplayError, UnknownCall, UnknownVersion
from libs.replay.rows import Replayed
from services.api.deps import State

router = APIRouter(prefix="/llm/admin", route_class=GuardedRoute)

may_administer = Depends(require("admin"))
Caller = Annotated[Key, may_administer]

FAULTS: dict[type[ReplayError], type[Problem]] = {UnknownCall: NotFound, UnknownVersion: Unprocessable}
"""What cannot be replayed is a conflict with what is there, save these."""


class ReplayQuestion(BaseModel):
    """Which call to replay. `force` truly calls the model; `version` sends the same inputs through another version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: UUID
    force: StrictBool = False
    version: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None


class ReplayAnswer(BaseModel):
    """What came of it. `id` is the replay's own, `replay_of` the call's.

    `text` is the reply as received, `json` its validated value: null where it is not valid, and for prompts that answer
    in plain words, which `text` holds. `cached` says that the
    model was not called: the answer is the recorded one, or that of an earlier replay. `diff` is `{text, json,
    decision, verdict}`, each null where nothing differs from the original.
    """

    id: UUID
    replay_of: UUID
    text: str
    value: JsonValue = Field(serialization_alias="json")
    cached: bool
    success: bool
    error: str | None
    prompt_key: str
    prompt_version: str
    prompt_hash: str
    diff: dict[str, JsonValue]


def answer_of(replayed: Replayed) -> ReplayAnswer:
    """The answer to who asked."""
    value: Any = replayed.after.value
    if isinstance(value, str):
        value = None
    return ReplayAnswer(
        id=replayed.id,
        replay_of=replayed.replay_of,
        text=replayed.after.text,
        value=value,
        cached=replayed.cached,
        success=replayed.success,
        error=replayed.error,
        prompt_key=replayed.prompt_key,
        prompt_version=replayed.prompt_version,
        prompt_hash=replayed.prompt_hash,
        diff=replayed.diff,
    )


@router.post("/replay", dependencies=[may_administer], response_model=ReplayAnswer)
async def replay(request: Request, state: State, asked: ReplayQuestion, key: Caller) -> ReplayAnswer | Response:
    """Replay a call. 404 where it is unknown, 409 where what is kept does not allow it, 422 for an unknown version.

    A model that does not answer is no error here: then `success` is false and `error` says why.
    """
    work = state.replayer.replay(asked.id, force=asked.force, version=asked.version, asked_by=key.name)
    try:
        replayed = await unless_gone(request, work)
    except ReplayError as error:
        raise FAULTS.get(type(error), Conflict)(str(error)) from error
    return Response(status_code=CLIENT_GONE) if replayed is None else answer_of(replayed)
