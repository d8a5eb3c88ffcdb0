"""Re-arming: the only way out of a halt, and a person's. `python -m libs.trading.rearm` does it by hand.

The rows in Postgres are closed first and the file is removed last, so that whatever is interrupted leaves entries
halted; what is left is then completed by whoever copies the disk (`libs.trading.halts`). What is closed are the halts
that were due before the broker was read flat; any that came since refuses all of it.
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
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs import telemetry
from libs.command_line import Parser
from libs.db.opening import open_database
from libs.process import explain
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.telemetry import mask_text
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError
from libs.trading.broker.settings import BrokerSettings
from libs.trading.halt import HaltFile
from libs.trading.halts import (
    Disk,
    ExitUnderWay,
    close,
    must_be_still,
    no_exit_begins,
    open_halts,
    read_disk,
    record_disk,
    remove_file,
)

WORD = "REARM"
NAMED = 5

log = structlog.get_logger(__name__)

NOW = text("select clock_timestamp()")
ACCOUNT = text("select account from broker_state")

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


class OtherAccount(RearmRefused):
    """The broker that would be asked keeps another account than the one the house trades."""


class CannotTell(RearmRefused):
    """The broker or the disk does not answer, so nobody knows."""


@dataclass(frozen=True, slots=True)
class Rearmed:
    """What was re-armed, by whom, why and when (the database's clock), and the account that was read flat."""

    halt_ids: tuple[UUID, ...]
    account: str
    operator: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where the halts stand: those that would end, the open rows among them, and what speaks against it."""

    ids: tuple[UUID, ...]
    open: frozenset[UUID]
    until: datetime
    now: datetime
    elsewhere: UUID | None
    account: str | None


async def rearm(engine: AsyncEngine, broker: Broker, halt_file: HaltFile, *, operator: str, reason: str) -> Rearmed:
    """Let entries pass again. Raises a `RearmRefused`, or what the database raises; entries are halted then.

    Only after `halted_until` of every open halt by the database's clock, with no panic exit under way, and with neither
    a position nor an open order at the broker, as read now.
    """
    state = halt_file.path.parent
    first = await _look(engine, await _read(state))
    _must_be_due(first)
    with _while_no_exit_runs(state):
        pass  # said before the broker is asked, since it is why the broker is not flat
    account = await _must_be_flat(broker, known=first.account)
    with _while_no_exit_runs(state):
        disk = await _read(state)
        await _look(engine, disk)  # what it tells of is on record even where the rest is refused
        async with engine.begin() as connection:
            seen = await _see(connection, disk)
            if seen.open - first.open:
                raise ExitRunning("entries were halted again meanwhile; see why, and ask anew")
            _must_be_due(seen)
            await close(connection, seen.ids, operator=operator, reason=reason)
            # An exit does not wait for this lock for long. One that went on beside it is seen here, and stays halted.
            await asyncio.to_thread(_must_be_still, state, disk.offset)
        log.warning("rearmed", halts=[str(one) for one in seen.ids], operator=operator, reason=reason, account=account)
        if disk.halt is not None:
            await asyncio.to_thread(_remove, halt_file, disk.halt.id, disk.offset)
    return Rearmed(halt_ids=seen.ids, account=account, operator=operator, reason=reason, at=seen.now)


async def _read(state: Path) -> Disk:
    try:
        return await asyncio.to_thread(read_disk, state)
    except OSError as error:
        raise CannotTell(f"the folder of the halt file cannot be read, which halts too: {error}") from error


async def _look(engine: AsyncEngine, disk: Disk) -> _Seen:
    async with engine.begin() as connection:
        return await _see(connection, disk)


async def _see(connection: AsyncConnection, disk: Disk) -> _Seen:
    """Where the halts stand, once all that this disk tells of have their rows."""
    await record_disk(connection, disk)
    rows = await open_halts(connection)
    now: datetime = (await connection.execute(NOW)).scalar_one()
    # Without an open row a re-arm was interrupted before, and only its file is left.
    left = [] if disk.halt is None else [disk.halt.id]
    return _Seen(
        ids=tuple([row.id for row in rows] or left),
        open=frozenset(row.id for row in rows),
        until=max((row.halted_until for row in rows), default=now),
        now=now,
        elsewhere=await connection.scalar(RUNNING_ELSEWHERE),
        account=await connection.scalar(ACCOUNT),
    )


def _must_be_due(seen: _Seen) -> None:
    if not seen.ids:
        raise NotHalted("entries are not halted, so there is nothing to re-arm")
    if seen.now < seen.until:
        raise TooEarly(f"entries stay halted until {seen.until:%Y-%m-%d %H:%M:%S} UTC; re-arm after that")
    if seen.elsewhere is not None:
        raise ExitRunning(f"the panic exit {seen.elsewhere} is under way")


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


def _must_be_still(state: Path, offset: int) -> None:
    try:
        must_be_still(state, offset=offset)
    except ExitUnderWay as running:
        raise ExitRunning(f"{running}; entries stay halted") from running
    except OSError as error:
        raise CannotTell(f"the journal of panic exits cannot be read: {error}") from error


async def _must_be_flat(broker: Broker, *, known: str | None) -> str:
    """The account that was read flat. Orders first: one that fills in between is then seen as a position."""
    try:
        account = f"{broker.address.name}:{(await broker.account()).account_number}"
        _must_be_the_same(account, known)
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
    return account


def _must_be_the_same(account: str, known: str | None) -> None:
    """`known` is what was reconciled last. An older release wrote an address there, which tells of no account."""
    if known is None or "://" in known or known == account:
        return
    raise OtherAccount(
        f"the account of this environment's broker is {account}, and the one that was traded is {known}; "
        "set BROKER and its keys as the services have them"
    )


def _remove(halt_file: HaltFile, halt_id: UUID, offset: int) -> None:
    try:
        remove_file(halt_file.path.parent, halt_id, offset=offset)
    except ExitUnderWay as running:
        raise ExitRunning(f"the re-arm is recorded, but {running}, so the halt file stays") from running
    except OSError as error:
        raise CannotTell(f"the re-arm is recorded, but the halt file {halt_file.path} stays: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m libs.trading.rearm", description="Let entries pass again.")
    parser.add_argument("--operator", default=os.environ.get("USER", ""), help="who does this (default: USER)")
    parser.add_argument("--reason", default="", help="why; kept with the halt")
    parser.add_argument("--confirm", default="", help=f"the word {WORD}")
    return parser


def _missing(options: argparse.Namespace) -> list[str]:
    """What a re-arm lacks, in the words of `make`."""
    given = {
        "OPERATOR": options.operator.strip() != "",
        "REASON": options.reason.strip() != "",
        f"CONFIRM={WORD}": options.confirm == WORD,
    }
    return [name for name, said in given.items() if not said]


async def _run(operator: str, reason: str) -> Rearmed:
    listen, address = load(ListenSettings), load(BrokerSettings).address()
    async with open_database(application="rearm", pool_size=1) as engine, Broker(address) as broker:
        return await rearm(engine, broker, HaltFile(listen.local_state), operator=operator, reason=reason)


def main(arguments: Sequence[str]) -> int:
    """Re-arm and say so. 1 with the reason where it is refused, 2 where it was asked wrongly or cannot be tried."""
    options = _parser().parse_args(arguments)
    missing = _missing(options)
    if missing:
        sys.stderr.write(
            f"not re-armed, for want of {', '.join(missing)}. Say who, why and the word: "
            f'make rearm OPERATOR=ann REASON="…" CONFIRM={WORD} '
            f"(without make: --operator, --reason, --confirm {WORD})\n"
        )
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
    closed = f"{len(done.halt_ids)} halts closed, the account {done.account} was read flat"
    sys.stdout.write(f"re-armed by {done.operator}: entries pass again ({closed})\n")
    return 0


if __name__ == "__main__":
    telemetry.configure("rearm", level="ERROR")
    sys.exit(main(sys.argv[1:]))
