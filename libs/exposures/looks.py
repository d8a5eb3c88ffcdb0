"""One look of the guardrails at a phase: cheap counts, and units only where they can make a difference."""

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from libs.exposures.counts import ArmCounts, arm_counts, unit_sums
from libs.exposures.guardrails import to_weigh
from libs.llm.experiments import Experiment, bounds_of


async def counted(connection: AsyncConnection, key: str, experiment: Experiment) -> dict[str, ArmCounts]:
    """Everything `libs.exposures.guardrails.evaluate` needs to know of an experiment's phase."""
    slow_ms = bounds_of(experiment.guardrails)["p95_latency_ms"]
    counts = await arm_counts(connection, key, experiment.phase, slow_ms=slow_ms)
    for name in sorted(to_weigh(experiment, counts)):
        sums = await unit_sums(connection, key, experiment.phase, guardrail=name, slow_ms=slow_ms)
        counts = {
            arm: replace(each, units={**each.units, name: sums[arm]}) if arm in sums else each
            for arm, each in counts.items()
        }
    return counts
