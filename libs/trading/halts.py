"""The halts and the panic exits as Postgres has them, so that replicas on other disks stop too.

What stops is a file on each disk (`libs.trading.halt`); here it gets a row as soon as Postgres answers. A row stays
open until a person re-arms.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.alerts import raise_alert
from libs.trading.halt import Halt, HaltFile
from libs.trading.halt_journal import Longer, begun_halts, longer_halts
from libs.trading.journal import Entry, Journal
from libs.trading.panic.alarm import ended_key
from libs.trading.panic.opening import LOCK_NAME
from libs.trading.panic.report import JOURNAL_NAME, unfinished

TELLS_ITSELF = timedelta(seconds=3)
"""How long an exit may tell the webhook of its end itself. With a second for the copy and one to send, 5 s in all."""

OF_INTEREST = timedelta(days=7)
"""An end that lies longer back is history, which a new database need not call out."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

log = structlog.get_logger(__name__)

OPEN = text(
    """
    select id, reason, halted_at, halted_until, opened_at from halts where rearmed_at is null
    order by halted_until desc, id
    """
)
RECORD = text(
    """
    insert into halts (id, reason, halted_at, halted_until) values (:id, :reason, :halted_at, :halted_until)
    on conflict (id) do nothing
    """
)
CLOSE = text(
    """
    update halts set rearmed_at = clock_timestamp(), rearmed_by = :operator, rearm_reason = :reason
    where id = any(:ids) and rearmed_at is null returning id
    """
)
LENGTHEN = text("update halts set halted_until = greatest(halted_until, :until) where id = :id and rearmed_at is null")
SETTLED = text("select exists (select 1 from halts where id = :id and rearmed_at >= :asked_at)")
CLOSED = text(
    """
    select rearmed_at is not null and not exists (select 1 from halts where rearmed_at is null)
    from halts where id = :id
    """
)
COPY = text(
    """
    insert into panic_journal (exit_id, seq, at, action, result, hash)
    values (:exit_id, :seq, :at, :action, cast(:result as jsonb), :hash)
    on conflict (exit_id, seq) do nothing
    """
)


class ExitUnderWay(Exception):
    """A panic exit runs here, or was cut off and has to be finished first."""


@dataclass(frozen=True, slots=True)
class HaltRow:
    """An open halt. `halted_until` is the earliest time a person may re-arm."""

    id: UUID
    reason: str
    halted_at: datetime
    halted_until: datetime
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Disk:
    """What a disk says: its halt file, entries of the journal of exits, and the offset behind them."""

    halt: Halt | None
    entries: Sequence[Entry]
    offset: int


@dataclass(slots=True)
class Position:
    """How far a process has copied its disk: bytes of the journal, and ends of exits that are still to be told."""

    offset: int = 0
    untold: dict[UUID, Entry] = field(default_factory=dict[UUID, Entry])


async def open_halts(connection: AsyncConnection) -> list[HaltRow]:
    """Every open halt, the one that lasts longest first."""
    return [HaltRow(**row) for row in (await connection.execute(OPEN)).mappings()]


async def open_halt(connection: AsyncConnection) -> HaltRow | None:
    """The open halt that lasts longest, None where entries are not halted by a row."""
    found = await open_halts(connection)
    return found[0] if found else None


async def record(connection: AsyncConnection, halt: Halt) -> bool:
    """Give a halt its row and tell the desk; False where it had one, open or closed."""
    values = {
        "id": halt.id,
        "reason": storable(halt.reason),
        "halted_at": halt.at,
        "halted_until": halt.halted_until,
    }
    if (await connection.execute(RECORD, values)).rowcount == 0:
        return False
    until = f"{halt.halted_until:%Y-%m-%d %H:%M:%S} UTC"
    words = f"Entries are halted ({values['reason']}) until a person re-arms, at {until} at the earliest"
    await raise_alert(connection, key=f"halt:{halt.id}", kind="halt", text=words)
    return True


async def close(connection: AsyncConnection, ids: Sequence[UUID], *, operator: str, reason: str) -> list[UUID]:
    """Close these halts' rows, as a person decided; returns those that were open. The desk hears of it."""
    values = {"ids": list(ids), "operator": operator, "reason": reason}
    closed = list((await connection.execute(CLOSE, values)).scalars())
    for halt_id in closed:
        words = f"Entries are re-armed by {operator}: {reason}"
        await raise_alert(connection, key=f"rearm:{halt_id}", kind="rearm", text=words)
    return closed


def read_disk(state: Path, *, offset: int = 0) -> Disk:
    """What this disk says of halts, the journal from `offset` on. Blocks; raises `OSError`."""
    halt = HaltFile(state).read()
    entries, offset = Journal(state / JOURNAL_NAME).read_from(offset)
    return Disk(halt, entries, offset)


async def record_disk(connection: AsyncConnection, disk: Disk) -> None:
    """Give every halt that a disk tells of its row, the file's and each that an exit began with.

    What was closed stays closed, and only that: a file that is gone ends no halt.
    """
    for halt in [*([] if disk.halt is None else [disk.halt]), *begun_halts(disk.entries)]:
        await record(connection, halt)
    for longer in longer_halts(disk.entries):
        await _lengthen(connection, longer)


