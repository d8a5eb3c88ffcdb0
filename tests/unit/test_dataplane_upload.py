"""Bodies on their way in: whole, in pieces, too long, too many at once, and lost on the way."""

import asyncio
from time import monotonic

import pytest
from starlette.types import Message

from libs.keys import Key
from libs.llm.call_record import new_call_id
from libs.upstreams.clock import CallClock
from libs.upstreams.types import TimeLimits
from services.api.dataplane import upload
from services.api.dataplane.call import Call
from services.api.dataplane.errors import ApiError
from services.api.dataplane.guard import Guards
from services.api.dataplane.outlet import Outlet
from services.api.dataplane.upload import Uploads

KEY = Key.model_validate({"name": "desk", "sha256": "0" * 64, "scopes": {"infer"}})
MOST = 1000


class Sender:
    """A client's side: its pieces come one by one, then, where it does not `end`, nothing more."""

    def __init__(self, *pieces: bytes, end: bool = True, leaves: bool = False) -> None:
        self.left = list(pieces)
        self._end = end
        self._leaves = leaves

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        if self.left:
            piece = self.left.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.left) or not self._end}
        if not self._leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}


async def read(uploads: Uploads, sender: Sender, **headers: str) -> bytes:
    now = monotonic()
    clock = CallClock(TimeLimits(connect_s=1, first_token_s=10, idle_s=10, total_s=20), now)

    async def send(message: Message) -> None:
        raise AssertionError(f"nothing is to be sent: {message}")

    guards = Guards()
    guard = guards.over(now + 20)
    call = Call(new_call_id(), "test", "chat/completions", key=KEY, clock=clock, guard=guard, outlet=Outlet(send, []))
    raw = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    try:
        return await uploads.read(call, raw, sender.receive)
    finally:
        guards.release(guard)


async def refusal(uploads: Uploads, sender: Sender, **headers: str) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        await read(uploads, sender, **headers)
    assert caught.value.headers["Connection"] == "close"
    return caught.value.status, caught.value.code


async def test_a_body_comes_whole_or_in_pieces() -> None:
    uploads = Uploads(MOST)
    assert await read(uploads, Sender(b"x" * MOST), content_length=str(MOST)) == b"x" * MOST
    assert await read(uploads, Sender(b"a", b"b" * 400, b"", b"c"), content_length="402") == b"a" + b"b" * 400 + b"c"
    assert await read(uploads, Sender(b"a", b"b")) == b"ab"
    assert await read(uploads, Sender(b"")) == b""


@pytest.mark.parametrize("length", [{"content_length": "5000"}, {}, {"content_length": "9" * 40}])
async def test_a_body_too_long_is_read_to_its_end_before_it_is_refused(length: dict[str, str]) -> None:
    sender = Sender(*[b"x" * 500] * 10)
    assert await refusal(Uploads(MOST), sender, **length) == (413, "body_too_large")
    assert sender.left == []


async def test_no_more_is_thrown_away_than_is_bearable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "DISCARD_BYTES", 2000)
    endless = Sender(*[b"x" * 500] * 10)
    assert await refusal(Uploads(MOST), endless, content_length="5000") == (413, "body_too_large")
    assert len(endless.left) == 6
    monkeypatch.setattr(upload, "DISCARD_S", 0.01)
    assert await refusal(Uploads(MOST), Sender(b"x", end=False), content_length="5000") == (413, "body_too_large")


@pytest.mark.parametrize("length", [{"content_length": str(MOST)}, {}])
async def test_long_bodies_are_bounded_all_together(monkeypatch: pytest.MonkeyPatch, length: dict[str, str]) -> None:
    monkeypatch.setattr(upload, "ALL_TOGETHER_BYTES", 3 * MOST)
    uploads = Uploads(MOST)
    under_way = [asyncio.create_task(read(uploads, Sender(b"x", end=False), **length)) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert await refusal(uploads, Sender(b"x", b"y"), **length) == (503, "overloaded")
    assert await read(uploads, Sender(b"in one piece")) == b"in one piece"
    under_way[0].cancel()
    await asyncio.wait(under_way[:1])
    assert await read(uploads, Sender(b"x", b"y"), **({"content_length": "2"} if length else {})) == b"xy"
    for task in under_way[1:]:
        task.cancel()
    await asyncio.wait(under_way)
    many = [Sender(*[b"x" * 300] * 3) for _ in range(3)]
    assert await asyncio.gather(*(read(uploads, each, **length) for each in many)) == [b"x" * 900] * 3


async def test_a_client_that_leaves_within_its_body_ends_the_work() -> None:
    with pytest.raises(asyncio.CancelledError):
        await read(Uploads(MOST), Sender(b"half", end=False, leaves=True), content_length="8")


@pytest.mark.parametrize("pieces", [[b"x" * (MOST + 1)], [b"x" * MOST, b"x"]])
async def test_a_body_too_long_that_is_all_there_is_refused_at_once(pieces: list[bytes]) -> None:
    async with asyncio.timeout(5):
        assert await refusal(Uploads(MOST), Sender(*pieces)) == (413, "body_too_large")
