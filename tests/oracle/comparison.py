"""How far our answers may be from the oracles', and how far they are."""

from dataclasses import dataclass

from tests.oracle.cases import Numbers

MOST = 1e-9  # relative, or absolute where the number is below one
MOST_ABOVE = 0.15
"""Our one-sided boundary bounds in closed form the one that ville solves for: never below it, at most so far above."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of all cases: how many, the worst deviation, and whether it is within what is allowed."""

    name: str
    cases: int
    worst: float
    passed: bool


def compare(ours: dict[str, list[Numbers]], theirs: dict[str, list[Numbers]]) -> list[Compared]:
    """Every figure, ours beside theirs."""
    columns = [
        ("confidence sequence, low, gbstats", "two_samples", 0),
        ("confidence sequence, high, gbstats", "two_samples", 1),
        ("always-valid p, gbstats", "two_samples", 2),
        ("two-sided boundary, ville", "margins", 0),
        ("evidence of a rate, ville", "rates", 0),
    ]
    found: list[Compared] = []
    for name, part, column in columns:
        pairs = _pairs(ours, theirs, part=part, column=column)
        worst = max(abs(mine - other) / max(1.0, abs(other)) for mine, other in pairs)
        found.append(Compared(name, len(pairs), worst, worst <= MOST))
    over = [mine / other - 1 for mine, other in _pairs(ours, theirs, part="margins", column=1)]
    within = 0 <= min(over) <= max(over) <= MOST_ABOVE
    found.append(Compared("one-sided boundary, never below ville's", len(over), max(over), within))
    return found


def _pairs(
    ours: dict[str, list[Numbers]], theirs: dict[str, list[Numbers]], *, part: str, column: int
) -> list[tuple[float, float]]:
    return [(mine[column], other[column]) for mine, other in zip(ours[part], theirs[part], strict=True)]
