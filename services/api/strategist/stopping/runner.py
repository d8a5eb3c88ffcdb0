"""Panic exits as processes: started in a session of their own, followed, never held up by this one.

Whatever happens to this process afterwards stops none of them. What an exit did is read from its answer and its journal
on this disk, so none of it needs Postgres.
"""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import structlog
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.settings import Flag, Settings
from libs.trading.broker.client import Broker
from libs.trading.halt import HaltFile
from libs.trading.journal import Entry, Journal
from libs.trading.panic.report import JOURNAL_NAME, entries_of, latest, result_of, unfinished
from services.api.strategist.stopping.child import RESUME, Child

LOOK_S = 0.05
AT_ONCE = 2

log = structlog.get_logger(__name__)


class PanicRouteSettings(Settings):
    """The panic exit over HTTP; `make panic` needs none of it."""

    enable_panic_exit: Flag = Field(
        default=False, description="Open the route of the panic exit; the file panic.enabled in LOCAL_STATE does too."
    )
    panic_wait_s: float = Field(
        default=30, gt=0, le=600, allow_inf_nan=False, description="Longest the route waits before it answers RUNNING."
    )


class NoAnswer(Exception):
    """A dry run ended without an answer, or did not end, or no process could be started; the message says which."""


@dataclass(frozen=True, slots=True)
class _Exit:
    id: UUID
    child: Child
    ttl_minutes: int

    @property
    def goes_on(self) -> bool:
        return not self.child.over and self.child.result() is None


class PanicRunner:
    """Starts exits whose state is in the folder `state`, and reads what became of them.

    `environment` is what their processes get.
    """

    def __init__(
        self, state: Path, settings: PanicRouteSettings, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._state = state.resolve()
        self._flag = settings.enable_panic_exit
        self._wait_s = settings.panic_wait_s
        self.environment = dict(os.environ if environment is None else environment)
        self._children: list[Child] = []
        self._exits: list[_Exit] = []
        self._rehearsal: asyncio.Task[dict[str, Any]] | None = None
        self._journal = Journal(self._state / JOURNAL_NAME)

    @property
    def enabled(self) -> bool:
        """Whether the route is open. A folder that cannot be read opens nothing."""
        try:
            return self._flag or (self._state / "panic.enabled").exists()
        except OSError as error:
            log.warning("panic_enabled_unreadable", error=str(error))
            return False

    @property
    def processes(self) -> list[int]:
        """The ids of the processes of exits that were started here and still run. A dry run is none."""
        self._children = [child for child in self._children if not child.over]
        return [child.pid for child in self._children]

    async def exit(self, *, reason: str, ttl_minutes: int) -> dict[str, Any]:
        """Start an exit at once and give its answer; RUNNING when the time to wait is over, and it goes on.

        A second process joins the first and takes over where that stalls; requests beyond them share its answer, since
        a hundred processes would only slow down the one at work. Raises `NoAnswer` where none can be started.
        """
        self._exits = [one for one in self._exits if one.goes_on]
        if len(self._exits) >= AT_ONCE:
            return await self._follow(self._exits[-1])
        exit_id = uuid4()
        child = self._start(f"--exit-id={exit_id}", f"--reason={reason}", f"--ttl-minutes={ttl_minutes}")
        self._children.append(child)
        log.warning("panic_exit_started", exit_id=str(exit_id), pid=child.pid, reason=reason)
        started = _Exit(exit_id, child, ttl_minutes)
        self._exits.append(started)
        return await self._follow(started)

    async def rehearse(self, *, reason: str, ttl_minutes: int) -> dict[str, Any]:
        """What an exit would do; the process only reads. Raises `NoAnswer`.

        There is one at a time, and whoever asks meanwhile gets what it read: a crowd of them would slow down an exit.
        """
        if self._rehearsal is None or self._rehearsal.done():
            self._rehearsal = asyncio.create_task(self._rehearse(reason))
        result = await asyncio.shield(self._rehearsal)
        until = datetime.now(UTC) + timedelta(minutes=ttl_minutes)
        return result | {"ttl_minutes": ttl_minutes, "halted_until": until.isoformat()}

    async def _rehearse(self, reason: str) -> dict[str, Any]:
        child = self._start("--dry-run", f"--reason={reason}")
        until = time.monotonic() + self._wait_s
        while not child.over:
            if time.monotonic() >= until:
                child.kill()
                raise NoAnswer(f"the dry run did not end within {self._wait_s:g} s")
            await asyncio.sleep(LOOK_S)
        result = child.result()
        if result is None:
            raise NoAnswer(f"the dry run gave no answer: {child.last_words()}")
        return result

    def resume(self) -> None:
        """Go on with an exit that was cut off, in a process that nobody waits for. Raises `NoAnswer`."""
        child = self._start(RESUME)
        self._children.append(child)
        log.warning("panic_exit_resumed", pid=child.pid)

    async def entries(self, exit_id: UUID) -> list[Entry]:
        """What the journal on this disk has of an exit. Raises `OSError`."""
        return await asyncio.to_thread(entries_of, self._journal, exit_id)

    async def latest(self) -> UUID | None:
        """The exit that began last on this disk, None without one. Raises `OSError`."""
        return await asyncio.to_thread(latest, self._journal)

    def _start(self, *arguments: str) -> Child:
        """Start a process. On the loop itself: it takes milliseconds, and must not queue behind anything."""
        try:
            return Child(self._state, list(arguments), self.environment)
        except OSError as error:
            raise NoAnswer(f"no process can be started ({error}); use `make panic` on the machine") from error

    async def _follow(self, running: _Exit) -> dict[str, Any]:
        """The answer as soon as the process gives it; it may still be telling the webhook then.

        A process that was killed is resumed by the watch, and the journal says what becomes of it.
        """
        until = time.monotonic() + self._wait_s
        while time.monotonic() < until:
            over = running.child.over
            result = running.child.result()
            if result is not None:
                return result
            if over:
                known = await self._known(running)
                if known is None:
                    return _unknown(running, state="FAILED", failures=[running.child.last_words()])
                if known["state"] != "RUNNING":
                    return known
            await asyncio.sleep(LOOK_S)
        return await self._known(running) or _unknown(running, state="RUNNING", failures=[])

    async def _known(self, running: _Exit) -> dict[str, Any] | None:
        """What the journal says of it, or of the exit that is under way in its place."""
        try:
            entries = await self.entries(running.id)
            other = None if entries else await asyncio.to_thread(unfinished, self._journal)
            entries = entries if other is None else await self.entries(other)
        except OSError as error:
            log.warning("panic_journal_unreadable", error=str(error))
            return None
        return result_of(entries) if entries else None


@dataclass(frozen=True, slots=True)
class PanicState:
    """What the routes of halt, panic exit and re-arm stand on."""

    engine: AsyncEngine
    broker: Broker
    halt_file: HaltFile
    runner: PanicRunner


def _unknown(running: _Exit, *, state: str, failures: Sequence[str]) -> dict[str, Any]:
    """The answer where the journal has nothing of an exit."""
    return {
        "ok": False,
        "exit_id": str(running.id),
        "state": state,
        "positions_closed": 0,
        "orders_cancelled": 0,
        "failures": list(failures),
        "ttl_minutes": running.ttl_minutes,
        "halted_until": None,
    }
