"""A collector of traces at the wire: OTLP over HTTP, protobuf. It takes what comes, or hangs until it is let go."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class FakeSpan:
    """One span as it came in. `kind` is OTLP's number: 1 internal, 2 server, 3 client."""

    name: str
    service: str
    trace_id: str
    id: str
    parent: str
    kind: int
    failed: bool
    attributes: dict[str, Any]


@dataclass(slots=True)
class Collector:
    """What came so far. `hangs` keeps every delivery waiting."""

    url: str = ""
    spans: list[FakeSpan] = field(default_factory=list[FakeSpan])
    raw: list[bytes] = field(default_factory=list[bytes])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    hangs: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    def named(self, name: str) -> list[FakeSpan]:
        """The spans of that name."""
        return [span for span in list(self.spans) if span.name == name]

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        """One delivery."""
        assert path == "/v1/traces"
        assert headers["content-type"] == "application/x-protobuf"
        self.headers.append(headers)
        self.raw.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(group.resource.attributes)["service.name"]
            for scope in group.scope_spans:
                self.spans += [_read(span, service) for span in scope.spans]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, which)


def _read(span: Any, service: str) -> FakeSpan:
    return FakeSpan(
        name=span.name,
        service=service,
        trace_id=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        failed=span.status.code == 2,
        attributes=_values(span.attributes),
    )


@contextmanager
def fake_collector() -> Generator[Collector]:
    """A collector that listens inside the block."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if collector.hangs.is_set():
                collector.let_go.wait(60)
                return
            collector.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