async def _lengthen(connection: AsyncConnection, longer: Longer) -> None:
    """Let the halt of the exit that a request joined last as long as that request asked for.

    Where that halt has no open row, the request gets one of its own, unless a person re-armed after it was made.
    """
    values = {"id": longer.halt_id, "until": longer.asked.halted_until}
    if (await connection.execute(LENGTHEN, values)).rowcount:
        return
    if not await connection.scalar(SETTLED, {"id": longer.halt_id, "asked_at": longer.asked.at}):
        await record(connection, longer.asked)


async def copy_local(engine: AsyncEngine, state: Path, position: Position) -> None:
    """Copy what this disk says about halts and panic exits into Postgres. Again and again, by any number of processes.

    A halt file whose row a person closed is removed once no other halt is open, which completes a re-arm that was
    interrupted; no other file ever is.
    Raises what the database raises, and `OSError` where the folder cannot be read; then nothing is lost.
    """
    disk = await asyncio.to_thread(read_disk, state, offset=position.offset)
    halt = disk.halt
    _note_ends(disk.entries, position)
    ends = [end for end in position.untold.values() if datetime.now(UTC) - end.at >= TELLS_ITSELF]
    if disk.entries or ends or halt is not None:
        async with engine.begin() as connection:
            if disk.entries:
                await connection.execute(COPY, [_row(entry) for entry in disk.entries])
            await record_disk(connection, disk)
            for end in ends:
                await raise_alert(connection, key=ended_key(str(end.subject)), kind="panic_exit", text=_words(end))
            closed = halt is not None and await connection.scalar(CLOSED, {"id": halt.id})
        if halt is not None and closed:
            await asyncio.to_thread(_complete_rearm, state, halt.id, disk.offset)
    position.offset = disk.offset
    for end in ends:
        position.untold.pop(end.subject, None)


def _note_ends(entries: Sequence[Entry], position: Position) -> None:
    """An exit tells the webhook itself; only where it could not, or was killed first, its end becomes an alert."""
    for entry in entries:
        if entry.action == "ended" and datetime.now(UTC) - entry.at < OF_INTEREST:
            position.untold[entry.subject] = entry
        elif entry.action == "alerted" and ended_key(str(entry.subject)) in entry.result.get("told", []):
            position.untold.pop(entry.subject, None)


def _words(end: Entry) -> str:
    said = end.result
    failures = cast("list[Any]", said.get("failures") or [])
    return storable(
        f"Panic exit {said.get('state')}: {said.get('positions_closed')} positions closed, "
        f"{said.get('orders_cancelled')} orders cancelled, {len(failures)} failures"
    )


def _complete_rearm(state: Path, halt_id: UUID, offset: int) -> None:
    try:
        with no_exit_begins(state):
            remove_file(state, halt_id, offset=offset)
    except ExitUnderWay as running:
        log.info("halt_file_kept", halt=str(halt_id), why=str(running))
        return
    log.warning("halt_file_removed", halt=str(halt_id), why="a person closed its row")


def must_be_still(state: Path, *, offset: int) -> None:
    """Raises `ExitUnderWay` where a panic exit wrote to its journal after `offset`; `OSError`. Blocks."""
    entries, _ = Journal(state / JOURNAL_NAME).read_from(offset)
    if any(entry.action != "alerted" for entry in entries):
        raise ExitUnderWay("a panic exit began meanwhile")


def remove_file(state: Path, halt_id: UUID, *, offset: int) -> None:
    """Take away the file of a halt whose row is closed, for who holds the lock of exits. Blocks; raises `OSError`.

    An exit that could not wait for the lock stands under the same file, and needs it. Its journal tells of it: raises
    `ExitUnderWay` where that went on after `offset`.
    """
    must_be_still(state, offset=offset)
    HaltFile(state).remove(halt_id)


@contextmanager
def no_exit_begins(state: Path) -> Generator[None]:
    """Hold the lock of panic exits, for the moment in which a halt ends. One that begins then waits for it.

    Raises `ExitUnderWay` where an exit runs, or was cut off and has to be finished; `OSError`.
    """
    with lock_of_exits(state):
        cut_off = unfinished(Journal(state / JOURNAL_NAME))
        if cut_off is not None:
            raise ExitUnderWay(f"the panic exit {cut_off} is not finished; it goes on with `make panic`")
        yield


@contextmanager
def lock_of_exits(state: Path) -> Generator[None]:
    """Hold the lock of panic exits. Raises `ExitUnderWay` where an exit runs; `OSError`."""
    lock = os.open(state / LOCK_NAME, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExitUnderWay("a panic exit is under way") from error
        yield
    finally:
        os.close(lock)


def _row(entry: Entry) -> dict[str, Any]:
    result = json.dumps(_storable(entry.result))
    return {
        "exit_id": entry.subject,
        "seq": entry.seq,
        "at": entry.at,
        "action": entry.action,
        "result": result,
        "hash": entry.hash,
    }


def storable(words: str) -> str:
    """The text as Postgres can keep it: what it cannot (NUL, lone surrogates) is replaced."""
    return words.replace("\x00", REPLACEMENT).encode("utf-8", "replace").decode("utf-8")


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        return {storable(name): _storable(item) for name, item in items.items()}
    if isinstance(value, list):
        return [_storable(item) for item in cast("list[Any]", value)]
    return value
