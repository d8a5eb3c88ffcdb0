"""What the gate would have blocked and what came of it: from sums per market day to figures with intervals."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import sqrt
from typing import Literal, TypeAlias, TypeVar

from libs.statistics.intervals import (
    LEVEL,
    NOTHING,
    Cluster,
    Estimate,
    clustered_difference,
    clustered_mean,
    clustered_rate,
    student_quantile,
)
from libs.trading.reasons import Kind, Reason

LEAST_ENTRIES = 30
LEAST_DAYS = 10
"""With fewer settled entries in either group, or fewer market days in it, there is no difference and no conclusion."""

HARD = frozenset(reason.value for reason in Reason if reason.kind is Kind.HARD)
USUAL_HORIZON = "1d"

Fate: TypeAlias = Literal["allowed", "blocked", "refused_anyway"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sums:
    """First verdicts on entries that have everything named here in common, and the sums of what came of them.

    `day` is the market day of the forecast, None without one. `settled` have an outcome; `made` is the sum of their
    returns in the order's direction, `money` the same in the account's currency, `hits` how many made something.
    """

    day: date | None
    horizon: str | None
    prompt_version: str | None
    arm: str | None
    would_have: str
    reasons: tuple[str, ...]
    entries: int
    without_forecast: int
    settled: int
    made: float
    hits: int
    money: float

    @property
    def fate(self) -> Fate:
        """What enforce would do. A hard reason denies in shadow as well, so that it says nothing about lifting it."""
        if self.would_have == "allow":
            return "allowed"
        return "refused_anyway" if HARD.intersection(self.reasons) else "blocked"


@dataclass(frozen=True, slots=True)
class Group:
    """Entries with the same fate. Returns and rates are fractions; intervals are of 95 % and by market day."""

    entries: int
    settled: int
    waiting: int
    without_forecast: int
    market_days: int
    mean_return: Estimate | None
    hit_rate: Estimate | None
    money: float


@dataclass(frozen=True, slots=True)
class Split:
    """Two fates side by side; `difference` is the mean return of the allowed less that of the blocked.

    It is None where either has too little to be compared, see `LEAST_ENTRIES` and `LEAST_DAYS`.
    """

    allowed: Group
    blocked: Group
    difference: Estimate | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the route answers but the question itself."""

    total: int
    refused_anyway: int
    whole: Split
    by_version: Mapping[tuple[str | None, str | None], Split]
    by_reason: Mapping[str, Group]
    enough_data: bool
    summary: str


def report(rows: Sequence[Sums]) -> Report:
    """The report on all rows of a time."""
    compared = [row for row in rows if row.fate != "refused_anyway"]
    total = sum(row.entries for row in rows)
    refused = total - sum(row.entries for row in compared)
    whole = split(compared)
    lacking = missing(whole)
    sentence = lacking or conclusion(whole, refused=refused)
    if any(row.settled and row.horizon != USUAL_HORIZON for row in compared):
        sentence += " Horizons longer than a bar overlap, so these intervals are narrower than they should be."
    return Report(
        total=total,
        refused_anyway=refused,
        whole=whole,
        by_version={key: split(part) for key, part in parted(compared, lambda row: (row.prompt_version, row.arm))},
        by_reason=by_reason(rows),
        enough_data=lacking is None,
        summary=sentence,
    )


def parted(rows: Iterable[Sums], key: Callable[[Sums], Key]) -> Iterable[tuple[Key, list[Sums]]]:
    """Rows by a key, in an order that does not depend on the database's."""
    parts: defaultdict[Key, list[Sums]] = defaultdict(list)
    for row in rows:
        parts[key(row)].append(row)
    return sorted(parts.items(), key=lambda item: str(item[0]))


def split(rows: Sequence[Sums]) -> Split:
    """The allowed and the blocked among rows, over the same days, so that what a day did to both cancels."""
    allowed = [row for row in rows if row.fate == "allowed"]
    blocked = [row for row in rows if row.fate == "blocked"]
    first, second = group(allowed), group(blocked)
    if not (comparable(first) and comparable(second)):
        return Split(first, second, None)
    return Split(first, second, difference(allowed, blocked, fewest=min(first.market_days, second.market_days)))


def comparable(found: Group) -> bool:
    """Whether enough came of a group to be held against another."""
    return found.settled >= LEAST_ENTRIES and found.market_days >= LEAST_DAYS


def difference(allowed: Sequence[Sums], blocked: Sequence[Sums], *, fewest: int) -> Estimate | None:
    """The mean return of the allowed less that of the blocked, as sure as the one with the `fewest` days permits.

    The days of both together would lend the one with few days the certainty of the other. So quantile and correction
    are those of the fewest days: where no day is common to both, the interval is never narrower than that of either.
    What both have in common on a day still cancels.
    """
    days = sorted(settled_days((*allowed, *blocked)))
    found = clustered_difference(returns(allowed, days), returns(blocked, days))
    if found is None:
        return None
    half = (found.high - found.value) * certainty(fewest) / certainty(len(days))
    return Estimate(found.value, found.value - half, found.value + half)


