"""How the broker's client connects: proxies that cannot be used, headers that cannot be sent, servers that hang up."""

import asyncio
import socket
import traceback

import httpx
import pytest

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerConfigError, BrokerUncertain, BrokerUnreachable
from tests.unit.test_trading_broker import broker


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks://user:hidden@127.0.0.1:1080"),
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("HTTPS_PROXY", "http://\x01"),
        ("NO_PROXY", "[::1"),
        ("SSL_CERT_FILE", "/nowhere/at/all"),
    ],
)
async def test_an_environment_that_cannot_be_used_does_not_stop_the_broker(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    async with Broker(BrokerAddress("alpaca", "https://alpaca.invalid", "key", "secret")) as client:
        assert "cannot be used" in caplog.text
        assert "hidden" not in caplog.text
        with pytest.raises(BrokerUnreachable):
            await client.clock()


async def test_a_proxy_that_refuses_lets_nothing_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ProxyError("407 Proxy Authentication Required")

    with pytest.raises(BrokerUnreachable):
        await broker(fail).cancel_all()


def test_an_address_that_cannot_be_used_is_a_fault_of_the_settings() -> None:
    with pytest.raises(BrokerConfigError, match="InvalidURL"):
        Broker(BrokerAddress("paper", "http://bad\x01host"))


async def test_a_header_that_cannot_be_sent_is_not_quoted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = BrokerAddress("paper", f"http://127.0.0.1:{server.getsockname()[1]}", "key", "first\nTOPSECRET")
        async with Broker(address) as client:
            with pytest.raises(BrokerUncertain) as found:
                await client.cancel_all()
    told = "".join(traceback.format_exception(found.value))
    assert "cannot be written as HTTP" in told
    assert "TOPSECRET" not in str(found.value)
    assert found.value.__suppress_context__


ANSWERED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n[]"


class Wire:
    """A server on a real socket. It answers the first request of each connection as told, and counts them all."""

    def __init__(self, *, then: str) -> None:
        self.then = then
        self.connections = 0
        self.requests: list[bytes] = []
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self.take(reader)
        writer.write(ANSWERED)
        await writer.drain()
        if self.then == "listens":
            await self.take(reader)
        writer.close()
        await writer.wait_closed()
        self.gone.set()

    async def take(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head.split(b"\r\n", 1)[0])


@pytest.mark.parametrize("then", ["closes", "listens"])
async def test_a_connection_that_the_server_closed_carries_no_second_request(then: str) -> None:
    wire = Wire(then=then)
    async with await asyncio.start_server(wire.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Broker(BrokerAddress("paper", f"http://127.0.0.1:{port}")) as client:
            assert await client.positions() == []
            if then == "closes":
                # Closed between two calls: the second goes out on a new connection.
                await wire.gone.wait()
                assert await client.cancel_all() == []
            else:
                # Closed after the second was read: it may have been obeyed, and it is not sent again.
                with pytest.raises(BrokerUncertain):
                    await client.cancel_all()
    assert wire.requests == [b"GET /v2/positions HTTP/1.1", b"DELETE /v2/orders HTTP/1.1"]
    assert wire.connections == (2 if then == "closes" else 1)
