"""The facade of traces: nothing where nothing is traced, a caller's header as it came, settings that are checked."""

import gc
import sys

import pytest
from starlette.types import Receive, Scope, Send

from libs import tracing
from libs.settings import SettingsError, load
from libs.tracing.requests import layer
from libs.tracing.settings import TracingSettings
from tests.unit.door_server import ask_in_turn, server

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_where_nothing_is_traced_a_span_is_one_and_the_same_nothing() -> None:
    assert not tracing.is_on()
    with tracing.span("x") as span:
        span.note({"a": 1})
        span.rename("y")
        span.fail("z")
    assert span is tracing.IDLE
    assert (tracing.here(), tracing.trace_id(), tracing.outgoing(), tracing.continued(GIVEN)) == (None, "", "", None)


def test_where_nothing_is_traced_an_app_is_served_as_it_is() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Serve nothing."""

    assert layer(app) is app


def test_what_the_hot_path_asks_costs_no_memory_where_nothing_is_traced() -> None:
    headers = {b"host": b"x"}

    def ask() -> None:
        for _ in range(1000):
            if headers.get(b"traceparent") is not None:
                raise AssertionError
            if tracing.is_on() or tracing.outgoing():
                raise AssertionError

    ask()
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        ask()
        grown = sys.getallocatedblocks() - before
    finally:
        gc.enable()
    assert grown < 10


@pytest.mark.parametrize(
    ("given", "goes_on"),
    [
        (GIVEN, True),
        (GIVEN.replace("-01", "-00"), True),
        (None, False),
        ("", False),
        (GIVEN.upper(), False),
        (f"{GIVEN}\r\nx-vllm-priority: 0", False),
        (f"{GIVEN}-more", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", False),
        (GIVEN.replace("00-4", "ff-4"), False),
    ],
)
async def test_a_callers_header_goes_on_as_it_came_if_it_is_one(given: str | None, goes_on: bool) -> None:
    tracing.arrived(given)
    assert tracing.outgoing() == (given if goes_on else "")


def test_a_request_without_the_header_has_none_of_the_one_before_it_on_its_connection() -> None:
    first = f"GET /a HTTP/1.1\r\nHost: localhost\r\ntraceparent: {GIVEN}\r\n\r\n".encode()
    with server() as port:
        answers = ask_in_turn(port, first + b"GET /b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert f"/a 0 {GIVEN}HTTP/1.1".encode() in answers
    assert answers.endswith(b"/b 0")


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> TracingSettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load(TracingSettings)


def test_traces_are_off_unless_an_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(monkeypatch).endpoint == ""


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/here"}, "https://c/here"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
    ],
)
def test_the_standard_names_say_where_traces_go(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], endpoint: str
) -> None:
    assert settings(monkeypatch, **variables).endpoint == endpoint


def test_headers_for_the_collector_are_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings(monkeypatch, OTEL_EXPORTER_OTLP_HEADERS="Authorization=Basic%20abc=,x-key=1")
    assert read.headers == {"authorization": "Basic abc=", "x-key": "1"}
    assert "abc" not in repr(read)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no-value"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_TRACES_EXPORTER", "jaeger"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings(monkeypatch, **{name: value})
