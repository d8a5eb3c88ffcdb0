"""What the strategist's routes stand on, opened and closed with the process."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings
from libs.settings import load
from libs.trading.broker.client import Broker
from libs.trading.broker.settings import BrokerSettings
from libs.trading.halt import EntryLock
from libs.trading.limits import GateSettings
from services.api.strategist.desk import Desk, DeskSettings, GateTerms, NoVerdict
from services.api.strategist.exits import Exits
from services.api.strategist.panic_runner import PanicState
from services.api.strategist.record import Asked
from services.api.strategist.submission import Submission
from services.api.strategist.watch import open_panic

COPY_EVERY_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Strategist:
    """The desk, the two ways to the broker (entries with a verdict, exits without), and the panic exit."""

    broker: Broker
    desk: Desk
    submission: Submission
    exits: Exits
    panic: PanicState


async def copy_exits(exits: Exits, desk: Desk) -> None:
    """Put what the exits' journal holds on record, as soon as Postgres takes it; for ever."""
    while True:
        await asyncio.sleep(COPY_EVERY_S)
        for done in exits.to_copy():
            try:
                await desk.verdict(Asked(done.order, done=done.record))
            except NoVerdict as error:
                log.info("exit_waits_for_its_record", ticker=done.order.ticker, reason=str(error))
                break
            await exits.copied(done)


@asynccontextmanager
async def open_strategist(engine: AsyncEngine, *, state: Path, model: str) -> AsyncGenerator[Strategist, None]:
    """Everything of the strategist; `model` is the one that may decide. Raises `SettingsError`, `BrokerConfigError`."""
    settings, address = load(GateSettings), load(BrokerSettings).address()
    async with Broker(address) as broker, open_panic(engine, broker, state=state) as panic:
        desk = Desk(
            load(DatabaseSettings).database_url.get_secret_value(),
            rests_on=GateTerms(settings.limits, settings.terms(model=model), address.account),
            state=state,
            timeout_s=load(DeskSettings).gate_timeout_s,
        )
        exits = Exits(broker, state=state)
        await exits.load()
        desk.start()
        copying = asyncio.create_task(copy_exits(exits, desk))
        submission = Submission(broker, lock=EntryLock(state), engine=engine)
        try:
            yield Strategist(broker, desk, submission, exits, panic)
        finally:
            copying.cancel()
            with suppress(asyncio.CancelledError):
                await copying
            await desk.close()
