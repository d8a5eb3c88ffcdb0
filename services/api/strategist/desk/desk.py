"""The desk: takes orders, gives each a verdict that is on disk before it is told, and never lets one wait for ever.

Orders that come while a transaction runs share the next one, so that a disk's flush serves many. Transactions follow
each other; other processes wait for the gate's lock.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import Counter, Histogram
from pydantic import Field

from libs import tracing
from libs.settings import Settings
from libs.trading.halt import HaltFile
from libs.trading.limits import Limits, Terms
from libs.trading.reasons import Reason
from libs.trading.types import Mode
from services.api.strategist.desk.reading import decision_of, price_of, situation_of
from services.api.strategist.desk.record import Asked, Told
from services.api.strategist.desk.repository import DeskConnection, Row
from services.api.strategist.desk.verdicts import Verdicts

MOST_AT_ONCE = 64
MOST_WAITING = 1024
CANNOT_TAKE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

VERDICTS = Counter("lexi_gate_verdicts_total", "Verdicts told", ["verdict", "would_have", "mode"])
REASONS = Counter("lexi_gate_reasons_total", "Reasons of verdicts, each counted", ["reason"])
SECONDS = Histogram(
    "lexi_gate_seconds",
    "From an order's arrival at the desk to its stored verdict",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
)

log = structlog.get_logger(__name__)


class DeskSettings(Settings):
    """How long an order may wait for its verdict."""

    gate_timeout_s: float = Field(
        default=2, gt=0, le=60, allow_inf_nan=False, description="Most seconds an order waits for its verdict."
    )


class NoVerdict(Exception):
    """No verdict came about; an entry is refused with `reason`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class GateTerms:
    """What verdicts rest on beside the database.

    `account` is the broker's account this process trades on, None while the broker has not said.
    """

    limits: Limits
    terms: Terms
    account: str | None = None


@dataclass(slots=True)
class Waiting:
    """An order in the line."""

    asked: Asked
    told: asyncio.Future[Told]
    since: float


