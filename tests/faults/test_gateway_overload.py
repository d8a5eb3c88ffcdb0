"""More than the engine can serve, and more than a caller may ask for: refused at once, and the rest is served."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from time import monotonic

import pytest
import pytest_asyncio

from tests.fakes.engine import FakeEngine, Fault
from tests.faults.gateway_client import Answer, ask, client_that_leaves
from tests.faults.gateway_process import Gateway, caller, eventually, gateway_before, place, token
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("gateway_overload")]

SLOTS = 8
WORK_S = 0.25
LONG = 2048
"""Tokens asked for, so that few requests fill the queue."""
WAITING = "lexi_upstream_slots_waiting"
KEYS = (
    caller("desk"),
    caller("crowd"),
    caller("batch", priority="batch"),
    caller("twice", limits={"requests_per_minute": 2}),
    caller("frugal", limits={"tokens_per_minute": 300}),
    caller("single", limits={"concurrent": 1}),
    caller("reader", scopes={"read"}),
    caller("fenced", models=("other",)),
)


@dataclass(frozen=True, slots=True)
class House:
    """The gateway before an engine of `SLOTS` slots (`lane`) and one of a single slot (`narrow`)."""

    gateway: Gateway
    lane: FakeEngine
    narrow: FakeEngine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def opened(postgres: EmbeddedPostgres) -> AsyncGenerator[House, None]:
    async with AsyncExitStack() as stack:
        lane = await stack.enter_async_context(FakeEngine(model="lane", slots=SLOTS))
        narrow = await stack.enter_async_context(FakeEngine(model="narrow", slots=1))
        places = [place("lane", lane.base_url, slots=SLOTS), place("narrow", narrow.base_url, slots=1)]
        gateway = await stack.enter_async_context(gateway_before(postgres, places, KEYS))
        yield House(gateway, lane, narrow)


@pytest.fixture
def house(opened: House) -> House:
    """The house with engines that behave."""
    for fake in (opened.lane, opened.narrow):
        fake.fault, fake.delay_s, fake.peak = Fault.NONE, 0.0, 0
        fake.requests.clear()
    return opened


async def load(
    gateway: Gateway, key: str, *, callers: int, until_served: int
) -> tuple[Counter[int], list[Answer], float]:
    """Callers that ask again as soon as they are answered, and after a short rest when refused, until so many were
    served in all. Statuses, refusals, and served per second.
    """
    statuses, refused = Counter[int](), list[Answer]()

    async def one() -> None:
        while statuses[200] < until_served:
            answer = await ask(gateway, "lane", key=key, max_tokens=LONG)
            statuses[answer.status] += 1
            if answer.status != 200:
                refused.append(answer)
                await asyncio.sleep(WORK_S / 2)

    began = monotonic()
    await asyncio.gather(*(one() for _ in range(callers)))
    return statuses, refused, statuses[200] / (monotonic() - began)


async def test_ten_times_the_load_is_refused_with_advice_and_the_rest_served_as_before(house: House) -> None:
    fake, gateway = house.lane, house.gateway
    fake.delay_s = WORK_S
    peak = (await load(gateway, "desk", callers=SLOTS, until_served=5 * SLOTS))[2]
    fake.requests.clear()
    statuses, refused, goodput = await load(gateway, "crowd", callers=10 * SLOTS, until_served=8 * SLOTS)
    assert set(statuses) == {200, 503}
    assert len(fake.requests) == statuses[200], "what reached the engine was answered"
    assert fake.peak == SLOTS
    assert goodput >= 0.9 * peak, (goodput, peak)
    for answer in refused:
        assert answer.error["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1

    async def all_on_record() -> bool:
        found = await gateway.query("select http_status from llm_calls where caller = 'crowd'")
        return Counter(row.http_status for row in found) == statuses

    await eventually(all_on_record, what="every request is a row, refused ones too")
    row = await gateway.row(refused[0].request_id)
    assert (row.status, row.http_status, row.attempts) == ("failed", 503, 0)
    await gateway.idle(fake)


async def test_the_urgent_go_before_those_who_can_wait(house: House) -> None:
    fake, gateway = house.narrow, house.gateway
    fake.fault = Fault.SILENT
    order = count(1)

    async def queue_up(key: str) -> None:
        number = next(order)
        waiting.append(asyncio.create_task(ask(gateway, "narrow", key=key, user=f"{key}-{number}")))

        async def in_line() -> bool:
            return await gateway.metric(WAITING, upstream="narrow") == number

        await eventually(in_line, what="it waits")

    waiting: list[asyncio.Task[Answer]] = []
    async with client_that_leaves(gateway, "narrow", user="first") as first:

        async def taken() -> bool:
            return fake.active == 1

        await eventually(taken, what="the slot is taken")
        fake.fault = Fault.NONE
        for key in ("batch", "batch", "desk"):
            await queue_up(key)
        first.leave()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200, 200]
    assert [body["user"] for body in fake.requests] == ["first", "desk-3", "batch-1", "batch-2"]
    assert [body["priority"] for body in fake.requests] == [4, 4, 9, 9]
    await gateway.idle(fake)


async def test_requests_beyond_a_callers_limit_are_refused_and_reach_no_engine(house: House) -> None:
    fake, gateway = house.lane, house.gateway
    answers = [await ask(gateway, "lane", key="twice", stream=number == 1) for number in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    assert len(fake.requests) == 2
    for answer in answers[2:]:
        assert (answer.error["code"], answer.error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert int(answer.headers["retry-after"]) >= 1
        row = await gateway.row(answer.request_id)
        assert (row.status, row.http_status, row.attempts, row.caller) == ("failed", 429, 0, "twice")
    assert (await ask(gateway, "lane", key="desk")).status == 200


async def test_tokens_are_estimated_first_and_counted_after(house: House) -> None:
    fake, gateway = house.lane, house.gateway
    first = await ask(gateway, "lane", key="frugal", max_tokens=250)
    assert first.status == 200
    second = await ask(gateway, "lane", key="frugal", max_tokens=250)
    assert second.status == 200, "the first one used 11 of the 250 it might have"
    too_much = await ask(gateway, "lane", key="frugal", max_tokens=290)
    assert too_much.status == 429
    assert too_much.error["code"] == "rate_limit_exceeded"
    assert len(fake.requests) == 2


async def test_calls_in_flight_are_limited_and_a_place_comes_free_when_a_client_leaves(house: House) -> None:
    fake, gateway = house.lane, house.gateway
    fake.fault = Fault.SILENT
    async with client_that_leaves(gateway, "lane", key="single", stream=True) as client:

        async def taken() -> bool:
            return fake.active == 1

        await eventually(taken, what="one is in flight")
        refused = await ask(gateway, "lane", key="single")
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        client.leave()
        await gateway.idle(fake)
    fake.fault = Fault.NONE
    assert (await ask(gateway, "lane", key="single")).status == 200


REFUSALS: dict[str, tuple[dict[str, str], int, str]] = {
    "no key": ({"authorization": ""}, 401, "invalid_api_key"),
    "another word": ({"authorization": f"Basic {token('desk')}"}, 401, "invalid_api_key"),
    "a wrong key": ({"authorization": "Bearer lexi_wrong"}, 401, "invalid_api_key"),
    "a key without the scope": ({"authorization": f"Bearer {token('reader')}"}, 403, "insufficient_scope"),
    "a key for other models": ({"authorization": f"Bearer {token('fenced')}"}, 403, "model_not_allowed"),
}


def refusals() -> Iterator[str]:
    yield from REFUSALS


@pytest.mark.parametrize("why", refusals())
async def test_who_may_not_ask_reaches_no_engine(house: House, why: str) -> None:
    headers, status, code = REFUSALS[why]
    answer = await ask(house.gateway, "lane", headers=headers)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert house.lane.requests == []


async def test_a_model_that_nobody_serves_is_not_found(house: House) -> None:
    answer = await ask(house.gateway, "unheard-of")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert house.lane.requests == []


async def test_what_only_the_house_may_say_does_not_reach_the_engine(house: House) -> None:
    fake, gateway = house.lane, house.gateway
    theirs = {"x-vllm-priority": "-5", "x-session-id": "s", "x-data-parallel-rank": "1", "cookie": "a=b"}
    answer = await ask(gateway, "lane", key="batch", priority=-5, headers=theirs)
    assert answer.status == 200
    assert fake.requests[-1]["priority"] == 9
    sent = fake.headers[-1]
    assert not set(theirs) & set(sent)
    assert token("batch") not in str(sent)


@pytest.mark.parametrize("given", ["x" * 5000, "with space", "semi;colon", "ünïcode".encode(), "'; drop table--"])
async def test_a_strange_request_id_is_no_trouble(house: House, given: str) -> None:
    answer = await ask(house.gateway, "lane", headers={"x-request-id": given})
    assert answer.status == 200
    assert len(answer.request_id) <= 200
    assert (await house.gateway.row(answer.request_id)).status == "ok"
