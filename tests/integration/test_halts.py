"""Halts and panic exits in Postgres: copied from the disk as often as one likes, closed by a person alone."""

import fcntl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.halt import Halt, HaltFile, new_halt
from libs.trading.halts import Position, close, copy_local, open_halt, open_halts, record
from libs.trading.journal import Journal
from libs.trading.panic.alarm import ended_key
from libs.trading.panic.opening import LOCK_NAME
from libs.trading.panic.report import JOURNAL_NAME

NOW = datetime.now(UTC).replace(microsecond=0)
A_DAY = 86_400


def halt(reason: str = "panic_exit", *, minutes: int = 60, at: datetime = NOW) -> Halt:
    return new_halt(uuid4(), reason, at=at, ttl_minutes=minutes)


def begin(journal: Journal, exit_id: UUID, *, minutes: int = 60, dry_run: bool = False) -> None:
    until = (NOW + timedelta(minutes=minutes)).isoformat()
    said = {"reason": "panic_exit", "ttl_minutes": minutes, "halted_until": until, "dry_run": dry_run}
    journal.append(exit_id, "begun", said)


async def open_ids(engine: AsyncEngine) -> list[UUID]:
    async with engine.connect() as connection:
        return [row.id for row in await open_halts(connection)]


async def close_rows(engine: AsyncEngine, *ids: UUID) -> list[UUID]:
    async with engine.begin() as connection:
        return await close(connection, ids, operator="ann", reason="all is well")


async def told_of(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(text("select kind from alerts order by id"))).scalars())


