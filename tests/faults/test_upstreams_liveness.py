"""What opens the breaker, what the heartbeat sees, and that a server's return heals everything."""

import asyncio
from dataclasses import replace
from time import monotonic

import pytest
from structlog.testing import capture_logs

from libs.upstreams.breaker import Breaker, BreakerRules, BreakerState
from libs.upstreams.errors import (
    BreakerOpen,
    ConnectFailed,
    FirstTokenTimeout,
    Refused,
    UpstreamError,
)
from libs.upstreams.heartbeat import SILENT_BEATS
from tests.fakes.engine import FakeEngine, Fault
from tests.fakes.engine_replies import FakeDialect
from tests.faults.upstream_cases import ASK, DIALECTS, PATIENT, inside, until, upstreams_on


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (401, False), (404, False), (422, False), (429, True), (408, True)]
)
async def test_4xx_never_trips_the_breaker(dialect: FakeDialect, status: int, *, retryable: bool) -> None:
    async with FakeEngine(dialect=dialect) as fake, upstreams_on(fake) as upstreams:
        fake.fault, fake.fault_status, fake.retry_after = Fault.STATUS, status, "7"
        for _ in range(12):
            with pytest.raises(Refused, match=f"answered {status}: status {status} on request") as caught:
                await upstreams.chat(ASK, PATIENT)
            assert (caught.value.status, caught.value.retry_after_s, caught.value.retryable) == (status, 7, retryable)
        assert inside(upstreams).breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", [Fault.STATUS, Fault.CUT, Fault.SILENT])
async def test_failures_open_the_breaker_and_nothing_more_is_sent(dialect: FakeDialect, fault: Fault) -> None:
    async with FakeEngine(dialect=dialect, reply="one two") as fake, upstreams_on(fake) as upstreams:
        fake.fault = fault
        for _ in range(5):
            with pytest.raises(UpstreamError):
                await upstreams.chat(ASK, replace(PATIENT, first_token_s=0.1))
        sent = len(fake.requests)
        with pytest.raises(BreakerOpen):
            await upstreams.chat(ASK, PATIENT)
        assert len(fake.requests) == sent
        assert upstreams.status()[0].state == "down"
        inside(upstreams).breaker.seen_back()
        fake.fault = Fault.NONE
        assert (await upstreams.chat(ASK, PATIENT)).text == "one two"
        assert inside(upstreams).breaker.state is BreakerState.CLOSED


async def test_the_end_of_an_old_probe_does_not_close_a_breaker_that_opened_again() -> None:
    async with FakeEngine(reply="word " * 100, chunks=100, gap_s=0.02) as fake, upstreams_on(fake) as upstreams:
        breaker = inside(upstreams).breaker
        breaker.trip("a test")
        breaker.seen_back()
        call = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: breaker.state is BreakerState.CLOSED)
        assert not call.done()
        breaker.trip("down meanwhile")
        await call
        assert breaker.state is BreakerState.OPEN


async def test_a_cancelled_probe_does_not_keep_the_breaker_open() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        start = monotonic()
        breaker = inside(upstreams).breaker = Breaker(lambda: now, BreakerRules(rest_s=600))
        now = start
        breaker.trip("a test")
        now += 600
        fake.fault = Fault.SILENT
        probe = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        with pytest.raises(BreakerOpen, match="one trial call is under way after: a test"):
            await upstreams.chat(ASK, PATIENT)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        fake.fault = Fault.NONE
        assert (await upstreams.chat(ASK, PATIENT)).text == "OK"


async def test_the_first_token_of_a_probe_lets_the_others_in() -> None:
    async with FakeEngine(reply="word " * 300, chunks=300, gap_s=0.05) as fake, upstreams_on(fake) as upstreams:
        inside(upstreams).breaker.trip("a test")
        inside(upstreams).breaker.seen_back()
        probe = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: inside(upstreams).breaker.state is BreakerState.CLOSED)
        assert not probe.done()
        probe.cancel()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_killed_server_is_down_and_its_return_heals(dialect: FakeDialect) -> None:
    async with FakeEngine(dialect=dialect) as fake, upstreams_on(fake) as upstreams:
        await fake.stop()
        await asyncio.sleep(0.02)  # this process runs the server too: give its loop a pass to hear of the close
        with pytest.raises(ConnectFailed):
            await upstreams.chat(ASK, PATIENT)
        await inside(upstreams).beat()
        assert upstreams.status()[0].state == "down"
        with pytest.raises(BreakerOpen, match="down"):
            await upstreams.chat(ASK, PATIENT)
        await fake.start()
        await inside(upstreams).beat()
        assert (await upstreams.chat(ASK, PATIENT)).text == "OK"
        assert upstreams.status()[0].state == "up"