def certainty(days: int) -> float:
    """How far an interval reaches for its number of days: Student's quantile with the correction for so few."""
    return student_quantile(0.5 + LEVEL / 2, freedom=days - 1) * sqrt(days / (days - 1))


def group(rows: Sequence[Sums]) -> Group:
    """What became of entries."""
    days = sorted(settled_days(rows))
    entries, settled = sum(row.entries for row in rows), sum(row.settled for row in rows)
    without = sum(row.without_forecast for row in rows)
    return Group(
        entries=entries,
        settled=settled,
        waiting=entries - settled - without,
        without_forecast=without,
        market_days=len(days),
        mean_return=clustered_mean(returns(rows, days)),
        hit_rate=clustered_rate(hits(rows, days)),
        money=sum(row.money for row in rows),
    )


def by_reason(rows: Sequence[Sums]) -> dict[str, Group]:
    """Entries that enforce would deny, under each reason they were given; one with two reasons stands under both."""
    named: defaultdict[str, list[Sums]] = defaultdict(list)
    for row in rows:
        if row.fate != "allowed":
            for reason in row.reasons:
                named[reason].append(row)
    return {reason: group(found) for reason, found in sorted(named.items())}


def settled_days(rows: Iterable[Sums]) -> set[date]:
    """The market days on which something among these has an outcome."""
    return {row.day for row in rows if row.settled and row.day is not None}


def returns(rows: Sequence[Sums], days: Sequence[date]) -> list[Cluster]:
    """What rows made on each of the days."""
    return clusters(rows, days, total=lambda row: row.made)


def hits(rows: Sequence[Sums], days: Sequence[date]) -> list[Cluster]:
    """How many made something on each of the days."""
    return clusters(rows, days, total=lambda row: float(row.hits))


def clusters(rows: Sequence[Sums], days: Sequence[date], *, total: Callable[[Sums], float]) -> list[Cluster]:
    """The rows as one cluster for each of the days, empty where nothing was settled."""
    found: defaultdict[date, list[Sums]] = defaultdict(list)
    for row in rows:
        if row.settled and row.day is not None:
            found[row.day].append(row)
    return [
        Cluster(sum(row.settled for row in found[day]), sum(total(row) for row in found[day]))
        if day in found
        else NOTHING
        for day in days
    ]


def missing(whole: Split) -> str | None:
    """The sentence that says that there is not enough to go by; None when there is."""
    allowed, blocked = whole.allowed, whole.blocked
    if whole.difference is not None:
        return None
    return (
        f"not enough data yet: {counted(allowed.settled, 'allowed')} and {blocked.settled} blocked with an outcome, "
        f"over {allowed.market_days} and {blocked.market_days} market days; at least {LEAST_ENTRIES} of each, over "
        f"{LEAST_DAYS} days each, are needed."
    )


def counted(number: int, kind: str) -> str:
    """A number of entries in words."""
    return f"{number} {kind} {'entry' if number == 1 else 'entries'}"


def conclusion(whole: Split, *, refused: int) -> str:
    """What the figures say about lifting shadow, in plain words. Costs of trading are in none of them."""
    allowed, blocked, difference = whole.allowed, whole.blocked, whole.difference
    assert difference is not None  # noqa: S101 - `missing` has seen to it
    aside = f" Another {refused} were refused for limits, in every mode." if refused else ""
    return (
        f"Of {counted(allowed.entries + blocked.entries, 'possible')} enforcing would have blocked {blocked.entries}."
        f"{aside} By the horizon and before costs the allowed made {in_per_cent(allowed.mean_return)} each, the "
        f"blocked {in_per_cent(blocked.mean_return)}. {verdict(difference)}"
    )


def verdict(difference: Estimate) -> str:
    """What the difference between both groups says."""
    ends = f"{difference.low * 100:.2f} to {difference.high * 100:.2f}"
    points = f"{abs(difference.value) * 100:.2f} percentage points (95 % interval of the difference {ends})"
    if not difference.excludes_zero:
        return f"The difference of {points} cannot be told from chance: it speaks neither for enforcing nor against."
    if difference.value > 0:
        return f"The allowed did better by {points}: this speaks for enforcing."
    return f"The blocked did better by {points}: this speaks against enforcing."


def in_per_cent(estimate: Estimate | None) -> str:
    """A return with its interval, as people read it."""
    if estimate is None:
        return "an unknown return"
    return f"{estimate.value * 100:.2f} % (95 % interval {estimate.low * 100:.2f} to {estimate.high * 100:.2f} %)"
