"""The model, asked by people: is it well, and a plain question."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from libs.http_leaving import CLIENT_GONE, unless_gone
from libs.json_numbers import Number
from libs.keys import GuardedRoute, require
from libs.llm.types import Answer
from libs.problems import BadGateway, GatewayTimeout, Problem, Unavailable, Unprocessable
from libs.upstreams.types import Priority
from services.api.deps import State

MAX_TEXT = 200_000

FAULTS: dict[str, type[Problem]] = {
    "prompt_too_long": Unprocessable,
    "no_slot": Unavailable,
    "breaker_open": Unavailable,
    "connect_failed": Unavailable,
    "cannot_send": Unavailable,
    "first_token_timeout": GatewayTimeout,
    "idle_timeout": GatewayTimeout,
    "deadline_exceeded": GatewayTimeout,
}
"""What a failed call is over HTTP, by the code of its error; any other code is a bad gateway."""

router = APIRouter(prefix="/llm", route_class=GuardedRoute)


class HealthAnswer(BaseModel):
    """Whether the model answers. `cached`: measured for an earlier caller."""

    ok: bool
    cached: bool
    model: str
    latency_ms: Number
    checked_at: datetime


class ChatQuestion(BaseModel):
    """One question. `max_tokens` bounds the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Annotated[str, StringConstraints(max_length=MAX_TEXT)] = ""
    user: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1)


class ChatUsage(BaseModel):
    """Tokens; zero for a cached answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(BaseModel):
    """The answer, and the call under `call_id` for the admin routes."""

    content: str
    cached: bool
    prompt_version: str
    call_id: UUID
    model: str
    usage: ChatUsage


@router.get("/health")
async def health(state: State) -> HealthAnswer:
    """Whether a completion comes back as the literal OK; never a failure of its own."""
    found = await state.health.read()
    return HealthAnswer(
        ok=found.ok,
        cached=found.cached,
        model=found.model,
        latency_ms=found.latency_ms,
        checked_at=found.checked_at,
    )


def raise_for(answer: Answer) -> None:
    """Raise the problem of an answer that is not one."""
    if answer.status == "ok":
        return
    reason = answer.error or answer.status
    code = reason.partition(":")[0] if answer.status == "unavailable" else answer.status
    fault = FAULTS.get(code, BadGateway)
    raise fault(f"the model gave no usable answer: {reason}", extra={"code": code, "call_id": str(answer.call_id)})


@router.post("/chat", dependencies=[Depends(require("infer"))], response_model=ChatAnswer)
async def chat(request: Request, state: State, question: ChatQuestion) -> ChatAnswer | Response:
    """Ask the model through the prompt `manual`."""
    asked = {name: value for name, value in question if name in {"temperature", "max_tokens"} and value is not None}
    work = state.client.ask(
        "manual",
        {"system": question.system, "user": question.user},
        priority=Priority.INTERACTIVE,
        sampling=asked,
    )
    answer = await unless_gone(request, work)
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    raise_for(answer)
    usage = ChatUsage(
        prompt_tokens=answer.tokens_in,
        completion_tokens=answer.tokens_out,
        total_tokens=answer.tokens_in + answer.tokens_out,
    )
    return ChatAnswer(
        content=answer.text,
        cached=answer.cached,
        prompt_version=answer.prompt_version,
        call_id=answer.call_id,
        model=answer.model,
        usage=usage,
    )
