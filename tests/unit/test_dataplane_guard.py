"""Who ends the work of a request, and what is left of it then."""

import asyncio

import pytest
from starlette.types import Message

from services.api.dataplane import guard as guard_module
from services.api.dataplane.guard import Guard, Guards


class Client:
    """The receiving side of a connection, at hand."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def work(guards: Guards, client: Client, *, due: float, guard_at: list[Guard]) -> str:
    guard = guards.over(due)
    guard_at.append(guard)
    try:
        guard.watch(client.receive)
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return str(guard.ending)
    finally:
        guards.release(guard)
    return "never"


async def begun(guards: Guards, client: Client, *, due: float) -> tuple[asyncio.Task[str], Guard]:
    made: list[Guard] = []
    task = asyncio.create_task(work(guards, client, due=due, guard_at=made))
    await asyncio.sleep(0)  # the work begins, and then its watcher
    await asyncio.sleep(0)
    return task, made[0]


async def test_a_client_that_leaves_ends_the_work() -> None:
    client = Client()
    task, _ = await begun(Guards(), client, due=float("inf"))
    client.leave()
    assert await task == "left"


async def test_overdue_work_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "LOOK_S", 0.01)
    now = [0.0]
    guards = Guards(clock=lambda: now[0])
    late, _ = await begun(guards, Client(), due=5.0)
    later, guard = await begun(guards, Client(), due=50.0)
    await asyncio.sleep(0.05)
    assert not late.done()
    now[0] = 6.0
    assert await late == "overdue"
    assert not later.done()
    guard.client_must_take(6.0)
    now[0] = 30.0
    await asyncio.sleep(0.05)
    guard.client_took()
    now[0] = 40.0
    await asyncio.sleep(0.05)
    assert not later.done(), "it took what it was sent, so it has its time again"
    guard.client_must_take(now[0])
    now[0] = 50.5
    assert await later == "overdue", "the total ends it, however patient we are with clients"


async def test_a_server_that_stops_is_neither() -> None:
    task, _ = await begun(Guards(), Client(), due=float("inf"))
    task.cancel()
    assert await task == "None"


async def test_a_released_guard_ends_nothing() -> None:
    client, guards = Client(), Guards()

    async def finish() -> str:
        guard = guards.over(0.0)
        guard.watch(client.receive)
        await asyncio.sleep(0)
        guards.release(guard)
        client.leave()
        guard.end("left")
        await asyncio.sleep(0.01)
        return f"{guard.ending} whole"

    assert await asyncio.create_task(finish()) == "None whole"


async def test_a_client_that_leaves_once_the_answer_is_out_ends_nothing() -> None:
    client, guards = Client(), Guards()

    async def finish() -> str:
        guard = guards.over(float("inf"))
        guard.watch(client.receive)
        await asyncio.sleep(0)
        guard.unwatch()
        client.leave()
        await asyncio.sleep(0.01)
        guards.release(guard)
        return "kept"

    assert await asyncio.create_task(finish()) == "kept"
