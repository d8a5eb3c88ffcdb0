"""What old clients are told: the exact words of the errors they know, and which status goes with them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from libs.llm.types import Answer
from services.sidecar.places import ModelName

INVALID_MODEL_ID = "Invalid model_id specified. Choose 'hermes' or 'phi3'."
NOT_LOADED: Mapping[ModelName, str] = {
    "hermes": "Hermes model not loaded. Please check server logs.",
    "phi3": "Phi-3 ONNX model not loaded. Please check server logs.",
}
SPOKEN: Mapping[ModelName, str] = {"hermes": "Hermes", "phi3": "Phi-3"}

AWAY = frozenset({"connect_failed", "breaker_open", "cannot_send", "unknown_upstream"})
BUSY = frozenset({"no_slot", "overloaded"})
LATE = frozenset({"deadline_exceeded", "first_token_timeout", "idle_timeout"})

# What an engine's refusal says of itself: it does not have the model, or does not let us in.
_NOT_THERE = re.compile(r"refused: answered (401|403|404)\b")
# Every engine's own sentence for it names the window: vLLM and OpenAI the context length, llama.cpp the context size.
_TOO_LONG = re.compile(
    r"refused: (?:answered 4|the engine sent an error).*(?:context[ _](?:length|size|window)|maximum model length)"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """There is no answer. `error` is for the caller, `status` the one that clients who do not mind get."""

    error: str
    status: int
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])


def not_loaded(name: ModelName) -> Failure:
    """The model's server is away, or does not have the model."""
    return Failure(NOT_LOADED[name], HTTPStatus.SERVICE_UNAVAILABLE)


def too_long(window: int, called: Mapping[str, Any] | None = None) -> Failure:
    """The prompt leaves no room for an answer. `called` names the call, where one was made."""
    words = f"The prompt is too long: prompt and answer have {window} tokens together."
    return Failure(words, HTTPStatus.UNPROCESSABLE_ENTITY, called or {})


def invalid_model_id(model_id: Any) -> Failure:
    """There is no such model; what was asked for is said again, as far as JSON has a form for it."""
    try:
        json_text(model_id)
    except ValueError:  # NaN and infinities
        model_id = None
    return Failure(INVALID_MODEL_ID, HTTPStatus.UNPROCESSABLE_ENTITY, {"specified_model_id": model_id})


def failure_of(answer: Answer, name: ModelName, *, window: int, has_share: bool) -> Failure:
    """Why an answer is none. The engine's own words stay in the record: they may quote the prompt."""
    who, error = SPOKEN[name], answer.error or answer.status
    code = error.partition(":")[0]
    called = {"call_id": str(answer.call_id)}
    if answer.status == "invalid":
        words = f"{who} gave no valid answer ({code})."
        if code == "cut":
            words = f"{who} gave no valid answer: it was cut at max_length."
        return Failure(words, HTTPStatus.BAD_GATEWAY, called)
    if code in AWAY or _NOT_THERE.match(error) or not has_share:
        return not_loaded(name)
    if code == "prompt_too_long" or _TOO_LONG.match(error):
        return too_long(window, called)
    if code in BUSY:
        return Failure(f"{who} is busy: its turn did not come in time.", HTTPStatus.SERVICE_UNAVAILABLE, called)
    if code in LATE:
        return Failure(f"{who} did not answer in time.", HTTPStatus.GATEWAY_TIMEOUT, called)
    return Failure(f"{who} did not answer properly ({code}).", HTTPStatus.BAD_GATEWAY, called)


def reply(said: Mapping[str, Any] | Failure, *, legacy_status: bool) -> Response:
    """An answer or an error over HTTP. With `legacy_status` errors have status 200 too."""
    if isinstance(said, Failure):
        content: Mapping[str, Any] = {"error": said.error, **said.more}
        status = HTTPStatus.OK if legacy_status else said.status
    else:
        content, status = said, HTTPStatus.OK
    return Response(json_text(content), status_code=int(status), media_type="application/json")


def json_text(content: Any, *, ascii_only: bool = True) -> str:
    """Compact JSON. Of the standard library: a model's number, or a caller's word, may be what faster ones refuse.

    Raises `ValueError` for what JSON has no form for.
    """
    return json.dumps(content, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))
