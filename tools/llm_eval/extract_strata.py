"""Strata of a data set, and how many cases of each it takes: an average hides the errors that cost money."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from libs.evaluation.cases.case import EvalCase

ALLOWED_AND_LOST: Final = "allowed and lost"
AGAINST_RULES: Final = "model against rules"
INVALID: Final = "invalid"
BLOCKED_WOULD_HAVE_WON: Final = "blocked and would have won"
REST: Final = "the rest"
STORED: Final = (ALLOWED_AND_LOST, AGAINST_RULES, INVALID, BLOCKED_WOULD_HAVE_WON, REST)
"""Strata of stored forecasts, the most dangerous first; a forecast belongs to the first that fits."""
FROM_BARS: Final = (ALLOWED_AND_LOST, BLOCKED_WOULD_HAVE_WON, REST)
"""Strata where no model was asked yet: only the rules allow or block."""
MOST_REASONS: Final = 10


@dataclass(slots=True)
class Taken:
    """How many cases of each stratum there are, how many were taken, and how many could not be read, by reason."""

    there: dict[str, int]
    taken: dict[str, int] = field(default_factory=dict[str, int])
    unusable: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, stratum: str) -> None:
        """A case of this stratum was taken."""
        self.taken[stratum] = self.taken.get(stratum, 0) + 1

    def leave_out(self, reason: str) -> None:
        """A case could not be used."""
        self.unusable[reason] = self.unusable.get(reason, 0) + 1

    def lines(self) -> list[str]:
        """What to print: one line per stratum, one per reason."""
        width = max(len(name) for name in self.there)
        found = [
            f"  {name:<{width}}  {self.taken.get(name, 0):>6} of {count}" for name, count in self.there.items() if count
        ]
        reasons = sorted(self.unusable.items(), key=lambda entry: -entry[1])
        found += [f"  left out: {reason} ({count})" for reason, count in reasons[:MOST_REASONS]]
        if others := sum(count for _, count in reasons[MOST_REASONS:]):
            found.append(f"  left out: for other reasons ({others})")
        return found


def shares(there: Mapping[str, int], *, limit: int) -> dict[str, int]:
    """How many to take of each stratum: as many of each, and where one has fewer, more of the others.

    What is left over after equal shares goes to the first strata.
    """
    taken = dict.fromkeys(there, 0)
    left = min(limit, sum(there.values()))
    while left:
        open_strata = [name for name in there if taken[name] < there[name]]
        each = max(1, left // len(open_strata))
        for name in open_strata:
            more = min(each, there[name] - taken[name], left)
            taken[name] += more
            left -= more
    return taken


def stratum_of(case: EvalCase) -> str:
    """The stratum of a case that no model was asked about: what the rules say beside what came of it."""
    if case.target is None or case.won is None or case.made == 0:
        return REST
    if case.target:
        return REST if case.won else ALLOWED_AND_LOST
    return BLOCKED_WOULD_HAVE_WON if case.won else REST


def balanced(cases: Iterable[EvalCase], *, limit: int, seed: int) -> tuple[list[EvalCase], Taken]:
    """At most `limit` of these cases, by time, in equal shares of the strata; drawn by seed within each."""
    strata: dict[str, list[EvalCase]] = {name: [] for name in FROM_BARS}
    for case in cases:
        strata[stratum_of(case)].append(case)
    taken = Taken({name: len(members) for name, members in strata.items()})
    chance = random.Random(f"{seed}/strata")  # noqa: S311 - a sample, not a secret
    chosen: list[EvalCase] = []
    for name, share in shares(taken.there, limit=limit).items():
        chosen += chance.sample(strata[name], share)
        taken.taken[name] = share
    return by_time(chosen), taken


def by_time(cases: Sequence[EvalCase]) -> list[EvalCase]:
    """The cases by market time, then by id."""
    return sorted(cases, key=lambda case: (case.as_of, case.id))
