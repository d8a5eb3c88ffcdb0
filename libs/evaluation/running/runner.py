"""Working through a plan: every item asked once, its row kept before its task asks the next.

Closed loop: a few more tasks ask than there are places, so that a slot finds the next question waiting. Open loop:
items begin at moments drawn beforehand, however many are under way. Either way a model that is not there is no result:
its items wait, one question at a time finds out whether it is back, and after a minute without any answer the run ends
and says so. A server that is alive and turns down all that is left is there: that is the result of those.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Iterable
from typing import Protocol

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.running.arrivals import Arrivals
from libs.evaluation.running.plan import Pinned, Plan
from libs.evaluation.running.row import Row
from libs.evaluation.running.work import Ended, Patience, Work

LOOK_S = 1.0
"""How often the number of places is looked at."""
MOST_UNDER_WAY = 4_000
"""How many questions of the open loop may be without an answer: some 30 KB each."""


class Ask(Protocol):
    """Puts one item to the model; what came of it is a row."""

    def __call__(self, case: EvalCase, pinned: Pinned, *, item: int, repeat: int) -> Awaitable[Row]:
        """Ask."""
        ...


class Cases(Protocol):
    """Where cases are looked up by their place in the run."""

    def case(self, index: int, /) -> EvalCase:
        """The case, or an error that names it."""
        ...


async def run(
    plan: Plan,
    cases: Cases,
    *,
    ask: Ask,
    keep: Callable[[Row], Awaitable[None]],
    skip: Container[int],
    places: Callable[[], int],
    pace: float | None,
    seen: Callable[[Row], None],
    stop: asyncio.Event,
    waits: Callable[[str | None], None] = lambda _: None,
    there: Callable[[], bool] = lambda: True,
    order: Iterable[int] | None = None,
    patience: Patience | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Ended:
    """Ask all items of the plan, or of `order`, that are not in `skip`.

    `keep` returns when a row is safe, `seen` is told of it then. `places` is how many questions may be under way, as it
    is now; `pace` is None, or the arrivals per second of the open loop. `waits` is told why when the model is away, and
    None when it is back; `there` says whether its server is alive. `stop` ends the run: nothing new is asked, and what
    is under way gets a moment to land.

    Raises what `ask`, `keep` and `cases` raise, after everything under way has ended; rows that came are kept.
    """

    async def put(item: int) -> Row:
        case, pinned, repeat = plan.item(item)
        return await ask(cases.case(case), pinned, item=item, repeat=repeat)

    work = Work(
        put=put,
        keep=keep,
        seen=seen,
        waits=waits,
        patience=patience or Patience(),
        clock=clock,
        left=(item for item in (plan.order() if order is None else order) if item not in skip),
        open_loop=pace is not None,
        there=there,
    )
    course = _closed(work, places) if pace is None else _open(work, Arrivals(pace, seed=plan.seed, clock=clock))
    return await work.follow(course, stop)


async def _closed(work: Work, places: Callable[[], int]) -> None:
    """Keep so many tasks asking as the places of now want, each one item after the other.

    While rows of theirs are on the way to a slow disk others ask, up to as many again.
    """

    def fill() -> None:
        wanted = tasks_for(places())
        while work.asking < wanted and len(work.tasks) < 2 * wanted and not work.all_begun:
            work.begin(ask_on())

    async def ask_on() -> None:
        while work.asking <= tasks_for(places()) and (item := work.next()) is not None:
            await work.one(item)

    work.when_keeping = fill
    while work.tasks or not work.all_begun:
        if not tasks_for(places()):
            work.turned_away("no_place: this process has no share of the model's slots")
        fill()
        await work.wait(LOOK_S)


def tasks_for(places: int) -> int:
    """A quarter more tasks than places, and one: they wait for a slot, so that none waits for them."""
    return places + places // 4 + 1 if places > 0 else 0


async def _open(work: Work, arrivals: Arrivals) -> None:
    """Begin an item at each arrival. While the model is away there are none, and one item at a time looks for it.

    Where answers come so slowly that memory would be the limit, items wait, and are late by so much.
    """
    while work.tasks or not work.all_begun:
        if len(work.tasks) >= MOST_UNDER_WAY:
            await work.wait(LOOK_S)
            continue
        item = work.next()
        if item is None:
            await work.wait(LOOK_S)
        elif work.is_away:
            await work.one(item)
            arrivals.resume()
        else:
            planned = await arrivals.next()
            work.begin(work.one(item, planned=planned))
