"""What callers may learn of each other, what they are charged for, and that every answer says how it ended."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import text

from libs.db.engine import DatabaseSettings, create_engine
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.faults.gateway_client import ask, client_that_leaves, request
from tests.faults.gateway_process import Gateway, caller, eventually, gateway_before, place
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("gateway_honesty")]

SECRET = "orchid-7731"
WORDS = "one two three four five six seven eight"
BUDGET = 2000
OVERHEAD = "lexi_gateway_overhead_seconds_sum"
ON = {"x-lexi-cache": "on"}
PLACES = ("sage", "quoting", "mumbling")
KEYS = (
    caller("desk"),
    caller("other"),
    caller("diary", record="body"),
    caller("frugal", limits={"tokens_per_minute": BUDGET}),
    caller("refunded", limits={"tokens_per_minute": BUDGET}),
    caller("single", limits={"concurrent": 1}, cache="on"),
)
_questions = count()


@dataclass(frozen=True, slots=True)
class House:
    """The gateway before one engine under several names, and before two of one model that speak two dialects."""

    gateway: Gateway
    fake: FakeEngine
    able: FakeEngine
    unable: FakeEngine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def opened(postgres: EmbeddedPostgres) -> AsyncGenerator[House, None]:
    async with AsyncExitStack() as stack:
        fake, able = FakeEngine(), FakeEngine(model="mixed", reply="yes")
        unable = FakeEngine(model="mixed", dialect="openai")
        for each in (fake, able, unable):
            await stack.enter_async_context(each)
        fake.strict_model = False
        places = [place(name, fake.base_url) for name in PLACES]
        places.append(place("able", able.base_url, model="mixed"))
        places.append(place("unable", unable.base_url, model="mixed", dialect="openai"))
        gateway = await stack.enter_async_context(gateway_before(postgres, places, KEYS))
        yield House(gateway, fake, able, unable)


@pytest.fixture
def house(opened: House) -> House:
    """The house with an engine that behaves."""
    fake = opened.fake
    fake.reply, fake.fault, fake.delay_s, fake.gap_s, fake.chunks = WORDS, Fault.NONE, 0.0, 0.0, 4
    fake.faults.clear()
    fake.requests.clear()
    return opened


def question() -> dict[str, Any]:
    """One that was not asked before, and whose answer cannot vary."""
    return {"messages": [{"role": "user", "content": f"What moved on day {next(_questions)}?"}], "temperature": 0}


def quoting(status: int) -> str:
    """An engine's error that says again what it was asked."""
    return json.dumps({"error": {"message": f"cannot go on after: {SECRET}", "type": "Error", "code": status}})


async def test_what_an_engine_quotes_is_for_its_asker_only(house: House) -> None:
    fake, gateway = house.fake, house.gateway
    fake.fault, fake.fault_status, fake.fault_body = Fault.STATUS, 500, quoting(500)
    kept = await ask(gateway, "quoting", key="diary")
    assert kept.status == 500
    answers = [await ask(gateway, "quoting") for _ in range(6)]
    assert answers[0].status == 500
    assert SECRET in answers[0].error["message"]
    assert answers[-1].error["code"] == "upstream_unavailable"
    other = await ask(gateway, "quoting", key="other")
    assert (other.status, other.error["code"]) == (503, "upstream_unavailable")
    assert SECRET not in other.body.decode()
    async with httpx.AsyncClient(trust_env=False) as stranger:
        assert SECRET not in (await stranger.get(f"{gateway.url}/ready")).text
    for answer in (*answers, other):
        row = await gateway.row(answer.request_id)
        assert SECRET not in str(row)
        assert row.error.startswith(("upstream_error", "upstream_unavailable"))
    assert SECRET in (await gateway.row(kept.request_id)).error
    assert SECRET not in gateway.log()


@pytest.mark.parametrize("status", [400, 500])
async def test_a_quoting_event_inside_a_stream_leaves_no_trace(house: House, status: int) -> None:
    fake, gateway = house.fake, house.gateway
    fake.fault_event = json.loads(quoting(status))["error"]
    fake.gap_s = 0.03
    for key, keeps in (("other", False), ("diary", True)):
        fake.faults.append(Fault.ERROR_EVENT)
        answer = await ask(gateway, "mumbling", stream=True, key=key)
        assert (answer.status, answer.whole, answer.done) == (200, True, False)
        assert SECRET in answer.error["message"]
        row = await gateway.row(answer.request_id)
        assert row.status == "failed"
        assert row.error
        assert (SECRET in row.error) == keeps
    assert SECRET not in await gateway.ready()
    await gateway.idle(fake)


