"""Re-arming: by a person, after its time, with a flat broker, and never half."""

import fcntl
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.halt import Halt, HaltFile, new_halt
from libs.trading.halts import Position, copy_local, open_halts, record
from libs.trading.journal import Journal
from libs.trading.panic.report import JOURNAL_NAME
from libs.trading.rearm import (
    CannotTell,
    ExitRunning,
    NotFlat,
    NotHalted,
    Rearmed,
    RearmRefused,
    TooEarly,
    rearm,
)

ROOT = Path(__file__).parents[2]
BEFORE = datetime.now(UTC) - timedelta(minutes=90)

ORDER = {
    "id": "o1",
    "symbol": "AAPL",
    "side": "sell",
    "qty": "3",
    "type": "limit",
    "status": "new",
    "submitted_at": "2026-01-05T15:00:00Z",
}
POSITION = {"symbol": "AAPL", "qty": "-3", "side": "short", "avg_entry_price": "10", "current_price": "11"}


class Account:
    """The broker's wire: what it holds, or that it is broken."""

    def __init__(self) -> None:
        self.held: dict[str, list[dict[str, Any]]] = {"/v2/orders": [], "/v2/positions": []}
        self.broken = False
        self.calls: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(f"{request.method} {request.url.path}")
        if self.broken:
            return httpx.Response(500)
        return httpx.Response(200, json=self.held[request.url.path])


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
async def broker(account: Account) -> AsyncGenerator[Broker, None]:
    address = BrokerAddress(name="paper", base_url="http://broker")
    async with Broker(address, transport=httpx.MockTransport(account.answer)) as made:
        yield made


@pytest.fixture
def halt_file(tmp_path: Path) -> HaltFile:
    return HaltFile(tmp_path)


def halt(*, minutes: int = 60, at: datetime = BEFORE) -> Halt:
    return new_halt(uuid4(), "panic_exit", at=at, ttl_minutes=minutes)


async def by_ann(engine: AsyncEngine, broker: Broker, halt_file: HaltFile) -> Rearmed:
    return await rearm(engine, broker, halt_file, operator="ann", reason="all is well")


