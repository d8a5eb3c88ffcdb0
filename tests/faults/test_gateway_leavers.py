"""Clients that leave, clients that read slowly, and requests whose time is up."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import psutil
import pytest
import pytest_asyncio

from tests.fakes.engine import FakeEngine, Fault
from tests.faults.gateway_client import Leaver, ask, client_that_leaves
from tests.faults.gateway_process import Gateway, caller, eventually, gateway_before, place, token
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("gateway_leavers")]

WORDS = "one two three four five six seven eight"
WAITING = "lexi_upstream_slots_waiting"
EVENTS = 400
EVENT_BYTES = 120 * 1024
MIB = 2**20


class Deafening:
    """A server that answers looks at its health until it goes deaf: then the kernel's queue of connections is full and
    no further one comes about.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._listener.setblocking(False)
        self._fillers: list[socket.socket] = []
        self._task = asyncio.create_task(self._answer())
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    async def _answer(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            with connection, contextlib.suppress(ConnectionError):
                await loop.sock_recv(connection, 4096)
                await loop.sock_sendall(
                    connection, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )

    async def go_deaf(self) -> None:
        """Take no more connections."""
        self._task.cancel()
        await asyncio.wait([self._task])
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)

    def close(self) -> None:
        """Go away."""
        self._task.cancel()
        for each in (self._listener, *self._fillers):
            each.close()


@dataclass(frozen=True, slots=True)
class House:
    """The gateway before an engine with many slots (`wide`), one of which it may use one slot (`narrow`), and one that
    will go deaf.
    """

    gateway: Gateway
    wide: FakeEngine
    narrow: FakeEngine
    deaf: Deafening


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def opened(postgres: EmbeddedPostgres) -> AsyncGenerator[House, None]:
    async with AsyncExitStack() as stack:
        wide = await stack.enter_async_context(FakeEngine(model="wide"))
        narrow = await stack.enter_async_context(FakeEngine(model="narrow"))
        deaf = Deafening()
        stack.callback(deaf.close)
        places = [
            place("wide", wide.base_url),
            place("narrow", narrow.base_url, slots=1),
            place("deaf", deaf.base_url),
        ]
        gateway = await stack.enter_async_context(
            gateway_before(postgres, places, [caller("desk")], LLM_CONNECT_TIMEOUT_S="0.5")
        )
        yield House(gateway, wide, narrow, deaf)


@pytest.fixture
def house(opened: House) -> House:
    """The house with engines that behave."""
    for fake in (opened.wide, opened.narrow):
        fake.reply, fake.fault, fake.delay_s, fake.gap_s, fake.chunks = WORDS, Fault.NONE, 0.0, 0.0, 4
        fake.requests.clear()
        fake.aborted = fake.tokens = 0
    return opened


@dataclass(frozen=True, slots=True)
class Leaving:
    """When a client leaves, and what is on record of it then."""

    stream: bool
    fault: Fault
    tokens: bool
    http_status: int


LEAVINGS = {
    "in the middle of a stream": Leaving(stream=True, fault=Fault.STALL, tokens=True, http_status=200),
    "before the first token": Leaving(stream=True, fault=Fault.SILENT, tokens=False, http_status=499),
    "after the engine's head": Leaving(stream=True, fault=Fault.HEADERS_ONLY, tokens=False, http_status=499),
    "waiting for a whole answer": Leaving(stream=False, fault=Fault.SILENT, tokens=False, http_status=499),
}


@pytest.mark.parametrize("when", LEAVINGS)
async def test_a_client_that_leaves_frees_the_engines_slot(house: House, when: str) -> None:
    leaving, fake, gateway = LEAVINGS[when], house.wide, house.gateway
    fake.fault = leaving.fault
    async with client_that_leaves(gateway, "wide", stream=leaving.stream) as client:
        await eventually(_holds(fake), what="the engine works on it")
        if leaving.tokens:
            await client.reader.readuntil(b'"content": "one')
        client.leave()
        await eventually(_aborted(fake), what="the engine sees the connection close")
    row = await gateway.row(client.request_id)
    assert (row.status, row.success, row.http_status) == ("cancelled", False, leaving.http_status)
    assert (row.upstream, row.attempts, row.caller) == ("wide", 1, "desk")
    assert (row.tokens_out > 0) == leaving.tokens
    assert row.tokens_in > 0 or not leaving.tokens
    await gateway.idle(fake)


def _holds(fake: FakeEngine, slots: int = 1):
    async def look() -> bool:
        return fake.active == slots

    return look


def _aborted(fake: FakeEngine):
    async def look() -> bool:
        return fake.aborted > 0 and fake.active == 0

    return look


async def test_many_clients_that_leave_at_once_free_all_slots(house: House) -> None:
    fake, gateway = house.wide, house.gateway
    fake.fault = Fault.STALL
    async with AsyncExitStack() as stack:
        clients: list[Leaver] = []
        for number in range(40):
            client = client_that_leaves(gateway, "wide", stream=number % 2 == 0)
            clients.append(await stack.enter_async_context(client))
        await eventually(_holds(fake, 40), what="all are at the engine")
        for client in clients:
            client.leave()
        await eventually(_aborted(fake), what="the engine is rid of all of them")
    for client in clients:
        assert (await gateway.row(client.request_id)).status == "cancelled"
    await gateway.idle(fake)


async def test_a_client_that_leaves_the_queue_never_reaches_the_engine(house: House) -> None:
    fake, gateway = house.narrow, house.gateway
    fake.fault = Fault.SILENT
    async with client_that_leaves(gateway, "narrow") as first:
        await eventually(_holds(fake), what="the only slot is taken")
        async with client_that_leaves(gateway, "narrow", stream=True) as second:
            await eventually(_waits(gateway, 1), what="one waits")
            second.leave()
            await eventually(_waits(gateway, 0), what="nobody waits")
        row = await gateway.row(second.request_id)
        assert (row.status, row.attempts, row.http_status) == ("cancelled", 0, 499)
        first.leave()
        await gateway.idle(fake)
    assert len(fake.requests) == 1


