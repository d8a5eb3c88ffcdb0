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
from libs.trading.halt import Halt, HaltFile, new_halt
from libs.trading.journal import Entry, Journal
from libs.trading.panic.alarm import ended_key
from libs.trading.panic.opening import LOCK_NAME
from libs.trading.panic.report import JOURNAL_NAME, unfinished

TELLS_ITSELF = timedelta(seconds=2.5)
OF_INTEREST = timedelta(minutes=10)
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


@dataclass(slots=True)
class Position:
    """How far a process has copied its disk: bytes of the journal, halts known to have their row, ends to be told."""

    offset: int = 0
    recorded: set[UUID] = field(default_factory=set[UUID])
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


async def copy_local(engine: AsyncEngine, state: Path, position: Position) -> None:
    """Copy what this disk says about halts and panic exits into Postgres. Again and again, by any number of processes.

    A halt file whose row a person closed is removed once no other halt is open, which completes a re-arm that was
    interrupted; no other file ever is.
    Raises what the database raises, and `OSError` where the folder cannot be read; then nothing is lost.
    """
    file = HaltFile(state)
    halt, entries, offset = await asyncio.to_thread(_read, file, state, position.offset)
    halts = [one for one in _halts(halt, entries) if one.id not in position.recorded]
    _note_ends(entries, position)
    ends = [end for end in position.untold.values() if datetime.now(UTC) - end.at >= TELLS_ITSELF]
    if entries or ends or halt is not None:
        async with engine.begin() as connection:
            if entries:
                await connection.execute(COPY, [_row(entry) for entry in entries])
            for one in halts:
                await record(connection, one)
            for end in ends:
                await raise_alert(connection, key=ended_key(str(end.subject)), kind="panic_exit", text=_words(end))
            closed = halt is not None and await connection.scalar(CLOSED, {"id": halt.id})
        if halt is not None and closed:
            await asyncio.to_thread(_complete_rearm, file, halt.id)
    position.offset = offset
    position.recorded.update(one.id for one in halts)
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


def _complete_rearm(file: HaltFile, halt_id: UUID) -> None:
    try:
        with no_exit_begins(file.path.parent):
            file.remove(halt_id)
    except ExitUnderWay as running:
        log.info("halt_file_kept", halt=str(halt_id), why=str(running))
        return
    log.warning("halt_file_removed", halt=str(halt_id), why="a person closed its row")


@contextmanager
def no_exit_begins(state: Path) -> Generator[None]:
    """Hold the lock of panic exits, for the moment in which a halt ends. One that begins then waits for it.

    Raises `ExitUnderWay` where an exit runs, or was cut off and has to be finished; `OSError`.
    """
    lock = os.open(state / LOCK_NAME, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExitUnderWay("a panic exit is under way") from error
        cut_off = unfinished(Journal(state / JOURNAL_NAME))
        if cut_off is not None:
            raise ExitUnderWay(f"the panic exit {cut_off} is not finished; it goes on with `make panic`")
        yield
    finally:
        os.close(lock)


def _read(file: HaltFile, state: Path, offset: int) -> tuple[Halt | None, list[Entry], int]:
    halt = file.read()
    entries, offset = Journal(state / JOURNAL_NAME).read_from(offset)
    return halt, entries, offset


def _halts(halt: Halt | None, entries: Sequence[Entry]) -> list[Halt]:
    """The halt of the file, and those that exits began with: a later one may last longer than the file that stood.

    An exit that is over and whose file is gone was re-armed, so its halt is not opened again in a new database.
    """
    ended = {entry.subject for entry in entries if entry.action == "ended"}
    begun = [one for one in map(_halt_of, entries) if one is not None]
    standing = [one for one in begun if one.id not in ended or (halt is not None and one.at >= halt.at)]
    return standing if halt is None else [halt, *standing]


def _halt_of(entry: Entry) -> Halt | None:
    said = entry.result
    if entry.action != "begun" or said.get("dry_run"):
        return None
    try:
        minutes = int(said["ttl_minutes"])
        return new_halt(entry.subject, str(said["reason"]), at=entry.at, ttl_minutes=minutes)
    except (KeyError, TypeError, ValueError, OverflowError):
        log.exception("exit_with_unreadable_begin", exit_id=str(entry.subject))  # the file halts all the same
        return None


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