async def is_open(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return bool(await open_halts(connection))


async def refused(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, *, why: type[RearmRefused], match: str
) -> None:
    """It is refused with these words, and entries are as halted as before."""
    with pytest.raises(why, match=match):
        await by_ann(engine, broker, halt_file)
    assert halt_file.reason() is not None
    assert await is_open(engine)


async def test_a_halt_whose_time_came_is_re_armed_by_row_and_file(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, account: Account
) -> None:
    standing = halt()
    halt_file.write(standing)
    done = await by_ann(engine, broker, halt_file)
    assert done.halt_ids == (standing.id,)
    assert halt_file.reason() is None
    async with engine.connect() as connection:
        row = (await connection.execute(text("select rearmed_by, rearm_reason, rearmed_at from halts"))).one()
    assert tuple(row[:2]) == ("ann", "all is well")
    assert row[2] >= done.at
    assert account.calls == ["GET /v2/orders", "GET /v2/positions"]


async def test_every_open_halt_is_closed_together(engine: AsyncEngine, broker: Broker, halt_file: HaltFile) -> None:
    here, elsewhere = halt(), halt()
    halt_file.write(here)
    async with engine.begin() as connection:
        await record(connection, elsewhere)
    assert set((await by_ann(engine, broker, halt_file)).halt_ids) == {here.id, elsewhere.id}
    assert not await is_open(engine)


async def test_nothing_to_re_arm_is_said(engine: AsyncEngine, broker: Broker, halt_file: HaltFile) -> None:
    with pytest.raises(NotHalted, match="not halted"):
        await by_ann(engine, broker, halt_file)


async def test_before_its_time_it_is_refused(engine: AsyncEngine, broker: Broker, halt_file: HaltFile) -> None:
    halt_file.write(halt(minutes=600))
    await refused(engine, broker, halt_file, why=TooEarly, match="entries stay halted until 20")


async def test_the_halt_that_lasts_longest_counts(engine: AsyncEngine, broker: Broker, halt_file: HaltFile) -> None:
    halt_file.write(halt())
    async with engine.begin() as connection:
        await record(connection, halt(minutes=600))
    await refused(engine, broker, halt_file, why=TooEarly, match="stay halted until")


@pytest.mark.parametrize(
    ("path", "item", "said"),
    [
        ("/v2/orders", ORDER, r"0 positions, 1 open orders: order o1 \(sell 3 AAPL\)"),
        ("/v2/positions", POSITION, "1 positions, 0 open orders: -3 AAPL"),
    ],
)
async def test_a_broker_that_is_not_flat_refuses(
    engine: AsyncEngine,
    broker: Broker,
    halt_file: HaltFile,
    account: Account,
    path: str,
    item: dict[str, Any],
    said: str,
) -> None:
    halt_file.write(halt())
    account.held[path].append(item)
    await refused(engine, broker, halt_file, why=NotFlat, match=said)


async def test_a_broker_that_cannot_be_read_is_not_called_flat(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, account: Account
) -> None:
    halt_file.write(halt())
    account.broken = True
    await refused(engine, broker, halt_file, why=CannotTell, match="nobody knows whether it is flat")


async def test_an_exit_that_was_cut_off_is_finished_first(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, account: Account, tmp_path: Path
) -> None:
    standing = halt()
    halt_file.write(standing)
    journal = Journal(tmp_path / JOURNAL_NAME)
    journal.append(standing.id, "begun", {"reason": "panic_exit", "ttl_minutes": 60, "dry_run": False})
    await refused(engine, broker, halt_file, why=ExitRunning, match=f"{standing.id} is not finished")
    assert account.calls == []
    journal.append(standing.id, "ended", {"state": "FLAT"})
    await by_ann(engine, broker, halt_file)


async def test_while_an_exit_runs_it_is_refused(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, tmp_path: Path
) -> None:
    halt_file.write(halt())
    with (tmp_path / "panic.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await refused(engine, broker, halt_file, why=ExitRunning, match="under way")
    await by_ann(engine, broker, halt_file)


@pytest.mark.parametrize(("action", "minutes", "running"), [("read", 1, True), ("read", 6, False), ("ended", 1, False)])
async def test_an_exit_of_another_disk_counts_while_it_still_writes(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, action: str, minutes: int, running: bool
) -> None:
    statement = text(
        "insert into panic_journal (exit_id, seq, at, action, result, hash, copied_at) values "
        "(:id, 1, now(), 'begun', '{\"dry_run\": false}', '', now() - interval '1 hour'), "
        "(:id, 2, now(), :action, '{}', '', now() - :minutes * interval '1 minute')"
    )
    async with engine.begin() as connection:
        await connection.execute(statement, {"id": uuid4(), "action": action, "minutes": minutes})
        await record(connection, halt())
    if running:
        with pytest.raises(ExitRunning, match="under way"):
            await by_ann(engine, broker, halt_file)
    else:
        await by_ann(engine, broker, halt_file)
    assert await is_open(engine) is running


async def test_without_postgres_it_is_refused(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, tmp_path: Path
) -> None:
    halt_file.write(halt())
    await copy_local(engine, tmp_path, Position())
    async with engine.begin() as connection:
        await connection.execute(text("alter table halts rename to away"))
    with pytest.raises(Exception, match="halts"):
        await by_ann(engine, broker, halt_file)
    assert halt_file.reason() is not None


async def test_a_re_arm_that_was_interrupted_can_be_asked_for_again(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile
) -> None:
    standing = halt()
    halt_file.write(standing)
    await by_ann(engine, broker, halt_file)
    halt_file.write(standing)  # as if the process had died between row and file
    assert (await by_ann(engine, broker, halt_file)).halt_ids == (standing.id,)
    assert halt_file.reason() is None


def command(database_url: str, state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"DATABASE_URL": database_url, "LOCAL_STATE": str(state), "USER": "carol"}
    run = [sys.executable, "-m", "libs.trading.rearm", *arguments]
    environment = variables | {"PAPER_URL": "http://127.0.0.1:9"}  # nobody listens there
    return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_line_wants_the_word(database_url: str, tmp_path: Path, halt_file: HaltFile) -> None:
    halt_file.write(halt())
    for arguments in (["--reason", "x"], ["--reason", "x", "--confirm", "rearm"], ["--confirm", "REARM"]):
        failed = command(database_url, tmp_path, *arguments)
        assert failed.returncode == 2
        assert "--confirm REARM" in failed.stderr
    assert halt_file.reason() is not None


def test_the_command_line_says_why_it_is_refused(database_url: str, tmp_path: Path, halt_file: HaltFile) -> None:
    nothing = command(database_url, tmp_path, "--reason", "x", "--confirm", "REARM")
    assert (nothing.returncode, nothing.stderr) == (
        1,
        "not re-armed: entries are not halted, so there is nothing to re-arm\n",
    )
    halt_file.write(halt())
    away = command(database_url, tmp_path, "--reason", "x", "--confirm", "REARM")
    assert away.returncode == 1
    assert "nobody knows whether it is flat" in away.stderr
    assert halt_file.reason() is not None
