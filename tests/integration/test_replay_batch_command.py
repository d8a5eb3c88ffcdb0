"""The command behind `make replay`: it asks, watches, prints what decides first, and leaves the work to the jobs."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.replay.batch.command import watch
from libs.replay.batch.rows import end
from tests.conftest import ROOT
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.integration.api_app import until
from tests.integration.replay_batch_cases import ALLOWS, Past, asked, by_ticker, now_of, remember, working


async def command(database_url: str, *words: str) -> Process:
    """The command, under way."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "libs.replay.batch", *words),
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": database_url, "USER": "ann"},
        stdout=PIPE,
        stderr=PIPE,
    )


async def ended(process: Process) -> tuple[int | None, list[str], str]:
    """Its exit code, the lines it printed, and what it said beside them."""
    printed, said = await process.communicate()
    return process.returncode, printed.decode().splitlines(), said.decode()


async def only_batch(engine: AsyncEngine) -> str | None:
    """The id of the batch that was asked for, once it is there."""
    async with engine.connect() as connection:
        found = await connection.scalar(text("select id from replay_batches"))
    return None if found is None else str(found)


async def test_it_asks_watches_and_prints_what_decides_first(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("OPEN", made=0.02), Past("STAY", decision=ALLOWS)])
    process = await command(database_url, "--since", "24h", "--version", "1.1.0")
    async with (
        FakeEngine(reply=json.dumps(ALLOWS)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        await until(replays.step, lambda worked: worked)
        code, printed, said = await ended(process)
    assert code == 0
    assert printed[:3] == [
        "1 turns from deny to allow:",
        "  OPEN 2012-11-20 buy 1d: deny (EARNINGS) -> allow; made +2.00 %",
        "0 turn from allow to deny.",
    ]
    assert "through policy 1.1.0: batch " in said
    assert "2 of 2: done" in said
    batch = await only_batch(engine)
    code, again, _ = await ended(await command(database_url, "--id", str(batch)))
    assert (code, again) == (0, printed)


async def test_a_batch_of_which_much_failed_prints_its_report_and_ends_with_1(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("OPEN"), Past("BAD")])
    batch = await asked(engine)
    said = by_ticker({"OPEN": ALLOWS, "BAD": Reply("", fault=Fault.STATUS)})
    async with (
        FakeEngine(reply=said) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        fake.fault_status = 400
        assert await replays.step() is True
    code, printed, told = await ended(await command(database_url, "--id", str(batch.id)))
    assert (code, printed[0]) == (1, "1 turns from deny to allow:")
    assert f"batch {batch.id} failed: 1 of 2 decisions got no answer, more than 5%" in told


async def test_an_interrupt_ends_the_watching_alone(engine: AsyncEngine, database_url: str) -> None:
    await remember(engine, [Past("AAPL")])
    process = await command(database_url, "--since", "yesterday", "--version", "1.1.0")
    batch = await until(lambda: only_batch(engine), lambda found: found is not None)
    assert process.stderr is not None
    await process.stderr.readuntil(b"queued")
    process.send_signal(signal.SIGINT)
    code, printed, said = await ended(process)
    assert (code, printed) == (130, [])
    assert f"it goes on without you. Look again: make replay ID={batch}" in said
    async with engine.connect() as connection:
        row = (await connection.execute(text("select state, asked_by from replay_batches"))).one()
    assert (row.state, row.asked_by) == ("queued", "ann")


async def test_it_says_so_when_nobody_takes_the_batch(engine: AsyncEngine, capsys: pytest.CaptureFixture[str]) -> None:
    await remember(engine, [Past("AAPL")])
    batch = await asked(engine)
    hours = count(step=3600)
    watching = asyncio.create_task(watch(engine, batch, clock=lambda: float(next(hours))))
    said = ""

    async def heard() -> str:
        nonlocal said
        said += capsys.readouterr().err
        return said

    await until(heard, lambda words: "nobody has taken it yet" in words)
    assert "none runs (make run starts one). It stays queued." in said
    assert (await now_of(engine, batch)).state == "queued"
    async with engine.begin() as connection:
        await end(connection, batch.id, "cancelled")
    assert (await watching).state == "cancelled"
    assert said.count("nobody has taken it yet") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--version", "1.1.0"], "name a period and a version: make replay SINCE=yesterday"),
        (["--since", "soon", "--version", "1.1.0"], "'soon' is no moment"),
        (["--since", "24h", "--version", "9.9.9"], "policy has no version '9.9.9', only 1.0.0, 1.1.0"),
        (["--since", "24h", "--version", "1.1.0", "--limit", "0"], "limit: from 1 to"),
        (["--id", "01a202f1-f24b-7184-bb80-0b4969ccbde1"], "there is no batch 01a202f1"),
    ],
)
async def test_what_cannot_be_asked_is_one_line(database_url: str, words: list[str], told: str) -> None:
    code, printed, said = await ended(await command(database_url, *words))
    assert (code, printed) == (2, [])
    assert told in said
    assert len(said.splitlines()) == 1
