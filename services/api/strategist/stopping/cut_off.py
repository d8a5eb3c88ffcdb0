"""Panic exits that were cut off: found in the journal on this disk, and gone on with unless a person re-armed since.

Finding and going on need this folder alone. Postgres is asked first, for a moment; where it does not answer the exit
goes on.
"""

import asyncio
import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.alerts import raise_alert
from libs.db.engine import DatabaseSettings, create_engine
from libs.settings import SettingsError, load
from libs.trading.broker.address import broker_address
from libs.trading.broker.errors import BrokerConfigError
from libs.trading.halts import ExitUnderWay, lock_of_exits
from libs.trading.journal import Entry, Journal
from libs.trading.panic.alarm import ended_key
from libs.trading.panic.opening import LOCK_NAME
from libs.trading.panic.report import JOURNAL_NAME, result_of, unfinished, whose
from services.api.strategist.stopping.child import RESUME, Child
from services.api.strategist.stopping.halting import AWAY

ASK_WITHIN_S = 2.0

AT_WORK: list[Child] = []
"""Kept, since a process object that is thrown away while it runs is complained of."""

log = structlog.get_logger(__name__)

CLOSED = text("select rearmed_at, rearmed_by from halts where id = :id and rearmed_at is not null")


def cut_off(state: Path, environment: Mapping[str, str]) -> UUID | None:
    """An exit that began and did not end, and that no process is at work on. Blocks; raises `OSError`.

    One of another broker than the environment names is left to whoever trades there.
    """
    try:
        ours = whose(broker_address(environment))
    except BrokerConfigError:  # the exit itself says so, to whoever resumes it
        ours = None
    open_exit = unfinished(Journal(state / JOURNAL_NAME), of=ours)
    return None if open_exit is None or _lock_is_held(state) else open_exit


def _lock_is_held(state: Path) -> bool:
    try:
        lock = os.open(state / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


async def superseded(engine: AsyncEngine, state: Path, exit_id: UUID) -> bool:
    """Whether a person re-armed after this exit was cut off, so that nothing may close what was opened since.

    It is written down as over then, and the desk hears of it. False where Postgres does not answer in time.
    """
    try:
        async with asyncio.timeout(ASK_WITHIN_S), engine.begin() as connection:
            row = (await connection.execute(CLOSED, {"id": exit_id})).one_or_none()
            if row is None:
                return False
            why = (
                f"cut off and not gone on with: {row.rearmed_by} re-armed at {row.rearmed_at:%Y-%m-%d %H:%M:%S} UTC, "
                "and positions may have been opened since; see whether the account is as it should be"
            )
            words = f"Panic exit {exit_id} FAILED: {why}"
            await raise_alert(connection, key=ended_key(str(exit_id)), kind="panic_exit", text=words)
    except AWAY as error:
        log.warning("cut_off_exit_not_looked_up", exit_id=str(exit_id), error=type(error).__name__)
        return False
    log.error("panic_exit_superseded", exit_id=str(exit_id), why=why)
    try:
        await asyncio.to_thread(_write_down, state, exit_id, why)
    except (OSError, ExitUnderWay) as error:
        log.warning("panic_exit_stays_open", exit_id=str(exit_id), error=str(error))
    return True


def _write_down(state: Path, exit_id: UUID, why: str) -> None:
    journal = Journal(state / JOURNAL_NAME)
    with lock_of_exits(state):
        if unfinished(journal) == exit_id:
            journal.append(exit_id, "ended", _answer(journal.entries(exit_id), exit_id) | {"failures": [why]})


def _answer(entries: Sequence[Entry], exit_id: UUID) -> dict[str, Any]:
    """What it had done; nothing, where it was cut off before its first entry."""
    nothing = {"ok": False, "exit_id": str(exit_id), "positions_closed": 0, "orders_cancelled": 0}
    said = result_of(entries) if entries else nothing | {"ttl_minutes": None, "halted_until": None}
    return said | {"state": "FAILED"}


async def resume_first(state: Path, environment: Mapping[str, str] | None = None) -> Child | None:
    """Go on with an exit that was cut off, before the rest of a process opens, and whatever becomes of that.

    Returns the process at work, which outlives this one; None where there is none to start. It must hold up no start:
    an `OSError` is logged.
    """
    try:
        state = await asyncio.to_thread(state.resolve)
        variables = dict(os.environ if environment is None else environment)
        exit_id = await asyncio.to_thread(cut_off, state, variables)
        if exit_id is None or await _superseded_by_settings(state, exit_id):
            return None
        child = Child(state, [RESUME], variables)
    except OSError as error:
        log.warning("cut_off_exit_not_resumed", error=str(error))
        return None
    AT_WORK.append(child)
    log.warning("panic_exit_resumed", exit_id=str(exit_id), pid=child.pid)
    return child


async def _superseded_by_settings(state: Path, exit_id: UUID) -> bool:
    try:
        settings = load(DatabaseSettings)
    except SettingsError:
        return False
    engine = create_engine(settings, application="resume", pool_size=1)
    try:
        return await superseded(engine, state, exit_id)
    finally:
        await engine.dispose()
