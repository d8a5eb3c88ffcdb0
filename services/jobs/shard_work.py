"""One shard under way: asked as any run is, its rows stored in groups, its worker's signs of life in between."""

import asyncio
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass

from prometheus_client import Counter
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.running.row import Row
from libs.evaluation.running.runner import Ask, Ended, Patience, run
from libs.evaluation.sharing.shards import Cut, ShardCases
from libs.evaluation.sharing.work import Taken, beat, store

BEAT_S = 2.0
GATHER_S = 0.02
"""How long rows gather before they are stored together."""
PATIENCE = Patience(give_up_s=20.0, leave_s=2.0)
CLOSE_S = 1.0
"""How much longer than the run's own patience its end may take."""

ASKED = Counter(
    "lexi_evaluation_rows_total",
    "Rows of shared evaluations that this process made, by prompt and status.",
    ["prompt_key", "status"],
)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row on its way to Postgres."""

    row: Row
    stored: "asyncio.Future[None]"


class Rows:
    """Keeps the rows of a shard: while one group is on its way to Postgres, the next one gathers."""

    def __init__(self, keep_all: Callable[[list[Row]], Awaitable[None]]) -> None:
        self._keep_all = keep_all
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def keep(self, row: Row) -> None:
        """Return when the row is stored. Raises what storing raises."""
        waiting = _Waiting(row, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="evaluation rows")
        await waiting.stored

    async def close(self) -> None:
        """Store what waits, also what those who brought it wait for no more."""
        if self._writer is not None:
            await self._writer

    async def _write(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            group, self._waiting = self._waiting, []
            try:
                await self._keep_all([one.row for one in group])
            except Exception as error:  # noqa: BLE001 - whoever brought a row raises it
                for one in [*group, *self._waiting]:
                    if not one.stored.done():
                        one.stored.set_exception(error)
                        one.stored.exception()  # who brought it may have left
                self._waiting = []
                return
            for one in group:
                if not one.stored.done():
                    one.stored.set_result(None)


class ShardWork:
    """A worker's work on a shard it has taken, until it is done, lost, or `stop` is set."""

    def __init__(self, engine: AsyncEngine, taken: Taken, *, stop: asyncio.Event) -> None:
        self._engine = engine
        self._taken = taken
        self._stop = stop
        self._halt = asyncio.Event()
        self._waits_for: str | None = None

    async def run(
        self, cut: Cut, *, skip: Container[int], ask: Ask, places: Callable[[], int], there: Callable[[], bool]
    ) -> Ended:
        """Ask its items, save those to skip. Rows that came are stored whatever happens. `there` says whether the
        model's server is alive.

        Raises `ShardLost`, what the database raises, and what asking raises.
        """
        rows = Rows(self._store)
        asking = asyncio.create_task(
            run(
                cut.plan,
                ShardCases(cut, self._taken.cases),
                ask=ask,
                keep=rows.keep,
                skip=skip,
                places=places,
                pace=None,
                seen=lambda row: ASKED.labels(row.prompt, row.status).inc(),
                stop=self._halt,
                waits=self._wait,
                there=there,
                order=cut.order(),
                patience=PATIENCE,
            )
        )
        beating = asyncio.create_task(self._beat())
        told = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({asking, beating, told}, return_when=asyncio.FIRST_COMPLETED)
            self._halt.set()
            await asyncio.wait({asking}, timeout=PATIENCE.leave_s + CLOSE_S)
            if beating.done():
                beating.result()
            return asking.result() if asking.done() else Ended(0, 0, stopped=True, away=None)
        finally:
            for task in (asking, beating, told):
                task.cancel()
            await asyncio.gather(asking, beating, told, return_exceptions=True)
            await rows.close()

    def _wait(self, reason: str | None) -> None:
        self._waits_for = None if reason is None else f"waiting for the model: {reason}"

    async def _store(self, rows: list[Row]) -> None:
        await store(self._engine, self._taken, rows)

    async def _beat(self) -> None:
        """Show now and then that the worker is at it. Raises `ShardLost` once it should not be."""
        while True:
            await asyncio.sleep(BEAT_S)
            await beat(self._engine, self._taken, waits_for=self._waits_for)
