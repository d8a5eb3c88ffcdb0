"""Jobs that somebody queues with a payload: taken once, few at a time, given back when their process ends."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer import Queries
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.jobs.queue import GiveBack, OnDemand, Pace, Periodic, Queue
from tests.integration.api_app import until

PACE = Pace(batch=1, most=2, lease_s=2.0, look_s=0.2, hurry_s=0.1)


async def put(database_url: str, *payloads: str) -> None:
    """Queue a job for each payload."""
    connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - untyped
    connection = await connect(database_url)
    try:
        count = len(payloads)
        queries = Queries.from_asyncpg_connection(connection)
        await queries.enqueue(["errand"] * count, [each.encode() for each in payloads], [0] * count)
    finally:
        await connection.close()


async def in_queue(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        found = await connection.scalars(text("select cast(status as text) from pgqueuer order by id"))
        return list(found)


async def test_each_job_is_done_once_and_a_process_has_few_at_a_time(database_url: str, engine: AsyncEngine) -> None:
    done: list[str] = []
    running = most = 0

    async def errand(payload: bytes) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        done.append(payload.decode())

    stop = asyncio.Event()
    wanted = [f"errand {number}" for number in range(12)]
    await put(database_url, *wanted)
    task = asyncio.create_task(Queue(database_url, {"errand": OnDemand(errand)}, pace=PACE).run(stop))
    await until(lambda: asyncio.sleep(0.01, done), lambda done: len(done) == len(wanted))
    await until(lambda: in_queue(engine), lambda jobs: not jobs)
    stop.set()
    await task
    assert sorted(done) == sorted(wanted)
    assert most == 2


async def test_two_processes_share_what_waits(database_url: str) -> None:
    by: dict[str, set[str]] = {"one": set(), "other": set()}
    both = asyncio.Barrier(4)

    def worker(name: str) -> OnDemand:
        async def errand(payload: bytes) -> None:
            by[name].add(payload.decode())
            await both.wait()  # two each: passed only when neither took more than its part

        return OnDemand(errand)

    stop = asyncio.Event()
    await put(database_url, "a", "b", "c", "d")
    queues = [Queue(database_url, {"errand": worker(name)}, pace=PACE) for name in by]
    tasks = [asyncio.create_task(queue.run(stop)) for queue in queues]
    await until(lambda: asyncio.sleep(0.01, by), lambda by: all(len(each) == 2 for each in by.values()))
    stop.set()
    await asyncio.gather(*tasks)
    assert by["one"] | by["other"] == {"a", "b", "c", "d"}


async def test_what_is_given_back_waits_and_is_done_later(database_url: str, engine: AsyncEngine) -> None:
    tries: list[str] = []

    async def errand(payload: bytes) -> None:
        tries.append(payload.decode())
        if len(tries) < 3:
            raise GiveBack(timedelta(seconds=0.1), "not yet")

    stop = asyncio.Event()
    await put(database_url, "a")
    task = asyncio.create_task(Queue(database_url, {"errand": OnDemand(errand)}, pace=PACE).run(stop))
    await until(lambda: in_queue(engine), lambda jobs: not jobs)
    stop.set()
    await task
    assert tries == ["a", "a", "a"]


async def test_a_process_that_ends_gives_back_what_it_has_at_once(database_url: str, engine: AsyncEngine) -> None:
    stop, begun = asyncio.Event(), asyncio.Event()

    async def errand(_payload: bytes) -> None:
        begun.set()
        await stop.wait()
        raise GiveBack(timedelta(0), "this process ends")

    await put(database_url, "a", "b")
    task = asyncio.create_task(Queue(database_url, {"errand": OnDemand(errand)}, pace=PACE).run(stop))
    await until(lambda: in_queue(engine), lambda jobs: jobs == ["picked", "picked"])
    stop.set()
    await task
    assert await in_queue(engine) == ["queued", "queued"]


async def test_what_comes_round_and_what_is_asked_for_do_not_wait_for_each_other(database_url: str) -> None:
    stop, came = asyncio.Event(), asyncio.Event()
    begun = asyncio.Event()

    async def tidy() -> None:
        if begun.is_set():
            came.set()

    async def errand(_payload: bytes) -> None:
        begun.set()
        await stop.wait()

    await put(database_url, *"abcdefgh")
    queues = [
        Queue(database_url, {"tidy": Periodic("* * * * * *", tidy)}),
        Queue(database_url, {"errand": OnDemand(errand)}, pace=PACE),
    ]
    tasks = [asyncio.create_task(queue.run(stop)) for queue in queues]
    await came.wait()
    stop.set()
    await asyncio.gather(*tasks)
