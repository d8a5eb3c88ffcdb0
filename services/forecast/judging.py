"""Judging many forecasts at once without holding up the loop, and storing what comes of it in few statements."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy.exc import DBAPIError

from libs.exposures.record import Noted
from libs.judgement.types import Inputs, Judgement
from libs.telemetry import Origin
from services.forecast.patience import Patience, StopError
from services.forecast.repository import Repository
from services.forecast.rows import JudgementRow

LATE = Counter("lexi_forecast_late_ticks_merged_total", "Forecasts not judged because a newer tick of the ticker came")

LOST = Counter("lexi_forecast_judgements_refused_total", "Judgements the database refused to store")
RUNNING = Gauge("lexi_forecast_judging_running", "Forecasts being judged now")
WAITING = Gauge("lexi_forecast_judging_waiting", "Forecasts waiting to be judged")

RECORDED_S = 10.0
"""Most seconds that judgements wait for their calls to be on disk: the recorder gives up on the database before."""
GATHER_S = 0.05
"""How long a finished judgement waits for others to share its statement."""

log = structlog.get_logger(__name__)

Document = Callable[[bool], Mapping[str, Any]]
"""`features.llm` of a finished case, given the shadow mode that holds when it is stored."""


@dataclass(frozen=True, slots=True)
class Case:
    """A stored forecast that waits for its judgement. `before` is the last one, where nothing changed since. `origin`
    is the tick, or the later look, that it follows from.
    """

    id: UUID
    inputs: Inputs
    before: Judgement | None = None
    origin: Origin = field(default_factory=Origin.here, compare=False)

    @property
    def as_of(self) -> datetime:
        """Market time of the forecast."""
        return self.inputs.as_of


@dataclass(frozen=True, slots=True)
class Finished:
    """What judging made of a case, and when (`time.monotonic`); `complete` is False where it was not judged.

    `noted` is what a first judgement says of the case's exposures; empty for later ones.
    """

    case: Case
    document: Document
    complete: bool
    noted: tuple[Noted, ...] = ()
    at: float = field(default_factory=time.monotonic)


class Taker(Protocol):
    """Whoever takes finished judgements."""

    def add(self, finished: Finished) -> None:
        """Take one; returns at once."""
        ...


class JudgementWriter:
    """Stores finished judgements. While one statement runs, what finishes meanwhile waits for the next one.

    The calls behind them are kept first: `recorded` returns once all calls that have ended are on disk, so that no
    forecast names a call that a `kill -9` could still take away.

    While the database is away they are kept, at most one per forecast, and stored when it is back.
    """

    def __init__(self, repository: Repository, patience: Patience, *, recorded: Callable[[], Awaitable[None]]) -> None:
        self._repository = repository
        self._patience = patience
        self._recorded = recorded
        self._waiting: dict[UUID, Finished] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to store."""
        self._task = asyncio.create_task(self._run())

    def add(self, finished: Finished) -> None:
        """Take a finished judgement; returns at once. One that takes another's place leaves it the first word."""
        older = self._waiting.get(finished.case.id)
        if older is not None and older.noted:
            finished = replace(finished, noted=older.noted)
        self._waiting[finished.case.id] = finished
        self._wake.set()

    async def close(self, grace_s: float) -> None:
        """Store what is there, for at most that long."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=grace_s)
            if not done:
                log.warning("judgements_not_stored", count=len(self._waiting))
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            if not self._closing:
                await asyncio.sleep(GATHER_S)
            batch, self._waiting = self._waiting, {}
            await self._calls_first()
            try:
                await self._patience.until_done(
                    lambda batch=batch: self._store(list(batch.values())), "store judgements"
                )
            except StopError:
                self._waiting = batch | self._waiting
                return

    async def _calls_first(self) -> None:
        try:
            async with asyncio.timeout(RECORDED_S):
                await self._recorded()
        except TimeoutError:
            log.warning("judgements_stored_before_their_calls", waited_s=RECORDED_S)

    async def _store(self, batch: Sequence[Finished]) -> None:
        """Store a batch. What the database refuses for its content is said and left out, the others are stored."""
        try:
            await self._repository.store_judgements(lambda shadow: [row_of(one, shadow) for one in batch])
        except DBAPIError as error:
            if error.connection_invalidated or not is_refusal(error):
                raise
            if len(batch) > 1:
                for one in batch:
                    await self._store([one])
                return
            LOST.inc()
            case = batch[0].case
            log.exception("judgement_refused_by_database", forecast_id=str(case.id), request_id=case.origin.request_id)
        else:
            _say_stored(batch)


def _say_stored(batch: Sequence[Finished]) -> None:
    """One line for all of one origin."""
    stored: dict[str, list[str]] = {}
    for one in batch:
        stored.setdefault(one.case.origin.request_id, []).append(str(one.case.id))
    for request_id, ids in stored.items():
        log.info("judgements_stored", request_id=request_id, count=len(ids), forecasts=ids)


def row_of(finished: Finished, shadow: bool) -> JudgementRow:
    """What to write of a finished judgement under this shadow mode."""
    case = finished.case
    return JudgementRow(
        case.id,
        case.as_of,
        finished.document(shadow),
        finished.complete,
        age_s=time.monotonic() - finished.at,
        noted=finished.noted,
    )


def is_refusal(error: DBAPIError) -> bool:
    """Whether the database refused the data itself (SQLSTATE classes 22 and 23), so that retrying is in vain."""
    return str(getattr(error.orig, "sqlstate", "") or "")[:2] in {"22", "23"}


class Judges:
    """Judges cases, as many at once as the upstream has slots for this process, one per ticker, newest first come.

    While a ticker is being judged or waits, a newer case of it takes the place of the one that waits; the older one
    is finished as superseded.
    """

    def __init__(
        self,
        judge: Callable[[Case], Awaitable[Finished]],
        writer: Taker,
        *,
        places: Callable[[], int],
        superseded: Callable[[Case], Finished],
    ) -> None:
        self._judge = judge
        self._writer = writer
        self._places = places
        self._superseded = superseded
        self._waiting: dict[str, Case] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running or self._waiting)

    def knows(self, ticker: str) -> bool:
        """Whether a case of this ticker runs or waits."""
        return ticker in self._running or ticker in self._waiting

    def submit(self, case: Case) -> None:
        """Take a case; returns at once."""
        ticker = case.inputs.ticker
        older = self._waiting.get(ticker)
        if older is not None and older.id != case.id:
            LATE.inc()
            if older.before is None:
                self._writer.add(self._superseded(older))
        self._waiting[ticker] = case
        self._fill()

    def _next(self) -> Iterator[str]:
        """Tickers that wait and are not being judged, oldest first."""
        return (ticker for ticker in self._waiting if ticker not in self._running)

    def _fill(self) -> None:
        places = max(1, self._places())
        while not self._stopped and len(self._running) < places:
            ticker = next(self._next(), None)
            if ticker is None:
                break
            case = self._waiting.pop(ticker)
            self._running[ticker] = asyncio.create_task(self._run(ticker, case))
        RUNNING.set(len(self._running))
        WAITING.set(len(self._waiting))

    async def _run(self, ticker: str, case: Case) -> None:
        try:
            # The task may have been begun by the end of another's, which follows from something else.
            with case.origin.span("judge", **{"lexi.ticker": ticker, "lexi.forecast_id": str(case.id)}):
                finished = await self._judge(case)
            self._writer.add(finished)
        finally:
            del self._running[ticker]
            self._fill()

    async def close(self, grace_s: float) -> None:
        """Take nothing new, give what runs that long, then let go of it."""
        self._stopped = True
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=grace_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
