"""A visit: what goes out, what the breaker learns of how it went, and that its slot and its socket are let go."""

import asyncio
from dataclasses import replace
from time import monotonic

import orjson
import pytest
from prometheus_client import REGISTRY

from libs.upstreams.breaker import BreakerState
from libs.upstreams.clock import CallClock
from libs.upstreams.errors import (
    BreakerOpen,
    ConnectFailed,
    DeadlineExceeded,
    FirstTokenTimeout,
    QueueFull,
    Refused,
    UpstreamError,
)
from libs.upstreams.exchange import Exchange
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import TimeLimits
from libs.upstreams.visit import Visit
from tests.fakes.engine import FakeEngine, Fault
from tests.faults.upstream_cases import ASK, PATIENT, inside, until, upstreams_on

BODY = orjson.dumps({"model": "Lexi", "messages": [{"role": "user", "content": "hello"}]})


def visiting(upstreams: Upstreams, *, limits: TimeLimits = PATIENT, priority: int = 4, tokens: int = 0) -> Visit:
    return Visit(inside(upstreams), CallClock(limits, monotonic()), priority=priority, tokens=tokens)


async def whole(exchange: Exchange) -> bytes:
    pieces = list[bytes]()
    while chunk := await exchange.read():
        pieces.append(chunk)
    return b"".join(pieces)


async def ask(visit: Visit) -> bytes:
    async with visit:
        exchange = await visit.send("chat/completions", BODY)
        status = await exchange.head(visit.clock.due)
        content = await whole(exchange)
        if status != 200:
            raise Refused(f"answered {status}", status=status)
        visit.moved()
        return content


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("lexi_upstream_calls_total", {"upstream": "lexi", "outcome": outcome}) or 0.0


async def test_any_body_goes_to_any_route_of_the_api_and_the_answer_comes_as_it_is() -> None:
    async with FakeEngine(reply="as it is") as fake, upstreams_on(fake) as upstreams:
        good = counted("ok")
        answer = orjson.loads(await ask(visiting(upstreams)))
        assert answer["choices"][0]["message"]["content"] == "as it is"
        async with visiting(upstreams) as visit:
            exchange = await visit.send("no/such/route", b"{}")
            assert await exchange.head(visit.clock.due) == 404
            assert inside(upstreams).slots.used == 1
            await whole(exchange)
        assert fake.paths[-1] == "/v1/no/such/route"
        assert fake.requests == [orjson.loads(BODY)]
        assert inside(upstreams).slots.used == 0
        assert counted("ok") == good + 2
        assert fake.connections_made == 1


@pytest.mark.parametrize("status", [500, 503])
async def test_an_error_of_the_engine_raised_inside_counts_against_it(status: int) -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        fake.fault, fake.fault_status = Fault.STATUS, status
        for _ in range(5):
            with pytest.raises(Refused) as caught:
                await ask(visiting(upstreams))
            assert caught.value.upstream == "lexi"
        assert inside(upstreams).breaker.state is BreakerState.OPEN
        with pytest.raises(BreakerOpen) as refused:
            await ask(visiting(upstreams))
        assert refused.value.retry_after_s == 5
        assert len(fake.requests) == 5


async def test_what_is_the_requests_own_fault_or_a_bug_of_ours_counts_for_nothing() -> None:
    async def mistake(visit: Visit) -> None:
        async with visit:
            await visit.acquainted()
            raise LookupError

    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        failed = counted("failed")
        for _ in range(8):
            with pytest.raises(LookupError):
                await mistake(visiting(upstreams))
        fake.fault, fake.fault_status = Fault.STATUS, 422
        for _ in range(8):
            with pytest.raises(Refused):
                await ask(visiting(upstreams))
        assert inside(upstreams).breaker.state is BreakerState.CLOSED
        assert inside(upstreams).slots.used == 0
        assert counted("failed") == failed + 8


async def test_time_that_ran_out_while_reading_is_the_timeout_it_means() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        fake.fault = Fault.SILENT
        with pytest.raises(FirstTokenTimeout) as caught:
            await ask(visiting(upstreams, limits=replace(PATIENT, first_token_s=0.1)))
        assert caught.value.upstream == "lexi"
        with pytest.raises(DeadlineExceeded):
            await ask(visiting(upstreams, limits=replace(PATIENT, total_s=0.1)))
        await until(lambda: fake.active == 0)


