"""The HTTP client against raw servers that answer in every way HTTP allows, and some it does not."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from time import monotonic

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from libs.upstreams.errors import BrokenStream, ConnectFailed
from libs.upstreams.exchange import HIGH_WATER, Exchange, Overdue
from libs.upstreams.wire import Wire, encode_headers

Streams = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(talk: Streams, tls: ssl.SSLContext | None = None) -> AsyncGenerator[str, None]:
    """A server whose every connection is `talk`; its origin."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    try:
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    return head


def answering(*answers: bytes, close: bool = False) -> Streams:
    """Answer the requests of a connection with these bytes, one each, then keep it open or close it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
        if not close:
            await reader.read()
        writer.close()

    return talk


async def body_of(exchange: Exchange) -> bytes:
    return b"".join([chunk async for chunk in exchange])


async def ask(wire: Wire, target: str = "/x") -> tuple[int, bytes]:
    async with await wire.send("GET", target) as exchange:
        return await exchange.head(), await body_of(exchange)


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "status", "body", "kept"),
    [
        (PLAIN, 200, b"hello", True),
        (CHUNKED, 200, b"hello", True),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", 503, b"", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, 200, b"hello", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", False),
    ],
)
async def test_every_framing_of_an_answer(answer: bytes, status: int, body: bytes, kept: bool) -> None:
    async with serving(answering(answer)) as origin:
        wire = Wire(origin)
        assert await ask(wire) == (status, body)
        await asyncio.sleep(0)
        assert wire.open_connections == int(kept)
        wire.close()


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True)) as origin:
        wire = Wire(origin)
        assert await ask(wire) == (200, b"all of it")
        wire.close()


async def test_any_split_of_the_answer_reads_the_same() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for byte in CHUNKED:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(drip) as origin:
        wire = Wire(origin)
        assert await ask(wire) == (200, b"hello")
        wire.close()


async def test_a_request_goes_out_whole_and_once() -> None:
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(PLAIN)

    async with serving(note) as origin:
        wire = Wire(origin, headers={"authorization": "Bearer k"})
        async with await wire.send("POST", "/v1/y?z=1", body=b"{}", headers={"x-a": "b"}) as exchange:
            assert await exchange.head() == 200
            assert exchange.header(b"content-length") == b"5"
            assert exchange.header(b"missing") is None
        wire.close()
    head = seen[0].split(b"\r\n")
    assert head[0] == b"POST /v1/y?z=1 HTTP/1.1"
    assert {b"authorization: Bearer k", b"x-a: b", b"content-length: 2", b"host: " + origin[7:].encode()} <= set(head)
    assert seen[0].endswith(b"\r\n\r\n{}")
    assert len(seen) == 1


async def test_connections_are_used_again_and_the_freshest_first() -> None:
    async with serving(answering(*[PLAIN] * 9)) as origin:
        wire = Wire(origin)
        for _ in range(4):
            await ask(wire)
        assert wire.open_connections == 1
        wire.close()


async def test_a_connection_of_one_request_is_not_kept_whatever_the_server_promises() -> None:
    async with serving(answering(PLAIN)) as origin:
        wire = Wire(origin)
        async with await wire.send("GET", "/x", keep_alive=False) as exchange:
            assert await body_of(exchange) == b"hello"
        await asyncio.sleep(0.01)
        assert wire.open_connections == 0
        assert await ask(wire) == (200, b"hello")
        assert wire.open_connections == 1
        wire.close()


async def test_a_connection_the_server_closed_is_not_used_again() -> None:
    closed = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(PLAIN)
        await writer.drain()
        writer.close()
        closed.set()

    async with serving(once) as origin:
        wire = Wire(origin)
        for _ in range(20):
            closed.clear()
            assert await ask(wire) == (200, b"hello")
            await closed.wait()
        wire.close()


async def test_a_connection_that_rested_too_long_is_closed() -> None:
    async with serving(answering(PLAIN, PLAIN)) as origin:
        wire = Wire(origin, idle_s=0.02)
        await ask(wire)
        assert wire.open_connections == 1
        for _ in range(2000):
            if wire.open_connections:
                await asyncio.sleep(0.01)
        assert wire.open_connections == 0
        wire.close()


async def test_a_request_the_server_may_have_read_is_never_sent_again() -> None:
    requests: list[bytes] = []

    async def read_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        if len(requests) == 1:
            writer.write(PLAIN)
            await writer.drain()
            requests.append(await read_request(reader))
        writer.close()

    async with serving(read_and_leave) as origin:
        wire = Wire(origin)
        await ask(wire)
        async with await wire.send("POST", "/x", body=b"{}") as exchange:
            with pytest.raises(BrokenStream, match="before an answer"):
                await exchange.head()
        await asyncio.sleep(0.02)
        assert len(requests) == 2
        wire.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", "in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "in the middle"),
        (b"", "before an answer"),
        (b"HTTP/1.1 200", "before an answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\nz: 1\r\n\r\n", "not HTTP"),
    ],
)
async def test_what_is_cut_or_garbled_is_broken(answer: bytes, said: str) -> None:
    async with serving(answering(answer, close=True)) as origin:
        wire = Wire(origin)
        with pytest.raises(BrokenStream, match=said):
            await ask(wire)
        wire.close()
        await asyncio.sleep(0)
        assert wire.open_connections == 0


async def test_bytes_after_the_answer_end_the_connection() -> None:
    async with serving(answering(PLAIN + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", PLAIN)) as origin:
        wire = Wire(origin)
        assert await ask(wire) == (200, b"hello")
        assert await ask(wire) == (200, b"hello")
        wire.close()


async def test_nothing_by_the_given_moment_is_overdue() -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")) as origin:
        wire = Wire(origin)
        async with await wire.send("GET", "/x") as exchange:
            assert await exchange.head(monotonic() + 30) == 200
            assert await exchange.read(monotonic() + 30) == b"hello"
            with pytest.raises(Overdue):
                await exchange.read(monotonic() + 0.02)
        await asyncio.sleep(0)
        assert wire.open_connections == 0


async def test_a_later_moment_replaces_an_earlier_one() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        await asyncio.sleep(0.08)
        writer.write(b"b")

    async with serving(slow) as origin:
        wire = Wire(origin)
        async with await wire.send("GET", "/x") as exchange:
            assert await exchange.head(monotonic() + 0.05) == 200
            assert await exchange.read(monotonic() + 0.05) == b"a"
            assert await exchange.read(monotonic() + 30) == b"b"
        wire.close()


async def test_leaving_early_and_cancelling_close_the_socket() -> None:
    gone = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()
        gone.set()

    async with serving(endless) as origin:
        wire = Wire(origin)
        async with await wire.send("GET", "/x") as exchange:
            assert await exchange.read() == b"a"
        await asyncio.wait_for(gone.wait(), 30)
        gone.clear()
        task = asyncio.create_task(ask(wire))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait_for(gone.wait(), 30)
        assert wire.open_connections == 0


async def test_a_slow_reader_stops_the_server() -> None:
    size, sent = 64 * 1024 * 1024, 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    async with serving(flood) as origin:
        wire = Wire(origin)
        async with await wire.send("GET", "/x") as exchange:
            await exchange.head()
            stalled = -1
            while stalled != sent:
                stalled = sent
                await asyncio.sleep(0.1)
            assert sent < size
            first = await exchange.read()
            assert len(first) < 4 * HIGH_WATER
            total = len(first)
            async for chunk in exchange:
                total += len(chunk)
            assert total == size
        wire.close()


async def test_no_connection_says_where() -> None:
    async with serving(answering()) as origin:
        pass
    with pytest.raises(ConnectFailed, match=origin.removeprefix("http://")):
        await ask(Wire(origin))


async def test_connecting_has_a_limit_of_its_own() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(mute) as origin:
        wire = Wire(origin.replace("http:", "https:"))
        with pytest.raises(ConnectFailed, match=r"within 0\.05 s"):
            await wire.send("GET", "/x", connect_s=0.05)
        assert wire.open_connections == 0


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b"])
def test_a_header_cannot_smuggle_another(value: str) -> None:
    with pytest.raises(ValueError, match="line ends"):
        encode_headers({"x": value})


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a fresh certificate for 127.0.0.1, written to `folder/cert.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_https_checks_the_certificate(tmp_path: Path) -> None:
    async with serving(answering(PLAIN, CHUNKED), certificate(tmp_path)) as origin:
        with pytest.raises(ConnectFailed, match="certificate"):
            await ask(Wire(origin))
        trusting = Wire(origin, tls=ssl.create_default_context(cafile=str(tmp_path / "cert.pem")))
        assert await ask(trusting) == (200, b"hello")
        assert await ask(trusting) == (200, b"hello")
        assert trusting.open_connections == 1
        trusting.close()


STALE = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nSTALE-"


@pytest.mark.parametrize("more", [STALE, b"HTTP/1.1 2", PLAIN, b"junk"])
async def test_what_follows_an_answer_unasked_reaches_nobody(more: bytes) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(PLAIN + more if connections == 1 else PLAIN)
        await reader.read()
        writer.close()

    async with serving(talk) as origin:
        wire = Wire(origin)
        for _ in range(2):
            assert await ask(wire) == (200, b"hello"), "the answer itself is whole"
        assert connections == 2
        assert wire.open_connections == 1
        wire.close()


async def test_what_follows_an_answer_unasked_does_not_break_one_that_is_poured() -> None:
    async with serving(answering(PLAIN + PLAIN[:20])) as origin:
        wire, poured = Wire(origin), list[bytes]()

        def take(chunk: bytes) -> bool:
            poured.append(chunk)
            return True

        async with await wire.send("GET", "/x") as exchange:
            assert await exchange.head() == 200
            await exchange.pour(take, monotonic() + 10)
            assert exchange.complete
        assert b"".join(poured) == b"hello"
        await asyncio.sleep(0)
        assert wire.open_connections == 0
        wire.close()
