"""Processes of the jobs die in the middle of a batch: others go on, nothing is missing, nothing stored is repeated."""

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conftest import ROOT
from tests.fakes.engine import FakeEngine
from tests.faults.jobs_process import free_port, jobs
from tests.integration.api_app import database_away, until
from tests.integration.replay_batch_cases import (
    ALLOWS,
    DENIES,
    Past,
    asked,
    now_of,
    remember,
    replays_of,
)
from tools.local_stack.postgres import EmbeddedPostgres

SHARE = 4
TICKER = re.compile(r"^(T\d{3}) forecast")


def tickers(fake: FakeEngine) -> Counter[str]:
    """How often each decision was asked."""
    found: Counter[str] = Counter()
    for body in fake.requests:
        for message in body["messages"]:
            if named := TICKER.match(message["content"]):
                found[named[1]] += 1
    return found


def mixed(body: dict[str, Any]) -> str:
    """Allow every second ticker."""
    text = json.dumps(body["messages"])
    number = re.search(r"T(\d{3}) forecast", text)
    return json.dumps(ALLOWS if number is not None and int(number[1]) % 2 else DENIES)


async def test_killed_in_the_middle_another_process_goes_on(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    count = 150
    await remember(engine, [Past(f"T{number:03d}") for number in range(count)])
    batch = await asked(engine)
    async with FakeEngine(reply=mixed, delay_s=0.1) as fake:
        async with jobs(database_url, fake.base_url, tmp_path, share=SHARE) as first:
            await until(lambda: replays_of(engine, batch), lambda rows: len(rows) >= 20)
            assert (await now_of(engine, batch)).state == "running"
            first.send_signal(signal.SIGKILL)
            await first.wait()
        stored = {row["ticker"] for row in await replays_of(engine, batch)}
        asked_before = tickers(fake)
        assert 20 <= len(stored) < count
        async with jobs(database_url, fake.base_url, tmp_path, share=SHARE):
            done = await until(lambda: now_of(engine, batch), lambda now: not now.open)
        rows = await replays_of(engine, batch)
        assert fake.peak <= SHARE
        again = {ticker for ticker, times in tickers(fake).items() if times > 1}
    assert (done.state, done.total) == ("done", count)
    assert sorted(row["ticker"] for row in rows) == [f"T{number:03d}" for number in range(count)]
    assert {row["status"] for row in rows} == {"ok"}
    assert not again & stored
    assert len(again) <= len(asked_before) - len(stored)
    assert done.report is not None
    assert done.report["flips"]["deny_to_allow"] == count // 2


async def test_a_second_process_takes_over_while_both_run_and_one_is_killed(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    count = 120
    await remember(engine, [Past(f"T{number:03d}") for number in range(count)])
    async with (
        FakeEngine(reply=mixed, delay_s=0.1) as fake,
        jobs(database_url, fake.base_url, tmp_path / "one", share=SHARE) as one,
    ):
        batch = await asked(engine)
        await until(lambda: replays_of(engine, batch), lambda rows: len(rows) >= 10)
        async with jobs(database_url, fake.base_url, tmp_path / "other", share=SHARE) as other:
            one.send_signal(signal.SIGKILL)
            await one.wait()
            done = await until(lambda: now_of(engine, batch), lambda now: not now.open)
            other.send_signal(signal.SIGTERM)
            assert await other.wait() == 0
    assert (done.state, len(await replays_of(engine, batch))) == ("done", count)


async def test_told_to_stop_it_keeps_what_came_and_the_next_start_goes_on(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    count = 80
    await remember(engine, [Past(f"T{number:03d}") for number in range(count)])
    batch = await asked(engine)
    async with FakeEngine(reply=mixed, delay_s=0.1) as fake:
        async with jobs(database_url, fake.base_url, tmp_path, share=SHARE) as first:
            await until(lambda: replays_of(engine, batch), lambda rows: len(rows) >= 20)
            first.send_signal(signal.SIGTERM)
            assert await first.wait() == 0
        stored, served = len(await replays_of(engine, batch)), fake.served
        assert served - stored <= SHARE
        assert (await now_of(engine, batch)).state == "running"
        async with jobs(database_url, fake.base_url, tmp_path, share=SHARE):
            done = await until(lambda: now_of(engine, batch), lambda now: not now.open)
    assert (done.state, len(await replays_of(engine, batch))) == ("done", count)


async def test_postgres_goes_away_and_comes_back(
    engine: AsyncEngine, database_url: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    count = 80
    await remember(engine, [Past(f"T{number:03d}") for number in range(count)])
    batch = await asked(engine)
    async with (
        FakeEngine(reply=mixed, delay_s=0.1) as fake,
        jobs(database_url, fake.base_url, tmp_path, share=SHARE) as process,
    ):
        await until(lambda: replays_of(engine, batch), lambda rows: len(rows) >= 20)
        stored = {row["ticker"] for row in await replays_of(engine, batch)}
        with database_away(postgres, database_url):
            await asyncio.sleep(1.5)
            assert process.returncode is None
        await engine.dispose()
        done = await until(lambda: now_of(engine, batch), lambda now: not now.open)
        again = {ticker for ticker, times in tickers(fake).items() if times > 1}
    assert (done.state, len(await replays_of(engine, batch))) == ("done", count)
    assert not again & stored


async def test_it_starts_without_model_and_database_and_says_so(
    database_url: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    async with FakeEngine() as fake:
        nowhere = fake.base_url
    with database_away(postgres, database_url):
        async with httpx.AsyncClient() as http:
            own = free_port()
            environment = {
                "DATABASE_URL": database_url,
                "LOCAL_STATE": str(tmp_path),
                "LLM_BASE_URL": nowhere,
                "JOBS_METRICS_PORT": str(own),
                "PAPER_PORT": str(free_port()),
            }
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.jobs", cwd=ROOT, env=os.environ | environment, stdout=PIPE, stderr=PIPE
            )
            drained = asyncio.create_task(process.communicate())

            async def said() -> str:
                try:
                    return (await http.get(f"http://127.0.0.1:{own}/ready")).text
                except httpx.TransportError:
                    return ""

            try:
                ready = await until(said, lambda words: "lexi: " in words and "down" in words)
                assert "red    database" in ready
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
                await drained