@pytest.mark.parametrize("fault", [Fault.NONE, Fault.SILENT])
async def test_a_caller_that_leaves_frees_slot_and_socket(fault: Fault) -> None:
    async with FakeEngine(delay_s=30) as fake, upstreams_on(fake, share=1) as upstreams:
        fake.fault = fault
        gone, active = counted("cancelled"), asyncio.create_task(ask(visiting(upstreams)))
        await until(lambda: fake.active == 1)
        waiting = asyncio.create_task(ask(visiting(upstreams, tokens=10)))
        await until(lambda: inside(upstreams).slots.waiting == 1)
        waiting.cancel()
        active.cancel()
        assert len(await asyncio.gather(waiting, active, return_exceptions=True)) == 2
        await until(lambda: fake.active == 0 and fake.aborted == 1)
        assert (inside(upstreams).slots.used, inside(upstreams).slots.waiting) == (0, 0)
        assert counted("cancelled") == gone + 2


async def test_a_request_whose_time_is_up_is_not_sent() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        with pytest.raises(DeadlineExceeded) as caught:
            await ask(visiting(upstreams, limits=replace(PATIENT, total_s=0)))
        assert caught.value.upstream == "lexi"
        async with visiting(upstreams) as visit:
            visit.clock.total_due = monotonic()
            with pytest.raises(DeadlineExceeded):
                await visit.send("chat/completions", BODY)
        assert fake.requests == []
        assert inside(upstreams).breaker.state is BreakerState.CLOSED


async def test_beyond_the_bound_callers_are_refused_and_our_own_are_not() -> None:
    async with FakeEngine() as fake, upstreams_on(fake, share=1) as upstreams:
        overloaded = counted("overloaded")
        inside(upstreams).slots.resize(1, queue_tokens=100)
        fake.fault = Fault.SILENT
        first = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        fake.fault = Fault.NONE
        early = asyncio.create_task(ask(visiting(upstreams, priority=9, tokens=60)))
        late = asyncio.create_task(ask(visiting(upstreams, priority=9, tokens=40)))
        own = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: inside(upstreams).slots.waiting == 3)
        assert REGISTRY.get_sample_value("lexi_upstream_tokens_waiting", {"upstream": "lexi"}) == 100
        with pytest.raises(QueueFull, match="3 requests wait for 1 slots") as refused:
            await ask(visiting(upstreams, priority=9, tokens=1))
        assert 1 <= refused.value.retry_after_s <= 30
        assert refused.value.upstream == "lexi"
        urgent = asyncio.create_task(ask(visiting(upstreams, priority=4, tokens=30)))
        with pytest.raises(QueueFull, match="more urgent"):
            await late
        first.cancel()
        await asyncio.gather(early, own, urgent)
        assert counted("overloaded") == overloaded + 2
        assert fake.peak == 1


async def test_those_in_line_learn_at_once_that_their_engine_died() -> None:
    async with FakeEngine() as fake, upstreams_on(fake, share=1) as upstreams:
        fake.fault = Fault.STUCK
        held = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        waiting = [asyncio.create_task(ask(visiting(upstreams, tokens=10))) for _ in range(3)]
        waiting.append(asyncio.create_task(ask(visiting(upstreams))))
        await until(lambda: inside(upstreams).slots.waiting == 4)
        inside(upstreams).pulse.progress_at -= inside(upstreams).pulse.stuck_s
        await inside(upstreams).beat()
        for call in waiting:
            with pytest.raises(BreakerOpen, match="no progress"):
                await call
        assert not held.done()
        held.cancel()


async def test_those_in_line_learn_at_once_that_calls_keep_failing() -> None:
    async with FakeEngine() as fake, upstreams_on(fake, share=5) as upstreams:
        fake.fault = Fault.SILENT
        hurried = replace(PATIENT, first_token_s=0.3)
        first = [asyncio.create_task(ask(visiting(upstreams, limits=hurried))) for _ in range(5)]
        await until(lambda: fake.active == 5)
        waiting = [asyncio.create_task(ask(visiting(upstreams, limits=hurried, tokens=10))) for _ in range(20)]
        ended = await asyncio.gather(*first, *waiting, return_exceptions=True)
        assert all(isinstance(end, UpstreamError) for end in ended)
        assert sum(isinstance(end, BreakerOpen) for end in ended) >= 15
        assert len(fake.requests) < 12


async def test_waiting_for_anothers_question_what_the_server_is_ends_with_the_own_time() -> None:
    async with FakeEngine() as fake, upstreams_on(fake, start=False) as upstreams:
        fake.fault = Fault.FROZEN
        patient = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: len(fake.paths) == 1)
        with pytest.raises(DeadlineExceeded):
            await upstreams.chat(ASK, replace(PATIENT, total_s=0.1))
        assert not patient.done()
        with pytest.raises(ConnectFailed, match="did not say in time what it is"):
            await patient
        assert len(fake.paths) == 1
