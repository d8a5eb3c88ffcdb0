"""Turns traces on for a process, where its environment names a collector and the extra is installed."""

import importlib
from typing import Any

import structlog

from libs import tracing
from libs.settings import load
from libs.tracing.settings import TracingSettings

log = structlog.get_logger(__name__)


def start(service: str) -> None:
    """Trace from now on if that is asked for. A missing extra is said, and stops nothing.

    Raises `SettingsError` for a variable that cannot be read.
    """
    settings = load(TracingSettings)
    if not settings.endpoint:
        return
    try:
        sdk: Any = importlib.import_module("libs.tracing.sdk")
    except ImportError as error:
        log.warning("tracing_not_installed", missing=error.name, remedy="make install-tracing")
        return
    tracing.install(sdk.OtelTracing(settings, service=service))
    log.info("tracing", endpoint=settings.endpoint, sampler=settings.otel_traces_sampler)
