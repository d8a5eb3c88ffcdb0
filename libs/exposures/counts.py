"""How often the arms of an experiment failed, were slow, and allowed: what guardrails look at every few seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.judgement.assess import POLICY


@dataclass(frozen=True, slots=True)
class UnitSums:
    """Exposures by the unit that was drawn: the units, and the sums of n * n, n * t and t * t over them.

    n is how many exposures of a unit count, t how many of them are hits: failed, were slow, or allowed.
    """

    units: int
    nn: float
    nt: float
    tt: float


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """What came of one arm's exposures in a phase, by their first judgement.

    `judged` were really asked and had an answer or ran out of time, or could not be asked through a fault of their
    version; what failed for other reasons, such as a model that is away, counts for nobody. Replies from the cache do
    not count, as only valid ones are kept: an arm that was asked before would look better, and an outage would seem to
    spare it. `answered` of them have a time, `slow` took longer than was asked about. `decided` are the answers of
    the policy, kept ones among them, `allowed` those that allow; one that is not valid is a deny. `units` are by
    guardrail, and only counted where they are asked for.
    """

    arm: str
    judged: int = 0
    invalid: int = 0
    timed_out: int = 0
    answered: int = 0
    slow: int = 0
    decided: int = 0
    allowed: int = 0
    units: Mapping[str, UnitSums] = field(default_factory=dict[str, UnitSums])


@dataclass(frozen=True, slots=True)
class ArmUnits:
    """How many units an arm was given, and how many of them have an answer and an outcome."""

    assigned: int
    settled: int


_CAME = "status in ('ok', 'invalid')"
_ASKED = f"{_CAME} and cached is not true"
_JUDGED = f"({_ASKED} or timed_out)"
_ANSWERED = f"{_ASKED} and total_ms is not null"
_SLOW = f"{_ANSWERED} and total_ms > cast(:slow_ms as float8)"
_INVALID = "status = 'invalid' and cached is not true"

COUNTS = text(
    f"""
    select arm, count(*) filter (where {_JUDGED}) as judged, count(*) filter (where {_INVALID}) as invalid,
      count(*) filter (where timed_out) as timed_out, count(*) filter (where {_ANSWERED}) as answered,
      count(*) filter (where {_SLOW}) as slow,
      count(*) filter (where {_CAME} and key = :policy) as decided,
      count(*) filter (where {_CAME} and key = :policy and allow) as allowed
    from exposures where key = :key and phase = :phase group by arm
    """
)


def _by_unit(counted: str, hit: str) -> TextClause:
    return text(
        f"""
        select arm, count(*) as units, cast(sum(n * n) as float8) as nn, cast(sum(n * t) as float8) as nt,
          cast(sum(t * t) as float8) as tt
        from (
          select arm, count(*) as n, count(*) filter (where {hit}) as t from exposures
          where key = :key and phase = :phase and {counted} group by arm, unit
        ) as drawn group by arm
        """
    )


BY_UNIT: Final[Mapping[str, TextClause]] = {
    "invalid_rate": _by_unit(_JUDGED, _INVALID),
    "timeout_rate": _by_unit(_JUDGED, "timed_out"),
    "p95_latency_ms": _by_unit(_ANSWERED, _SLOW),
    "deny_to_allow": _by_unit(_CAME, "allow"),
}
"""What each guardrail counts, by the unit that was drawn."""

UNITS = text(
    f"""
    select arm, count(*) as assigned, count(*) filter (where settled) as settled
    from (
      select arm, bool_or({_CAME} and settled_at is not null) as settled from exposures
      where key = :key and phase = :phase group by arm, unit
    ) as drawn group by arm
    """
)

GIVEN_LATELY = text(
    """
    select key, phase from exposures where assigned_at > now() - make_interval(mins => :minutes)
    group by key, phase order by key, phase
    """
)


async def arm_counts(
    connection: AsyncConnection, key: str, phase: str, *, slow_ms: float | None
) -> dict[str, ArmCounts]:
    """Counts per arm of a phase; an arm without exposures has no entry. `slow_ms` is what `slow` is counted by, None
    counts none."""
    asked = {"key": key, "phase": phase, "slow_ms": slow_ms, "policy": POLICY}
    return {row["arm"]: ArmCounts(**row) for row in (await connection.execute(COUNTS, asked)).mappings()}


async def unit_sums(
    connection: AsyncConnection, key: str, phase: str, *, guardrail: str, slow_ms: float | None
) -> dict[str, UnitSums]:
    """What a guardrail counts, per arm of a phase and by unit. It costs several times as much as `arm_counts`."""
    asked = {"key": key, "phase": phase} | ({"slow_ms": slow_ms} if guardrail == "p95_latency_ms" else {})
    rows = (await connection.execute(BY_UNIT[guardrail], asked)).mappings()
    return {row["arm"]: UnitSums(row["units"], row["nn"], row["nt"], row["tt"]) for row in rows}


async def unit_counts(connection: AsyncConnection, key: str, phase: str) -> dict[str, ArmUnits]:
    """Units per arm of a phase."""
    rows = (await connection.execute(UNITS, {"key": key, "phase": phase})).mappings()
    return {row["arm"]: ArmUnits(row["assigned"], row["settled"]) for row in rows}


async def given_lately(connection: AsyncConnection, *, minutes: int) -> list[tuple[str, str]]:
    """The keys and phases that forecasts were given arms by in the last minutes. It goes over the whole table."""
    return [(row.key, row.phase) for row in await connection.execute(GIVEN_LATELY, {"minutes": minutes})]
