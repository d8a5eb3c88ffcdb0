"""OpenTelemetry: the one file that imports its SDK, and only where an endpoint is set and the extra is installed.

The provider is ours alone and never the process's global one, so that no framework's own instrumentation, which would
record more than we want told, finds it.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from types import TracebackType
from typing import Self

import requests
from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from libs.tracing import TRACEPARENT, Kind, Value
from libs.tracing.settings import Sampler, TracingSettings

CLOSE_S = 2.0
"""How long the end of a process waits for the last spans to be taken."""
BATCH = 512
KNOWN_FLAGS = 0b11
"""Of `traceparent`: sampled, and an id drawn at random."""
KINDS: Mapping[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}


class Recorded(AbstractContextManager["Recorded"]):
    """A span that is current inside its block. What leaves the block is kept as its type, never its words."""

    __slots__ = ("_failed", "_span", "_token")

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        self._failed = False
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        self._token = context.attach(set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            context.detach(self._token)
        if kind is not None and not self._failed:
            self.fail("cancelled" if issubclass(kind, asyncio.CancelledError) else kind.__name__)
        self._span.end()

    def note(self, values: Mapping[str, Value]) -> None:
        """Attributes."""
        self._span.set_attributes(values)

    def rename(self, name: str) -> None:
        """Another name."""
        self._span.update_name(name)

    def fail(self, error_type: str) -> None:
        """It ended in an error of that type."""
        self._failed = True
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)


class OtelTracing:
    """Spans for a collector. What waits for one is bounded, and dropped where it does not answer."""

    def __init__(self, settings: TracingSettings, *, service: str) -> None:
        # Every failed delivery would be a line; the last word on a batch is enough.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        named = settings.otel_service_name or f"lexi-{service}"
        session = requests.Session()
        session.max_redirects = 0  # spans and the collector's key go where the settings say, and nowhere else
        exporter = OTLPSpanExporter(
            settings.endpoint,
            headers=settings.headers,
            timeout=settings.otel_exporter_otlp_timeout,
            session=session,
        )
        queue = settings.otel_bsp_max_queue_size
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=queue,
            schedule_delay_millis=settings.otel_bsp_schedule_delay,
            max_export_batch_size=min(BATCH, queue),
        )
        self._provider = TracerProvider(
            sampler=_sampler(settings.otel_traces_sampler, settings.otel_traces_sampler_arg),
            resource=Resource.create({"service.name": named}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("lexi")

    def span(
        self, name: str, kind: Kind, attributes: Mapping[str, Value], *, within: object | None
    ) -> AbstractContextManager[Recorded]:
        """A span below the current one, or below `within`."""
        parent = within if isinstance(within, Context) else None
        return Recorded(self._tracer.start_span(name, parent, KINDS[kind], attributes))

    def here(self) -> object:
        """The current context."""
        return context.get_current()

    def continued(self, traceparent: str) -> object | None:
        """The context that a caller's header names."""
        if not TRACEPARENT.fullmatch(traceparent):
            return None
        _, trace, span, flags = traceparent.split("-")
        known = TraceFlags(int(flags, 16) & KNOWN_FLAGS)
        place = SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=known)
        return set_span_in_context(NonRecordingSpan(place), Context())

    def traceparent(self) -> str:
        """The header of the current span."""
        place = get_current_span().get_span_context()
        if not place.is_valid:
            return ""
        return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"

    def trace_id(self) -> str:
        """The id of the current trace."""
        place = get_current_span().get_span_context()
        return f"{place.trace_id:032x}" if place.is_valid else ""

    def close(self) -> None:
        """Give the last spans `CLOSE_S` seconds. A collector that hangs is left to a thread that ends with us."""
        ending = threading.Thread(target=self._provider.shutdown, name="tracing-end", daemon=True)
        ending.start()
        ending.join(CLOSE_S)


def _sampler(name: Sampler, share: float) -> sampling.Sampler:
    if name == "traceidratio":
        return sampling.TraceIdRatioBased(share)
    if name == "parentbased_traceidratio":
        return sampling.ParentBasedTraceIdRatio(share)
    fixed: Mapping[str, sampling.Sampler] = {
        "always_on": sampling.ALWAYS_ON,
        "always_off": sampling.ALWAYS_OFF,
        "parentbased_always_on": sampling.DEFAULT_ON,
        "parentbased_always_off": sampling.DEFAULT_OFF,
    }
    return fixed[name]
