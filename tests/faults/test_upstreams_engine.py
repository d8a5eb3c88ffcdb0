"""Calls against an engine that misbehaves at the wire: each fault is the error it should be, and no slot is lost."""

import asyncio
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from libs.upstreams.breaker import BreakerState
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import (
    BrokenStream,
    ConnectFailed,
    DeadlineExceeded,
    FirstTokenTimeout,
    IdleTimeout,
    NoSlot,
    PromptTooLong,
    Refused,
    UnknownUpstream,
    UpstreamError,
)
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import Constraint, Engine, Message, Priority, Sampling, TimeLimits
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.fakes.engine_replies import FakeDialect
from tests.faults.upstream_cases import ASK, DIALECTS, PATIENT, inside, until, upstreams_on


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_good_answer_comes_whole(dialect: FakeDialect) -> None:
    reply = Reply("Grüße from the engine — and more", "length", tokens_in=7, tokens_out=11)
    async with FakeEngine(dialect=dialect, reply=reply, chunks=9) as fake, upstreams_on(fake) as upstreams:
        engine: Engine = upstreams
        answer = await engine.chat(ASK, PATIENT, upstream="lexi")
        assert (answer.text, answer.finish_reason, answer.upstream, answer.model) == (
            reply.text,
            "length",
            "lexi",
            "Lexi",
        )
        assert (answer.usage.tokens_in, answer.usage.tokens_out, answer.usage.estimated) == (7, 11, False)
        assert 0 < answer.time.first_token_ms <= answer.time.total_ms
        assert fake.requests[-1]["stream"] is True


@pytest.mark.parametrize(
    ("dialect", "word"), [("vllm", "structured_outputs"), ("llamacpp", "grammar"), ("openai", "response_format")]
)
async def test_the_dialect_is_asked_of_the_server(dialect: FakeDialect, word: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    async with FakeEngine(dialect=dialect) as fake, upstreams_on(fake, start=False) as upstreams:
        await upstreams.chat(replace(ASK, constraint=Constraint(schema=schema)), PATIENT)
        assert word in fake.requests[-1]
        assert ("priority" in fake.requests[-1]) == (dialect == "vllm")


LIMITS: dict[type[UpstreamError], TimeLimits] = {
    FirstTokenTimeout: replace(PATIENT, first_token_s=0.3),
    IdleTimeout: replace(PATIENT, idle_s=0.2),
}
FAULTS: list[tuple[Fault, type[UpstreamError]]] = [
    (Fault.STATUS, Refused),
    (Fault.SILENT, FirstTokenTimeout),
    (Fault.HEADERS_ONLY, FirstTokenTimeout),
    (Fault.PINGS_ONLY, FirstTokenTimeout),
    (Fault.FROZEN, FirstTokenTimeout),
    (Fault.STALL, IdleTimeout),
    (Fault.CUT, BrokenStream),
    (Fault.CLOSE, BrokenStream),
    (Fault.MALFORMED, BrokenStream),
    (Fault.GARBAGE, BrokenStream),
    (Fault.NO_FINISH, BrokenStream),
    (Fault.NO_DONE, BrokenStream),
    (Fault.ERROR_EVENT, BrokenStream),
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("fault", "expected"), FAULTS)
async def test_each_fault_is_its_error_and_gives_the_slots_back(
    dialect: FakeDialect, fault: Fault, expected: type[UpstreamError]
) -> None:
    async with FakeEngine(dialect=dialect, reply="one two three four") as fake, upstreams_on(fake) as upstreams:
        await upstreams.chat(ASK, PATIENT)
        fake.fault = fault
        with pytest.raises(expected) as caught:
            await upstreams.chat(ASK, LIMITS.get(expected, PATIENT))
        assert caught.value.upstream == "lexi"
        await until(lambda: fake.active == 0)
        assert upstreams.status()[0].slots_used == 0
        fake.fault = Fault.NONE
        assert (await upstreams.chat(ASK, PATIENT)).text == "one two three four"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_total_limit_is_its_own_error(dialect: FakeDialect) -> None:
    slow = FakeEngine(dialect=dialect, chunks=500, gap_s=0.02)
    async with slow as fake, upstreams_on(fake) as upstreams:
        await upstreams.chat(ASK, PATIENT)
        fake.reply = "word " * 500
        with pytest.raises(DeadlineExceeded):
            await upstreams.chat(ASK, replace(PATIENT, total_s=1.5))
        await until(lambda: fake.active == 0 and fake.aborted == 1)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.HEADERS_ONLY, Fault.STALL, Fault.NONE])
async def test_cancelling_frees_the_engines_slot(dialect: FakeDialect, fault: Fault) -> None:
    slow = FakeEngine(dialect=dialect, reply="word " * 500, chunks=500, gap_s=0.02)
    async with slow as fake, upstreams_on(fake) as upstreams:
        fake.fault = fault
        call = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert upstreams.status()[0].slots_used == 0
        await until(lambda: fake.active == 0 and fake.aborted == 1)


async def test_one_connection_carries_many_calls_one_after_another() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        for _ in range(10):
            await upstreams.chat(ASK, PATIENT)
        assert fake.connections_made == 1


async def test_a_server_that_dropped_its_idle_connections_costs_no_call() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        for _ in range(10):
            await upstreams.chat(ASK, PATIENT)
            fake.drop_idle()
            await asyncio.sleep(0.01)
        assert fake.served == 10


async def test_never_more_at_the_engine_than_the_share_and_all_are_answered() -> None:
    async with FakeEngine(delay_s=0.01) as fake, upstreams_on(fake, share=3) as upstreams:
        replies = await asyncio.gather(*(upstreams.chat(ASK, PATIENT) for _ in range(40)))
        assert len(replies) == 40
        assert fake.peak == 3
        assert max(reply.time.queue_ms for reply in replies) > 0


