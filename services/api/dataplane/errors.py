"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` with the right status."""

from collections.abc import Mapping
from math import ceil
from typing import cast

import orjson

from libs.upstreams.errors import (
    BreakerOpen,
    BrokenStream,
    ConnectFailed,
    DeadlineExceeded,
    FirstTokenTimeout,
    IdleTimeout,
    NoSlot,
    PromptTooLong,
    QueueFull,
    Refused,
    UpstreamError,
)

TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
SERVER_ERROR = 500
TOO_MANY = 429
UNAVAILABLE = 503
GATEWAY_TIMEOUT = 504
NO_RETRY = {"x-should-retry": "false"}
"""What the official clients understand: asking again at once would only ask the engine for the same again."""
AGAIN_S = 2
LONGEST_MESSAGE = 2000
LLAMACPP_TOO_LONG = "exceed_context_size_error"

STATUSES: tuple[tuple[type[UpstreamError], int, str], ...] = (
    (PromptTooLong, 400, "context_length_exceeded"),
    (QueueFull, 503, "overloaded"),
    (BreakerOpen, 503, "upstream_unavailable"),
    (ConnectFailed, 503, "connect_failed"),
    (NoSlot, 504, "deadline_exceeded"),
    (FirstTokenTimeout, 504, "first_byte_timeout"),
    (IdleTimeout, 504, "idle_timeout"),
    (DeadlineExceeded, 504, "deadline_exceeded"),
    (BrokenStream, 502, "broken_stream"),
    (UpstreamError, 502, "upstream_error"),
)
"""Status and code of what went wrong between us and an engine; the first class that fits."""

DISCREET: Mapping[type[UpstreamError], str] = {
    ConnectFailed: "no connection to the model server",
    BreakerOpen: "the model server is not asked for the moment, since calls to it failed",
}
"""What a client is told of errors that name addresses of the inner network; the row of the call has all of it."""


class ApiError(Exception):
    """An answer that is an error. `type_` follows from the status where it is not given."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type_: str = "",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.type = type_ or TYPES.get(status, "server_error" if status >= SERVER_ERROR else "invalid_request_error")
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON body."""
        return orjson.dumps({"error": self.document()})

    def document(self) -> dict[str, str | None]:
        """What stands under `error`."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers as ASGI takes them."""
        return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]


def from_upstream(error: UpstreamError) -> ApiError:
    """What a client is told when no place could answer."""
    if isinstance(error, Refused):
        return _refused(error)
    status, code = next((status, code) for kind, status, code in STATUSES if isinstance(error, kind))
    if isinstance(error, BrokenStream):
        code = error.code
    if isinstance(error, ConnectFailed) and isinstance(error.__cause__, TimeoutError):
        status, code = 504, "connect_timeout"
    message = next((words for kind, words in DISCREET.items() if isinstance(error, kind)), str(error))
    where = f"{error.upstream}: " if error.upstream else ""
    return ApiError(status, code, f"{where}{message}", headers=_advice(error, status))


def _advice(error: UpstreamError, status: int) -> dict[str, str]:
    if isinstance(error, QueueFull | BreakerOpen):
        return {"Retry-After": str(max(1, ceil(error.retry_after_s)))}
    if status == UNAVAILABLE:
        return {"Retry-After": str(AGAIN_S)}
    return NO_RETRY if status == GATEWAY_TIMEOUT else {}


def _refused(error: Refused) -> ApiError:
    """An engine's refusal: 4xx as they are, since the caller can mend them, but for a refused key, which is ours."""
    status, where = error.status, f"{error.upstream}: " if error.upstream else ""
    if status in {401, 403}:
        return ApiError(502, "upstream_refused_key", f"{where}the engine does not take our key", headers=NO_RETRY)
    told = _document(error)
    message = str(told.get("message") or error)[:LONGEST_MESSAGE]
    wait_s = error.retry_after_s
    if wait_s is None and status in {TOO_MANY, UNAVAILABLE}:
        wait_s = AGAIN_S
    headers = {} if wait_s is None else {"Retry-After": str(max(1, ceil(wait_s)))}
    if status == TOO_MANY:
        return ApiError(status, "upstream_busy", message, headers=headers)
    if status >= SERVER_ERROR:
        status = status if status in {500, 503} else 502
        return ApiError(status, "upstream_error", f"{where}{message}", headers=headers)
    if status < 400:
        return ApiError(502, "bad_upstream_answer", f"{where}{message}")
    param = told.get("param")
    return ApiError(
        status, _code(status, told, message), message, param=param if isinstance(param, str) else None, headers=headers
    )


def _code(status: int, told: Mapping[str, object], message: str) -> str:
    """The engine's own code where it is a word; frameworks tell a prompt that is too long by OpenAI's."""
    if status == 400 and ("context length" in message or told.get("type") == LLAMACPP_TOO_LONG):
        return "context_length_exceeded"
    code = told.get("code")
    return code if isinstance(code, str) and not code.isdigit() else "upstream_error"


def _document(error: Refused) -> Mapping[str, object]:
    """The error object in a refusal's body, in any of the shapes engines use."""
    try:
        content = orjson.loads(error.content)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(content, dict):
        return {}
    told = cast("dict[str, object]", content)
    inner = told.get("error", told)
    return cast("dict[str, object]", inner) if isinstance(inner, dict) else {"message": inner}
