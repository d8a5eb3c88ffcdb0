"""The watch: a reading every interval, what it leads to, and the words for it."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from services.watchdog.alarm import Alarm
from services.watchdog.counting import Count, Limits, Step, anew, budget_left, judge, restarted
from services.watchdog.plan import Plan
from services.watchdog.readings import Reader, UnreadableError, shown
from services.watchdog.restarts import Restarter, RestartError
from services.watchdog.vitals import (
    BUDGET_LEFT,
    BUDGET_SPENT,
    IN_A_ROW,
    MEMORY,
    MIB,
    READ_AT,
    READINGS,
    RESTARTING,
    RESTARTS,
    Vitals,
)

BLIND_AFTER = 10
"""Readings in a row that could not be had after which somebody is told."""

log = structlog.get_logger(__name__)


class Watch:
    """Reads, counts and acts. `clock` goes only forward."""

    def __init__(
        self, plan: Plan, *, reader: Reader, restarter: Restarter, alarm: Alarm, vitals: Vitals,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._reader = reader
        self._restarter = restarter
        self._alarm = alarm
        self._vitals = vitals
        self._clock = clock
        self._limits = Limits(plan.limit_mib, plan.readings, plan.cooldown_s, plan.budget, plan.budget_window_s)
        self._count = Count()
        self._life: str = ""
        self._blind = 0

    async def run(self) -> None:
        """Watch until cancelled. A reading that would have fallen into a restart is left out."""
        due = self._clock()
        while True:
            await self.step()
            now = self._clock()
            due += self._plan.interval_s * max(1, math.ceil((now - due) / self._plan.interval_s))
            await asyncio.sleep(due - now)

    async def step(self) -> None:
        """One reading and what it leads to."""
        reading = await self._read()
        self._count, step = judge(self._count, reading, now=self._clock(), limits=self._limits)
        READINGS.labels("over" if step in {Step.RESTART, Step.COOLING, Step.SPENT} else step.value).inc()
        if reading is not None:
            in_a_row = self._count.in_a_row
            log.info("reading", mib=reading, limit_mib=self._plan.limit_mib, over_in_a_row=in_a_row, step=step.value)
            self._tell_spent(step, reading)
        if step is Step.COOLING:
            log.warning("restart_waits", reason="cool-down", mib=reading)
        if step is Step.RESTART and reading is not None:
            await self._restart(reading)
        IN_A_ROW.set(self._count.in_a_row)
        BUDGET_LEFT.set(budget_left(self._count, now=self._clock(), limits=self._limits))

    async def _read(self) -> float | None:
        try:
            reading = await self._reader()
        except UnreadableError as error:
            self._vitals.unreadable = str(error)
            self._blind += 1
            MEMORY.set(math.nan)
            log.warning("unreadable", reason=str(error), in_a_row=self._blind)
            if self._blind == BLIND_AFTER:
                self._alarm.tell("watchdog_blind", f"the card's memory was unreadable {BLIND_AFTER} times: {error}")
            return None
        self._vitals.unreadable, self._blind = None, 0
        MEMORY.set(reading.mib * MIB)
        READ_AT.set(time.time())
        if reading.life != self._life:  # what was counted of the one before says nothing about this one
            self._count, self._life = anew(self._count), reading.life
        return reading.mib

    def _tell_spent(self, step: Step, reading: float) -> None:
        first = self._vitals.spent is None
        self._vitals.spent = None
        BUDGET_SPENT.set(step is Step.SPENT)
        if step is Step.SPENT:
            plan = self._plan
            self._vitals.spent = f"the budget of {plan.budget} restarts in {plan.budget_window_s:g} s is used up"
            text = f"{plan.subject}: {shown(reading)} MiB of {shown(plan.limit_mib)}, and {self._vitals.spent}"
            if first:
                self._alarm.tell("watchdog_budget", text)
            else:
                log.error("budget_spent", text=text)

    async def _restart(self, reading: float) -> None:
        """Drain, restart and wait. The restart counts however it ends: a budget is for the tries."""
        subject, begun = self._plan.subject, self._clock()
        log.warning("restarting", subject=subject, mib=reading, readings=self._count.in_a_row)
        outcome, text = "failed", ""
        RESTARTING.set(1)
        try:
            await self._restarter.drain()
            await self._restarter.restart()
            back = await self._restarter.back()
        except RestartError as error:
            text = f"{subject} was not restarted: {error}"
        else:
            outcome = "restarted" if back is None else "back" if back else "not_back"
            text = f"{subject} did not answer {self._plan.health_url} after its restart" if back is False else ""
        self._count = restarted(self._count, now=self._clock(), limits=self._limits)
        RESTARTS.labels(outcome).inc()
        READ_AT.set(time.time())  # nothing was to be read until now
        RESTARTING.set(0)
        seconds = round(self._clock() - begun, 1)
        log.warning("restart_ended", subject=subject, outcome=outcome, seconds=seconds)
        self._vitals.restart = text or None
        if text:
            self._alarm.tell("watchdog_restart_failed", text)
        else:
            self._alarm.tell("watchdog_restart", f"{subject} was restarted at {shown(reading)} MiB: {outcome}")
