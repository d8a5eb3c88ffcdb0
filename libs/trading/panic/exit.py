"""The panic exit itself: rounds of cancelling and closing until the broker is flat, or until the time is up.

FLAT is said after two consecutive reads without a position or an open order, made when the halt stood and no entry was
on its way any more. The two are a second apart, since a broker's orders and positions may be out of step. Everything it
needs is passed in, so that a simulation can run it on a clock of its own.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from libs.trading.broker.client import Broker
from libs.trading.halt import EntryLock, HaltFile
from libs.trading.journal import Journal
from libs.trading.panic.ground import Clock, Disk, InlineDisk, Pace, Patience
from libs.trading.panic.picture import Picture
from libs.trading.panic.record import Opened, Record, Request
from libs.trading.panic.report import whose
from libs.trading.panic.steps import Steps, described
from libs.trading.panic.underway import Underway

_READS = 2
_BACKOFF_S = (0.25, 0.5, 1.0, 2.0, 4.0)

T = TypeVar("T")


def _silent(_: str) -> None:
    return None


class PanicExit:
    """One exit. `say` gets the lines a person should see.

    `opened` tells what was done for it already; the halt is looked for and put in place in any case.
    """

    def __init__(
        self,
        request: Request,
        *,
        broker: Broker,
        clock: Clock,
        journal: Journal,
        halt_file: HaltFile,
        entry_lock: EntryLock,
        disk: Disk | None = None,
        patience: Patience | None = None,
        say: Callable[[str], None] = _silent,
        opened: Opened | None = None,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._patience = patience or Patience()
        disk = disk or InlineDisk()
        self._record = Record(
            request,
            journal=journal,
            halt_file=halt_file,
            disk=disk,
            clock=clock,
            patience=self._patience,
            say=say,
            opened=opened or Opened(),
            broker=whose(broker.address),
        )
        self._underway = Underway(
            self._record, broker, lock=entry_lock, disk=disk, clock=clock, patience=self._patience
        )
        self._last: Picture | None = None
        self._looked = clock.monotonic()
        self._written: object = None

    async def run(self) -> dict[str, Any]:
        """Exit, and give the answer: the contract's fields. An exit that had ended gives the answer it gave then.

        Cancelling the task stops it where it is, as a kill would; it can be run again with the same id.
        """
        record = self._record
        answer = await self._guarded("the beginning", record.begin())
        if answer is not None:
            return answer
        until = self._clock.monotonic() + self._patience.overall_s
        steps = Steps(record, self._broker, self._clock, patience=self._patience, until=until)
        state = await self._guarded("the rounds", self._rounds(steps))
        answer = self._answer(state or self._unreached())
        await record.write("ended", answer)
        return answer

    async def _guarded(self, what: str, step: Awaitable[T]) -> T | None:
        """Whatever surprises one step must not keep the exit from the next one."""
        try:
            done = await step
        except Exception as error:  # noqa: BLE001 - see above
            self._record.failed(what, error)
            return None
        self._record.errors.pop(what, None)
        return done

    async def _rounds(self, steps: Steps) -> str:
        number = 0
        while True:
            number += 1
            state = await self._round(steps, number)
            if state is not None:
                return state
            if steps.time_is_up:
                if self._looked < steps.until:
                    await self._guarded("the last look", self._look(steps))
                return self._unreached()
            await self._clock.sleep(_BACKOFF_S[min(number, len(_BACKOFF_S)) - 1])

    async def _round(self, steps: Steps, number: int) -> str | None:
        """The first round tries everything once, however long the broker takes."""
        if number > 1:
            self._record.say(f"round {number}")
            await self._guarded("the halt", self._record.halt())
        await self._guarded("cancelling", steps.cancel_all(number))
        orders = None
        if number == 1 or not steps.time_is_up:
            orders = await self._guarded("waiting for orders", steps.until_no_order(first=number == 1))
        if number == 1 or not steps.time_is_up:
            await self._guarded("closing", steps.close_all(number, orders))
        return await self._guarded("looking", self._settle(steps))

    async def _settle(self, steps: Steps) -> str | None:
        """Look until the end is certain; None where another round is needed."""
        watch = _Watch(self._clock, self._patience)
        pace = Pace(self._clock)
        self._written, empty = None, 0
        at_least = self._clock.monotonic() + self._patience.grace_s
        await self._record.write("verify", {})
        while empty or not steps.time_is_up or self._clock.monotonic() < at_least:
            quiet = await self._underway.over()
            picture = await self._look(steps)
            if watch.stands(picture) and quiet and await steps.market_is_closed():
                return "PENDING_MARKET_OPEN"
            certain = quiet or not self._record.halted
            empty = watch.empty(picture, certain=certain)
            if empty >= _READS:
                return "FLAT" if self._record.halted else self._unreached()
            if empty:
                await self._clock.sleep(self._patience.apart_s)
                continue
            if picture is not None and picture.empty:
                await self._underway.waits()  # there is nothing to cancel or to close meanwhile
            elif watch.another_round(picture) or (picture is None and not steps.answered):
                return None
            await pace.rest()
        return None

    async def _look(self, steps: Steps) -> Picture | None:
        self._looked = self._clock.monotonic()
        picture = await steps.look()
        await self._saw(picture)
        return picture

    async def _saw(self, picture: Picture | None) -> None:
        self._last = picture
        if picture is None or picture.summary() == self._written:
            return
        # A close whose answer was lost may have made these; the journal is to know the exit's own orders.
        unknown = [order for order in picture.closing_orders() if order.id not in self._record.counted.closing]
        if unknown:
            await self._record.write("close_seen", {"orders": [described(order) for order in unknown]})
        self._written = picture.summary()
        await self._record.write("read", picture.summary())
        self._record.say(f"{len(picture.orders)} orders open, {len(picture.positions)} positions held")

    def _unreached(self) -> str:
        return "PARTIAL" if self._record.counted.did_something else "FAILED"

    def _answer(self, state: str) -> dict[str, Any]:
        record = self._record
        until = record.halted_until
        return {
            "ok": state == "FLAT",
            "exit_id": str(record.request.exit_id),
            "state": state,
            "positions_closed": record.counted.positions_closed,
            "orders_cancelled": record.counted.orders_cancelled,
            "failures": self._failures(state),
            "ttl_minutes": record.request.ttl_minutes,
            "halted_until": None if until is None else until.isoformat(),
        }

    def _failures(self, state: str) -> list[str]:
        lasting = list(self._record.troubles.values())
        if state in {"FLAT", "PENDING_MARKET_OPEN"}:
            return lasting
        if self._last is None:
            lasting.append("at the end the broker could not be read, so what is held and open is not known")
        else:
            lasting += self._last.left()
            if self._last.empty:
                lasting.append("the account looked flat, but that could not be verified twice with entries stopped")
        return lasting + [f"{what}: {error}" for what, error in self._record.errors.items()]


class _Watch:
    """What consecutive looks have in common."""

    def __init__(self, clock: Clock, patience: Patience) -> None:
        self._clock = clock
        self._closed_s = patience.closed_s
        self._until = clock.monotonic() + patience.fill_s
        self._empty = 0
        self._unattended: frozenset[str] = frozenset()
        self._standing: tuple[Picture, float] | None = None

    def empty(self, picture: Picture | None, *, certain: bool) -> int:
        """How many reads in a row, this one included, found nothing; one that is not `certain` counts for none."""
        self._empty = self._empty + 1 if picture is not None and picture.empty and certain else 0
        return self._empty

    def stands(self, picture: Picture | None) -> bool:
        """Whether only closing orders are open, unchanged for long enough to believe that nothing fills."""
        if picture is None or not picture.closing_only or picture.never_waits:
            self._standing = None
            return False
        now = self._clock.monotonic()
        if self._standing is None or _essence(self._standing[0]) != _essence(picture):
            self._standing = (picture, now)
            return False
        return now - self._standing[1] >= self._closed_s

    def another_round(self, picture: Picture | None) -> bool:
        """Whether waiting is of no use: the same thing is unattended in two reads in a row, or it took too long."""
        before, self._unattended = self._unattended, frozenset() if picture is None else picture.unattended()
        return bool(before & self._unattended) or self._clock.monotonic() >= self._until


def _essence(picture: Picture) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    orders = frozenset((order.id, str(order.remaining)) for order in picture.orders)
    return orders, frozenset((position.symbol, str(position.qty)) for position in picture.positions)
