"""Reconciliation: what the broker says becomes our record, at the start and every few seconds.

One process at a time does it, behind a lock of Postgres that is held while the broker is read, without a transaction.
A process that dies on the way has changed nothing: all is written in one transaction at the end.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.probes import Degraded
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError
from services.jobs.reconcile.books import Books, OvertakenError
from services.jobs.reconcile.reading import Ground, Reading, read_broker
from services.jobs.reconcile.update import Written

EVERY_S = 5.0
READING_LIMIT_S = 20.0
STALE_AFTER_S = 30.0
"""From this age on entries are refused."""
LOCK = 7_410_001
NOT_READ = "not read yet"

DIFFERENCES = Counter(
    "lexi_reconcile_differences_total", "Differences between our record and the broker's, by kind.", ["kind"]
)
DONE = Counter("lexi_reconciliations_total", "Reconciliations, by how they ended.", ["outcome"])
LAST = Gauge("lexi_reconciled_timestamp_seconds", "When this process last reconciled, in Unix time.")

TRY_LOCK = text("select pg_try_advisory_lock(:lock)")
UNLOCK = text("select pg_advisory_unlock(:lock)")
AGE = text(
    """
    select account, cast(extract(epoch from now() - reconciled_at) as float8) as age_s,
      jsonb_array_length(differences) as suspected
    from broker_state
    """
)

log = structlog.get_logger(__name__)


class Reconciler:
    """Reads a broker and keeps our record of it. `every_s` is how often somebody does, in all processes together."""

    def __init__(
        self, engine: AsyncEngine, broker: Broker, *, every_s: float = EVERY_S, limit_s: float = READING_LIMIT_S
    ) -> None:
        self._engine = engine
        self._broker = broker
        self._books = Books(engine)
        self._every_s = every_s
        self._limit_s = limit_s
        self._account: str | None = None
        self._away: str | None = NOT_READ
        self._away_since = datetime.now(UTC)

    async def step(self) -> Written | None:
        """Reconcile once; None where another process does it, or did a moment ago, or the broker is away.

        Raises what the database raises.
        """
        async with self._alone() as alone:
            if not alone:
                DONE.labels("left_to_another").inc()
                return None
            ground = await self._books.ground()
            if self._fresh(ground):
                self._heard()
                DONE.labels("left_to_another").inc()
                return None
            reading = await self._read(ground)
            return None if reading is None else await self._write(ground, reading)

    async def broker_check(self) -> str | None:
        """For `/ready`: yellow while the broker is away; the other jobs go on."""
        if self._away is None:
            return None
        if self._away == NOT_READ:
            return Degraded(f"{self._broker.address.name} was not read yet")
        return Degraded(f"{self._broker.address.name} away since {self._away_since:%Y-%m-%dT%H:%M:%SZ}: {self._away}")

    async def reconciled_check(self) -> str | None:
        """For `/ready`: yellow while no process has reconciled lately, for then entries are refused."""
        async with self._engine.connect() as connection:
            state = (await connection.execute(AGE)).mappings().one_or_none()
        if state is None:
            return Degraded("the broker was never reconciled; entries are refused until it is")
        if state["age_s"] > STALE_AFTER_S:
            return Degraded(f"last done {state['age_s']:.0f} s ago; entries are refused")
        if self._account is not None and state["account"] != self._account:
            return Degraded("another broker or account was read last; entries are refused")
        if state["suspected"]:
            return Degraded(f"{state['suspected']} differences seen once; the next reconciliation tells")
        return None

    @asynccontextmanager
    async def _alone(self) -> AsyncGenerator[bool, None]:
        """Hold the lock of reconciliation for the block, if nobody else does. It ends with the connection."""
        async with self._engine.connect() as connection:
            session = await connection.execution_options(isolation_level="AUTOCOMMIT")
            got = bool(await session.scalar(TRY_LOCK, {"lock": LOCK}))
            try:
                yield got
            except BaseException:
                await session.invalidate()  # whatever state it is in, the lock ends with it
                raise
            if got:
                await session.execute(UNLOCK, {"lock": LOCK})

    def _fresh(self, ground: Ground) -> bool:
        """Whether another process reconciled this broker within the last half pace."""
        if ground.reconciled_at is None:
            return False
        age = (ground.begun - ground.reconciled_at).total_seconds()
        return ground.account == self._account and age < self._every_s / 2

    async def _read(self, ground: Ground) -> Reading | None:
        try:
            async with asyncio.timeout(self._limit_s):
                return await read_broker(self._broker, ground, self._books.strangers_of)
        except TimeoutError:
            self._lost(f"no full answer within {self._limit_s:g} s")
        except BrokerError as error:
            self._lost(str(error))
        DONE.labels("broker_away").inc()
        return None

    async def _write(self, ground: Ground, reading: Reading) -> Written | None:
        self._heard()
        self._account = reading.account
        try:
            written = await self._books.write(ground, reading)
        except OvertakenError as error:
            log.info("reconciliation_dropped", reason=str(error))
            DONE.labels("overtaken").inc()
            return None
        report(written)
        LAST.set(ground.begun.timestamp())
        DONE.labels("done").inc()
        return written

    def _lost(self, reason: str) -> None:
        if self._away in {None, NOT_READ}:
            self._away_since = datetime.now(UTC)
        if reason != self._away:
            log.warning("broker_away", broker=self._broker.address.name, reason=reason)
        self._away = reason

    def _heard(self) -> None:
        if self._away is not None:
            log.info("broker_answers", broker=self._broker.address.name)
        self._away = None


def report(written: Written) -> None:
    """Log and count what a reconciliation found."""
    if written.first:
        log.info("account_met", account=written.account, orders=written.orders, positions=written.positions)
    for difference in written.confirmed:
        DIFFERENCES.labels(difference.kind.value).inc()
        log.warning(
            "reconciliation_difference",
            kind=difference.kind.value,
            subject=difference.subject,
            detail=difference.detail,
        )
    if written.not_sent:
        log.warning("orders_never_reached_the_broker", count=written.not_sent)
