"""`python -m services.watchdog [--once]`: watch a card's memory, or read it once.

The exit code of `--once`: 0 at or below the limit, 1 above it, 3 unreadable, 2 where the settings cannot be read,
128 and the number of the signal that broke it off. 4 is a fault of the program's own, in both ways of running.
"""

import argparse
import signal
import sys

from services.watchdog.plan import PlanError, read_plan

# httpx and structlog load these for terminals and green threads where other services have them installed. Told that
# they are not there, both do without, and the watchdog needs a fifth less memory.
UNUSED = ("rich", "pygments", "click", "greenlet")


def end(number: int, _frame: object) -> None:
    """End at once, while the settings are read."""
    sys.exit(128 + number if asked.once else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m services.watchdog", description="Watch a card's memory.")
    parser.add_argument("--once", action="store_true", help="read once, print it, restart nothing")
    asked = parser.parse_args()
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, end)  # a container's first process is not ended by SIGTERM otherwise
    try:
        plan = read_plan()
    except PlanError:
        sys.exit(2)

    for name in UNUSED:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType] - how Python spells "not there"
    from services.watchdog.main import run

    sys.exit(run(plan, once=asked.once))
