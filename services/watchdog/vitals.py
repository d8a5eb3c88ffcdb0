"""What the watchdog counts, and what of it `/ready` shows."""

import time

from prometheus_client import Counter, Gauge

MIB = 2**20

MEMORY = Gauge("lexi_watchdog_memory_bytes", "Memory of the card in use at the last reading; NaN where it failed.")
LIMIT = Gauge("lexi_watchdog_limit_bytes", "Memory above which a reading counts towards a restart.")
READINGS = Counter("lexi_watchdog_readings_total", "Readings of the card's memory, by what they led to.", ["outcome"])
IN_A_ROW = Gauge("lexi_watchdog_over_in_a_row", "Readings above the limit in a row.")
READ_AT = Gauge(
    "lexi_watchdog_read_timestamp_seconds",
    "When the memory was last read, or the start or a restart's end, in Unix time.",
)
RESTARTING = Gauge("lexi_watchdog_restarting", "1 while a restart is under way, in which nothing is read.")
RESTARTS = Counter("lexi_watchdog_restarts_total", "Restarts by what came of them.", ["outcome"])
BUDGET_LEFT = Gauge("lexi_watchdog_budget_left", "Restarts that may still be made within the window.")
BUDGET_SPENT = Gauge("lexi_watchdog_budget_spent", "1 while a restart is due and none is left in the budget.")

RESTART_OUTCOMES = ("back", "restarted", "not_back", "failed")


class Vitals:
    """The lines of `/ready`, by name: None is green."""

    def __init__(self, *, limit_mib: float, budget: int) -> None:
        self.unreadable: str | None = "not read yet"
        self.spent: str | None = None
        self.restart: str | None = None
        LIMIT.set(limit_mib * MIB)
        BUDGET_LEFT.set(budget)
        READ_AT.set(time.time())
        for outcome in RESTART_OUTCOMES:
            RESTARTS.labels(outcome)  # so that the first one is an increase

    def ready(self) -> tuple[bool, str]:
        """Whether all is green, and the lines for a person."""
        lines = {"memory": self.unreadable, "budget": self.spent, "restart": self.restart}
        shown = [f"green  {name}" if why is None else f"red    {name}: {why}" for name, why in lines.items()]
        return not any(lines.values()), "".join(f"{line}\n" for line in shown)
