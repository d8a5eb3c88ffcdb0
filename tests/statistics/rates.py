"""What a simulation found, in words and with its interval."""

import os
from collections.abc import Callable

from libs.statistics.intervals import wilson

RATE = "rate"
RUNS = int(os.environ.get("AA_RUNS", "200"))

Note = Callable[[str, object], None]


def noted(note: Note, *, what: str, alarms: int, runs: int, alpha: float) -> float:
    """Write down the rate of alarms for the end of the test run, and answer it."""
    found = wilson(alarms, runs)
    assert found is not None
    note(RATE, f"{found.value:6.2%} ({found.low:.2%} to {found.high:.2%}) of {runs}, allowed {alpha:.0%}: {what}")
    return found.value
