"""What a panic exit knows of itself: its journal, its tally, what went wrong, and whether the halt stands."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from libs.trading.broker.errors import BrokerError
from libs.trading.halt import EntryLock, HaltFile, new_halt
from libs.trading.journal import Entry, Journal
from libs.trading.panic.ground import Clock, Disk, Patience
from libs.trading.panic.report import Tally, begun, ended, tally

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. The exit's id is the halt's id too."""

    exit_id: UUID
    reason: str = "panic_exit"
    ttl_minutes: int = 60


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
        entry_lock: EntryLock,
        disk: Disk,
        clock: Clock,
        patience: Patience,
        say: Callable[[str], None],
        troubles: Mapping[str, str],
        halted: bool,
    ) -> None:
        self.request = request
        self.say = say
        self.counted = Tally()
        self.troubles = dict(troubles)
        self.errors: dict[str, str] = {}
        self.halted = halted
        self.halted_until: datetime | None = None
        self._halted_at = clock.monotonic()
        self._entry_s = patience.entry_s
        self._quiet = False
        self._journal, self._halt_file, self._entry_lock = journal, halt_file, entry_lock
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
            await self.write("begun", self._beginning())
            return None
        ttl = said.get("ttl_minutes")
        ttl_minutes = ttl if isinstance(ttl, int) else self.request.ttl_minutes
        self.request = Request(self.request.exit_id, str(said.get("reason")), ttl_minutes)
        if not self.halted and said.get("halted_until"):
            self.halted_until = datetime.fromisoformat(str(said["halted_until"]))
        await self.write("resumed", {"steps_before": len(before)})
        return None

    def _beginning(self) -> dict[str, Any]:
        return {
            "reason": self.request.reason,
            "ttl_minutes": self.request.ttl_minutes,
            "halted_until": None if self.halted_until is None else self.halted_until.isoformat(),
            "dry_run": False,
        }

    async def _recall(self) -> list[Entry]:
        try:
            before = await self._disk.do(lambda: self._journal.entries(self.request.exit_id))
            self.counted = tally(before)
            return before
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._journal_trouble(error)
            return []

    async def halt(self) -> None:
        """Put the halt in place, or try again; a halt that stood before stays."""
        request = self.request
        wanted = new_halt(request.exit_id, request.reason, at=self._clock.now(), ttl_minutes=request.ttl_minutes)
        try:
            note = await self._disk.do(lambda: self._halt_file.write(wanted))
            standing = await self._disk.do(self._halt_file.read)
        except OSError as error:
            stood = self.halted
            self.halted = await self._stands()
            if not (stood and self.halted):
                self.troubles["halt"] = f"the halt file could not be written: {error}"
            if not self.halted:
                self.say(f"ENTRIES ARE NOT STOPPED: {self.troubles['halt']}")
        else:
            self.halted = True
            self.halted_until = (standing or wanted).halted_until
            self.troubles.pop("halt", None)
            if note:
                self.troubles["halt content"] = note
        if self.halted_until is None:
            self.halted_until = wanted.halted_until

    async def _stands(self) -> bool:
        """Whether whoever asks is halted, be it by a folder that cannot be read. No answer changes nothing."""
        try:
            return await self._disk.do(self._halt_file.reason) is not None
        except OSError:
            return self.halted

    async def entries_quiet(self) -> bool:
        """Whether no entry can reach the broker any more: the halt stands, and none was on its way since."""
        if self.halted and not await self._stands():
            self._quiet = False
            self._halted_at = self._clock.monotonic()
            await self.halt()
        if self._quiet or not self.halted:
            return self._quiet
        try:
            self._quiet = await self._disk.do(self._entry_lock.nobody_sending_now)
        except OSError as error:
            self.troubles["entries"] = f"whether an entry was on its way could not be read: {error}"
            self._quiet = self._clock.monotonic() - self._halted_at >= self._entry_s
        return self._quiet

    async def write(self, action: str, result: Mapping[str, Any]) -> None:
        """Count a step and write it to the journal. A journal that cannot be written never stops anything."""
        self.counted.take(action, result)
        try:
            await self._disk.do(lambda: self._journal.append(self.request.exit_id, action, result))
        except (OSError, ValueError) as error:
            self._journal_trouble(error)

    def _journal_trouble(self, error: Exception) -> None:
        if "journal" not in self.troubles:
            self.say(f"the journal cannot be written ({error}); going on without")
            self.troubles["journal"] = f"the journal could not be written: {error}"

    async def attempt(self, what: str, call: Awaitable[T]) -> T | None:
        """What a call to the broker gives, None where it failed; the failure is kept by what was tried."""
        try:
            value = await call
        except BrokerError as error:
            if self.errors.get(what) != str(error):
                self.say(f"{what}: {error}")
            self.errors[what] = str(error)
            return None
        self.errors.pop(what, None)
        return value