def _waits(gateway: Gateway, count: int):
    async def look() -> bool:
        return await gateway.metric(WAITING, upstream="narrow") == count

    return look


async def test_a_client_that_leaves_within_its_body_reaches_no_engine(house: House) -> None:
    gateway = house.gateway
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n"
    writer.write(f"{head}authorization: Bearer {token('desk')}\r\n\r\n".encode() + b'{"model": "wide", ')
    await writer.drain()
    writer.transport.abort()
    assert (await ask(gateway, "wide")).status == 200
    assert len(house.wide.requests) == 1
    await gateway.idle()


async def test_a_body_that_does_not_come_in_time_is_no_reason_to_wait(house: House) -> None:
    gateway = house.gateway
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\nx-deadline-ms: 300\r\n"
    head += f"x-request-id: too-slow\r\nauthorization: Bearer {token('desk')}\r\n\r\n"
    writer.write(head.encode() + b'{"model": "wide", ')
    async with asyncio.timeout(20):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer
    row = await gateway.row("too-slow")
    assert (row.status, row.http_status, row.attempts) == ("timed_out", 408, 0)
    writer.close()
    assert house.wide.requests == []


async def test_a_slow_reader_holds_the_engine_back_and_fills_no_memory(house: House) -> None:
    fake, gateway = house.wide, house.gateway
    fake.chunks, fake.reply = EVENTS, "x" * EVENTS * EVENT_BYTES
    process = psutil.Process(gateway.pid)
    before = process.memory_info().rss
    async with client_that_leaves(gateway, "wide", stream=True) as client:
        await client.reader.readuntil(b"200 OK")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        passed = -1
        while passed != fake.tokens:
            passed = fake.tokens
            await asyncio.sleep(1.2)
        assert 0 < passed < EVENTS, "the engine is held back"
        assert process.memory_info().rss - before < 24 * MIB
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            piece = await client.reader.read(MIB)
            assert piece, "the stream breaks off"
            tail = (tail + piece)[-200:]
        assert b"data: [DONE]\n\n" in tail
    row = await gateway.row(client.request_id)
    assert (row.status, row.finish_reason) == ("ok", "stop")
    await gateway.idle(fake)


async def test_a_slow_reader_that_leaves_is_let_go(house: House) -> None:
    fake, gateway = house.wide, house.gateway
    fake.chunks, fake.reply = EVENTS, "x" * EVENTS * EVENT_BYTES
    async with client_that_leaves(gateway, "wide", stream=True) as client:
        await client.reader.readuntil(b"200 OK")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        client.leave()
        await eventually(_aborted(fake), what="the engine sees the connection close")
    assert (await gateway.row(client.request_id)).status == "cancelled"
    await gateway.idle(fake)


@pytest.mark.parametrize("given", ["soon", "0", "-5", "1.5", "3600001", "99999999999999999999", "١٢"])
async def test_a_deadline_that_is_none_is_refused_by_name(house: House, given: str) -> None:
    answer = await ask(house.gateway, "wide", headers={"x-deadline-ms": given.encode()})
    assert answer.status == 400
    assert answer.error["param"] == "X-Deadline-Ms"
    assert answer.error["type"] == "invalid_request_error"
    assert house.wide.requests == []


async def test_the_total_ends_a_whole_answer_and_a_stream_in_its_middle(house: House) -> None:
    fake, gateway = house.wide, house.gateway
    fake.chunks, fake.gap_s, fake.reply = 500, 0.05, "word " * 500
    answer = await ask(gateway, "wide", stream=True, headers={"x-deadline-ms": "700"})
    assert (answer.status, answer.error["code"]) == (200, "deadline_exceeded")
    assert answer.whole
    assert not answer.done
    row = await gateway.row(answer.request_id)
    assert (row.status, row.http_status) == ("timed_out", 200)
    assert row.tokens_out > 0
    fake.delay_s = 60
    answer = await ask(gateway, "wide", headers={"x-deadline-ms": "300"})
    assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
    await gateway.idle(fake)
    assert fake.aborted == 2


async def test_a_server_that_does_not_take_the_connection_is_a_timeout_of_its_own(house: House) -> None:
    await house.deaf.go_deaf()
    for stream in (False, True):
        answer = await ask(house.gateway, "deaf", stream=stream)
        assert (answer.status, answer.error["code"]) == (504, "connect_timeout"), answer.body
        row = await house.gateway.row(answer.request_id)
        assert (row.status, row.attempts, row.http_status) == ("failed", 0, 504)
    await house.gateway.idle()


async def test_work_past_its_deadline_never_reaches_the_engine(house: House) -> None:
    fake, gateway = house.narrow, house.gateway
    fake.fault = Fault.SILENT
    async with client_that_leaves(gateway, "narrow") as first:
        await eventually(_holds(fake), what="the only slot is taken")
        late = {"x-deadline-ms": "400"}
        asked = [ask(gateway, "narrow", stream=number % 2 == 0, headers=dict(late)) for number in range(6)]
        for answer in await asyncio.gather(*asked):
            assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
            row = await gateway.row(answer.request_id)
            assert (row.status, row.attempts) == ("timed_out", 0)
        first.leave()
        fake.fault = Fault.NONE
        await gateway.idle(fake)
    assert (await ask(gateway, "narrow")).status == 200
    assert len(fake.requests) == 2
