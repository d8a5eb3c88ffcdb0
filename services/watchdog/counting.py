"""When to restart: a pure function from what was counted, a reading and the time to what to do.

Strictly above the limit on so many readings in a row asks for a restart. A reading at or below it starts the count
anew; one that could not be had counts neither way. A cool-down after each restart and a budget of them stand against
restarting in circles. `now` is a clock that only goes forward: the time of day plays no part.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class Step(StrEnum):
    """What a reading leads to."""

    UNREADABLE = "unreadable"
    WITHIN = "within"
    OVER = "over"
    RESTART = "restart"
    COOLING = "cooling"
    SPENT = "spent"


@dataclass(frozen=True, slots=True)
class Limits:
    """The rules. A restart is asked for above `limit_mib` on `readings` readings in a row."""

    limit_mib: float
    readings: int
    cooldown_s: float
    budget: int
    window_s: float


@dataclass(frozen=True, slots=True)
class Count:
    """What is remembered: readings above the limit in a row, and when restarts were made, oldest first."""

    in_a_row: int = 0
    restarts: tuple[float, ...] = ()


def judge(count: Count, reading_mib: float | None, *, now: float, limits: Limits) -> tuple[Count, Step]:
    """What a reading leads to, and what to remember. None is a reading that could not be had."""
    if reading_mib is None:
        return count, Step.UNREADABLE
    if reading_mib <= limits.limit_mib:
        return replace(count, in_a_row=0), Step.WITHIN
    count = replace(count, in_a_row=count.in_a_row + 1)
    if count.in_a_row < limits.readings:
        return count, Step.OVER
    if count.restarts and now - count.restarts[-1] < limits.cooldown_s:
        return count, Step.COOLING
    if budget_left(count, now=now, limits=limits) == 0:
        return count, Step.SPENT
    return count, Step.RESTART


def anew(count: Count) -> Count:
    """What to remember where something else is read than before. The cool-down and the budget stand."""
    return replace(count, in_a_row=0)


def restarted(count: Count, *, now: float, limits: Limits) -> Count:
    """What to remember once a restart was made or tried. The cool-down begins here, and the count starts anew."""
    longest = max(limits.window_s, limits.cooldown_s)
    return Count(restarts=(*(at for at in count.restarts if now - at < longest), now))


def budget_left(count: Count, *, now: float, limits: Limits) -> int:
    """How many restarts may still be made within the window that ends now."""
    return max(0, limits.budget - sum(now - at < limits.window_s for at in count.restarts))
