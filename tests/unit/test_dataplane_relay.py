"""A stream between an engine's connection and a client's, event by event, whatever the order in which things happen."""

import asyncio
from time import monotonic
from typing import cast

import orjson
import pytest
from starlette.types import Message

from libs.keys import Key
from libs.llm.call_record import new_call_id
from libs.upstreams.clock import CallClock
from libs.upstreams.errors import BrokenStream
from libs.upstreams.exchange import Exchange, Ticker
from libs.upstreams.types import ChatReply, TimeLimits
from libs.upstreams.visit import Visit
from services.api.dataplane.call import Call
from services.api.dataplane.flight import Flight
from services.api.dataplane.guard import Guards
from services.api.dataplane.outlet import Outlet
from services.api.dataplane.relay import Relay
from services.api.dataplane.stream import ChoiceEvents

KEY = Key.model_validate({"name": "desk", "sha256": "0" * 64, "scopes": {"infer"}})
DONE = b"data: [DONE]\n\n"


def event(text: str, finish: str | None = None) -> bytes:
    """One event of a chat's stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


STREAM = [event("one"), event("two"), event("three"), event("", "stop"), DONE]


class Client:
    """The sending side of a connection. It takes nothing while `open` is not set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.bodies: list[bytes] = []
        self.began = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began += 1
            return
        await self.open.wait()
        self.bodies.append(message["body"])


class Line:
    """The engine's connection, as an exchange sees it."""

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def resume(self) -> None:
        """Nothing is ever stopped here."""


class Moves:
    """As much of a visit as a relay needs: it is told of progress."""

    def __init__(self) -> None:
        self.count = 0

    def moved(self, now: float | None = None) -> None:
        self.count += 1


class House:
    """A relay under way between an engine, which is the test, and a client."""

    def __init__(self) -> None:
        now, loop = monotonic(), asyncio.get_running_loop()
        clock = CallClock(TimeLimits(connect_s=1, first_token_s=10, idle_s=10, total_s=20), now)
        clock.sent(now, connected_s=0)
        self.client, self.moves = Client(), Moves()
        self.exchange = Exchange(Line(), loop, Ticker())
        guard = Guards().over(now + 20)
        outlet = Outlet(self.client.send, [])
        self.call = Call(new_call_id(), "test", "chat/completions", key=KEY, clock=clock, guard=guard, outlet=outlet)
        events = self.call.events = ChoiceEvents(choices=1, wants_usage=False)
        relay = Relay(self.call, cast("Visit", self.moves), self.exchange, events)
        self.running = asyncio.create_task(relay.run())

    def come(self, *pieces: bytes, end: bool = False) -> None:
        """These arrive one by one in one pass of the loop, and the end of the body with them."""
        self.exchange.status = 200
        for piece in pieces:
            self.exchange.take(piece)
            self.exchange.wake()
        if end:
            self.exchange.finish()

    async def seen(self) -> bytes:
        """All that the client got, and what is left for it when the relay is through."""
        async with asyncio.timeout(10):
            last = await self.running
        return b"".join(self.client.bodies) + last


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("first", range(1, len(STREAM) + 1))
@pytest.mark.parametrize("pause", [False, True])
async def test_whatever_comes_before_the_task_wakes_goes_out_in_order(first: int, pause: bool) -> None:
    house = House()
    await settle()
    house.come(*STREAM[:first], end=first == len(STREAM))
    if pause:
        await settle()
    if first < len(STREAM):
        house.come(*STREAM[first:], end=True)
    assert await house.seen() == b"".join(STREAM)
    assert house.client.began <= 1


@pytest.mark.parametrize("size", [1, 7, 40, 97, 1000])
async def test_pieces_of_any_size_make_the_same_stream(size: int) -> None:
    house, whole = House(), b"".join(STREAM)
    await settle()
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    for number, piece in enumerate(pieces):
        house.come(piece, end=number == len(pieces) - 1)
        if number % 3 == 0:
            await settle()
    assert await house.seen() == whole


async def test_the_end_of_the_body_before_the_task_wakes_is_no_excuse() -> None:
    house = House()
    await settle()
    house.come(event("one"), event("two"), end=True)
    with pytest.raises(BrokenStream, match="finish reason"):
        await house.seen()


@pytest.mark.parametrize("before", [0, 1, 2])
async def test_a_blocked_client_gets_everything_in_order(before: int) -> None:
    house = House()
    await settle()
    for piece in STREAM[:before]:
        house.come(piece)
        await settle()
    house.client.open.clear()
    for piece in STREAM[before:-1]:
        house.come(piece)
        await settle()
    assert not house.running.done()
    house.come(STREAM[-1], end=True)
    await settle()
    assert b"".join(house.client.bodies) == b"".join(STREAM[:before])
    house.client.open.set()
    assert await house.seen() == b"".join(STREAM)
    assert not house.call.guard.client_stalls


@pytest.mark.parametrize("before", [0, 1])
async def test_others_do_not_wait_for_a_client_that_blocks(before: int) -> None:
    house = House()
    flights: dict[str, Flight] = {}
    flight = house.call.flight = Flight("question", flights)
    waiting: asyncio.Task[ChatReply | None] = asyncio.create_task(flight.wait())
    await settle()
    for piece in STREAM[:before]:
        house.come(piece)
        await settle()
    assert not waiting.done()
    house.client.open.clear()
    house.come(STREAM[before])
    await settle()
    assert waiting.done(), "the flight is still in the air while its client blocks"
    assert await waiting is None
    assert flights == {}
    house.client.open.set()
    await settle()
    house.come(*STREAM[before + 1 :], end=True)
    assert await house.seen() == b"".join(STREAM)


async def test_what_went_out_is_what_a_flight_carries() -> None:
    house = House()
    flight = house.call.flight = Flight("question", {})
    await settle()
    house.come(*STREAM[:2])
    await settle()
    house.come(*STREAM[2:], end=True)
    last = await house.running
    flight.carry(last)
    assert flight.text == b"".join(STREAM).decode()