async def copied(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        found = await connection.execute(text("select exit_id, seq, action, result from panic_journal order by 1, 2"))
        return [tuple(row) for row in found]


async def test_a_halt_file_gets_its_row_once_and_the_desk_hears_of_it(engine: AsyncEngine, tmp_path: Path) -> None:
    standing = halt()
    HaltFile(tmp_path).write(standing)
    for position in (Position(), Position(), Position()):
        await copy_local(engine, tmp_path, position)
        await copy_local(engine, tmp_path, position)
    async with engine.connect() as connection:
        row = await open_halt(connection)
    assert row is not None
    assert (row.id, row.reason, row.halted_at, row.halted_until) == (
        standing.id,
        "panic_exit",
        NOW,
        NOW + timedelta(minutes=60),
    )
    assert await told_of(engine) == ["halt"]


async def test_without_a_halt_there_is_no_row(engine: AsyncEngine, tmp_path: Path) -> None:
    await copy_local(engine, tmp_path, Position())
    async with engine.connect() as connection:
        assert await open_halt(connection) is None


async def test_a_file_made_by_hand_halts_every_replica(engine: AsyncEngine, tmp_path: Path) -> None:
    (tmp_path / "halt").touch()
    await copy_local(engine, tmp_path, Position())
    async with engine.connect() as connection:
        row = await open_halt(connection)
    assert row is not None
    assert row.halted_until - row.halted_at == timedelta(minutes=60)


async def test_the_journal_is_copied_as_it_grows_and_never_twice(engine: AsyncEngine, tmp_path: Path) -> None:
    journal, first, second, position = Journal(tmp_path / JOURNAL_NAME), uuid4(), uuid4(), Position()
    begin(journal, first, dry_run=True)
    journal.append(first, "cancel_all_result", {"note": "NUL \x00 and \ud800 alone", "items": ["\x00"]})
    await copy_local(engine, tmp_path, position)
    begin(journal, second, dry_run=True)
    await copy_local(engine, tmp_path, position)
    await copy_local(engine, tmp_path, Position())
    rows = await copied(engine)
    assert {(exit_id, seq, action) for exit_id, seq, action, _ in rows} == {
        (first, 1, "begun"),
        (first, 2, "cancel_all_result"),
        (second, 1, "begun"),
    }
    result = next(result for _, _, action, result in rows if action == "cancel_all_result")
    assert result == {"note": "NUL � and ? alone", "items": ["�"]}


async def test_a_dry_run_halts_nobody(engine: AsyncEngine, tmp_path: Path) -> None:
    begin(Journal(tmp_path / JOURNAL_NAME), uuid4(), dry_run=True)
    await copy_local(engine, tmp_path, Position())
    assert await open_ids(engine) == []


async def test_a_second_exit_under_an_older_halt_has_a_row_of_its_own(engine: AsyncEngine, tmp_path: Path) -> None:
    older, position = halt(minutes=1), Position()
    HaltFile(tmp_path).write(older)
    await copy_local(engine, tmp_path, position)
    journal, later = Journal(tmp_path / JOURNAL_NAME), uuid4()
    begin(journal, later, minutes=600)
    journal.append(later, "ended", {"state": "FLAT"})
    await copy_local(engine, tmp_path, position)
    assert await open_ids(engine) == [later, older.id]


async def test_a_file_that_somebody_removed_ends_no_halt(engine: AsyncEngine, tmp_path: Path) -> None:
    journal, over = Journal(tmp_path / JOURNAL_NAME), uuid4()
    begin(journal, over)
    journal.append(over, "ended", {"state": "FLAT"})
    await copy_local(engine, tmp_path, Position())
    assert await open_ids(engine) == [over]
    await close_rows(engine, over)
    await copy_local(engine, tmp_path, Position())
    assert await open_ids(engine) == []


def join(journal: Journal, mine: UUID, other: UUID, *, minutes: int) -> None:
    until = (NOW + timedelta(minutes=minutes)).isoformat()
    said = {"exit_id": str(other), "reason": "me too", "ttl_minutes": minutes, "halted_until": until}
    journal.append(mine, "joined", said)


async def ends(engine: AsyncEngine) -> list[tuple[UUID, datetime]]:
    async with engine.connect() as connection:
        return [(row.id, row.halted_until) for row in await open_halts(connection)]


async def test_a_request_that_joins_an_exit_lengthens_its_halt_and_never_shortens_it(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    standing, position = halt(minutes=10), Position()
    HaltFile(tmp_path).write(standing)
    journal = Journal(tmp_path / JOURNAL_NAME, now=lambda: NOW)
    begin(journal, standing.id, minutes=10)
    await copy_local(engine, tmp_path, position)
    join(journal, uuid4(), standing.id, minutes=240)
    join(journal, uuid4(), standing.id, minutes=20)
    journal.append(uuid4(), "joined", {"exit_id": str(standing.id)})  # as releases before wrote it
    for again in (position, position, Position()):
        await copy_local(engine, tmp_path, again)
        assert await ends(engine) == [(standing.id, NOW + timedelta(minutes=240))]


async def test_a_request_that_joins_what_was_just_re_armed_halts_anew(engine: AsyncEngine, tmp_path: Path) -> None:
    journal, over, late, position = Journal(tmp_path / JOURNAL_NAME, now=lambda: NOW), uuid4(), uuid4(), Position()
    begin(journal, over)
    journal.append(over, "ended", {"state": "FLAT"})
    await copy_local(engine, tmp_path, position)
    await close_rows(engine, over)
    join(journal, uuid4(), over, minutes=30)  # before the re-arm, which knew of it
    Journal(journal.path, now=lambda: datetime.now(UTC) + timedelta(seconds=1)).append(
        late, "joined", {"exit_id": str(over), "reason": "me too", "ttl_minutes": 30, "halted_until": None}
    )
    await copy_local(engine, tmp_path, position)
    assert await open_ids(engine) == [late]
    await close_rows(engine, late)
    await copy_local(engine, tmp_path, Position())
    assert await open_ids(engine) == []


@pytest.mark.parametrize("exit_id", ["nobody", None])
async def test_a_join_that_cannot_be_read_holds_nothing_up(
    engine: AsyncEngine, tmp_path: Path, exit_id: str | None
) -> None:
    journal, running = Journal(tmp_path / JOURNAL_NAME), uuid4()
    journal.append(uuid4(), "joined", {"exit_id": exit_id, "ttl_minutes": 5, "reason": "x"})
    begin(journal, running)
    await copy_local(engine, tmp_path, Position())
    assert await open_ids(engine) == [running]


async def test_an_exit_under_way_halts_even_where_no_file_could_be_made(engine: AsyncEngine, tmp_path: Path) -> None:
    running = uuid4()
    begin(Journal(tmp_path / JOURNAL_NAME), running)
    await copy_local(engine, tmp_path, Position())
    assert await open_ids(engine) == [running]


async def test_a_re_arm_that_was_interrupted_is_completed(engine: AsyncEngine, tmp_path: Path) -> None:
    standing, position = halt(), Position()
    HaltFile(tmp_path).write(standing)
    await copy_local(engine, tmp_path, position)
    assert HaltFile(tmp_path).reason() is not None
    assert await close_rows(engine, standing.id) == [standing.id]
    await copy_local(engine, tmp_path, position)
    assert HaltFile(tmp_path).reason() is None
    assert await open_ids(engine) == []


async def test_a_halt_that_came_after_the_one_that_was_closed_stays(engine: AsyncEngine, tmp_path: Path) -> None:
    closed, newer = halt(), halt("again")
    async with engine.begin() as connection:
        await record(connection, closed)
    await close_rows(engine, closed.id)
    HaltFile(tmp_path).write(newer)
    await copy_local(engine, tmp_path, Position())
    assert HaltFile(tmp_path).reason() is not None
    assert await open_ids(engine) == [newer.id]


async def test_while_another_halt_is_open_no_file_is_removed(engine: AsyncEngine, tmp_path: Path) -> None:
    standing, other, position = halt(), halt("on another disk"), Position()
    HaltFile(tmp_path).write(standing)
    await copy_local(engine, tmp_path, position)
    async with engine.begin() as connection:
        await record(connection, other)
    await close_rows(engine, standing.id)
    await copy_local(engine, tmp_path, position)
    assert HaltFile(tmp_path).reason() is not None
    await close_rows(engine, other.id)
    await copy_local(engine, tmp_path, position)
    assert HaltFile(tmp_path).reason() is None


async def test_while_an_exit_is_at_work_no_file_is_removed(engine: AsyncEngine, tmp_path: Path) -> None:
    standing, position = halt(), Position()
    HaltFile(tmp_path).write(standing)
    await copy_local(engine, tmp_path, position)
    await close_rows(engine, standing.id)
    with (tmp_path / LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await copy_local(engine, tmp_path, position)
    assert HaltFile(tmp_path).reason() is not None
    await copy_local(engine, tmp_path, position)
    assert HaltFile(tmp_path).reason() is None


async def test_closing_twice_keeps_who_did_it_first(engine: AsyncEngine) -> None:
    standing = halt()
    async with engine.begin() as connection:
        assert await record(connection, standing)
    assert await close_rows(engine, standing.id) == [standing.id]
    async with engine.begin() as connection:
        assert await close(connection, [standing.id], operator="bob", reason="late") == []
        assert not await record(connection, standing)
        who = await connection.scalar(text("select rearmed_by from halts"))
    assert who == "ann"
    assert await told_of(engine) == ["halt", "rearm"]


async def test_a_database_that_is_away_loses_nothing(engine: AsyncEngine, tmp_path: Path) -> None:
    journal, running, position = Journal(tmp_path / JOURNAL_NAME), uuid4(), Position()
    begin(journal, running)
    async with engine.begin() as connection:
        await connection.execute(text("alter table panic_journal rename to away"))
    with pytest.raises(Exception, match="panic_journal"):
        await copy_local(engine, tmp_path, position)
    async with engine.begin() as connection:
        await connection.execute(text("alter table away rename to panic_journal"))
    await copy_local(engine, tmp_path, position)
    assert await open_ids(engine) == [running]
    assert len(await copied(engine)) == 1


def long_ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("ended_s_ago", "told", "alerts"),
    [
        (4, None, ["panic_exit"]),  # killed before it could tell, or without an address
        (4, False, ["panic_exit"]),  # the webhook did not take it
        (4, True, []),
        (0, None, []),  # it may still tell
        (A_DAY, None, ["panic_exit"]),  # Postgres was away meanwhile
        (8 * A_DAY, None, []),  # an old journal in a new database
    ],
)
async def test_the_end_of_an_exit_that_could_not_tell_is_told_for_it(
    engine: AsyncEngine, tmp_path: Path, ended_s_ago: float, told: bool | None, alerts: list[str]
) -> None:
    over = uuid4()
    journal = Journal(tmp_path / JOURNAL_NAME, now=lambda: long_ago(ended_s_ago))
    journal.append(over, "ended", {"state": "FLAT", "positions_closed": 2, "orders_cancelled": 1, "failures": []})
    if told is not None:
        key = ended_key(str(over))
        journal.append(over, "alerted", {"told": [key] if told else [], "failed": [] if told else [f"{key}: X"]})
    for position in (Position(), Position()):
        await copy_local(engine, tmp_path, position)
        await copy_local(engine, tmp_path, position)
    assert await told_of(engine) == alerts
