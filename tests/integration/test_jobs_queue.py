"""The queue on a real Postgres: its schema, its schedules, its way through a restart of the server."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from pgqueuer import Queries
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.jobs.queue import Periodic, Queue
from tests.conftest import migrate
from tools.local_stack.postgres import EmbeddedPostgres

EVERY_SECOND = "* * * * * *"


class Counted:
    """Work that counts how often it ran, and fails when told to."""

    def __init__(self) -> None:
        self.runs = 0
        self.ran = asyncio.Event()
        self.failing = False

    async def __call__(self) -> None:
        self.runs += 1
        self.ran.set()
        if self.failing:
            raise ValueError("told to fail")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - the queue has no event for it
            await asyncio.sleep(0.05)


async def ran_again(work: Counted) -> None:
    work.ran.clear()
    async with asyncio.timeout(60):
        await work.ran.wait()


async def end(stop: asyncio.Event, *tasks: asyncio.Task[None]) -> None:
    stop.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks)


async def test_the_migration_makes_what_the_installed_release_declares(database_url: str) -> None:
    connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - untyped
    connection = await connect(database_url)
    try:
        plan = await Queries.from_asyncpg_connection(connection).plan_upgrade()
    finally:
        await connection.close()
    assert plan.statements == ()
    assert plan.notes == ()


async def test_a_schedule_runs_its_job_and_a_failing_job_runs_again(database_url: str) -> None:
    work, stop = Counted(), asyncio.Event()
    queue = Queue(database_url, {"tidy": Periodic(EVERY_SECOND, work)})
    task = asyncio.create_task(queue.run(stop))
    await ran_again(work)
    assert await queue.check() is None
    work.failing = True
    await ran_again(work)
    work.failing = False
    await ran_again(work)
    await end(stop, task)


async def test_two_processes_share_one_schedule_and_run_one_job_at_a_time(
    database_url: str, engine: AsyncEngine
) -> None:
    running = most = 0
    done = asyncio.Event()

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1.5)
        running -= 1
        done.set()

    stop = asyncio.Event()
    queues = [Queue(database_url, {"tidy": Periodic(EVERY_SECOND, work)}) for _ in range(2)]
    tasks = [asyncio.create_task(queue.run(stop)) for queue in queues]
    for _ in range(2):
        done.clear()
        async with asyncio.timeout(60):
            await done.wait()
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from pgqueuer_schedules")) == 1
    await end(stop, *tasks)
    assert most == 1


async def test_the_queue_survives_a_killed_and_restarted_server(tmp_path: Path) -> None:
    server = await asyncio.to_thread(start_server, tmp_path)
    stop = asyncio.Event()
    try:
        work = Counted()
        queue = Queue(server.url(), {"tidy": Periodic(EVERY_SECOND, work)})
        task = asyncio.create_task(queue.run(stop))
        await ran_again(work)
        await asyncio.to_thread(server.kill)

        async def away() -> bool:
            return await queue.check() is not None

        await until(away)
        await asyncio.to_thread(server.start)
        await ran_again(work)
        assert await queue.check() is None
        await end(stop, task)
    finally:
        stop.set()
        await asyncio.to_thread(server.stop)


def start_server(folder: Path) -> EmbeddedPostgres:
    server = EmbeddedPostgres(folder, durable=False)
    server.start()
    migrate(server.url())
    return server
