"""What the strategist's routes stand on, opened and closed with the process."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings
from libs.settings import load
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError
from libs.trading.broker.settings import BrokerSettings
from libs.trading.halt import EntryLock
from libs.trading.limits import GateSettings
from services.api.strategist.desk.desk import Desk, DeskSettings, GateTerms
from services.api.strategist.exits.copier import copy_exits
from services.api.strategist.exits.elsewhere import Recorded
from services.api.strategist.exits.exits import Exits
from services.api.strategist.stopping.runner import PanicState
from services.api.strategist.stopping.watch import open_panic
from services.api.strategist.submission import Submission

ASK_EVERY_S = 1.0
EXITS_END_WITHIN_S = 6.0
"""How long a stop waits for exits under way."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Strategist:
    """The desk, the two ways to the broker (entries with a verdict, exits without), and the panic exit."""

    broker: Broker
    desk: Desk
    submission: Submission
    exits: Exits
    panic: PanicState


async def learn_account(broker: Broker, desk: Desk) -> None:
    """Ask the broker which account this is until it says; until then entries are told RECONCILING.

    Where no broker runs at all this goes on for days: a reason is logged once.
    """
    said = ""
    while True:
        try:
            desk.trades_on(await broker.identity())
            return
        except BrokerError as error:
            if str(error) != said:
                said = str(error)
                log.warning("account_not_known_yet", error=said)
        await asyncio.sleep(ASK_EVERY_S)


@asynccontextmanager
async def open_strategist(engine: AsyncEngine, *, state: Path, model: str) -> AsyncGenerator[Strategist, None]:
    """Everything of the strategist; `model` is the one that may decide. Raises `SettingsError`, `BrokerConfigError`."""
    settings, address = load(GateSettings), load(BrokerSettings).address()
    async with Broker(address) as broker, open_panic(engine, broker, state=state) as panic:
        desk = Desk(
            load(DatabaseSettings).database_url.get_secret_value(),
            rests_on=GateTerms(settings.limits, settings.terms(model=model)),
            state=state,
            timeout_s=load(DeskSettings).gate_timeout_s,
        )
        exits = Exits(broker, state=state, elsewhere=Recorded(engine))
        await exits.load()
        desk.start()
        tasks = [asyncio.create_task(copy_exits(exits, desk)), asyncio.create_task(learn_account(broker, desk))]
        submission = Submission(broker, lock=EntryLock(state), engine=engine)
        try:
            yield Strategist(broker, desk, submission, exits, panic)
        finally:
            await exits.close(within_s=EXITS_END_WITHIN_S)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await submission.close()
            await desk.close()
