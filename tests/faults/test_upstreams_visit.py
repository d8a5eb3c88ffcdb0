"""A visit: what goes out, what the breaker learns of how it went, and that its slot and its socket are let go."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic

import orjson
import pytest
from prometheus_client import REGISTRY

from libs.upstreams.breaker import Breaker, BreakerState
from libs.upstreams.clock import CallClock
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import (
    BreakerOpen,
    BrokenStream,
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
from libs.upstreams.upstream import Upstream
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


async def test_an_answer_that_the_request_may_have_made_unreadable_does_not_speak_against_the_engine() -> None:
    async def unreadable(upstreams: Upstreams, *, of_request: bool) -> None:
        for _ in range(5):
            with pytest.raises(BrokenStream):
                async with visiting(upstreams):
                    raise BrokenStream("not an answer", of_request=of_request)

    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        await unreadable(upstreams, of_request=True)
        assert inside(upstreams).breaker.state is BreakerState.CLOSED
        assert orjson.loads(await ask(visiting(upstreams)))["choices"]
        await unreadable(upstreams, of_request=False)
        assert inside(upstreams).breaker.state is BreakerState.OPEN


@asynccontextmanager
async def silent_hosted_api() -> AsyncGenerator[tuple[FakeEngine, Upstreams]]:
    """An API without counters that lists its models and answers nothing."""
    async with FakeEngine(dialect="openai") as fake:
        entry = UpstreamEntry("lexi", "Lexi", fake.base_url, "openai", 64, {"forecast": 8})
        upstreams = Upstreams({"lexi": entry}, role="forecast")
        await upstreams.start()
        fake.fault = Fault.SILENT
        yield fake, upstreams
        await upstreams.close()


async def in_one_piece(upstreams: Upstreams, *, first_token_s: float, total_s: float, cancelled: bool = False) -> None:
    """Ask for an answer that is not streamed; `cancelled` by who watches over the total."""
    visit = visiting(upstreams, limits=replace(PATIENT, first_token_s=first_token_s, total_s=total_s))
    visit.clock.expect_whole()
    async with visit:
        exchange = await visit.send("chat/completions", BODY)
        if cancelled:
            await asyncio.sleep(total_s)
            raise asyncio.CancelledError
        await exchange.head(visit.clock.due)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_silence_longer_than_a_stream_may_keep_counts_for_answers_in_one_piece_too(*, cancelled: bool) -> None:
    async with silent_hosted_api() as (_, upstreams):
        calls = [in_one_piece(upstreams, first_token_s=0.05, total_s=0.2, cancelled=cancelled) for _ in range(5)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ended} == {asyncio.CancelledError if cancelled else DeadlineExceeded}
        assert inside(upstreams).breaker.state is BreakerState.OPEN
        assert "deadline_exceeded" in inside(upstreams).breaker.reason


async def test_a_short_deadline_says_nothing_of_the_engine_nor_a_long_answer_while_others_come() -> None:
    async with silent_hosted_api() as (fake, upstreams):
        short = [in_one_piece(upstreams, first_token_s=0.5, total_s=0.1) for _ in range(8)]
        assert all(isinstance(end, DeadlineExceeded) for end in await asyncio.gather(*short, return_exceptions=True))
        assert inside(upstreams).breaker.state is BreakerState.CLOSED
        long = [asyncio.create_task(in_one_piece(upstreams, first_token_s=0.1, total_s=1.0)) for _ in range(5)]
        await until(lambda: fake.active == 5)
        fake.fault = Fault.NONE
        await ask(visiting(upstreams))
        assert all(isinstance(end, DeadlineExceeded) for end in await asyncio.gather(*long, return_exceptions=True))
        assert inside(upstreams).breaker.state is BreakerState.CLOSED


async def test_a_slow_trial_call_does_not_keep_others_from_an_engine_that_is_well() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        now, upstream = 0.0, inside(upstreams)
        breaker = upstream.breaker = Breaker(lambda: now)
        breaker.trip("a test")
        now += 5
        fake.delay_s = 30.0
        trial = asyncio.create_task(ask(visiting(upstreams)))
        await until(lambda: fake.active == 1)
        fake.delay_s = 0.0
        with pytest.raises(BreakerOpen, match="one trial call"):
            await ask(visiting(upstreams))
        now += 5
        await ask(visiting(upstreams))
        assert breaker.state is BreakerState.CLOSED
        assert not trial.done()
        trial.cancel()


async def test_an_estimate_beyond_what_the_window_holds_neither_blocks_the_line_nor_empties_it() -> None:
    async with FakeEngine() as fake, upstreams_on(fake, share=2) as upstreams:
        fake.fault = Fault.SILENT
        slots, held = inside(upstreams).slots, [asyncio.create_task(ask(visiting(upstreams))) for _ in range(2)]
        assert slots.queue_tokens == 2 * 4096
        await until(lambda: fake.active == 2)
        fake.fault = Fault.NONE
        patient = asyncio.create_task(ask(visiting(upstreams, priority=9, tokens=600)))
        await until(lambda: slots.waiting == 1)
        greedy = asyncio.create_task(ask(visiting(upstreams, priority=4, tokens=10**9)))
        await until(lambda: slots.waiting == 2)
        assert slots.tokens_waiting == 600 + 4096
        other = asyncio.create_task(ask(visiting(upstreams, priority=4, tokens=600)))
        await until(lambda: slots.waiting == 3)
        held[0].cancel()
        await asyncio.gather(patient, greedy, other)
        held[1].cancel()


def test_what_a_request_can_come_to() -> None:
    entry = UpstreamEntry("lexi", "Lexi", "http://h/v1", "vllm", 64, {"api": 4}, 1000)
    upstream = Upstream(entry, "api", monotonic)
    assert [upstream.believable(10**9, choices) for choices in (1, 3, 9, 0)] == [1000, 3000, 4000, 4000]
    assert upstream.believable(700, 1) == 700