async def test_policy_goes_before_batch_when_slots_are_scarce() -> None:
    async with FakeEngine(dialect="openai") as fake, upstreams_on(fake, share=1) as upstreams:
        fake.fault = Fault.SILENT
        first = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        fake.fault = Fault.NONE
        wanted = [(Priority.BATCH, "batch"), (Priority.INTERACTIVE, "caller"), (Priority.POLICY, "policy")]
        asks = [replace(ASK, messages=(Message("user", name),), priority=priority) for priority, name in wanted]
        waiting = [asyncio.create_task(upstreams.chat(ask, PATIENT)) for ask in asks]
        await until(lambda: inside(upstreams).slots.waiting == 3)
        first.cancel()
        await asyncio.gather(*waiting)
        assert [body["messages"][0]["content"] for body in fake.requests[1:]] == ["policy", "caller", "batch"]


async def test_waiting_for_a_slot_counts_towards_the_total() -> None:
    async with FakeEngine() as fake, upstreams_on(fake, share=1) as upstreams:
        fake.fault = Fault.SILENT
        first = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        with pytest.raises(NoSlot, match="1 slots"):
            await upstreams.chat(ASK, replace(PATIENT, total_s=0.1))
        assert len(fake.requests) == 1
        first.cancel()


async def test_a_role_without_a_share_gets_nothing_and_is_told() -> None:
    async with FakeEngine() as fake, upstreams_on(fake, share=0) as upstreams:
        with pytest.raises(NoSlot, match="role forecast has no share of lexi"):
            await upstreams.chat(ASK, PATIENT)
        assert fake.requests == []
        assert "no share" in upstreams.status()[0].reason


async def test_a_server_with_fewer_slots_shrinks_the_share() -> None:
    async with FakeEngine(dialect="llamacpp", slots=8) as fake, upstreams_on(fake, share=48) as upstreams:
        assert upstreams.status()[0].slots == 6


async def test_a_prompt_that_cannot_fit_is_not_sent_and_one_in_doubt_is() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        with pytest.raises(PromptTooLong, match="4096"):
            await upstreams.chat(replace(ASK, messages=(Message("user", "x" * 5 * 4096),)), PATIENT)
        with pytest.raises(PromptTooLong):
            await upstreams.chat(replace(ASK, sampling=Sampling(max_tokens=4097)), PATIENT)
        assert fake.requests == []
        await upstreams.chat(replace(ASK, messages=(Message("user", "x" * 4 * 4096),)), PATIENT)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_key_goes_along_and_a_wrong_one_is_a_refusal(dialect: FakeDialect) -> None:
    async with FakeEngine(dialect=dialect, api_key="right") as fake:
        entry = UpstreamEntry("lexi", "Lexi", fake.base_url, dialect, 4, {"forecast": 4}, api_key=SecretStr("right"))
        right = Upstreams({"lexi": entry}, role="forecast")
        wrong = Upstreams({"lexi": replace(entry, api_key=SecretStr("wrong"))}, role="forecast")
        assert (await right.chat(ASK, PATIENT)).text == "OK"
        with pytest.raises(Refused, match="401"):
            await wrong.chat(ASK, PATIENT)
        await right.close()
        await wrong.close()


async def test_fallbacks_that_look_dead_come_last() -> None:
    engines = FakeEngine(), FakeEngine(), FakeEngine()
    async with engines[0], engines[1] as two, engines[2], upstreams_on(*engines) as upstreams:
        assert upstreams.fallbacks_of("lexi") == ("second", "third")
        await two.stop()
        await inside(upstreams, "second").beat()
        assert upstreams.fallbacks_of("lexi") == ("third", "second")
        assert upstreams.model_of("third") == "Lexi"
        with pytest.raises(UnknownUpstream, match="fourth"):
            upstreams.model_of("fourth")


async def test_closing_ends_calls_in_flight_and_leaves_no_connection() -> None:
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        fake.fault = Fault.SILENT
        call = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        await upstreams.close()
        with pytest.raises(BrokenStream):
            await call
        await until(lambda: fake.active == 0)


async def test_calls_are_counted_by_outcome() -> None:
    def counted(outcome: str) -> float:
        return REGISTRY.get_sample_value("lexi_upstream_calls_total", {"upstream": "lexi", "outcome": outcome}) or 0.0

    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        good, bad = counted("ok"), counted("broken_stream")
        await upstreams.chat(ASK, PATIENT)
        fake.fault = Fault.CUT
        with pytest.raises(BrokenStream):
            await upstreams.chat(ASK, PATIENT)
        assert (counted("ok"), counted("broken_stream")) == (good + 1, bad + 1)
        assert REGISTRY.get_sample_value("lexi_upstream_breaker", {"upstream": "lexi"}) == 0
        assert REGISTRY.get_sample_value("lexi_upstream_slots_in_use", {"upstream": "lexi"}) == 0
        assert REGISTRY.get_sample_value("lexi_upstream_state", {"upstream": "lexi", "state": "up"}) == 1


async def test_a_total_too_short_to_connect_in_is_no_failure_of_the_server() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    upstreams = Upstreams({"lexi": UpstreamEntry("lexi", "Lexi", address, "vllm", 4, {"forecast": 4})}, role="forecast")
    for _ in range(7):
        with pytest.raises(DeadlineExceeded):
            await upstreams.chat(ASK, replace(PATIENT, total_s=0.05))
    assert inside(upstreams).breaker.state is BreakerState.CLOSED
    with pytest.raises(ConnectFailed, match=r"within 0\.05 s"):
        await upstreams.chat(ASK, replace(PATIENT, connect_s=0.05))
    await upstreams.close()
    server.close()
