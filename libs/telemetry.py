"""Logs: one JSON object a line on stderr, for our own events and for those of libraries; secrets masked."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

SECRET_FIELDS = frozenset({"authorization", "api_key", "key", "password", "secret", "database_url"})
MASK = "***"

_PASSWORD_IN_ADDRESS = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+@")
_BEARER = re.compile(r"(?i)(bearer\s+)\S+")
_LEXI_KEY = re.compile(r"\blexi_[A-Za-z0-9_-]{16,}")


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

    Every line carries `service`, `level`, `timestamp` (UTC) and, inside a request, `request_id`. Tracebacks are plain
    text without local variables, since those hold prompts and keys.
    """

    def add_service(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
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
