"""Traces of the forecast loop as a process: a tick, the judging that follows, the calls, the engine."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.acceptance.stack import free_ports
from tests.fakes.collector import Collector, FakeSpan, fake_collector
from tests.fakes.engine import FakeEngine
from tests.faults.gateway_process import ROOT, eventually
from tests.integration.forecast_loop import answer, write_bars

pytestmark = pytest.mark.xdist_group("tracing")

INTERNAL, CLIENT = 1, 3


@asynccontextmanager
async def forecast_loop(folder: Path, **settings: str) -> AsyncGenerator[None]:
    """`python -m services.forecast` inside the block, over two ticks of two tickers."""
    bars = await asyncio.to_thread(write_bars, folder / "bars.csv", 2)
    known = os.environ | {
        "LOCAL_STATE": str(folder),
        "FORECAST_FEED": f"file:{bars}",
        "FORECAST_INTERVAL_S": "1",
        **free_ports(("FORECAST_METRICS_PORT",)),
    }
    with (folder / "forecast.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.forecast",
            cwd=ROOT,
            env=known | settings,
            stdout=log,
            stderr=log,
        )
    try:
        yield
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def calls_of_two_tickers(collector: Collector) -> list[FakeSpan]:
    async def look() -> list[FakeSpan]:
        calls = collector.named("chat Lexi")
        judged = {span.id for span in collector.named("judge")}
        ticks = {span.id for span in collector.named("tick")}
        known = [call for call in calls if call.parent in judged]
        return known if len(known) >= 4 and ticks else []

    return await eventually(look, what=f"calls below judgements; there are {collector.spans}")


async def test_a_tick_is_one_trace_from_the_feed_to_the_engine(database_url: str, tmp_path: Path) -> None:
    async with FakeEngine(reply=answer) as engine:
        with fake_collector() as collector:
            settings = {
                "DATABASE_URL": database_url,
                "LLM_BASE_URL": engine.base_url,
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
                "OTEL_BSP_SCHEDULE_DELAY": "50",
            }
            async with forecast_loop(tmp_path, **settings):
                calls = await calls_of_two_tickers(collector)
            log = (tmp_path / "forecast.log").read_text()
    spans = {span.id: span for span in collector.spans}
    sent = {headers["traceparent"].rpartition("-")[0] for headers in engine.headers if "traceparent" in headers}
    for call in calls:
        judge = spans[call.parent]
        tick = spans[judge.parent]
        assert (judge.name, tick.name, tick.parent, tick.service) == ("judge", "tick", "", "lexi-forecast")
        assert (call.kind, judge.kind) == (CLIENT, INTERNAL)
        assert call.trace_id == tick.trace_id
        assert call.attributes["lexi.prompt.key"] in {"rationale", "policy"}
        assert call.attributes["lexi.request_id"].startswith("tick-")
        assert f"00-{call.trace_id}-{call.id}" in sent
        assert any(f'"trace_id": "{call.trace_id}"' in line for line in log.splitlines() if '"tick_stored"' in line)
    prompts = [message["content"] for body in engine.requests for message in body["messages"]]
    everything = b"".join(collector.raw)
    assert prompts
    assert not any(prompt[:40].encode() in everything for prompt in prompts if len(prompt) >= 40)
