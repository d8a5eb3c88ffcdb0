"""Heads that never end are cut, bodies are not, and an offer to speak another protocol costs nobody the body."""

import http.client
import socket
from collections.abc import Generator

import pytest

from libs.http_heads import MOST_BYTES
from tests.unit.door_server import ask, ask_in_turn, server


@pytest.fixture(scope="module")
def port() -> Generator[int]:
    with server() as there:
        yield there


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (b"GET /x HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * 1000),
        (b"GET /", b"a" * 1000),
        (b"GET /x HTTP/1.1\r\nHost: localhost\r\n", b"X: a\r\n" * 200),
        (
            b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
            b"X: a\r\n" * 200,
        ),
    ],
)
def test_what_never_becomes_a_request_is_cut(port: int, head: bytes, more: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            send_until_cut(connection, more * 1000, pieces=500 * MOST_BYTES // len(more) // 1000)


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"


@pytest.mark.parametrize(
    ("offer", "last"),
    [
        (OFFER, b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        (b"Upgrade: h2c\r\nConnection: close, Upgrade\r\n", b""),
        (b"Upgrade: tls/1.2, h2c\r\nConnection: upgrade\r\nConnection: close\r\n", b""),
    ],
)
def test_who_offers_another_protocol_is_served_in_ours(port: int, offer: bytes, last: bytes) -> None:
    """Java's client does. Its bodies came as nothing, or as a request that was none."""
    head = b"POST /x HTTP/1.1\r\nHost: localhost\r\n" + offer
    end = b"/last 0" if last else b""
    sent = (
        [head + b"Content-Length: 0\r\n\r\n" + last],
        [head + b"Content-Length: 3\r\n\r\nabc" + last],
        [head[:30], head[30:] + b"Content-Length: 90000\r\n\r\na", *[b"b" * 29_999] * 3, b"cc" + last],
        [head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n" + last],
    )
    for pieces, size in zip(sent, (0, 3, 90_000, 5), strict=True):
        answers = ask_in_turn(port, *pieces)
        assert answers.startswith(b"HTTP/1.1 200")
        assert b"\r\n\r\n/x %d" % size in answers
        assert answers.endswith(end)


def test_offers_in_a_row_on_one_connection_are_all_declined(port: int) -> None:
    one = b"POST /x HTTP/1.1\r\nHost: localhost\r\n" + OFFER + b"Content-Length: 1\r\n\r\na"
    answers = ask_in_turn(port, one * 2000 + b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answers.count(b"\r\n\r\n/x 1") == 2000
    assert answers.endswith(b"/last 0")


def test_an_offer_gets_past_no_bound_and_no_check(port: int) -> None:
    assert ask(port, b"GET /x HTTP/1.1\r\nHost: evil.test\r\n" + OFFER + b"\r\n")[0] == 421
    assert ask(port, b"GET /a//b HTTP/1.1\r\nHost: localhost\r\n" + OFFER + b"\r\n")[0] == 400
    assert ask(port, b"CONNECT evil.test:443 HTTP/1.1\r\nHost: localhost\r\n" + OFFER + b"\r\n")[0] == 400
    two = b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert ask(port, b"POST /x HTTP/1.1\r\nHost: localhost\r\n" + OFFER + two)[0] == 400


def send_until_cut(connection: socket.socket, piece: bytes, *, pieces: int) -> None:
    for _ in range(pieces):
        connection.sendall(piece)


def test_a_long_body_is_no_head(port: int) -> None:
    body = b"b" * (40 * MOST_BYTES)
    head = b"POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert ask(port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)[1].endswith(f"/x {len(body)}")
    chunks = b"1\r\nb\r\n" * MOST_BYTES + b"0\r\n\r\n"
    assert ask(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)[1].endswith(f"/x {MOST_BYTES}")


def test_a_connection_carries_one_request_after_another(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for size in (0, 3, 200_000, 1):
        connection.request("POST", "/x", body=b"b" * size)
        assert connection.getresponse().read() == b"/x %d" % size
    connection.close()


def test_a_head_that_trickles_is_cut() -> None:
    with server(head_s=0.3) as there:
        for begun in (b"", b"GET /x HTTP/1.1\r\nHost: loc", b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\nGET"):
            with socket.create_connection(("127.0.0.1", there), timeout=60) as connection:
                connection.sendall(begun)
                received = b""
                while piece := connection.recv(4096):
                    received += piece
            assert b"408 Request Timeout" in received