async def test_callers_are_not_refused_while_one_slow_call_tries_a_server_seen_back() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        await fake.stop()
        await inside(upstreams).beat()
        await fake.start()
        await inside(upstreams).beat()
        fake.fault = Fault.SILENT
        slow = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        fake.fault = Fault.NONE
        assert (await upstreams.chat(ASK, PATIENT)).text == "OK"
        assert not slow.done()
        slow.cancel()


async def test_only_failure_and_recovery_are_said_aloud() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        with capture_logs() as logged:
            fake.fault = Fault.SILENT
            call = asyncio.create_task(upstreams.chat(ASK, PATIENT))
            await until(lambda: fake.active == 1)
            await inside(upstreams).beat()
            call.cancel()
            await until(lambda: fake.active == 0)
            fake.fault = Fault.NONE
            await inside(upstreams).beat()
            await fake.stop()
            await inside(upstreams).beat()
            await fake.start()
            await inside(upstreams).beat()
    said = [(line["log_level"], line["state"]) for line in logged if line["event"] == "upstream_state"]
    assert said == [("debug", "busy"), ("debug", "up"), ("warning", "down"), ("info", "up")]
    (down,) = [line for line in logged if line.get("state") == "down"]
    assert down["reason"]


async def test_a_server_that_comes_back_as_another_kind_is_spoken_to_in_its_words() -> None:
    async with FakeEngine(dialect="vllm") as fake, upstreams_on(fake) as upstreams:
        await fake.stop()
        await inside(upstreams).beat()
        fake.dialect = "llamacpp"
        await fake.start()
        await inside(upstreams).beat()
        await upstreams.chat(ASK, PATIENT)
        assert fake.requests[-1]["cache_prompt"] is True


async def test_a_server_that_starts_later_is_found() -> None:
    fake = FakeEngine()
    await fake.start()
    await fake.stop()
    async with upstreams_on(fake) as upstreams:
        assert upstreams.status()[0].state == "down"
        await fake.start()
        await inside(upstreams).beat()
        assert (await upstreams.chat(ASK, PATIENT)).text == "OK"
        await fake.stop()


async def test_a_frozen_server_is_down_without_a_token_spent() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        fake.fault = Fault.FROZEN
        inside(upstreams).pulse.progress_at -= 60
        for _ in range(SILENT_BEATS):
            await inside(upstreams).beat()
        assert upstreams.status()[0].state == "down"
        assert "did not answer" in upstreams.status()[0].reason
        assert fake.requests == []


@pytest.mark.parametrize("dialect", ["vllm", "llamacpp"])
async def test_a_hung_engine_behind_a_green_health_is_stuck(dialect: FakeDialect) -> None:
    async with FakeEngine(dialect=dialect) as fake, upstreams_on(fake) as upstreams:
        fake.fault = Fault.STUCK
        call = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        await inside(upstreams).beat()
        assert upstreams.status()[0].state == "busy"
        inside(upstreams).pulse.progress_at -= inside(upstreams).pulse.stuck_s
        await inside(upstreams).beat()
        assert upstreams.status()[0].state == "stuck"
        with pytest.raises(BreakerOpen, match="no progress"):
            await upstreams.chat(ASK, PATIENT)
        call.cancel()
        fake.fault = Fault.NONE
        await until(lambda: fake.active == 0)
        await inside(upstreams).beat()
        assert (await upstreams.chat(ASK, PATIENT)).text == "OK"


async def test_a_server_without_metrics_is_up_while_it_answers() -> None:
    async with FakeEngine() as fake:
        fake.metrics_on = False
        async with upstreams_on(fake) as upstreams:
            assert upstreams.status()[0].state == "up"


async def test_timeouts_of_an_engine_seen_working_are_load_and_trip_nothing() -> None:
    async with FakeEngine(reply="word " * 900, chunks=900, gap_s=0.01) as fake, upstreams_on(fake) as upstreams:
        stream = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        await inside(upstreams).beat()
        fake.fault = Fault.SILENT
        for _ in range(6):
            with pytest.raises(FirstTokenTimeout):
                await upstreams.chat(ASK, replace(PATIENT, first_token_s=0.15))
        assert inside(upstreams).breaker.state is BreakerState.CLOSED
        stream.cancel()
