"""Workers of an evaluation on machines of their own: one dies, or its cable is cut, and the other does its work."""

import asyncio
import json
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.fakes.engine import FakeEngine
from tests.faults.jobs_process import jobs
from tests.faults.test_evaluation_workers import assert_whole, tickers_stored, times_asked, workers_of
from tests.integration.api_app import until
from tests.integration.evaluation_sharing_cases import Kept, handed_out, shared_plan, stored
from tests.integration.replay_batch_cases import ALLOWS
from tests.namespaces.machines import Machine, machine, relay
from tools.local_stack.postgres import PORT, EmbeddedPostgres

SHARE = 4
ITEMS = 300


@asynccontextmanager
async def worker_on(
    there: Machine, *, fake: FakeEngine, postgres: EmbeddedPostgres, database_url: str, folder: Path
) -> AsyncGenerator[Process]:
    """A process of the jobs on a machine that reaches Postgres and the model over its cable alone."""
    socket = str(postgres.socket_folder / f".s.PGSQL.{PORT}")
    async with (
        relay(there.host, lambda: asyncio.open_unix_connection(socket)) as database,
        relay(there.host, lambda: asyncio.open_connection("127.0.0.1", fake.port)) as model,
    ):
        url = f"postgresql://postgres@{there.host}:{database}{urlsplit(database_url).path}"
        base_url = f"http://{there.host}:{model}/v1"
        async with jobs(url, base_url, folder, share=SHARE, prefix=there.run) as process:
            yield process


@pytest.mark.parametrize("fate", ["killed", "unplugged"])
async def test_a_machine_is_lost_in_the_middle(
    fate: str, engine: AsyncEngine, database_url: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    plan, kept = shared_plan(ITEMS), Kept()
    async with FakeEngine(reply=json.dumps(ALLOWS), delay_s=0.1) as fake:
        with machine(1) as first, machine(2) as second:
            async with (
                worker_on(first, fake=fake, postgres=postgres, database_url=database_url, folder=tmp_path / "1") as one,
                worker_on(second, fake=fake, postgres=postgres, database_url=database_url, folder=tmp_path / "2"),
            ):
                await handed_out(engine, plan)
                collecting = asyncio.create_task(kept.collect(engine, plan))
                await until(lambda: workers_of(engine, plan), lambda count: count == 2)
                await until(lambda: stored(engine, plan.evaluation_id), lambda count: count >= 40)
                if fate == "killed":
                    one.send_signal(signal.SIGKILL)
                    await one.wait()
                else:
                    first.unplug()
                    await until(lambda: asyncio.sleep(0.1, fake.active), lambda active: active <= SHARE)
                before = await tickers_stored(engine, plan)
                asked_before = times_asked(fake)
                done = await collecting
                again = {ticker for ticker, times in times_asked(fake).items() if times > 1}
                if fate == "unplugged":
                    first.plug()
                    assert one.returncode is None
    assert_whole(plan, kept, done)
    assert len(done.workers) == 2
    assert 40 <= len(before) < plan.items
    assert not again & before
    assert len(again) <= len(asked_before) - len(before)
