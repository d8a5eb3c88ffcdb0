"""What goes back to one client: in slices that it takes one after the other, and what the outlet says of itself."""

import asyncio

import pytest
from starlette.types import Message

from services.api.dataplane.errors import ApiError
from services.api.dataplane.outlet import SLICE_BYTES, Outlet


class Client:
    """Keeps what it is sent, and takes `most` messages before it takes no more."""

    def __init__(self, most: int = 1000) -> None:
        self.messages: list[Message] = []
        self._most = most

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if len(self.messages) >= self._most:
            await asyncio.Event().wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


@pytest.mark.parametrize("size", [0, 1, SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES + 7])
async def test_a_whole_answer_goes_out_in_slices(size: int) -> None:
    client, body = Client(), bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    outlet = Outlet(client.send, [(b"x-request-id", b"7")])
    await outlet.whole(200, body, (b"x-more", b"1"))
    head, *pieces = client.messages
    headers = dict(head["headers"])
    assert (headers[b"content-length"], headers[b"x-request-id"], headers[b"x-more"]) == (b"%d" % size, b"7", b"1")
    assert client.body == body
    assert all(len(piece["body"]) <= SLICE_BYTES for piece in pieces)
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert (outlet.status, outlet.streaming) == (200, False)


async def test_a_client_that_takes_no_more_is_sent_no_more() -> None:
    client = Client(most=3)
    sending = asyncio.create_task(Outlet(client.send, []).whole(200, b"x" * (100 * SLICE_BYTES)))
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(client.body) == 2 * SLICE_BYTES
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_a_stream_is_under_way_until_its_last_piece_is_given_out() -> None:
    client = Client(most=3)
    outlet = Outlet(client.send, [])
    assert (outlet.status, outlet.streaming) == (0, False)
    await outlet.begin()
    await outlet.piece(b"data: 1\n\n")
    assert (outlet.status, outlet.streaming) == (200, True)
    last = asyncio.create_task(outlet.piece(b"data: 2\n\n", last=True))
    await asyncio.sleep(0)
    assert not outlet.streaming, "nothing may follow the last piece, even while it is on its way"
    last.cancel()
    assert [message.get("more_body") for message in client.messages] == [None, True, False]


async def test_a_refusal_is_an_error_of_the_api() -> None:
    client = Client()
    outlet = Outlet(client.send, [])
    await outlet.refuse(ApiError(503, "overloaded", "come again", headers={"Retry-After": "1"}))
    assert client.messages[0]["status"] == outlet.status == 503
    assert (b"retry-after", b"1") in client.messages[0]["headers"]
    assert b'"code":"overloaded"' in client.body