async def test_who_leaves_before_the_count_pays_for_what_was_seen(house: House) -> None:
    fake, gateway = house.fake, house.gateway
    fake.reply, fake.chunks, fake.fault = "w " * 3000, 3000, Fault.STALL
    async with client_that_leaves(gateway, "sage", stream=True, key="frugal", max_tokens=20) as client:
        for _ in range(1500):
            await client.reader.readuntil(b'"content": "w')
        client.leave()
    row = await gateway.row(client.request_id)
    assert (row.status, row.tokens_out >= 1400) == ("cancelled", True)
    refused = await ask(gateway, "sage", key="frugal", max_tokens=1000)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    await gateway.idle(fake)


async def test_an_engines_refusal_in_mid_stream_refunds_nothing(house: House) -> None:
    fake, gateway = house.fake, house.gateway
    fake.reply, fake.chunks, fake.fault = "w " * 800, 800, Fault.ERROR_EVENT
    fake.fault_event = json.loads(quoting(400))["error"]
    statuses, seen = list[int](), 0
    while 429 not in statuses and len(statuses) < 10:
        answer = await ask(gateway, "sage", stream=True, key="refunded", max_tokens=20)
        statuses.append(answer.status)
        seen += 0 if answer.status == 429 else answer.text.count("w")
    assert statuses[-1] == 429
    assert BUDGET * 0.8 <= seen <= BUDGET * 1.5
    await gateway.idle(fake)


@asynccontextmanager
async def slow_store(gateway: Gateway) -> AsyncGenerator[None, None]:
    """Nothing can be written to the cache inside the block; it can be read."""
    address = DatabaseSettings(database_url=SecretStr(gateway.postgres.url(gateway.database)))
    engine = create_engine(address, application="test", pool_size=1)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("lock table llm_cache in share mode"))
            yield
    finally:
        await engine.dispose()


async def test_one_at_a_time_is_never_too_many_and_the_next_is_a_hit(house: House) -> None:
    asked = [question() for _ in range(6)]
    async with slow_store(house.gateway):
        for each in asked:
            for said in ("miss", "hit"):
                answer = await ask(house.gateway, "sage", key="single", **each)
                assert (answer.status, answer.headers["x-lexi-cache"]) == (200, said)
    for each in asked:
        answer = await ask(house.gateway, "sage", key="single", **each)
        assert (answer.status, answer.headers["x-lexi-cache"]) == (200, "hit")
    assert len(house.fake.requests) == len(asked)


@pytest.mark.parametrize("size", [900_000, 4_000_000])
async def test_a_leader_that_does_not_read_holds_nobody_up(house: House, size: int) -> None:
    fake, gateway = house.fake, house.gateway
    fake.reply, fake.chunks = "w" * size, size // 20_000
    same = question()
    body, headers = request("sage", stream=True, headers=ON, **same)
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", gateway.port))
        deaf.sendall(head.encode() + b"\r\n" + content)

        async def taken() -> bool:
            return len(fake.requests) == 1

        await eventually(taken, what="the leader is at the engine")
        async with asyncio.timeout(20):
            answer = await ask(gateway, "sage", stream=True, key="other", headers=ON, **same)
        assert (answer.status, answer.done, len(answer.text)) == (200, True, size)
    await gateway.idle(fake)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_response_is_the_callers_and_counts_as_failed(house: House, stream: bool) -> None:
    house.fake.reply = Reply(WORDS, "failed")
    answer = await ask(house.gateway, "sage", endpoint="responses", stream=stream)
    assert (answer.status, answer.whole) == (200, True)
    response = answer.events[-1]["response"] if stream else answer.json
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    row = await house.gateway.row(answer.request_id)
    assert (row.status, row.http_status, row.finish_reason) == ("failed", 200, "failed")


async def test_a_response_that_is_not_ready_is_no_answer(house: House) -> None:
    house.fake.reply = Reply(WORDS, "in_progress")
    answer = await ask(house.gateway, "sage", endpoint="responses")
    assert (answer.status, answer.error["code"]) == (502, "bad_upstream_answer")
    assert (await house.gateway.row(answer.request_id)).status == "failed"


async def test_a_header_that_is_refused_has_a_row(house: House) -> None:
    answer = await ask(house.gateway, "sage", headers={"x-deadline-ms": "soon"})
    assert (answer.status, answer.error["code"]) == (400, "invalid_header")
    row = await house.gateway.row(answer.request_id)
    assert (row.status, row.http_status, row.caller, row.attempts) == ("failed", 400, "desk", 0)
    assert row.error.startswith("invalid_header")


async def reply_kept(gateway: Gateway, request_id: str) -> str:
    """The text that is kept of an answer."""
    row = await gateway.row(request_id)

    async def look() -> list[Any]:
        return await gateway.query("select reply from llm_bodies where id = :id", id=row.id)

    return (await eventually(look, what="the body's row"))[0].reply


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_counts_nothing_keeps_its_end_and_its_words(house: House, stream: bool) -> None:
    house.fake.reply = Reply(WORDS, "length", fault=Fault.NO_USAGE)
    answer = await ask(house.gateway, "sage", key="diary", stream=stream)
    assert (answer.status, answer.text) == (200, WORDS)
    row = await house.gateway.row(answer.request_id)
    assert (row.status, row.finish_reason) == ("ok", "length")
    assert await reply_kept(house.gateway, answer.request_id) == WORDS


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hit_keeps_the_answer_as_it_was_given(house: House, stream: bool) -> None:
    body = question()
    answers = [await ask(house.gateway, "sage", key="diary", stream=stream, headers=ON, **body) for _ in range(2)]
    assert [answer.headers["x-lexi-cache"] for answer in answers] == ["miss", "hit"]
    assert await reply_kept(house.gateway, answers[0].request_id) == WORDS
    assert await reply_kept(house.gateway, answers[1].request_id) == answers[1].body.decode()


async def test_the_order_of_members_makes_another_question(house: House) -> None:
    body = question()
    for order in (("a", "b"), ("b", "a")):
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in order}}
        answer = await ask(house.gateway, "sage", headers=ON, guided_json=schema, **body)
        assert (answer.status, answer.headers["x-lexi-cache"]) == (200, "miss")


async def test_a_total_in_mid_stream_is_always_told(house: House) -> None:
    fake, gateway = house.fake, house.gateway
    fake.reply, fake.chunks, fake.gap_s = "w " * 4000, 4000, 0.004
    deadlines = [str(600 + 19 * number) for number in range(32)]
    asked = [ask(gateway, "sage", stream=True, headers={"x-deadline-ms": deadline}) for deadline in deadlines]
    for answer in await asyncio.gather(*asked):
        assert (answer.status, answer.whole, answer.done) == (200, True, False)
        assert answer.error["code"] == "deadline_exceeded"
        row = await gateway.row(answer.request_id)
        assert row.error.startswith("deadline_exceeded")
        assert (row.status, row.http_status) == ("timed_out", 200)
    await gateway.idle(fake)


async def test_what_one_dialect_cannot_say_the_other_answers(house: House) -> None:
    for number in range(6):
        answer = await ask(house.gateway, "mixed", guided_choice=["yes", "no"], stream=number % 2 == 0)
        assert (answer.status, answer.text, answer.headers["x-lexi-upstream"]) == (200, "yes", "able")
    assert house.unable.requests == []
    nobody = await ask(house.gateway, "mixed", guided_choice=["yes"], guided_regex="y")
    assert nobody.status == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_waiting_for_an_engine_is_not_time_of_ours(house: House, stream: bool) -> None:
    fake, gateway = house.fake, house.gateway
    fake.fault = Fault.SILENT
    before = await gateway.metric(OVERHEAD)
    async with client_that_leaves(gateway, "sage", stream=stream) as client:
        await asyncio.sleep(1)
        client.leave()
    assert (await gateway.row(client.request_id)).status == "cancelled"
    assert await gateway.metric(OVERHEAD) - before < 0.5
    await gateway.idle(fake)
