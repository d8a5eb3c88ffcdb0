"""What the api looks after by itself: copies of halts and exits, exits that were cut off, and the gauges."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.settings import load
from libs.switches import order_gate_disabled, shadow_mode
from libs.trading.broker.client import Broker
from libs.trading.halt import HaltFile
from libs.trading.halts import Position, copy_local, open_halt
from services.api.strategist.stopping.cut_off import cut_off, superseded
from services.api.strategist.stopping.halting import AWAY
from services.api.strategist.stopping.runner import PanicRouteSettings, PanicRunner, PanicState

EVERY_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0

HALTED = Gauge("lexi_halted", "Whether entries are halted: by a file, by a row, or since Postgres does not answer.")
GATE_DISABLED = Gauge("lexi_gate_disabled", "Whether the kill switch is on; NaN while Postgres does not answer.")
SHADOW_MODE = Gauge("lexi_shadow_mode", "Whether policy verdicts are only logged; NaN while Postgres does not answer.")

log = structlog.get_logger(__name__)


class Watch:
    """Looks every second, each thing on its own, so that a database that hangs holds up no exit."""

    def __init__(self, panic: PanicState, *, every_s: float = EVERY_S) -> None:
        self._panic = panic
        self._every_s = every_s
        self._state = panic.halt_file.path.parent
        self._position = Position()
        self._resume_at = 0.0
        self._pause_s = FIRST_PAUSE_S

    async def run(self) -> None:
        """Look, for ever. An exit that was cut off is gone on with at once."""
        async with asyncio.TaskGroup() as tasks:
            for name, look in (("resume", self.resume), ("copy", self.copy), ("gauges", self.measure)):
                tasks.create_task(self._keep(name, look))

    async def _keep(self, name: str, look: Callable[[], Awaitable[None]]) -> None:
        """Look again and again; what fails is logged once, until it goes well again."""
        failing = False
        while True:
            try:
                await look()
            except Exception as error:  # noqa: BLE001 - a look may fail in any way, and the next one must come
                if not failing:
                    log.warning("watch_fails", look=name, error=f"{type(error).__name__}: {error}".splitlines()[0])
                failing = True
            else:
                if failing:
                    log.info("watch_works_again", look=name)
                failing = False
            await asyncio.sleep(self._every_s)

    async def resume(self) -> None:
        """Go on with an exit that was cut off, with longer and longer pauses where that does not finish it.

        One that a person re-armed from since is written down as over instead.
        """
        if self._panic.runner.processes:
            return
        exit_id = await asyncio.to_thread(cut_off, self._state, self._panic.runner.environment)
        if exit_id is None:
            self._pause_s = FIRST_PAUSE_S
        elif time.monotonic() >= self._resume_at:
            self._resume_at = time.monotonic() + self._pause_s
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
            if not await superseded(self._panic.engine, self._state, exit_id):
                self._panic.runner.resume()

    async def copy(self) -> None:
        """Put into Postgres what this disk says about halts and exits."""
        await copy_local(self._panic.engine, self._state, self._position)

    async def measure(self) -> None:
        """Set the gauges."""
        try:
            async with self._panic.engine.connect() as connection:
                by_row = await open_halt(connection) is not None
                off, shadow = await order_gate_disabled(connection), await shadow_mode(connection)
        except AWAY:
            HALTED.set(1)
            GATE_DISABLED.set(math.nan)
            SHADOW_MODE.set(math.nan)
            raise
        HALTED.set(by_row or self._panic.halt_file.reason() is not None)
        GATE_DISABLED.set(off)
        SHADOW_MODE.set(shadow)


@asynccontextmanager
async def open_panic(engine: AsyncEngine, broker: Broker, *, state: Path) -> AsyncGenerator[PanicState, None]:
    """What the routes of halt, panic exit and re-arm stand on, with the watch over it. Raises `SettingsError`.

    Closing it ends the watch and leaves exits running.
    """
    settings = load(PanicRouteSettings)
    panic = PanicState(engine, broker, HaltFile(state), PanicRunner(state, settings))
    watching = asyncio.create_task(Watch(panic).run())
    try:
        yield panic
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
