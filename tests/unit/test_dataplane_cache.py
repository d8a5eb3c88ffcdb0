"""The cache of raw answers: what makes a question the same, and who waits for whom."""

import asyncio
from time import monotonic
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import orjson
import pytest
from starlette.types import Message

from libs.keys import Key
from libs.llm.cache import ReplyCache
from libs.llm.call_record import new_call_id
from libs.upstreams.clock import CallClock
from libs.upstreams.types import ChatReply, TimeLimits, Usage
from libs.upstreams.upstream import Upstream
from services.api.dataplane.answer import Gist
from services.api.dataplane.call import Call
from services.api.dataplane.flight import LEFT, MAX_KEPT_BYTES, Flight
from services.api.dataplane.guard import Guards
from services.api.dataplane.inquiry import Inquiry, read_inquiry
from services.api.dataplane.outlet import Outlet
from services.api.dataplane.reply_cache import AnswerCache, cacheable, key_of

KEY = Key.model_validate({"name": "desk", "sha256": "0" * 64, "scopes": {"infer"}})


class Store:
    """The table, whose writing takes until `open` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.rows: dict[str, ChatReply] = {}

    async def get(self, key: str) -> SimpleNamespace | None:
        await asyncio.sleep(0)
        return SimpleNamespace(reply=self.rows[key]) if key in self.rows else None

    async def put(self, key: str, reply: ChatReply, *, call_id: UUID) -> None:
        await self.open.wait()
        self.rows[key] = reply


def inquiry(**more: Any) -> Inquiry:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0, **more}
    return read_inquiry("chat/completions", orjson.dumps(body), choices=4)


def call() -> Call:
    async def send(message: Message) -> None:
        raise AssertionError(f"nothing is to be sent: {message}")

    now = monotonic()
    clock = CallClock(TimeLimits(connect_s=1, first_token_s=10, idle_s=10, total_s=20), now)
    guard, outlet = Guards().over(now + 20), Outlet(send, [])
    return Call(new_call_id(), "test", "chat/completions", key=KEY, clock=clock, guard=guard, outlet=outlet)


def cache_over(store: Store) -> AnswerCache:
    return AnswerCache(cast("ReplyCache", store))


async def lead(cache: AnswerCache, text: bytes, *, finish: str = "stop", until: asyncio.Event | None = None) -> Call:
    """Ask the engine, which answers `text` once `until` is set; that must be the way to go."""
    mine = call()
    async with cache.turn("q", mine, inquiry()) as answer:
        assert answer is None
        if until is not None:
            await until.wait()
        mine.upstream, mine.model, mine.gist = "place", "m", Gist(Usage(tokens_in=1, tokens_out=2), finish, "")
        cache.landed("q", mine, inquiry(), text)
    return mine


async def follow(cache: AnswerCache) -> str | None:
    """What another caller is given; None where it is to ask for itself."""
    async with cache.turn("q", call(), inquiry()) as answer:
        return None if answer is None else answer.text


def place_of(name: str, model: str) -> Upstream:
    return cast("Upstream", SimpleNamespace(place=name, entry=SimpleNamespace(model=model)))


def test_the_order_of_members_and_the_places_make_the_question() -> None:
    first = inquiry(guided_json={"properties": {"a": {}, "b": {}}})
    second = inquiry(guided_json={"properties": {"b": {}, "a": {}}})
    here, there = place_of("here", "m"), place_of("there", "m")
    assert key_of(first, [here]) == key_of(first, [here])
    assert key_of(first, [here]) != key_of(second, [here])
    assert key_of(first, [here]) != key_of(first, [there])
    assert key_of(first, [here, there]) == key_of(first, [there, here])
    assert key_of(first, [here]) == key_of(first, [here, place_of("fallback", "other")])


@pytest.mark.parametrize(
    ("given", "kept"), [(0, True), (0.0, True), (1e-9, False), (False, False), (None, False), ("0", False)]
)
def test_only_a_temperature_of_zero_does_not_vary(given: object, kept: bool) -> None:
    assert cacheable(inquiry(temperature=given)) == kept


async def test_the_next_request_is_a_hit_before_the_answer_is_stored() -> None:
    store = Store()
    cache = cache_over(store)
    await lead(cache, b"answer")
    assert store.rows == {}
    assert await follow(cache) == "answer"
    store.open.set()
    await cache.close()
    assert store.rows["q"].text == "answer"
    assert await follow(cache) == "answer"


async def test_those_who_ask_meanwhile_get_the_same_answer() -> None:
    cache, until = cache_over(Store()), asyncio.Event()
    leader = asyncio.create_task(lead(cache, b"answer", until=until))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(follow(cache)) for _ in range(5)]
    await asyncio.sleep(0.01)
    assert not any(other.done() for other in others)
    until.set()
    await leader
    assert await asyncio.gather(*others) == ["answer"] * 5


async def test_where_the_leader_leaves_one_of_the_others_goes_on() -> None:
    cache, never = cache_over(Store()), asyncio.Event()
    leader = asyncio.create_task(lead(cache, b"never", until=never))
    await asyncio.sleep(0.01)
    until = asyncio.Event()
    next_one = asyncio.create_task(lead(cache, b"second", until=until))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(follow(cache)) for _ in range(3)]
    await asyncio.sleep(0.01)
    leader.cancel()
    await asyncio.wait([leader])
    await asyncio.sleep(0.01)
    assert not any(other.done() for other in others), "they wait for the one that goes on"
    until.set()
    await next_one
    assert await asyncio.gather(*others) == ["second"] * 3


@pytest.mark.parametrize("finish", ["length", "", "failed"])
async def test_an_answer_that_is_not_whole_is_nobody_elses(finish: str) -> None:
    store = Store()
    store.open.set()
    cache, until = cache_over(store), asyncio.Event()
    leader = asyncio.create_task(lead(cache, b"half", finish=finish, until=until))
    await asyncio.sleep(0.01)
    other = asyncio.create_task(follow(cache))
    await asyncio.sleep(0.01)
    until.set()
    await leader
    assert await other is None
    assert await follow(cache) is None
    await cache.close()
    assert store.rows == {}


async def test_an_answer_too_long_to_be_kept_is_waited_for_no_longer() -> None:
    flights: dict[str, Flight] = {}
    flight = Flight("q", flights)
    waiting = asyncio.create_task(flight.wait())
    flight.carry(b"x" * MAX_KEPT_BYTES)
    await asyncio.sleep(0)
    assert not waiting.done()
    flight.carry(b"x")
    assert await waiting is None
    assert (flight.text, flights) == (None, {})


async def test_a_flight_lands_once() -> None:
    flights: dict[str, Flight] = {}
    flight = Flight("q", flights)
    waiting = asyncio.create_task(flight.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert flight.land(LEFT)
    later = flights["q"] = Flight("q", flights)
    assert not flight.land(None)
    assert await flight.wait() is LEFT
    assert flights == {"q": later}
