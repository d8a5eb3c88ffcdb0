"""How often the arms of an experiment failed, were slow, and allowed: what guardrails look at every few seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.judgement.assess import POLICY
from libs.llm.experiments import Experiment, bounds_of


@dataclass(frozen=True, slots=True)
class UnitSums:
    """Decisions by the unit that was drawn: the units, and the sums of n * n, n * t and t * t over them.

    n is how often a unit was decided on, t how often it was allowed.
    """

    units: int
    nn: float
    nt: float
    tt: float


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """What came of one arm's exposures in a phase, by their first judgement.

    `judged` had an answer or ran out of time; what failed for other reasons, such as a model that is away, counts for
    nobody. `answered` were answered by the model and not by the reply cache, `slow` of them took longer than was
    asked about. `decided` are the answers of the policy, `allowed` those of them that allow; one that is not valid is a
    deny. `units` are only counted where they are asked for.
    """

    arm: str
    judged: int = 0
    invalid: int = 0
    timed_out: int = 0
    answered: int = 0
    slow: int = 0
    decided: int = 0
    allowed: int = 0
    units: UnitSums | None = None


@dataclass(frozen=True, slots=True)
class ArmUnits:
    """How many units an arm was given, and how many of them have an answer and an outcome."""

    assigned: int
    settled: int


_CAME = "status in ('ok', 'invalid')"
_JUDGED = f"({_CAME} or timed_out)"

COUNTS = text(
    f"""
    select arm, count(*) filter (where {_JUDGED}) as judged, count(*) filter (where status = 'invalid') as invalid,
      count(*) filter (where timed_out) as timed_out, count(*) filter (where {_CAME} and not cached) as answered,
      count(*) filter (where {_CAME} and not cached and total_ms > cast(:slow_ms as float8)) as slow,
      count(*) filter (where {_CAME} and key = :policy) as decided,
      count(*) filter (where {_CAME} and key = :policy and allow) as allowed
    from exposures where key = :key and phase = :phase group by arm
    """
)

DECISIONS_BY_UNIT = text(
    f"""
    select arm, count(*) as units, cast(sum(n * n) as float8) as nn, cast(sum(n * t) as float8) as nt,
      cast(sum(t * t) as float8) as tt
    from (
      select arm, count(*) as n, count(*) filter (where allow) as t from exposures
      where key = :key and phase = :phase and {_CAME} group by arm, unit
    ) as drawn group by arm
    """
)

UNITS = text(
    f"""
    select arm, count(*) as assigned, count(*) filter (where settled) as settled
    from (
      select arm, bool_or({_CAME} and settled_at is not null) as settled from exposures
      where key = :key and phase = :phase group by arm, unit
    ) as drawn group by arm
    """
)


async def arm_counts(
    connection: AsyncConnection, key: str, phase: str, *, slow_ms: float | None, turned: float | None = None
) -> dict[str, ArmCounts]:
    """Counts per arm of a phase; an arm without exposures has no entry.

    `slow_ms` is what `slow` is counted by, None counts none. `turned` asks for the decisions by unit where the rates
    at which two arms allow differ by more than that; they cost several times as much as the rest.
    """
    asked = {"key": key, "phase": phase, "slow_ms": slow_ms, "policy": POLICY}
    found = {row["arm"]: ArmCounts(**row) for row in (await connection.execute(COUNTS, asked)).mappings()}
    if turned is None or _spread(found) <= turned:
        return found
    rows = (await connection.execute(DECISIONS_BY_UNIT, {"key": key, "phase": phase})).mappings()
    by_unit = {row["arm"]: UnitSums(row["units"], row["nn"], row["nt"], row["tt"]) for row in rows}
    return {arm: replace(counts, units=by_unit.get(arm)) for arm, counts in found.items()}


def _spread(counts: Mapping[str, ArmCounts]) -> float:
    rates = [each.allowed / each.decided for each in counts.values() if each.decided]
    return max(rates) - min(rates) if rates else 0.0


async def counted(connection: AsyncConnection, key: str, experiment: Experiment) -> dict[str, ArmCounts]:
    """Everything `libs.exposures.guardrails.evaluate` needs to know of an experiment's phase."""
    bounds = bounds_of(experiment.guardrails)
    return await arm_counts(
        connection, key, experiment.phase, slow_ms=bounds["p95_latency_ms"], turned=bounds["deny_to_allow"]
    )


async def unit_counts(connection: AsyncConnection, key: str, phase: str) -> dict[str, ArmUnits]:
    """Units per arm of a phase."""
    rows = (await connection.execute(UNITS, {"key": key, "phase": phase})).mappings()
    return {row["arm"]: ArmUnits(row["assigned"], row["settled"]) for row in rows}
