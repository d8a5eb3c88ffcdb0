"""The state of a run under way: what is left, what is being asked, and whether the model is there."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from libs.evaluation.running.asking import is_absence, is_broken
from libs.evaluation.running.presence import is_turned_down, without_quotes
from libs.evaluation.running.row import Row

TRIES: Final = 4
"""How often an item is asked that brings nothing though the model is there; then that is its result."""
LONGER: Final = 5
"""How many times as long as usual the patience is with a server that is there, and turns all that is left down."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: the pauses between tries while the model is away, when to give up, and how long an end waits for what
    is under way.
    """

    first_s: float = 0.5
    longest_s: float = 5.0
    give_up_s: float = 60.0
    leave_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. `done` rows were kept, `failed` of them without a reply. `stopped`: it was told to. `away`: why
    the model gave no answers, where that ended it. `in_vain` questions found nobody there and are no results; it waited
    `waited_s` for the model to come back.
    """

    done: int
    failed: int
    stopped: bool
    away: str | None
    in_vain: int = 0
    waited_s: float = 0.0


@dataclass(slots=True)
class Pending:
    """An item to ask: how often in vain though the model was there, the number of answers when it was last asked, and
    how often the server turned it down.
    """

    item: int
    tries: int
    answers: int
    turned_down: int = 0


