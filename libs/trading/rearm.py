"""Re-arming: the only way out of a halt, and a person's. `python -m libs.trading.rearm` does it by hand.

The rows in Postgres are closed first and the file is removed last, so that whatever is interrupted leaves entries
halted; what is left is then completed by whoever copies the disk (`libs.trading.halts`).
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs import telemetry
from libs.db.opening import open_database
from libs.process import explain
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.telemetry import mask_text
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError
from libs.trading.broker.settings import BrokerSettings
from libs.trading.halt import Halt, HaltFile
from libs.trading.halts import ExitUnderWay, close, no_exit_begins, open_halts, record

WORD = "REARM"
NAMED = 5

log = structlog.get_logger(__name__)

NOW = text("select clock_timestamp()")

# An exit of another disk, as its copied journal tells. One that has written nothing for five minutes is over or lost.
RUNNING_ELSEWHERE = text(
    """
    select exit_id from panic_journal group by exit_id
    having max(copied_at) > clock_timestamp() - interval '5 minutes'
      and bool_or(action = 'begun' and result -> 'dry_run' is distinct from 'true'::jsonb)
      and not bool_or(action = 'ended')
    limit 1
    """
)


class RearmRefused(Exception):
    """Entries stay halted; the message says why."""


class NotHalted(RearmRefused):
    """There is nothing to re-arm."""


class TooEarly(RearmRefused):
    """The earliest time for it has not come."""


class ExitRunning(RearmRefused):
    """A panic exit is under way, or was cut off and has to be finished first."""


class NotFlat(RearmRefused):
    """The broker still has positions or open orders."""


class CannotTell(RearmRefused):
    """The broker or the disk does not answer, so nobody knows."""


@dataclass(frozen=True, slots=True)
class Rearmed:
    """What was re-armed, by whom, why and when (the database's clock)."""

    halt_ids: tuple[UUID, ...]
    operator: str
    reason: str
    at: datetime


async def rearm(engine: AsyncEngine, broker: Broker, halt_file: HaltFile, *, operator: str, reason: str) -> Rearmed:
    """Let entries pass again. Raises a `RearmRefused`, or what the database raises; entries are halted then.

    Only after `halted_until` of every open halt by the database's clock, with no panic exit under way, and with neither
    a position nor an open order at the broker, as read now.
    """
    state = halt_file.path.parent
    standing = await asyncio.to_thread(_standing, halt_file)
    ids, now = await _open_and_due(engine, standing)
    with _while_no_exit_runs(state):
        pass  # said before the broker is asked, since it is why the broker is not flat
    await _must_be_flat(broker)
    with _while_no_exit_runs(state):
        async with engine.begin() as connection:
            await close(connection, ids, operator=operator, reason=reason)
        log.warning("rearmed", halts=[str(one) for one in ids], operator=operator, reason=reason)
        if standing is not None:
            await asyncio.to_thread(_remove, halt_file, standing.id)
    return Rearmed(halt_ids=tuple(ids), operator=operator, reason=reason, at=now)


def _standing(halt_file: HaltFile) -> Halt | None:
    try:
        return halt_file.read()
    except OSError as error:
        raise CannotTell(f"the folder of the halt file cannot be read, which halts too: {error}") from error


async def _open_and_due(engine: AsyncEngine, standing: Halt | None) -> tuple[list[UUID], datetime]:
    """The halts to close, once all of them may be, and the database's time."""
    async with engine.begin() as connection:
        if standing is not None:
            await record(connection, standing)
        rows = await open_halts(connection)
        now: datetime = (await connection.execute(NOW)).scalar_one()
        elsewhere = await connection.scalar(RUNNING_ELSEWHERE)
    if not rows and standing is None:
        raise NotHalted("entries are not halted, so there is nothing to re-arm")
    until = max((row.halted_until for row in rows), default=now)
    if now < until:
        raise TooEarly(f"entries stay halted until {until:%Y-%m-%d %H:%M:%S} UTC; re-arm after that")
    if elsewhere is not None:
        raise ExitRunning(f"the panic exit {elsewhere} is under way")
    # Without an open row a re-arm was interrupted before, and only its file is left.
    return [row.id for row in rows] or ([] if standing is None else [standing.id]), now


@contextmanager
def _while_no_exit_runs(state: Path) -> Generator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(no_exit_begins(state))
        except ExitUnderWay as running:
            raise ExitRunning(str(running)) from running
        except OSError as error:
            raise CannotTell(f"the lock or the journal of panic exits cannot be read: {error}") from error
        yield


async def _must_be_flat(broker: Broker) -> None:
    """Orders first: one that fills in between is then seen as a position."""
    try:
        orders = await broker.open_orders()
        positions = await broker.positions()
    except BrokerError as error:
        raise CannotTell(f"the broker cannot be read, so nobody knows whether it is flat: {error}") from error
    if orders or positions:
        left = [f"{position.qty} {position.symbol}" for position in positions]
        left += [f"order {order.id} ({order.side} {order.qty} {order.symbol})" for order in orders]
        more = f", and {len(left) - NAMED} more" if len(left) > NAMED else ""
        raise NotFlat(
            f"the broker is not flat: {len(positions)} positions, {len(orders)} open orders: "
            f"{', '.join(left[:NAMED])}{more}"
        )


def _remove(halt_file: HaltFile, halt_id: UUID) -> None:
    try:
        halt_file.remove(halt_id)
    except OSError as error:
        raise CannotTell(f"the re-arm is recorded, but the halt file {halt_file.path} stays: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libs.trading.rearm", description="Let entries pass again.")
    parser.add_argument("--operator", default=os.environ.get("USER", ""), help="who does this (default: USER)")
    parser.add_argument("--reason", default="", help="why; kept with the halt")
    parser.add_argument("--confirm", default="", help=f"the word {WORD}")
    return parser


async def _run(operator: str, reason: str) -> Rearmed:
    listen, address = load(ListenSettings), load(BrokerSettings).address()
    async with open_database(application="rearm", pool_size=1) as engine, Broker(address) as broker:
        return await rearm(engine, broker, HaltFile(listen.local_state), operator=operator, reason=reason)


def main(arguments: Sequence[str]) -> int:
    """Re-arm and say so. 1 with the reason where it is refused, 2 where it was asked wrongly or cannot be tried."""
    options = _parser().parse_args(arguments)
    if options.confirm != WORD or not options.operator.strip() or not options.reason.strip():
        sys.stderr.write(f"say who (--operator), why (--reason) and --confirm {WORD}\n")
        return 2
    try:
        done = asyncio.run(_run(options.operator, options.reason))
    except RearmRefused as refused:
        sys.stderr.write(f"not re-armed: {refused}\n")
        return 1
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"not re-armed: {mask_text(line)}\n")
        return 2
    sys.stdout.write(f"re-armed by {done.operator}: entries pass again ({len(done.halt_ids)} halts closed)\n")
    return 0


if __name__ == "__main__":
    telemetry.configure("rearm", level="ERROR")
    sys.exit(main(sys.argv[1:]))
