"""Working on a batch: as many decisions at once as this process may ask, and patience while the model is away.

What comes of a decision is stored as it comes, and what is stored is never asked again, so that a process that dies
costs what it had in flight. A model that is away makes the batch wait, and only a long absence ends it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from prometheus_client import Counter

from libs.replay.batch.ask import (
    LONGEST_ERROR,
    BatchFailed,
    NoAnswer,
    Road,
    ask_again,
    refused,
    unanswered,
    version_problem,
)
from libs.replay.batch.held import Held, Original, ReplayRow
from libs.replay.batch.rows import Batch
from libs.replay.difference import Outcome

GATHER_S = 0.1
"""How long what came waits for more to share its statement."""
LAST_FEW = 0.01
"""The share of a batch's decisions, at least one, that may be given up at its end so that the others get a report."""
LOOK_S = 1.0
"""How often a batch that gets no answers looks whether somebody ended it."""
LEAST_READ = 64
TRIES = 4
"""How often a decision is asked that the model does not answer while it answers others."""

ASKED = Counter("lexi_replays_total", "Decisions that batches asked again, by how it ended", ["prompt_key", "status"])

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Item:
    """A decision to ask again, and how often it was in vain while others were answered.

    `answers` is how many this run had when the decision was first asked, or last asked in vain.
    """

    original: Original
    tries: int = 0
    answers: int | None = None


class BatchRun:
    """One process's work on a batch it holds."""

    def __init__(self, held: Held, road: Road, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._held = held
        self._road = road
        self._clock = clock
        self._left: deque[_Item] = deque()
        self._all_read = False
        self._running: set[asyncio.Task[None]] = set()
        self._finished: list[ReplayRow] = []
        self._came = asyncio.Event()
        self._total = 0
        self._answers = 0
        self._pause_s = 0.0
        self._not_before = 0.0
        self._silent_since = clock()
        self._waits_for: str | None = None
        self._said: str | None = None
        self._failure: BatchFailed | None = None

    @property
    def batch(self) -> Batch:
        """The batch it works on."""
        return self._held.batch

    async def run(self) -> bool:
        """Ask everything that is left. True when all is done; False where somebody ended the batch meanwhile.

        Raises `BatchFailed`, or what the database raised. In each case nothing is in flight any more afterwards.
        """
        total = await self._held.begin()
        if total is None:
            return False
        self._total = total
        try:
            await self._until_version_holds()
            return await self._work()
        except asyncio.CancelledError:
            await self._store_at_the_end()
            raise
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _work(self) -> bool:
        while True:
            await self._read()
            self._fill()
            if self._failure is not None:
                await self._store()
                raise self._failure
            if self._all_read and not self._left and not self._running and not self._finished:
                return True
            await self._wait()
            if not await self._store():
                return False

    async def _read(self) -> None:
        """Keep enough at hand that no slot waits for the database."""
        wanted = max(LEAST_READ, 4 * self._road.places())
        if self._all_read or len(self._left) >= wanted // 2:
            return
        found = await self._held.next(wanted)
        self._left.extend(_Item(original) for original in found)
        self._all_read = not found

    def _fill(self) -> None:
        while self._left and len(self._running) < self._room() and self._failure is None:
            task = asyncio.create_task(self._one(self._left.popleft()))
            self._running.add(task)

    def _room(self) -> int:
        """How many may be asked at once now: one at a time, and none too soon, while no answers come."""
        if self._pause_s:
            return 1 if self._clock() >= self._not_before else 0
        return max(1, self._road.places())

    async def _one(self, item: _Item) -> None:
        if item.answers is None:
            item.answers = self._answers
        try:
            came = await ask_again(item.original, self.batch, self._road)
            if isinstance(came, NoAnswer):
                self._in_vain(item, came.error)
            else:
                self._answered(came)
        except BatchFailed as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 - one decision must not hold up all others, nor be asked for ever
            log.error("replay_failed", forecast_id=str(item.original.forecast_id), error=type(error).__name__)  # noqa: TRY400 - it may quote a prompt
            self._keep(refused(item.original, Outcome("", None), f"internal: {type(error).__name__}"))
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._running.discard(task)
            self._came.set()
        self._fill()

    def _answered(self, row: ReplayRow) -> None:
        self._keep(row)
        if row.status in {"ok", "invalid"}:
            self._answers += 1
            self._silent_since = self._clock()
            self._pause_s, self._waits_for = 0.0, None

    def _in_vain(self, item: _Item, error: str) -> None:
        """Ask again later, or give the decision up. Raises `BatchFailed` where the model has been away for too long."""
        now = self._clock()
        if item.answers is None or self._answers > item.answers:  # the model is there, and answers others
            item.tries += 1
        item.answers = self._answers
        silent_s = now - self._silent_since
        if item.tries >= TRIES or (silent_s > self._road.patience.last_few_s and self._are_last_few()):
            self._keep(unanswered(item.original, self.batch, error))
            return
        if silent_s > self._road.patience.give_up_s:
            raise BatchFailed(
                f"no answer came for {silent_s / 3600:.1f} hours ({error}); what is answered is kept. "
                "Ask for the batch again once the model answers"
            )
        self._left.append(item)
        if now >= self._not_before:  # those that failed together lengthen the pause once
            self._pause_s = min(max(self._pause_s * 2, self._road.patience.first_s), self._road.patience.longest_s)
            self._not_before = now + self._pause_s
            self._waits_for = f"waiting for the model: {error}"[:LONGEST_ERROR]
            log.info("replay_batch_waits", batch=str(self.batch.id), reason=self._waits_for, pause_s=self._pause_s)

    def _are_last_few(self) -> bool:
        """Whether what is left is so little that the report can do without it."""
        left = len(self._left) + len(self._running)
        return self._all_read and left <= max(1, LAST_FEW * self._total) < self._total

    def _keep(self, row: ReplayRow) -> None:
        self._finished.append(row)
        ASKED.labels(self.batch.prompt_key, row.status).inc()

    async def _wait(self) -> None:
        """Until something came, or it is time to look again."""
        left_s = self._not_before - self._clock() if self._pause_s and not self._running else LOOK_S
        try:
            async with asyncio.timeout(min(LOOK_S, max(left_s, 0.01))):
                await self._came.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER_S)
        self._came.clear()

    async def _store(self) -> bool:
        rows, self._finished = self._finished, []
        going_on = await self._held.store(rows)
        if going_on and self._said != self._waits_for:
            await self._held.say(self._waits_for)
            self._said = self._waits_for
        return going_on

    async def _store_at_the_end(self) -> None:
        """Keep what came and is not stored yet. Whatever stops that, the stop itself goes on."""
        try:
            await self._store()
        except Exception as error:  # noqa: BLE001 - logged; those decisions are asked once more
            log.warning("replay_answers_not_stored", batch=str(self.batch.id), error=type(error).__name__)

    async def _until_version_holds(self) -> None:
        """Wait a little for a version that this process does not know yet. Raises `BatchFailed`."""
        begun = self._clock()
        while (problem := version_problem(self.batch, self._road.prompts)) is not None:
            if self._clock() - begun > self._road.patience.version_s:
                raise BatchFailed(problem)
            await self._held.say(problem)
            self._said = problem
            await asyncio.sleep(min(LOOK_S, self._road.patience.version_s))
