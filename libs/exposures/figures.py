"""The parts of a report on an experiment, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from libs.exposures.metrics import Metric
from libs.exposures.sums import ArmSums
from libs.llm.experiments import UnitKind
from libs.statistics.intervals import Estimate
from libs.statistics.sample_ratio import SampleRatio

State: TypeAlias = Literal["running", "ended"]
Verdict: TypeAlias = Literal["better", "worse", "higher", "lower", "no difference worth having", "not enough data"]
"""Higher and lower are said of metrics that have no better direction, and never of a candidate as a whole."""

UNKNOWN: Final = "not enough data"
SAME: Final = "no difference worth having"


@dataclass(frozen=True, slots=True)
class ArmReport:
    """An arm: its weight as configured, None where that is not known any more, and how far its exposures came."""

    arm: str
    weight: float | None
    counts: ArmSums


@dataclass(frozen=True, slots=True)
class SampleRatios:
    """Whether units came as the weights say: all that were assigned, and those with an answer and an outcome.

    None where there is nothing to compare yet, or the weights are not known any more.
    """

    assigned: SampleRatio | None
    settled: SampleRatio | None

    @property
    def alarm(self) -> bool:
        """Whether either is off beyond chance, so that no comparison can be trusted."""
        return any(one is not None and one.alarm for one in (self.assigned, self.settled))


@dataclass(frozen=True, slots=True)
class ArmFigure:
    """A metric in one arm: its mean over `n` exposures; `estimate` has its interval, once there are clusters enough."""

    arm: str
    n: int
    mean: float | None
    estimate: Estimate | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric in a candidate less that in the control, over so many effective clusters.

    `value` is None where an arm has none. `p` holds for this difference alone, `p_adjusted` for all of the report.
    """

    candidate: str
    value: float | None
    estimate: Estimate | None
    clusters: int
    p: float
    p_adjusted: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class MetricReport:
    """One metric in all arms, the control first. `worth` is the smallest difference worth having."""

    metric: Metric
    worth: float
    arms: tuple[ArmFigure, ...]
    differences: tuple[Difference, ...]

    def of(self, candidate: str) -> Difference:
        """The difference that a candidate makes."""
        return next(one for one in self.differences if one.candidate == candidate)


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """A phase of an experiment. `since` is when its first unit was assigned; `verdicts` are by candidate."""

    key: str
    state: State
    phase: str
    unit: UnitKind
    since: datetime | None
    judged_at: datetime | None
    control: str
    arms: tuple[ArmReport, ...]
    sample_ratio: SampleRatios
    metrics: tuple[MetricReport, ...]
    verdicts: Mapping[str, Verdict]
    sentence: str
