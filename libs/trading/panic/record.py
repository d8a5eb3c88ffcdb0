"""What a panic exit knows of itself: its journal, its tally, what went wrong, and whether the halt stands."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from libs.trading.broker.errors import BrokerError
from libs.trading.halt import HaltFile, new_halt
from libs.trading.journal import Entry, Journal
from libs.trading.panic.ground import Clock, Disk, Patience
from libs.trading.panic.report import Tally, Whose, beginning, begun, ended, tally

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. The exit's id is the halt's id too."""

    exit_id: UUID
    reason: str = "panic_exit"
    ttl_minutes: int = 60


@dataclass(frozen=True, slots=True)
class Opened:
    """What was done for an exit before it: failures met, by name, whether the halt stands and the beginning is written.

    `until` is the earliest re-arm that somebody asked for who joined an exit which had begun before.
    """

    troubles: Mapping[str, str] = field(default_factory=dict[str, str])
    halted: bool = False
    begun: bool = False
    until: datetime | None = None


class Record:
    """The memory of one exit, kept on the disk as far as the disk allows.

    `troubles` last to the end and are part of every answer; `errors` are of the broker, by what was tried, and vanish
    when it succeeds later.
    """

    def __init__(
        self,
        request: Request,
        *,
        journal: Journal,
        halt_file: HaltFile,
        disk: Disk,
        clock: Clock,
        patience: Patience,
        say: Callable[[str], None],
        opened: Opened,
        broker: Whose | None,
    ) -> None:
        self.request = request
        self.say = say
        self.counted = Tally()
        self.troubles = dict(opened.troubles)
        self.errors: dict[str, str] = {}
        self.halted = opened.halted
        self.halted_until: datetime | None = None
        self._file_until: datetime | None = None
        self._opened, self._broker = opened, broker
        self._beat_s, self._wrote = patience.beat_s, clock.monotonic()
        self._journal, self._halt_file = journal, halt_file
        self._disk, self._clock = disk, clock

    async def begin(self) -> dict[str, Any] | None:
        """Halt, recall what was done before, and write down the beginning. An exit that had ended gives its answer."""
        await self.halt()
        before = await self._recall()
        answer = ended(before)
        if answer is not None:
            return answer
        said = begun(before)
        if said is None:
            request, until = self.request, self.halted_until
            what = beginning(request.reason, request.ttl_minutes, halted_until=until, broker=self._broker)
            await self.write("begun", what)
            return None
        ttl = said.get("ttl_minutes")
        ttl_minutes = ttl if isinstance(ttl, int) else self.request.ttl_minutes
        self.request = Request(self.request.exit_id, str(said.get("reason")), ttl_minutes)
        self.halted_until = later(_moment(said.get("halted_until")) or self.halted_until, self._file_until)
        self.halted_until = later(self.halted_until, self._opened.until)
        if not self._opened.begun:
            await self.write("resumed", {"steps_before": len(before)})
        return None

    async def _recall(self) -> list[Entry]:
        try:
            before = await self._disk.do(lambda: self._journal.entries(self.request.exit_id))
            self.counted = tally(before)
            return before
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._journal_trouble(error)
            return []

    async def halt(self) -> None:
        """Put the halt in place, or try again. A halt that stood before stays, and the later of their ends holds."""
        request = self.request
        wanted = new_halt(request.exit_id, request.reason, at=self._clock.now(), ttl_minutes=request.ttl_minutes)
        try:
            note = await self._disk.do(lambda: self._halt_file.write(wanted))
            standing = await self._disk.do(self._halt_file.read)
        except OSError as error:
            stood = self.halted
            self.halted = await self.stands()
            if not (stood and self.halted):
                self.troubles["halt"] = f"the halt file could not be written: {error}"
            if not self.halted:
                self.say(f"ENTRIES ARE NOT STOPPED: {self.troubles['halt']}")
        else:
            self.halted = True
            self._file_until = None if standing is None else standing.halted_until
            if standing is not None and standing.id == request.exit_id:
                self.halted_until = self.halted_until or standing.halted_until
            self.troubles.pop("halt", None)
            if note:
                self.troubles["halt content"] = note
        self.halted_until = later(self.halted_until or wanted.halted_until, self._file_until)

    async def stands(self) -> bool:
        """Whether whoever asks is halted, be it by a folder that cannot be read. No answer changes nothing."""
        try:
            return await self._disk.do(self._halt_file.reason) is not None
        except OSError:
            return self.halted

    async def write(self, action: str, result: Mapping[str, Any]) -> None:
        """Count a step and write it to the journal. A journal that cannot be written never stops anything."""
        self._wrote = self._clock.monotonic()
        try:
            self.counted.take(action, result)
            await self._disk.do(lambda: self._journal.append(self.request.exit_id, action, result))
        except Exception as error:  # noqa: BLE001 - whatever it is, the exit goes on
            self._journal_trouble(error)

    async def _beat(self) -> None:
        """Show those who follow the journal that the exit is at work."""
        if self._clock.monotonic() - self._wrote >= self._beat_s:
            await self.write("at_work", {})

    def _journal_trouble(self, error: Exception) -> None:
        if "journal" not in self.troubles:
            self.say(f"the journal cannot be written ({error}); going on without")
            self.troubles["journal"] = f"the journal could not be written: {error}"

    async def attempt(self, what: str, call: Awaitable[T]) -> T | None:
        """What a call to the broker gives, None where it failed; the failure is kept by what was tried."""
        value = None
        try:
            value = await call
        except Exception as error:  # noqa: BLE001 - what a broker may answer has no end, and the exit goes on
            self.failed(what, error)
        else:
            self.errors.pop(what, None)
        await self._beat()
        return value

    def failed(self, what: str, error: Exception) -> str:
        """Keep a failure by what was tried, and say it when it is new; returns it in words."""
        words = str(error) if isinstance(error, BrokerError) else f"{type(error).__name__}: {error}"
        if self.errors.get(what) != words:
            self.say(f"{what}: {words}")
        self.errors[what] = words
        return words


def later(one: datetime | None, other: datetime | None) -> datetime | None:
    """The later of two moments, the one there is where one is missing."""
    if one is None or other is None:
        return one or other
    return max(one, other)


def _moment(said: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(said))
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment
