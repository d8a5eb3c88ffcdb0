"""What the watchdog was told to do, as plain values.

The settings are read, checked and reported by a short-lived process of their own, since the library that does it would
take a third of the memory that the watchdog may use for as long as it runs.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field


class PlanError(Exception):
    """The settings cannot be read; what is wrong with them was already said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings of services.watchdog.settings under the same names, with their commands taken apart into words."""

    reader: str
    container: str
    docker_host: str
    gpu: str
    cards: int
    """How many lines a reading has; 0 where a command of one's own says that itself."""
    read_command: list[str]
    read_timeout_s: float
    limit_mib: float
    readings: int
    interval_s: float
    cooldown_s: float
    budget: int
    budget_window_s: float
    drain_url: str
    drain_command: list[str]
    drain_timeout_s: float
    restart_command: list[str]
    restart_timeout_s: float
    stop_grace_s: int
    health_url: str
    health_timeout_s: float
    metrics_port: int
    host: str
    webhook: str | None = field(repr=False)

    @property
    def subject(self) -> str:
        """What is restarted, in words for a person."""
        return self.container or " ".join(self.restart_command)


def read_plan() -> Plan:
    """The plan of this environment. Raises `PlanError`; the reason went to stderr."""
    asked = [sys.executable, "-m", "services.watchdog.settings"]
    done = subprocess.run(asked, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        raise PlanError
    return Plan(**json.loads(done.stdout))
