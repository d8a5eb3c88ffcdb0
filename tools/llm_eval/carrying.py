"""Carrying a planned run out, here or by workers: every question asked, every row on disk, and the end when told."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Collection, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.cases.dataset import CaseFile
from libs.evaluation.running.asking import Asking
from libs.evaluation.running.folder import Folder
from libs.evaluation.running.journal import Journal
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.runner import run
from libs.evaluation.sharing.collecting import collect
from libs.evaluation.sharing.store import hand_out, have_it
from tools.llm_eval.model import Road
from tools.llm_eval.progress import Progress

STOPPING = "stopping: what is under way gets a moment, then this ends; Ctrl-C again ends it now"


@dataclass(frozen=True, slots=True)
class Carried:
    """How far a run came: items without a row (where errors are asked anew: without an answer), how many have an
    answer, and why it ended before it had asked all it was to ask: None where it did, "" where somebody stopped it.
    """

    missing: int
    answered: int
    why: str | None = None


@dataclass(frozen=True, slots=True)
class _Open:
    """The files of a run under way. `had` are the items that need not be asked."""

    items: int
    cases: CaseFile
    journal: Journal
    progress: Progress
    had: Collection[int]
    retry_errors: bool

    def carried(self, why: str | None) -> Carried:
        """How far it came."""
        answered = len(self.journal.answered)
        had = answered if self.retry_errors and why is not None else len(self.journal.done)
        return Carried(self.items - had, answered, why)


async def carry_out(
    folder: Folder, plan: Plan, road: Road, *, stop: asyncio.Event, retry_errors: bool = False
) -> Carried:
    """Ask what has no row yet (with `retry_errors` also what has no answer) in this process.

    Raises `JournalError`, `DatasetError`, `VersionChanged`; rows that came are safe in any case.
    """
    asking = Asking(
        client=road.client,
        rules=road.rules,
        limits=road.limits(open_loop=plan.rate is not None),
        use_cache=plan.cache,
        model=lambda: road.server.model,
    )
    most = plan.concurrency or plan.items
    async with _opened(folder, plan, stop=stop, retry_errors=retry_errors) as files:
        tell, journal, left = files.progress.tell, files.journal, plan.items - len(files.had)
        ended = await run(
            plan,
            files.cases,
            ask=asking,
            keep=journal.keep,
            skip=files.had,
            places=lambda: min(road.places(), most),
            pace=plan.rate,
            seen=files.progress.seen,
            stop=stop,
            waits=lambda why: tell(f"waiting for the model: {why}" if why else "the model is back"),
            there=lambda: road.there() and any(True for _ in journal.answered),
        )
        why = None if ended.done == left else f"the model is away: {ended.away}" if ended.away else ""
        return files.carried(why)


async def carry_out_by_workers(
    folder: Folder,
    plan: Plan,
    engine: AsyncEngine,
    *,
    stop: asyncio.Event,
    asked_by: str,
    retry_errors: bool = False,
) -> Carried:
    """Hand what is missing to the workers, unless they have it, and bring their rows home as they come.

    What they have comes home before errors are asked anew, since those among it would pass for new ones. Raises
    `SharingError`, `JournalError`, `DatasetError`, `SQLAlchemyError`.
    """
    if retry_errors:
        async with engine.begin() as connection:
            theirs = await have_it(connection, plan.evaluation_id)
        if theirs:
            carried = await _by_workers(folder, plan, engine, stop=stop, asked_by=asked_by, retry_errors=False)
            if carried.why is not None:
                return carried
    return await _by_workers(folder, plan, engine, stop=stop, asked_by=asked_by, retry_errors=retry_errors)


async def _by_workers(
    folder: Folder, plan: Plan, engine: AsyncEngine, *, stop: asyncio.Event, asked_by: str, retry_errors: bool
) -> Carried:
    async with _opened(folder, plan, stop=stop, retry_errors=retry_errors) as files:
        async with engine.begin() as connection:
            fresh = await hand_out(
                connection, plan, cases=files.cases, known=files.had, asked_by=asked_by, anew=retry_errors
            )
        files.progress.tell("handed to the workers" if fresh else "the workers have it already; bringing their rows")
        came = await collect(
            engine,
            plan,
            left=plan.items - len(files.had),
            keep=files.journal.keep,
            had=files.had,
            seen=files.progress.seen,
            told=files.progress.tell,
            stop=stop,
        )
        return files.carried("" if came.stopped else came.trouble)


@asynccontextmanager
async def _opened(
    folder: Folder, plan: Plan, *, stop: asyncio.Event, retry_errors: bool
) -> AsyncGenerator[_Open, None]:
    with CaseFile(folder.cases) as cases:
        async with Journal(folder.rows, items=plan.items) as journal:
            had = frozenset(journal.answered) if retry_errors else journal.done
            with Progress(plan.items, done=len(had)) as progress, _stopping(stop, progress.tell):
                if journal.cut:
                    progress.tell(f"{folder.rows} ended in half a row, which was cut off; its item is asked again")
                yield _Open(plan.items, cases, journal, progress, had, retry_errors)


@contextmanager
def _stopping(stop: asyncio.Event, tell: Callable[[str], None]) -> Generator[None]:
    """Inside, SIGINT and SIGTERM set `stop`; a second one cancels the task that is in here."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        else:
            stop.set()
            tell(STOPPING)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