@dataclass(slots=True)
class Work:
    """A run under way. `put` asks an item, `keep` puts its row on disk; `left` are the items not begun yet.

    `there` is what else is known of the server: whether it is alive. `when_keeping` is called whenever a task stops
    asking, since its row is on its way.
    """

    put: Callable[[int], Awaitable[Row]]
    keep: Callable[[Row], Awaitable[None]]
    seen: Callable[[Row], None]
    waits: Callable[[str | None], None]
    patience: Patience
    clock: Callable[[], float]
    left: Iterator[int]
    open_loop: bool
    there: Callable[[], bool] = lambda: True
    when_keeping: Callable[[], None] = lambda: None
    tasks: set[asyncio.Task[None]] = field(default_factory=set["asyncio.Task[None]"])
    _again: deque[Pending] = field(default_factory=deque[Pending])
    _under_way: list[float] = field(default_factory=list[float])
    _all_read: bool = False
    _keeping: set[asyncio.Task[Any] | None] = field(default_factory=set["asyncio.Task[Any] | None"])
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _failure: Exception | None = None
    _stopped: bool = False
    _done: int = 0
    _failed: int = 0
    _in_vain: int = 0
    _answers: int = 0
    _waited_s: float = 0.0
    _turned_down: int = 0
    _away_since: float | None = None
    _back: asyncio.Event = field(default_factory=asyncio.Event)
    _probing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _pause_s: float = 0.0
    _not_before: float = 0.0
    _reason: str = ""
    _said: bool = False
    _gone: str | None = None

    @property
    def asking(self) -> int:
        """How many tasks have no row on its way to the disk."""
        return len(self.tasks) - len(self._keeping)

    @property
    def is_away(self) -> bool:
        """Whether the model gave no answer when it was last asked."""
        return self._away_since is not None

    @property
    def all_begun(self) -> bool:
        """Whether no item is left to begin, or none is to be begun any more."""
        return self._over.is_set() or (self._all_read and not self._again)

    async def follow(self, course: Coroutine[Any, Any, None], stop: asyncio.Event) -> Ended:
        """Run `course` to its end, or until `stop`, the first failure or the model's absence ends it."""
        main, told = asyncio.create_task(course), asyncio.create_task(stop.wait())
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({main, told, over}, return_when=asyncio.FIRST_COMPLETED)
            self._stopped = told.done() and not main.done()
            self._over.set()
            if main.done():
                main.result()
            main.cancel()
            if self.tasks and self._failure is None:
                await asyncio.wait(self.tasks, timeout=self.patience.leave_s)
        finally:
            self._over.set()
            for task in (main, told, over):
                task.cancel()
            await asyncio.gather(main, told, over, return_exceptions=True)
            await self._break_off()
        if self._failure is not None:
            raise self._failure
        return Ended(self._done, self._failed, self._stopped, self._gone, self._in_vain, self._waited_s)

    def next(self) -> Pending | None:
        """The next item; None where none is to be begun now.

        While the model is away others are tried than those that found nobody: it may be there, and only they fail.
        """
        if self._over.is_set():
            return None
        if self._again and (self._all_read or self.open_loop or not self.is_away):
            return self._again.popleft()
        item = next(self.left, None)
        self._all_read = item is None
        if item is not None:
            return Pending(item, 0, self._answers)
        return self._again.popleft() if self._again else None

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as a task of this run; its failure ends the run."""
        self.tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(self._finished)

    async def wait(self, longest_s: float) -> None:
        """Until a task has ended, or an item is to be asked again; at most so long."""
        self._moved.clear()
        try:
            async with asyncio.timeout(longest_s):
                await self._moved.wait()
        except TimeoutError:
            return

    async def one(self, pending: Pending, *, planned: float | None = None) -> None:
        """Ask an item and keep what came of it, or have it asked again where nobody was there.

        `planned` is the moment at which it was to be asked, by the run's clock.
        """
        row = None
        if self.is_away:
            row, planned = await self._probe(pending), None  # what an outage held up is not late
        row = row or await self._put(pending, planned)
        if row is None:
            return
        if self._is_in_vain(pending, row):
            self._again.append(pending)
            self._moved.set()
            return
        self._keeping.add(task := asyncio.current_task())
        try:
            try:
                self.when_keeping()
            finally:
                await self.keep(row)
        finally:
            self._keeping.discard(task)
        self._done += 1
        self._failed += not row.answered
        self.seen(row)

    async def _probe(self, pending: Pending) -> Row | None:
        """While the model is away: ask when nobody else does, after a pause; None where it came back meanwhile."""
        async with self._probing:
            if not self.is_away:
                return None
            await self._pause()
            return await self._put(pending, None) if self.is_away else None

    async def _put(self, pending: Pending, planned: float | None) -> Row | None:
        """The row of an item; None where the run is over."""
        if self._over.is_set():
            return None
        begun = self.clock()
        self._under_way.append(begun)
        try:
            row = await self.put(pending.item)
        finally:
            self._under_way.remove(begun)
        if planned is not None:
            row = replace(row, late_ms=max(0.0, begun - planned) * 1000)
        return row

    def _is_in_vain(self, pending: Pending, row: Row) -> bool:
        """Whether the row is no result, so that the item is to be asked again."""
        if not is_absence(row, open_loop=self.open_loop):
            if row.answered or row.status == "refused":
                self._is_back()
            return False
        # It counts where the model is there: it broke off, or answered others meanwhile.
        pending.tries += is_broken(row) or self._answers > pending.answers
        pending.answers = self._answers
        if is_turned_down(row):
            pending.turned_down += 1
            self._turned_down += 1
            if pending.turned_down > 1 and self._all_left_is_turned_down():
                return False
        if pending.tries >= TRIES:
            return False
        self._in_vain += 1
        self.turned_away(row.error or "no reason given")
        return True

    def turned_away(self, error: str) -> None:
        """The model is not there. The pauses grow; after too long the run ends."""
        now = self.clock()
        if self._away_since is None:
            self._away_since, self._pause_s, self._not_before = now, 0.0, now
            self._back.clear()
        self._reason = without_quotes(error)
        if now >= self._not_before:  # those that failed together lengthen the pause once
            self._pause_s = min(max(2 * self._pause_s, self.patience.first_s), self.patience.longest_s)
            self._not_before = now + self._pause_s
        most_s = self.patience.give_up_s * (LONGER if self._all_left_is_turned_down() else 1)
        if self._silent_s >= most_s and not self._is_awaited:
            self._gone = f"no answer came for {self._silent_s:.0f} s ({self._reason})"
            self._over.set()

    @property
    def _silent_s(self) -> float:
        return 0.0 if self._away_since is None else self.clock() - self._away_since

    @property
    def _is_awaited(self) -> bool:
        """Whether a question of before the silence is still under way; its time limits end it."""
        return self._away_since is not None and any(begun < self._away_since for begun in self._under_way)

    def _all_left_is_turned_down(self) -> bool:
        """Whether the server is alive, and has long turned down everything that is left: that is their result."""
        long = self._silent_s >= self.patience.give_up_s and self._turned_down >= TRIES
        return long and self._all_read and not self._is_awaited and self.there()

    def _is_back(self) -> None:
        self._answers += 1
        self._turned_down = 0
        if self._away_since is None:
            return
        self._waited_s += self.clock() - self._away_since
        self._away_since = None
        self._back.set()
        if self._said:
            self._said = False
            self.waits(None)

    async def _pause(self) -> None:
        """Until it is time to ask again, or somebody got an answer."""
        try:
            async with asyncio.timeout(max(0.0, self._not_before - self.clock())):
                await self._back.wait()
        except TimeoutError:
            if self._pause_s > self.patience.first_s:
                self._said = True
                self.waits(self._reason)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._moved.set()
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._failure = self._failure or error
            self._over.set()

    async def _break_off(self) -> None:
        """Break off what is still asking; rows on their way to the disk get there."""
        for task in self.tasks - self._keeping:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
