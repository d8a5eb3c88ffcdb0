"""Where the halt stands, and the copies of other disks' exits, read for the routes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.halt import Halt
from libs.trading.halts import HaltRow, open_halts
from libs.trading.journal import Entry
from libs.trading.panic.report import begun, joined
from services.api.strategist.stopping.runner import PanicState

AWAY = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What reading from a database that is away raises."""

COPIED = text("select exit_id, seq, at, action, result, hash from panic_journal where exit_id = :id order by seq")


class OpenHalt(BaseModel):
    """One halt. `recorded`: it has its row, so replicas on other disks stop too. `here`: its file is on this disk."""

    id: UUID
    reason: str
    halted_at: datetime
    halted_until: datetime
    recorded: bool
    here: bool


class HaltState(BaseModel):
    """Whether entries are halted, and why. `halted_until` is the earliest re-arm, null where nobody can say.

    `halts` are the open ones; it may be empty while Postgres does not answer, which halts by itself. `panic_enabled`:
    whether the route of the panic exit is open. `latest_exit` is the exit that began last on this disk.
    """

    halted: bool
    reason: str | None
    halted_until: datetime | None
    halts: Sequence[OpenHalt]
    panic_enabled: bool = False
    latest_exit: UUID | None = None


@dataclass(frozen=True, slots=True)
class _Disk:
    reason: str | None
    halt: Halt | None


async def halt_state(panic: PanicState) -> HaltState:
    """Where it stands by this disk and by Postgres."""
    disk = _disk(panic)
    try:
        async with panic.engine.connect() as connection:
            rows = await open_halts(connection)
    except AWAY:
        rows = None
    found = _merged(disk.halt, rows or [])
    words = next((one.reason for one in found), disk.reason)
    if words is None and rows is None:
        words = "the database does not answer"
    until = max((one.halted_until for one in found), default=None)
    return HaltState(
        halted=words is not None,
        reason=words,
        halted_until=until,
        halts=found,
        panic_enabled=panic.runner.enabled,
        latest_exit=await _latest_exit(panic),
    )


async def _latest_exit(panic: PanicState) -> UUID | None:
    try:
        return await panic.runner.latest()
    except OSError:  # who asks whether entries are halted must get that answer all the same
        return None


def _disk(panic: PanicState) -> _Disk:
    """Not in a thread: it is a look at one small file, and must answer when everything else is busy."""
    try:
        return _Disk(panic.halt_file.reason(), panic.halt_file.read())
    except OSError as error:
        return _Disk(f"the folder of the halt file cannot be read: {error}", None)


def _merged(halt: Halt | None, rows: Sequence[HaltRow]) -> list[OpenHalt]:
    found = [
        OpenHalt(
            id=row.id,
            reason=row.reason,
            halted_at=row.halted_at,
            halted_until=row.halted_until,
            recorded=True,
            here=halt is not None and halt.id == row.id,
        )
        for row in rows
    ]
    if halt is not None and all(one.id != halt.id for one in found):
        mine = OpenHalt(
            id=halt.id,
            reason=halt.reason,
            halted_at=halt.at,
            halted_until=halt.halted_until,
            recorded=False,
            here=True,
        )
        found.insert(0, mine)
    return found


async def copied_entries(engine: AsyncEngine, exit_id: UUID) -> list[Entry]:
    """What Postgres has of an exit, or of the one that its request joined and that answers it."""
    async with engine.connect() as connection:
        visited: set[UUID] = set()
        while True:
            visited.add(exit_id)
            rows = (await connection.execute(COPIED, {"id": exit_id})).mappings()
            entries = [
                Entry(row["exit_id"], row["seq"], row["at"], row["action"], row["result"], row["hash"]) for row in rows
            ]
            other = joined(entries) if begun(entries) is None else None
            if other is None or other in visited:
                return entries
            exit_id = other
