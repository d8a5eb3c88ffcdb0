"""Traces of the gateway as a process: from a caller's `traceparent` to the engine's, and a collector that hangs."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest

from libs.keys import ALL_SCOPES
from tests.fakes.collector import Collector, FakeSpan, fake_collector
from tests.fakes.engine import FakeEngine
from tests.faults.gateway_process import ROOT, Gateway, caller, eventually, gateway_before, place, token
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = pytest.mark.xdist_group("tracing")

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"
MARKER = "MARKER-of-a-prompt"
SERVER, CLIENT = 2, 3


@asynccontextmanager
async def gateway(postgres: EmbeddedPostgres, engine: FakeEngine, **settings: str) -> AsyncGenerator[Gateway]:
    callers = [caller("desk", scopes=set(ALL_SCOPES))]
    async with gateway_before(postgres, [], callers, lexi_url=engine.base_url, **settings) as running:
        yield running


def traced(collector: Collector, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50", **more}


async def ask(
    running: Gateway, *, stream: bool = False, request_id: str = "one", model: str = "Lexi", **headers: str
) -> httpx.Response:
    """A completion through `/v1`."""
    return await running.http.post(
        f"{running.url}/v1/chat/completions",
        json={"model": model, "messages": [{"role": "user", "content": MARKER}], "stream": stream},
        headers={"Authorization": f"Bearer {token('desk')}", "X-Request-Id": request_id, **headers},
    )


async def ask_house(running: Gateway, **headers: str) -> httpx.Response:
    """The same through `/llm/chat`, and so through our own client."""
    return await running.http.post(
        f"{running.url}/llm/chat",
        json={"user": MARKER},
        headers={"Authorization": f"Bearer {token('desk')}", "X-Request-Id": "house", **headers},
    )


async def spans_of(collector: Collector, trace_id: str, count: int) -> dict[str, FakeSpan]:
    async def look() -> dict[str, FakeSpan]:
        found = {span.name: span for span in list(collector.spans) if span.trace_id == trace_id}
        return found if len(found) >= count else {}

    return await eventually(look, what=f"{count} spans of {trace_id}; there are {collector.spans}")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_through_v1_is_one_trace_from_its_caller_to_the_engine(
    postgres: EmbeddedPostgres, stream: bool
) -> None:
    async with FakeEngine() as engine:
        with fake_collector() as collector:
            async with gateway(postgres, engine, **traced(collector)) as running:
                answer = await ask(running, stream=stream, traceparent=GIVEN)
                assert answer.status_code == 200
                spans = await spans_of(collector, TRACE, 2)
                row = await running.row("one")
    server, call = spans["POST /v1/chat/completions"], spans["chat Lexi"]
    assert (server.parent, server.kind, server.service) == (SPAN, SERVER, "lexi-api")
    assert (call.parent, call.kind) == (server.id, CLIENT)
    assert engine.headers[-1]["traceparent"] == f"00-{TRACE}-{call.id}-01"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["http.route"] == "/v1/chat/completions"
    assert server.attributes["lexi.request_id"] == call.attributes["lexi.request_id"] == "one"
    assert call.attributes["lexi.call_id"] == str(row.id)
    said = {name: value for name, value in call.attributes.items() if name.startswith("gen_ai.")}
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "Lexi",
        "gen_ai.request.stream": stream,
        "gen_ai.response.model": "Lexi",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": row.tokens_in,
        "gen_ai.usage.output_tokens": row.tokens_out,
    }
    everything = b"".join(collector.raw)
    assert MARKER.encode() not in everything
    assert token("desk").encode() not in everything


async def test_a_pipelined_request_begins_a_trace_of_its_own(postgres: EmbeddedPostgres) -> None:
    asked = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token('desk')}\r\n"
    both = f"{asked}traceparent: {GIVEN}\r\n\r\n{asked}Connection: close\r\n\r\n".encode()
    async with FakeEngine() as engine:
        with fake_collector() as collector:
            async with gateway(postgres, engine, **traced(collector)) as running:
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                writer.write(both)
                async with asyncio.timeout(20):
                    assert (await reader.read()).count(b"HTTP/1.1 200") == 2
                writer.close()

                async def look() -> list[FakeSpan]:
                    spans = [span for span in list(collector.spans) if span.name == "GET /v1/models"]
                    return spans if len(spans) == 2 else []

                found = await eventually(look, what="two spans")
    [own] = [span for span in found if span.trace_id != TRACE]
    assert own.parent == ""


async def test_our_own_client_continues_the_trace_and_logs_name_it(postgres: EmbeddedPostgres) -> None:
    async with FakeEngine() as engine:
        with fake_collector() as collector:
            async with gateway(postgres, engine, **traced(collector)) as running:
                assert (await ask_house(running, traceparent=GIVEN)).status_code == 200
                spans = await spans_of(collector, TRACE, 2)
                log = running.log()
    server, call = spans["POST /llm/chat"], spans["chat Lexi"]
    assert (server.parent, call.parent) == (SPAN, server.id)
    assert call.attributes["lexi.prompt.key"] == "manual"
    assert call.attributes["gen_ai.usage.input_tokens"] > 0
    assert engine.headers[-1]["traceparent"] == f"00-{TRACE}-{call.id}-01"
    assert sum(f'"trace_id": "{TRACE}"' in line and '"event": "call"' in line for line in log.splitlines()) == 1
    assert MARKER.encode() not in b"".join(collector.raw)


async def test_a_failure_is_told_by_its_code_and_never_by_the_engines_words(postgres: EmbeddedPostgres) -> None:
    async with FakeEngine() as engine:
        with fake_collector() as collector:
            async with gateway(postgres, engine, **traced(collector)) as running:
                engine.fault_body = f'{{"error": {{"message": "cannot read {MARKER}"}}}}'
                engine.fault_status, engine.fault = 400, type(engine.fault).STATUS
                await ask(running, traceparent=GIVEN)
                await ask_house(running)
                spans = await spans_of(collector, TRACE, 2)
                assert MARKER not in running.log()
    assert spans["chat Lexi"].failed
    assert spans["chat Lexi"].attributes["error.type"] == "refused"
    assert MARKER.encode() not in b"".join(collector.raw)


async def test_where_nothing_is_traced_the_callers_header_reaches_the_engine_as_it_came(
    postgres: EmbeddedPostgres,
) -> None:
    async with FakeEngine() as engine, gateway(postgres, engine) as running:
        for send in (ask, ask_house):
            await send(running, traceparent=GIVEN)
            assert engine.headers[-1]["traceparent"] == GIVEN
            await send(running)
            assert "traceparent" not in engine.headers[-1]
            await send(running, traceparent=f"{GIVEN}, x-vllm-priority=0")
            assert "traceparent" not in engine.headers[-1]


@pytest.mark.parametrize("traces", [False, True])
async def test_a_hosted_api_is_told_nothing_of_the_trace(postgres: EmbeddedPostgres, traces: bool) -> None:
    async with FakeEngine(dialect="openai", model="hosted") as engine:
        with fake_collector() as collector:
            places = [place("hosted", engine.base_url, dialect="openai")]
            settings = traced(collector) if traces else {}
            async with gateway_before(postgres, places, [caller("desk")], **settings) as running:
                assert (await ask(running, model="hosted", traceparent=GIVEN)).status_code == 200
    assert "traceparent" not in engine.headers[-1]


async def test_a_sampler_that_keeps_nothing_keeps_nothing_and_tells_the_engine(postgres: EmbeddedPostgres) -> None:
    async with FakeEngine() as engine:
        with fake_collector() as collector:
            async with gateway(postgres, engine, **traced(collector, OTEL_TRACES_SAMPLER="always_off")) as running:
                await ask(running, traceparent=GIVEN)
                assert engine.headers[-1]["traceparent"].endswith("-00")
                assert await running.stop() == 0
    assert collector.spans == []


async def test_a_collector_that_hangs_holds_up_neither_requests_nor_the_end(postgres: EmbeddedPostgres) -> None:
    async with FakeEngine() as engine:
        with fake_collector() as collector:
            collector.hangs.set()
            more = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
            async with gateway(postgres, engine, **traced(collector, **more)) as running:
                for number in range(40):
                    assert (await ask(running, request_id=f"r{number}")).status_code == 200
                assert running.process is not None
                running.process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(20):  # the collector would keep a delivery for sixty seconds
                    assert await running.process.wait() == 0


async def test_the_last_spans_are_sent_before_the_end(postgres: EmbeddedPostgres) -> None:
    async with FakeEngine() as engine:
        with fake_collector() as collector:
            more = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_EXPORTER_OTLP_HEADERS": "x-collector-key=abc"}
            async with gateway(postgres, engine, **traced(collector) | more) as running:
                await ask(running, traceparent=GIVEN)
                assert collector.spans == []
                assert await running.stop() == 0
            assert {span.name for span in collector.spans} == {"POST /v1/chat/completions", "chat Lexi"}
            assert collector.headers[-1]["x-collector-key"] == "abc"


OFF = """
import sys
import services.api.__main__, services.forecast.main, services.jobs.main, services.analytics.app
from libs.tracing.start import start
start("api")
extra = ("opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf", "libs.tracing.sdk")
print([name for name in sys.modules if name.startswith(extra)])
"""


def run(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=60
    )


def test_off_by_default_nothing_of_the_extra_is_imported() -> None:
    ended = run(OFF)
    assert (ended.stdout.strip(), ended.returncode) == ("[]", 0), ended.stderr


def test_without_the_extra_the_start_goes_on_and_says_what_is_missing() -> None:
    hidden = 'import sys; sys.modules["opentelemetry.sdk"] = None\n'
    ended = run(
        hidden + "from libs import tracing\nfrom libs.tracing.start import start\nstart('api')\nprint(tracing.is_on())",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )
    assert "tracing_not_installed" in ended.stdout + ended.stderr
    assert "make install-tracing" in ended.stdout + ended.stderr
    assert ended.stdout.strip().endswith("False")


def test_a_setting_that_cannot_be_read_stops_the_start_and_is_named() -> None:
    code = "from libs.process import run\nasync def main(stop): pass\nrun(main, service='api')"
    ended = run(code, OTEL_EXPORTER_OTLP_ENDPOINT="127.0.0.1:4317")
    assert ended.returncode == 2
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in ended.stderr
