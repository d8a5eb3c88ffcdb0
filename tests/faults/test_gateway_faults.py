"""The fault table: for each way in which an engine goes wrong, what the client sees and what is on record.

No slot stays taken, and what the engine may have read is never sent again.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import pytest_asyncio

from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.fakes.engine_replies import FakeDialect
from tests.faults.gateway_client import CHAT, Answer, ask
from tests.faults.gateway_process import NOWHERE, Gateway, caller, gateway_before, place
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("gateway_faults")]

MIB = 2**20
EVENT_GAP_S = 0.03
"""Between events, where what comes after the first one must not come along with it."""
Mode = Literal["whole", "stream"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a request. Without `code` it is a good answer. `event`: a stream had begun, and ends with the error.
    `retry_after` is the header's value, "" for any.
    """

    status: int
    code: str = ""
    row: str = "failed"
    event: bool = False
    retry_after: str | None = None


GOOD = Seen(200, row="ok")
BROKEN = Seen(502, "broken_stream")
BROKEN_LATER = Seen(200, "broken_stream", event=True)
NOT_AN_ANSWER = Seen(502, "bad_upstream_answer")
NO_FIRST_TOKEN = Seen(504, "first_byte_timeout", row="timed_out")
TOO_LATE = Seen(504, "deadline_exceeded", row="timed_out")


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: what the engine does, and what comes of it; None where the fault does not exist.

    `status`, `retry_after` and `body` are the engine's where it answers an error. Requests whose answer is not a stream
    have no limit but the total, so those on which the engine falls silent bring a deadline.
    """

    name: str
    fault: Fault
    whole: Seen | None
    stream: Seen | None
    status: int = 500
    retry_after: str | None = None
    body: str | None = None
    size: int = 0
    delay_s: float = 0.0
    deadline_ms: int | None = None

    def apply(self, fake: FakeEngine) -> None:
        """Make the next request go wrong."""
        fake.faults.append(self.fault)
        fake.fault_status, fake.retry_after, fake.fault_body = self.status, self.retry_after, self.body
        fake.huge_bytes, fake.delay_s = self.size, self.delay_s


def answered(status: int, seen: Seen, *, name: str, **engine: Any) -> Case:
    """The engine answers an error, which is the same whether a stream was asked for or not."""
    return Case(name, Fault.STATUS, seen, seen, status=status, **engine)


OVERLONG = (
    '{"error":{"message":"This model\'s maximum context length is 64 tokens. However, you requested 99 tokens."}}'
)
CASES = (
    answered(429, Seen(429, "upstream_busy", retry_after="7"), name="429 with Retry-After", retry_after="7"),
    answered(429, Seen(429, "upstream_busy", retry_after=""), name="429 without Retry-After"),
    answered(500, Seen(500, "upstream_error"), name="500 once"),
    answered(503, Seen(503, "upstream_error", retry_after=""), name="503 once"),
    answered(502, Seen(502, "upstream_error"), name="502 of a proxy", body="<html>Bad Gateway</html>"),
    answered(401, Seen(502, "upstream_refused_key"), name="401"),
    answered(403, Seen(502, "upstream_refused_key"), name="403"),
    answered(422, Seen(422, "upstream_error"), name="422"),
    answered(302, Seen(502, "bad_upstream_answer"), name="302", body=""),
    answered(400, Seen(400, "context_length_exceeded"), name="context too long, older words", body=OVERLONG),
    Case("an error under 200", Fault.STATUS, NOT_AN_ANSWER, BROKEN, status=200),
    Case("JSON that is no object", Fault.STATUS, NOT_AN_ANSWER, BROKEN, status=200, body="null"),
    Case("no content", Fault.STATUS, NOT_AN_ANSWER, NOT_AN_ANSWER, status=204, body=""),
    Case(
        "context too long",
        Fault.CONTEXT,
        Seen(400, "context_length_exceeded"),
        Seen(400, "context_length_exceeded"),
    ),
    Case("TCP reset", Fault.RESET, BROKEN, BROKEN),
    Case("TCP reset after the head", Fault.RESET_AFTER_HEAD, BROKEN, BROKEN),
    Case("TCP reset in the middle", Fault.RESET_MIDSTREAM, BROKEN, BROKEN_LATER),
    Case("closed before an answer", Fault.CLOSE, BROKEN, BROKEN),
    Case("not HTTP", Fault.GARBAGE, BROKEN, BROKEN),
    Case("silence after accept", Fault.SILENT, TOO_LATE, NO_FIRST_TOKEN, deadline_ms=800),
    Case("silence after the head", Fault.HEADERS_ONLY, TOO_LATE, NO_FIRST_TOKEN, deadline_ms=800),
    Case("comments for ever", Fault.PINGS_ONLY, TOO_LATE, NO_FIRST_TOKEN, deadline_ms=800),
    Case("slow first token", Fault.NONE, GOOD, GOOD, delay_s=0.5),
    Case("cut", Fault.CUT, BROKEN, BROKEN_LATER),
    Case("ended cleanly too early", Fault.ENDS_EARLY, None, BROKEN_LATER),
    Case(
        "stalled",
        Fault.STALL,
        TOO_LATE,
        Seen(200, "idle_timeout", row="timed_out", event=True),
        deadline_ms=800,
    ),
    Case("an event that is not JSON", Fault.MALFORMED, None, BROKEN_LATER),
    Case("a chunk that is none", Fault.BAD_CHUNK, BROKEN, BROKEN_LATER),
    Case("no finish reason", Fault.NO_FINISH, None, BROKEN_LATER),
    Case("no [DONE]", Fault.NO_DONE, None, BROKEN_LATER),
    Case("finish twice", Fault.DUPLICATE_FINISH, None, GOOD),
    Case("no usage", Fault.NO_USAGE, None, GOOD),
    Case("an error inside the stream", Fault.ERROR_EVENT, None, BROKEN_LATER),
    Case("huge answer", Fault.HUGE, GOOD, GOOD, size=MIB // 2),
    Case("answer beyond bearing", Fault.HUGE, NOT_AN_ANSWER, BROKEN_LATER, size=33 * MIB),
    Case("a page under 200", Fault.NOT_JSON, NOT_AN_ANSWER, BROKEN),
    Case("body cut short", Fault.CUT_BODY, BROKEN, BROKEN_LATER),
    Case("content length too long", Fault.LENGTH_TOO_LONG, BROKEN, GOOD),
    Case("content length too short", Fault.LENGTH_TOO_SHORT, NOT_AN_ANSWER, BROKEN_LATER),
    Case("closed a connection as it was used again", Fault.STALE, BROKEN, BROKEN),
)
RUNS = [(number, mode) for number, case in enumerate(CASES) for mode in ("whole", "stream") if getattr(case, mode)]
NAMES = [f"{CASES[number].name}-{mode}" for number, mode in RUNS]
DIALECTS: tuple[FakeDialect, ...] = ("vllm", "llamacpp", "openai")
UNRESOLVED = "http://no-such-host.invalid:8008/v1"
WORDS = "one two three four five six seven eight"


@dataclass(frozen=True, slots=True)
class House:
    """The gateway, and an engine for each case, so that no case's breaker is another's."""

    gateway: Gateway
    fakes: Mapping[str, FakeEngine]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(postgres: EmbeddedPostgres) -> AsyncGenerator[House, None]:
    names = [f"case-{number}" for number in range(len(CASES))] + ["endpoints"]
    async with AsyncExitStack() as stack:
        fakes = {name: FakeEngine(model=name, reply=WORDS) for name in names}
        fakes |= {dialect: FakeEngine(model=dialect, reply=WORDS, dialect=dialect) for dialect in DIALECTS}
        for fake in fakes.values():
            await stack.enter_async_context(fake)
        places = [place(name, fake.base_url, dialect="auto") for name, fake in fakes.items()]
        places += [place("unresolved", UNRESOLVED), place("nobody", NOWHERE)]
        gateway = await stack.enter_async_context(
            gateway_before(
                postgres,
                places,
                [caller("desk"), caller("kept", record="body")],
                API_FIRST_BYTE_TIMEOUT_S="1.2",
                API_IDLE_TIMEOUT_S="0.8",
            )
        )
        yield House(gateway, fakes)


def check(answer: Answer, seen: Seen) -> None:
    """What the client saw is what it should have seen."""
    assert (answer.status, answer.error.get("code", "")) == (seen.status, seen.code), answer.body[:500]
    assert answer.whole
    assert answer.headers["x-request-id"]
    if seen.code:
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert answer.error["message"]
        assert answer.streamed == seen.event
        assert not (answer.streamed and (answer.done or answer.finishes not in ([], ["stop"])))
    elif answer.streamed:
        assert answer.done
        assert answer.finishes == ["stop"]
    if seen.retry_after is not None:
        assert int(answer.headers["retry-after"]) >= 1
        assert seen.retry_after in {"", answer.headers["retry-after"]}


@pytest.mark.parametrize(("number", "mode"), RUNS, ids=NAMES)
async def test_each_fault_is_told_recorded_and_frees_its_slot(house: House, number: int, mode: Mode) -> None:
    case, name = CASES[number], f"case-{number}"
    seen: Seen = getattr(case, mode)
    fake, gateway = house.fakes[name], house.gateway
    assert (await ask(gateway, name)).text == WORDS
    before = len(fake.requests)
    case.apply(fake)
    fake.gap_s = EVENT_GAP_S if seen.event else 0.0
    headers = {"x-deadline-ms": str(case.deadline_ms)} if case.deadline_ms and mode == "whole" else {}
    answer = await ask(gateway, name, stream=mode == "stream", headers=headers)
    check(answer, seen)
    assert len(fake.requests) == before + 1
    row = await gateway.row(answer.request_id)
    assert (row.status, row.success, row.http_status) == (seen.row, seen.row == "ok", seen.status)
    assert (row.error or "").startswith(seen.code)
    assert (row.caller, row.upstream, row.model, row.service, row.attempts) == ("desk", name, name, "api", 1)
    assert row.streamed == (mode == "stream")
    if seen.event:
        assert row.tokens_in > 0
        assert case.fault is Fault.HUGE or row.tokens_out > 0, "partial tokens are accounted"
    fake.delay_s = fake.gap_s = 0.0
    await gateway.idle(fake)
    assert (await ask(gateway, name)).text == WORDS


@pytest.mark.parametrize(("model", "code"), [("unresolved", "connect_failed"), ("nobody", "connect_failed")])
async def test_a_server_that_is_not_there_is_said_to_be_missing(house: House, model: str, code: str) -> None:
    for stream in (False, True):
        answer = await ask(house.gateway, model, stream=stream)
        assert answer.status == 503
        assert answer.error["code"] in {code, "upstream_unavailable"}
        assert int(answer.headers["retry-after"]) >= 1
        row = await house.gateway.row(answer.request_id)
        assert (row.status, row.attempts, row.http_status) == ("failed", 0, 503)
    await house.gateway.idle()


FORMS: tuple[tuple[str, bool], ...] = (
    (CHAT, False),
    (CHAT, True),
    ("completions", False),
    ("completions", True),
    ("responses", False),
    ("responses", True),
    ("embeddings", False),
)


@pytest.mark.parametrize(("endpoint", "stream"), FORMS)
async def test_every_endpoint_passes_a_good_answer_and_tells_a_broken_one(
    house: House, endpoint: str, stream: bool
) -> None:
    fake, gateway = house.fakes["endpoints"], house.gateway
    assert (await ask(gateway, "endpoints")).status == 200  # failures stay few among calls, and the breaker closed
    good = await ask(gateway, "endpoints", endpoint=endpoint, stream=stream)
    assert (good.status, good.error, good.whole) == (200, {}, True)
    row = await gateway.row(good.request_id)
    assert (row.status, row.tokens_in, row.tokens_out) == ("ok", 10, 0 if endpoint == "embeddings" else 8)
    fake.faults.append(Fault.CUT)
    broken = await ask(gateway, "endpoints", endpoint=endpoint, stream=stream)
    assert broken.status == (200 if stream else 502)
    assert broken.whole
    assert broken.error["code"] == "broken_stream"
    assert not (stream and broken.done)
    row = await gateway.row(broken.request_id)
    assert (row.status, row.success) == ("failed", False)
    assert (row.tokens_out > 0) == stream
    if endpoint == "responses" and stream:
        last = broken.events[-1]
        assert last["type"] == "error"
        assert last["sequence_number"] > broken.events[-2]["sequence_number"]
        assert b"event: error\n" in broken.body
    await gateway.idle(fake)


async def test_what_a_broken_stream_said_is_kept_for_a_key_that_keeps_bodies(house: House) -> None:
    fake, gateway = house.fakes["endpoints"], house.gateway
    fake.faults.append(Fault.CUT)
    answer = await ask(gateway, "endpoints", stream=True, key="kept")
    row = await gateway.row(answer.request_id)
    body = (await gateway.query("select * from llm_bodies where id = :id", id=row.id))[0]
    assert body.reply
    assert body.reply == answer.text
    assert WORDS.startswith(body.reply)
    assert body.reply != WORDS
    other = await ask(gateway, "endpoints", stream=True)
    row = await gateway.row(other.request_id)
    assert await gateway.query("select 1 from llm_bodies where id = :id", id=row.id) == []


async def test_idle_connections_that_the_engine_closed_cost_no_call(house: House) -> None:
    fake, gateway = house.fakes["endpoints"], house.gateway
    for _ in range(10):
        assert (await ask(gateway, "endpoints")).status == 200
        fake.drop_idle()
        assert (await ask(gateway, "endpoints", stream=True)).done


async def test_an_answer_that_was_cut_at_its_length_is_passed_on_as_what_it_is(house: House) -> None:
    fake, gateway = house.fakes["endpoints"], house.gateway
    fake.reply = Reply(WORDS, "length")
    for stream in (False, True):
        answer = await ask(gateway, "endpoints", stream=stream)
        assert answer.status == 200
        row = await gateway.row(answer.request_id)
        assert (row.status, row.finish_reason) == ("ok", "length")
    fake.reply = WORDS


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_dialect_is_passed_broken_off_and_understood(house: House, dialect: FakeDialect) -> None:
    fake, gateway = house.fakes[dialect], house.gateway
    for stream in (False, True):
        assert (await ask(gateway, dialect, stream=stream)).text == WORDS
        fake.faults.append(Fault.CONTEXT)
        answer = await ask(gateway, dialect, stream=stream)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded"), answer.body
    fake.faults.append(Fault.CUT)
    answer = await ask(gateway, dialect, stream=True)
    assert (answer.error["code"], answer.whole, answer.done) == ("broken_stream", True, False)
    await gateway.idle(fake)


async def test_of_two_answers_one_that_is_not_finished_breaks_the_stream(house: House) -> None:
    fake, gateway = house.fakes["endpoints"], house.gateway
    good = await ask(gateway, "endpoints", stream=True, n=2)
    assert (good.done, good.finishes) == (True, ["stop", "stop"])
    row = await gateway.row(good.request_id)
    assert (row.tokens_in, row.tokens_out) == (10, 16)
    fake.faults.append(Fault.ENDS_EARLY)
    fake.gap_s = EVENT_GAP_S
    broken = await ask(gateway, "endpoints", stream=True, n=2)
    fake.gap_s = 0.0
    assert (broken.error["code"], broken.whole, broken.done) == ("broken_stream", True, False)
    await gateway.idle(fake)
