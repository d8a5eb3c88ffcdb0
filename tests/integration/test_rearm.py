"""Re-arming: by a person, after its time, with a flat broker, and never half."""

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
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
from libs.trading.halts import (
    ExitUnderWay,
    Position,
    copy_local,
    open_halts,
    read_disk,
    record,
    remove_file,
)
from libs.trading.journal import Journal
from libs.trading.panic.report import JOURNAL_NAME
from libs.trading.rearm import (
    CannotTell,
    ExitRunning,
    NotFlat,
    NotHalted,
    OtherAccount,
    Rearmed,
    RearmRefused,
    TooEarly,
    rearm,
)

ROOT = Path(__file__).parents[2]
WAITING = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()")
TRADED = text(
    "insert into broker_state (account, equity, last_equity, market_open, reconciled_at) "
    "values (:account, 1, 1, true, now())"
)
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
ACCOUNT = {"id": "i", "account_number": "PA1", "equity": "1", "last_equity": "1", "status": "ACTIVE"}
POSITION = {"symbol": "AAPL", "qty": "-3", "side": "short", "avg_entry_price": "10", "current_price": "11"}


class Account:
    """The broker's wire: what it holds, or that it is broken."""

    def __init__(self) -> None:
        self.held: dict[str, list[dict[str, Any]]] = {"/v2/orders": [], "/v2/positions": []}
        self.broken = False
        self.calls: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(f"{request.method} {request.url.path}")
        if self.meanwhile is not None:
            happens, self.meanwhile = self.meanwhile, None
            await happens()
        if self.broken:
            return httpx.Response(500)
        if request.method == "DELETE":
            return httpx.Response(207, json=[])
        if request.url.path == "/v2/account":
            return httpx.Response(200, json=ACCOUNT)
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
    assert account.calls == ["GET /v2/account", "GET /v2/orders", "GET /v2/positions"]
    assert done.account == "paper:PA1"


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


def an_exit(state: Path, *, minutes: int) -> None:
    """What a whole exit leaves on the disk, also where it goes on beside whoever holds its lock."""
    exit_id = uuid4()
    HaltFile(state).write(new_halt(exit_id, "again", at=datetime.now(UTC), ttl_minutes=minutes))
    journal = Journal(state / JOURNAL_NAME)
    journal.append(exit_id, "begun", {"reason": "again", "ttl_minutes": minutes, "dry_run": False})
    journal.append(exit_id, "ended", {"state": "FLAT"})


async def test_an_exit_under_an_older_file_counts_although_nobody_has_copied_it(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, tmp_path: Path
) -> None:
    halt_file.write(halt())
    an_exit(tmp_path, minutes=240)
    await refused(engine, broker, halt_file, why=TooEarly, match="stay halted until")


@pytest.mark.parametrize("minutes", [0, 60])
async def test_an_exit_that_came_while_the_broker_was_read_refuses(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, account: Account, tmp_path: Path, minutes: int
) -> None:
    halt_file.write(halt())

    async def meanwhile() -> None:
        an_exit(tmp_path, minutes=minutes)

    account.meanwhile = meanwhile
    await refused(engine, broker, halt_file, why=ExitRunning, match="halted again meanwhile")


async def waits(engine: AsyncEngine) -> bool:
    """Whether somebody waits for a lock. Asked in a transaction of its own, since one sees the same all along."""
    async with engine.connect() as connection:
        return bool(await connection.scalar(WAITING))


async def test_an_exit_beside_a_re_arm_whose_database_is_slow_stays_halted(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, tmp_path: Path
) -> None:
    halt_file.write(halt())
    await copy_local(engine, tmp_path, Position())
    async with engine.connect() as locker:
        await locker.execute(text("select * from halts for update"))
        asking = asyncio.create_task(by_ann(engine, broker, halt_file))
        while not await waits(engine):  # noqa: ASYNC110 - the database has no event for it
            await asyncio.sleep(0.02)
        an_exit(tmp_path, minutes=60)
        await locker.rollback()
    with pytest.raises(ExitRunning, match="began meanwhile"):
        await asking
    assert halt_file.reason() is not None
    assert await is_open(engine)


def test_a_file_that_an_exit_needs_since_is_not_removed(halt_file: HaltFile, tmp_path: Path) -> None:
    standing = halt()
    halt_file.write(standing)
    seen = read_disk(tmp_path)
    an_exit(tmp_path, minutes=60)
    with pytest.raises(ExitUnderWay, match="began meanwhile"):
        remove_file(tmp_path, standing.id, offset=seen.offset)
    assert halt_file.reason() is not None
    remove_file(tmp_path, standing.id, offset=read_disk(tmp_path).offset)
    assert halt_file.reason() is None


@pytest.mark.parametrize(
    ("known", "refuses"),
    [
        (None, False),
        ("paper:PA1", False),
        ("paper:http://127.0.0.1:8010:", False),  # an older release wrote an address, which tells of no account
        ("paper:PA2", True),
        ("alpaca:PA1", True),
    ],
)
async def test_only_the_account_that_was_traded_can_say_that_it_is_flat(
    engine: AsyncEngine, broker: Broker, halt_file: HaltFile, *, known: str | None, refuses: bool
) -> None:
    halt_file.write(halt())
    if known is not None:
        async with engine.begin() as connection:
            await connection.execute(TRADED, {"account": known})
    if refuses:
        await refused(engine, broker, halt_file, why=OtherAccount, match=f"is paper:PA1, and .* traded is {known};")
    else:
        assert (await by_ann(engine, broker, halt_file)).account == "paper:PA1"


def command(database_url: str, state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"DATABASE_URL": database_url, "LOCAL_STATE": str(state), "USER": "carol"}
    run = [sys.executable, "-m", "libs.trading.rearm", *arguments]
    environment = variables | {"PAPER_URL": "http://127.0.0.1:9"}  # nobody listens there
    return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_line_wants_the_word(database_url: str, tmp_path: Path, halt_file: HaltFile) -> None:
    halt_file.write(halt())
    for arguments, missing in (
        (["--reason", "x"], "CONFIRM=REARM"),
        (["--reason", "x", "--confirm", "rearm"], "CONFIRM=REARM"),
        (["--confirm", "REARM"], "REASON"),
        (["--operator", " "], "OPERATOR, REASON, CONFIRM=REARM"),
    ):
        failed = command(database_url, tmp_path, *arguments)
        assert failed.returncode == 2
        assert f"not re-armed, for want of {missing}." in failed.stderr
        assert 'make rearm OPERATOR=ann REASON="…" CONFIRM=REARM' in failed.stderr
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
