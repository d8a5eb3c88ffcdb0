"""Logs: one JSON object a line on stderr, for our own events and for those of libraries; secrets masked.

One id goes along with the work: that of the HTTP request, of the forecast's tick or of the job it began with. Every
line carries it as `request_id`, every call to a model in its row, and what goes on in another task takes it along as
its `Origin`.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Generator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog
from uuid_utils import uuid7

from libs import tracing

SECRET_FIELDS = frozenset({
    "api_key", "authorization", "body", "content", "cookie", "database_url", "headers", "key", "messages", "password",
    "secret", "token",
})  # fmt: skip
MASK = "***"

_request_id: ContextVar[str] = ContextVar("request_id", default="")

_PASSWORD_IN_ADDRESS = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+@")
_BEARER = re.compile(r"(?i)(bearer\s+)\S+")
_LEXI_KEY = re.compile(r"\blexi_[A-Za-z0-9_-]{16,}")


def new_id(kind: str) -> str:
    """An id for work that no HTTP request began, e.g. `tick-0199…`."""
    return f"{kind}-{uuid7()}"


def current_id() -> str:
    """The id of what this work follows from; empty where it has none."""
    return _request_id.get()


@contextmanager
def bound_id(request_id: str) -> Generator[None]:
    """Everything inside the block follows from this id."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


@dataclass(frozen=True, slots=True)
class Origin:
    """What some work follows from: its id, and its place in the trace where there is one."""

    request_id: str = ""
    trace: object | None = None

    @classmethod
    def here(cls) -> "Origin":
        """Of the work under way."""
        return cls(current_id(), tracing.here())

    @contextmanager
    def span(self, name: str, **attributes: str) -> Generator[None]:
        """Everything inside the block follows from this, as a span of that name where there are traces."""
        with bound_id(self.request_id), tracing.span(name, attributes=attributes, within=self.trace):
            yield


def add_origin(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the id that the work follows from, and its trace where one is made."""
    request_id, trace_id = _request_id.get(), tracing.trace_id()
    if request_id:
        event.setdefault("request_id", request_id)
    if trace_id:
        event.setdefault("trace_id", trace_id)
    return event


class AFew:
    """Lets through so many a second, and counts the others: for lines that an outage would make too many of."""

    def __init__(self, per_s: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._second = -1
        self._said = 0
        self._unsaid = 0

    def may(self) -> bool:
        """Whether one more may be said now."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._said = second, 0
        self._said += 1
        self._unsaid += self._said > self._per_s
        return self._said <= self._per_s

    def forget_unsaid(self) -> int:
        """How many were left out since it was last asked."""
        unsaid, self._unsaid = self._unsaid, 0
        return unsaid


def mask_text(text: str) -> str:
    """The text without passwords in addresses, bearer tokens and keys of ours."""
    text = _PASSWORD_IN_ADDRESS.sub(rf"\1:{MASK}@", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    return _LEXI_KEY.sub(MASK, text)


def mask_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: fields with a secret's name are masked, and so are secrets inside any text."""
    for name, value in event.items():
        if name.lower() in SECRET_FIELDS:
            event[name] = MASK
        elif isinstance(value, str):
            event[name] = mask_text(value)
    return event


def configure(service: str, level: str = "INFO") -> None:
    """Send structlog's and the standard library's logs of this process to stderr as JSON lines.

    Every line carries `service`, `level`, `timestamp` (UTC) and, where the work follows from something, `request_id`.
    Tracebacks are plain text without local variables, since those hold prompts and keys.
    """

    def add_service(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    shared: list[structlog.typing.Processor] = [
        add_origin,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                mask_secrets,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These narrate every start, connection and request; their warnings are enough.
    for noisy in ("uvicorn", "uvicorn.error", "httpx", "httpcore", "aiohttp.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
