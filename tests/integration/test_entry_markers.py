"""What an entry leaves on the disk while nobody knows what became of it, and an exit that finds it there."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.entry_marks import MAY_STILL_ARRIVE_S
from libs.trading.halt import EntryLock
from libs.trading.intent import broker_order_id
from libs.trading.types import Order
from services.api.strategist.submission import SUBMITTING, Placed, Submission
from tests.integration.test_panic_process_paper import ROOT, Paper, broker, paper, wait_for

__all__ = ["broker", "paper"]

AN_ORDER = Order(
    ticker="AAPL",
    side="buy",
    qty=Decimal(7),
    ref_price=Decimal(100),
    client_order_id="c1",
    key_name="k",
    reduce_only=False,
    horizon=None,
    strategy="",
)
AWAY = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"

# An api that sends one entry; its database is away, which stops no submission.
SENDING = """
import asyncio, sys, uuid
from pathlib import Path
from tests.integration.test_entry_markers import submission, submit
async def main():
    await submit(submission(Path(sys.argv[2]), sys.argv[1]), uuid.UUID(sys.argv[3]))
    await asyncio.sleep(60)
asyncio.run(main())
"""


def submission(state: Path, url: str, transport: httpx.AsyncBaseTransport | None = None) -> Submission:
    """What sends entries to a broker there, or over a transport."""
    client = Broker(BrokerAddress("paper", url), transport=transport)
    return Submission(client, lock=EntryLock(state), engine=create_async_engine(AWAY))


async def submit(sender: Submission, order_id: UUID) -> Placed:
    """Send it."""
    return await sender.send(AN_ORDER, order_id=order_id, limit_price=Decimal(105), since=time.monotonic())


def accepted(request: httpx.Request) -> httpx.Response:
    order = {"id": "o1", "client_order_id": "c", "symbol": "AAPL", "side": "buy", "qty": "7", "filled_qty": "0"}
    more = {"type": "limit", "limit_price": "105", "status": "new", "submitted_at": "2026-01-05T15:00:00Z"}
    return httpx.Response(200, json=order | more)


def refused(request: httpx.Request) -> httpx.Response:
    return httpx.Response(403, json={"code": 40310000, "message": "insufficient buying power"})


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody listens", request=request)


def found_later(request: httpx.Request) -> httpx.Response:
    if request.method == "POST":
        raise httpx.ReadError("reset", request=request)
    return accepted(request)


@pytest.mark.parametrize("answer", [accepted, refused, unreachable, found_later])
async def test_a_mark_goes_when_the_outcome_is_known(
    tmp_path: Path, answer: Callable[[httpx.Request], httpx.Response]
) -> None:
    marks, seen = EntryLock(tmp_path).marks, list[str]()

    def look(request: httpx.Request) -> httpx.Response:
        seen.extend(mark.name for mark in marks.all())
        return answer(request)

    order_id = uuid4()
    await submit(submission(tmp_path, "http://broker", httpx.MockTransport(look)), order_id)
    assert seen[0] == broker_order_id(order_id), "it is there while the entry is sent"
    assert marks.all() == []


def lost(request: httpx.Request) -> httpx.Response:
    if request.method == "POST":
        raise httpx.ReadError("reset", request=request)
    return httpx.Response(404, json={"code": 40410000, "message": "order not found"})


async def test_a_mark_stays_while_nobody_knows_and_when_the_sender_stops(tmp_path: Path) -> None:
    lock, order_id = EntryLock(tmp_path), uuid4()
    sender = submission(tmp_path, "http://broker", httpx.MockTransport(lost))
    placed = await submit(sender, order_id)
    assert (placed.status, lock.nobody_sending_now()) == (SUBMITTING, False)
    assert [mark.order_id for mark in lock.marks.all()] == [str(order_id)]
    await sender.close()
    assert lock.nobody_sending_now()
    assert [mark.name for mark in lock.marks.all()] == [broker_order_id(order_id)]


async def test_a_mark_stays_where_sending_is_cut_off(tmp_path: Path) -> None:
    sent = asyncio.Event()

    class Hangs(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            sent.set()
            await asyncio.sleep(30)
            return accepted(request)

    lock = EntryLock(tmp_path)
    task = asyncio.create_task(submit(submission(tmp_path, "http://broker", Hangs()), uuid4()))
    await sent.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(lock.marks.all()) == 1


def test_old_marks_are_tidied_at_the_start(tmp_path: Path) -> None:
    marks, old, young = EntryLock(tmp_path).marks, uuid4(), uuid4()
    marks.put(old, "lexi-1")
    marks.put(young, "lexi-2")
    at = time.time() - MAY_STILL_ARRIVE_S - 1
    os.utime(tmp_path / "entries" / str(old), (at, at))
    submission(tmp_path, "http://broker")
    assert [mark.name for mark in marks.all()] == ["lexi-2"]


def test_an_api_killed_while_it_sends_keeps_an_exit_from_saying_flat_too_early(paper: Paper, tmp_path: Path) -> None:
    """The broker works on the entry for 6 s more; the lock of the one that was killed is gone."""
    paper.fault(kind="latency", route="POST /v2/orders", ms=6000, times=1)
    url, order_id = str(paper.http.base_url).rstrip("/"), str(uuid4())
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    api = subprocess.Popen([sys.executable, "-c", SENDING, url, str(tmp_path), order_id], cwd=ROOT, env=environment)
    lock = EntryLock(tmp_path)
    wait_for(lock.marks.all)
    time.sleep(1)  # the request is on its way
    api.kill()
    api.wait(30)
    assert lock.nobody_sending_now()
    code, answer = paper.panic()
    assert (code, answer["state"]) == (0, "FLAT")
    found = paper.http.get("/v2/orders:by_client_order_id", params={"client_order_id": broker_order_id(UUID(order_id))})
    assert found.is_success, "FLAT is said after it arrived"
    assert paper.flat()
