"""Several places for one model: load, failures, flapping, fallbacks, and a file of upstreams that changes."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.engine import FakeEngine, Fault
from tests.faults.gateway_client import Answer, ask, client_that_leaves
from tests.faults.gateway_process import Gateway, caller, eventually, gateway_before, place
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("gateway_replicas")]

WORDS = "one two three four five six seven eight"
FLEETS = {
    "twins": 2,
    "mortals": 2,
    "flappers": 2,
    "busy": 2,
    "broken": 2,
    "many": 4,
    "alone": 1,
    "main": 1,
    "spare": 1,
    "hidden": 1,
    "grows": 2,
    "leaves": 2,
    "moves": 2,
}
"""Models, and how many engines serve each. `main` falls back on `spare`, and each of `moves` has one slot."""


@dataclass(frozen=True, slots=True)
class House:
    """The gateway before several fleets of engines."""

    gateway: Gateway
    fleets: dict[str, list[FakeEngine]]

    def places(self, *, without: str = "") -> list[dict[str, Any]]:
        """The entries of the file of upstreams but one."""
        return entries(self.fleets, without=without)


def entries(fleets: Mapping[str, list[FakeEngine]], *, without: str) -> list[dict[str, Any]]:
    """Entries `model-number` for each engine but one."""
    made = [
        place(f"{model}-{number}", fake.base_url, model=model, slots=1 if model == "moves" else 64)
        for model, fakes in fleets.items()
        for number, fake in enumerate(fakes)
    ]
    for entry in made:
        if entry["model"] == "main":
            entry["fallback"] = ["hidden-0", "spare-0"]
    return [entry for entry in made if entry["name"] != without]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(postgres: EmbeddedPostgres) -> AsyncGenerator[House, None]:
    async with AsyncExitStack() as stack:
        fleets = {model: [FakeEngine(model=model, reply=WORDS) for _ in range(size)] for model, size in FLEETS.items()}
        for fakes in fleets.values():
            for fake in fakes:
                await stack.enter_async_context(fake)
        callers = [caller("desk"), caller("fenced", models=("main", "spare"))]
        places = entries(fleets, without="grows-1")
        gateway = await stack.enter_async_context(gateway_before(postgres, places, callers))
        yield House(gateway, fleets)


async def test_the_least_loaded_replica_is_asked(house: House) -> None:
    one, two = house.fleets["twins"]
    one.delay_s = two.delay_s = 0.5
    answers = await asyncio.gather(*(ask(house.gateway, "twins") for _ in range(10)))
    assert {answer.status for answer in answers} == {200}
    assert (one.peak, two.peak) == (5, 5)
    assert {answer.headers["x-lexi-upstream"] for answer in answers} == {"twins-0", "twins-1"}


async def test_a_replica_that_dies_in_mid_stream_breaks_its_streams_alone(house: House) -> None:
    one, two = house.fleets["mortals"]
    for fake in (one, two):
        fake.chunks, fake.gap_s, fake.reply = 60, 0.02, "word " * 60
    asked = [asyncio.create_task(ask(house.gateway, "mortals", stream=True)) for _ in range(6)]

    async def both_at_work() -> bool:
        return one.active == 3 and two.active == 3 and one.tokens > 3

    await eventually(both_at_work, what="each has three")
    await one.stop()
    answers: list[Answer] = await asyncio.gather(*asked)
    two.gap_s = 0.0
    broken = [answer for answer in answers if not answer.done]
    assert len(broken) == 3
    for answer in broken:
        assert (answer.status, answer.error["code"], answer.whole) == (200, "broken_stream", True)
        row = await house.gateway.row(answer.request_id)
        assert (row.upstream, row.status) == ("mortals-0", "failed")
        assert row.tokens_out > 0
    assert len(one.requests) + len(two.requests) == 6, "nothing was sent again"
    after = [await ask(house.gateway, "mortals", stream=number % 2 == 0) for number in range(6)]
    assert {(answer.status, answer.headers["x-lexi-upstream"]) for answer in after} == {(200, "mortals-1")}
    await house.gateway.idle(two)


async def test_a_flapping_primary_costs_its_callers_nothing(house: House) -> None:
    one, two = house.fleets["flappers"]
    for _ in range(15):
        one.faults.extend([Fault.STATUS, Fault.NONE])
    answers = [await ask(house.gateway, "flappers", stream=number % 2 == 0) for number in range(30)]
    assert {answer.status for answer in answers} == {200}
    assert {answer.text for answer in answers} == {WORDS}
    for answer in answers[:4]:
        assert (await house.gateway.row(answer.request_id)).attempts in {1, 2}
    assert len(one.requests) + len(two.requests) >= 30
    await house.gateway.idle(one, two)


async def test_a_replica_that_fails_for_ever_is_left_alone(house: House) -> None:
    one, two = house.fleets["busy"]
    one.fault, one.fault_status = Fault.STATUS, 503
    answers = [await ask(house.gateway, "busy") for _ in range(30)]
    assert {answer.status for answer in answers} == {200}
    assert len(one.requests) < 12, "its breaker opens"
    assert len(two.requests) == 30
    one.fault = Fault.NONE


async def test_a_replica_that_says_it_is_busy_is_not_the_last_word(house: House) -> None:
    one, two = house.fleets["broken"]
    one.fault_status, one.retry_after = 429, "3"
    one.faults.extend([Fault.STATUS] * 2)
    two.faults.append(Fault.NONE)
    answers = [await ask(house.gateway, "broken", stream=stream) for stream in (True, False, True, False)]
    assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CLOSE, Fault.RESET_AFTER_HEAD, Fault.CUT_BODY])
async def test_what_an_engine_may_have_read_is_sent_nowhere_else(house: House, fault: Fault) -> None:
    fakes = house.fleets["broken"]
    for _ in range(4):
        assert (await ask(house.gateway, "broken")).status == 200
    before = sum(len(fake.requests) for fake in fakes)
    for fake in fakes:
        fake.fault = fault
    answer = await ask(house.gateway, "broken")
    for fake in fakes:
        fake.fault = Fault.NONE
    assert (answer.status, answer.error["code"]) == (502, "broken_stream")
    assert sum(len(fake.requests) for fake in fakes) == before + 1


async def test_three_places_are_tried_and_not_a_fourth(house: House) -> None:
    fakes = house.fleets["many"]
    for fake in fakes:
        fake.faults.append(Fault.STATUS)
    answer = await ask(house.gateway, "many")
    assert (answer.status, answer.error["code"]) == (500, "upstream_error")
    assert sorted(len(fake.requests) for fake in fakes) == [0, 1, 1, 1]
    row = await house.gateway.row(answer.request_id)
    assert (row.status, row.attempts) == ("failed", 3)


async def test_an_engine_that_fails_for_ever_is_not_asked_for_a_while(house: House) -> None:
    fake = house.fleets["alone"][0]
    fake.fault, fake.fault_status = Fault.STATUS, 503
    answers = [await ask(house.gateway, "alone", stream=number % 2 == 0) for number in range(12)]
    assert {answer.status for answer in answers} == {503}
    assert len(fake.requests) < 12
    assert answers[0].error["code"] == "upstream_error"
    last = answers[-1]
    assert last.error["code"] == "upstream_unavailable"
    assert int(last.headers["retry-after"]) >= 1
    row = await house.gateway.row(last.request_id)
    assert (row.status, row.attempts, row.http_status) == ("failed", 0, 503)
    assert "alone-0" in await house.gateway.ready()
    fake.fault = Fault.NONE

    async def back() -> bool:
        return (await ask(house.gateway, "alone")).status == 200

    await eventually(back, what="it is asked again after its rest")
    await house.gateway.idle(fake)


async def test_a_fallback_answers_for_a_server_that_is_away_if_the_key_may_use_it(house: House) -> None:
    (main,), (spare,), (hidden,) = (house.fleets[name] for name in ("main", "spare", "hidden"))
    assert (await ask(house.gateway, "main")).headers["x-lexi-upstream"] == "main-0"
    await main.stop()
    for stream in (False, True):
        answer = await ask(house.gateway, "main", key="fenced", stream=stream)
        assert (answer.status, answer.headers["x-lexi-upstream"]) == (200, "spare-0")
        assert (await house.gateway.row(answer.request_id)).model == "spare"
    assert hidden.requests == []
    assert {body["model"] for body in spare.requests} == {"spare"}
    assert (await ask(house.gateway, "main")).headers["x-lexi-upstream"] == "hidden-0"


async def test_a_new_replica_is_used_and_a_broken_file_changes_nothing(house: House) -> None:
    one, two = house.fleets["grows"]
    for _ in range(4):
        assert (await ask(house.gateway, "grows")).headers["x-lexi-upstream"] == "grows-0"
    house.gateway.write_places(house.places())

    async def used() -> bool:
        return (await ask(house.gateway, "grows")).headers["x-lexi-upstream"] == "grows-1"

    await eventually(used, what="the new replica is used")
    house.gateway.write_upstreams("upstreams: [{name: lexi, slots: many}]")

    async def told() -> bool:
        return "upstreams.yaml" in await house.gateway.ready()

    await eventually(told, what="/ready says that the file is broken")
    ready = await house.gateway.http.get(f"{house.gateway.url}/ready")
    assert ready.status_code == 200
    assert any(line.startswith("yellow") and "upstreams.yaml" in line for line in ready.text.splitlines())
    before = len(one.requests), len(two.requests)
    for _ in range(6):
        assert (await ask(house.gateway, "grows")).status == 200
    assert len(one.requests) > before[0]
    assert len(two.requests) > before[1]
    house.gateway.write_places(house.places())

    async def quiet() -> bool:
        return "upstreams.yaml" not in await house.gateway.ready()

    await eventually(quiet, what="/ready is quiet again")


async def test_a_replica_that_is_taken_out_finishes_what_it_does(house: House) -> None:
    one, two = house.fleets["leaves"]
    one.chunks = two.chunks = 120
    one.gap_s = two.gap_s = 0.03
    one.reply = two.reply = "word " * 120
    asked = [asyncio.create_task(ask(house.gateway, "leaves", stream=True)) for _ in range(4)]

    async def both_at_work() -> bool:
        return one.active == 2 and two.active == 2

    await eventually(both_at_work, what="each has two")
    house.gateway.write_places(house.places(without="leaves-1"))

    async def gone() -> bool:
        async with client_that_leaves(house.gateway, "leaves", stream=True) as client:
            head = (await client.reader.readuntil(b"\r\n\r\n")).lower()
        return b"x-lexi-upstream: leaves-0" in head and two.active == 2

    await eventually(gone, what="only the other one is asked")
    answers = await asyncio.gather(*asked)
    assert all(answer.done for answer in answers), "what was under way came to its end"
    count = len(two.requests)
    one.gap_s = 0.0
    for _ in range(4):
        assert (await ask(house.gateway, "leaves")).headers["x-lexi-upstream"] == "leaves-0"
    assert len(two.requests) == count
    house.gateway.write_places(house.places())


async def test_those_in_line_at_a_replica_that_is_taken_out_are_answered_all_the_same(house: House) -> None:
    one, two = house.fleets["moves"]
    one.fault = two.fault = Fault.SILENT
    async with AsyncExitStack() as stack:
        holders = [await stack.enter_async_context(client_that_leaves(house.gateway, "moves")) for _ in range(2)]

        async def both_taken() -> bool:
            return one.active == 1 and two.active == 1

        await eventually(both_taken, what="both slots are taken")
        waiting = [asyncio.create_task(ask(house.gateway, "moves", stream=number % 2 == 0)) for number in range(6)]

        async def in_line() -> bool:
            return await house.gateway.metric("lexi_upstream_slots_waiting", upstream="moves-1") == 3

        await eventually(in_line, what="three wait at each")
        house.gateway.write_places(house.places(without="moves-1"))

        async def taken_out() -> bool:
            return '"gone": ["moves-1"]' in house.gateway.log()

        await eventually(taken_out, what="the file was taken")
        one.fault = two.fault = Fault.NONE
        for holder in holders:
            holder.leave()
        answers = await asyncio.gather(*waiting)
    assert {answer.status for answer in answers} == {200}
    assert len(one.requests) + len(two.requests) == 8, "nothing was sent twice"
    await house.gateway.idle(one, two)