class Desk:
    """Gives verdicts, from one task over one connection."""

    def __init__(self, url: str, *, rests_on: GateTerms, state: Path, timeout_s: float) -> None:
        self._rests_on = rests_on
        self._halt = HaltFile(state)
        self._timeout_s = timeout_s
        self._connection = DeskConnection(url, timeout_s=timeout_s)
        self._line: list[Waiting] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.mode: Mode = "enforce"
        """The mode of the last verdict, for those who tell one without asking for it."""

    def start(self) -> None:
        """Begin to give verdicts."""
        self._task = asyncio.create_task(self._run())

    def trades_on(self, account: str) -> None:
        """Learn which account this process trades on; before that, entries are told RECONCILING."""
        self._rests_on = replace(self._rests_on, account=account)

    async def close(self) -> None:
        """Stop. Whoever still waits is told that there is no verdict."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._refuse(self._line, "this process is stopping")
        self._line = []
        self._connection.drop()

    async def verdict(self, asked: Asked) -> Told:
        """The verdict on an order, stored and logged. Raises `NoVerdict` where none came about in time."""
        with tracing.span("gate") as span:
            try:
                told = await self._verdict(asked)
            except NoVerdict as error:
                order_id = asked.order.client_order_id
                log.warning("no_verdict", client_order_id=order_id, reason=error.reason.value, why=str(error))
                raise
            span.note({"lexi.verdict_id": str(told.verdict_id), "lexi.verdict": told.verdict, "lexi.mode": told.mode})
        say(asked, told)
        return told

    async def _verdict(self, asked: Asked) -> Told:
        if len(self._line) >= MOST_WAITING:
            raise NoVerdict(Reason.GATE_TIMEOUT, f"{MOST_WAITING} orders wait already")
        loop = asyncio.get_running_loop()
        waiting = Waiting(asked, loop.create_future(), loop.time())
        self._line.append(waiting)
        self._wake.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                told = await waiting.told
        except TimeoutError as error:
            raise NoVerdict(Reason.GATE_TIMEOUT, f"no verdict within {self._timeout_s:g} s") from error
        SECONDS.observe(loop.time() - waiting.since)
        return told

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._line:
                batch, self._line = self._line[:MOST_AT_ONCE], self._line[MOST_AT_ONCE:]
                await self._serve([waiting for waiting in batch if not waiting.told.done()])

    async def _serve(self, batch: Sequence[Waiting]) -> None:
        """Give verdicts to some orders together. What one of them does to the database is not the others' fault."""
        if not batch:
            return
        try:
            answered, rows = await self._transact(batch)
        except asyncio.CancelledError:
            self._refuse(batch, "this process is stopping")
            raise
        except CANNOT_TAKE as error:
            if len(batch) == 1:
                self._refuse(batch, f"the database cannot take it: {error}")
            else:
                await self._serve_singly(batch)
        except Exception as error:  # noqa: BLE001 - whoever waits is told, and the next are served
            name = type(error).__name__
            (log.warning if isinstance(error, FAILURES) else log.exception)(
                "gate_failed", error=name, orders=len(batch)
            )
            self._refuse(batch, f"the verdict was not stored: {name}")
        else:
            if rows:
                self.mode = rows[-1]["mode"]
            await self._tell(answered)
            asyncio.get_running_loop().call_soon(count, rows)  # after those who wait were woken

    async def _tell(self, answered: Sequence[tuple[Waiting, Told]]) -> None:
        late: list[UUID] = []
        for waiting, told in answered:
            if not waiting.told.done():
                waiting.told.set_result(told)
            elif told.limit_price is not None:
                late.append(waiting.asked.order_id)
        if late:
            try:
                await self._connection.give_up(late)
            except FAILURES as error:  # reconciliation says it then
                log.warning("late_orders_not_given_up", orders=len(late), error=type(error).__name__)

    async def _serve_singly(self, batch: Sequence[Waiting]) -> None:
        for waiting in batch:
            await self._serve([waiting])

    async def _transact(self, batch: Sequence[Waiting]) -> tuple[list[tuple[Waiting, Told]], list[dict[str, Any]]]:
        """What each is told, and the verdicts that were stored. Who gave up waiting for the lock has no verdict."""
        verdicts = Verdicts()
        async with self._connection.transaction() as transaction:
            batch = [waiting for waiting in batch if not waiting.told.done()]
            if not batch:
                return [], []
            asked = [waiting.asked for waiting in batch]
            rows = await transaction.read(asked, most_entries=self._rests_on.limits.max_orders_per_min)
            told = self._judge_all(asked, rows, verdicts)
            if verdicts.rows or verdicts.orders:
                await transaction.store(
                    verdicts=verdicts.rows, authorisations=verdicts.authorisations, orders=verdicts.orders
                )
        return list(zip(batch, told, strict=True)), verdicts.rows

    def _judge_all(self, batch: Sequence[Asked], rows: Sequence[Row], verdicts: Verdicts) -> list[Told]:
        verdicts.begin(rows[0])
        everyone = situation_of(
            rows[0],
            limits=self._rests_on.limits,
            terms=self._rests_on.terms,
            account=self._rests_on.account,
            halted_here=self._halt.reason() is not None,  # after the lock: a halt of while it waited counts
        )
        return [
            verdicts.give(asked, row=row, decision=decision_of(row), situation=replace(everyone, price=price_of(row)))
            for asked, row in zip(batch, rows, strict=True)
        ]

    def _refuse(self, batch: Sequence[Waiting], why: str) -> None:
        for waiting in batch:
            if not waiting.told.done():
                waiting.told.set_exception(NoVerdict(Reason.GATE_ERROR, why))


def say(asked: Asked, told: Told) -> None:
    """One line for each verdict, with the ids that lead from the request to the order."""
    order = asked.order
    log.info(
        "verdict",
        verdict_id=str(told.verdict_id),
        order_id=str(asked.order_id),
        client_order_id=order.client_order_id,
        forecast_id=None if told.forecast_id is None else str(told.forecast_id),
        ticker=order.ticker,
        verdict=told.verdict,
        would_have=told.would_have,
        mode=told.mode,
        reasons=list(told.reasons),
    )


def count(rows: Sequence[Mapping[str, Any]]) -> None:
    """Count verdicts that are stored, and log each use of the kill switch."""
    for row in rows:
        VERDICTS.labels(row["verdict"], row["would_have"], row["mode"]).inc()
        for reason in row["reasons"]:
            REASONS.labels(reason).inc()
        if Reason.KILL_SWITCH.value in row["reasons"]:
            log.warning(
                "kill_switch_used",
                verdict_id=row["id"],
                key=row["key_name"],
                client_order_id=row["client_order_id"],
                ticker=row["ticker"],
                reasons=row["reasons"],
            )
