"""Bodies that are too long, too many, or lost on the way: the client reads why."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import openai
import pytest
import pytest_asyncio

from tests.fakes.engine import FakeEngine
from tests.faults.gateway_client import MESSAGES, ask
from tests.faults.gateway_process import Gateway, caller, gateway_before, place, token
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("gateway_uploads")]

TOO_LONG = 20_000_000
LONG = 8_000_000
"""So long that eight of them at once are borne, and a ninth is not."""
BORNE = 8
MORE = 3
CHAT = "/v1/chat/completions"
OFFER = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"


@dataclass(frozen=True, slots=True)
class House:
    """The gateway before one engine."""

    gateway: Gateway
    fake: FakeEngine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def opened(postgres: EmbeddedPostgres) -> AsyncGenerator[House, None]:
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeEngine(model="sage"))
        places, keys = [place("sage", fake.base_url)], [caller("desk")]
        yield House(await stack.enter_async_context(gateway_before(postgres, places, keys)), fake)


@pytest.fixture
def house(opened: House) -> House:
    """The house with an engine that has not been asked."""
    opened.fake.requests.clear()
    return opened


def head(*, length: int, more: str = "") -> bytes:
    """The head of a request whose body is that long."""
    lines = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token('desk')}\r\n"
    return f"{lines}content-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n".encode()


async def in_pieces() -> AsyncIterator[bytes]:
    """A body too long whose length nobody was told."""
    for _ in range(TOO_LONG // 100_000):
        yield b"a" * 100_000


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_too_long_is_refused_in_words(house: House, chunked: bool) -> None:
    headers = {"authorization": f"Bearer {token('desk')}"}
    for number in range(3):
        named = {**headers, "x-request-id": f"too-long-{chunked}-{number}"}
        content = in_pieces() if chunked else b"a" * TOO_LONG
        response = await house.gateway.http.post(f"{house.gateway.url}{CHAT}", content=content, headers=named)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        row = await house.gateway.row(named["x-request-id"])
        assert (row.status, row.http_status, row.attempts) == ("failed", 413, 0)
    assert house.fake.requests == []


async def test_the_official_client_reads_it_too(house: House) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{house.gateway.url}/v1", api_key=token("desk"), max_retries=0, timeout=30
    ) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="sage", messages=[{"role": "user", "content": "a" * TOO_LONG}])
        assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
    assert house.fake.requests == []


async def test_many_long_bodies_at_once_are_refused_beyond_a_bound(house: House) -> None:
    gateway = house.gateway

    async def upload() -> tuple[bytes, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writers.append(writer)
        writer.write(head(length=LONG) + b"{" * 1000)
        return await reader.read(), writer

    writers: list[asyncio.StreamWriter] = []
    waiting = {asyncio.create_task(upload()) for _ in range(BORNE + MORE)}
    refused = set[asyncio.Task[tuple[bytes, asyncio.StreamWriter]]]()
    async with asyncio.timeout(20):
        while len(refused) < MORE:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
    for task in refused:
        assert task.result()[0].startswith(b"HTTP/1.1 503 ")
        assert b'"overloaded"' in task.result()[0]
        assert b"retry-after: 1" in task.result()[0].lower()
    assert (await ask(gateway, "sage")).status == 200, "a short one is no matter"
    assert len(waiting) == BORNE
    for writer in writers:
        writer.transport.abort()
    await asyncio.wait(waiting)
    await gateway.idle(house.fake)
    long = [{"role": "user", "content": "a" * 3_000_000}]
    answers = await asyncio.gather(*(ask(gateway, "sage", messages=long) for _ in range(4)))
    assert [answer.status for answer in answers] == [200] * 4


@pytest.mark.parametrize("split", [False, True])
async def test_an_offer_to_upgrade_the_connection_is_declined_and_loses_nothing(house: House, split: bool) -> None:
    """Java's client offers HTTP/2 on a plain connection."""
    body = json.dumps({"model": "sage", "messages": MESSAGES}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", house.gateway.port)
    begin = head(length=len(body), more=OFFER)
    writer.write(begin if split else begin + body)
    if split:
        await asyncio.sleep(0.1)
        writer.write(body)
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert [request["messages"] for request in house.fake.requests] == [MESSAGES]
