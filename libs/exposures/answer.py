"""The report on an experiment as it is answered and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.exposures import phases
from libs.exposures.figures import ArmFigure, ArmReport, Difference, ExperimentReport, MetricReport, State, Verdict
from libs.exposures.guardrails import GuardrailState, evaluate
from libs.exposures.looks import counted
from libs.exposures.metrics import Better, Kind
from libs.exposures.sums import Phase
from libs.json_numbers import Number
from libs.llm.activations import history
from libs.llm.experiments import UnitKind
from libs.llm.in_force import Activation
from libs.llm.prompts import Prompts
from libs.statistics.sample_ratio import SampleRatio

HISTORY = 50


class Values(BaseModel):
    """Whatever is read from a value of the same shape."""

    model_config = ConfigDict(from_attributes=True)


class Arm(Values):
    """One arm and how far its exposures came. `units` are what was drawn, each counted once.

    `weight` is null where it is not known any more. `answered` are valid or `invalid` answers, the latter also
    where the version could not be asked; `skipped` were never asked; `units_settled` have an answer and an outcome.
    """

    arm: str
    weight: Number | None
    exposures: int
    units: int
    judged: int
    answered: int
    invalid: int
    timed_out: int
    unavailable: int
    skipped: int
    allowed: int
    settled: int
    units_settled: int


class Ratio(Values):
    """The chi-square check of units against the weights; an `alarm` means that chance is no explanation."""

    chi_square: Number
    freedom: int
    p_value: Number
    alarm: bool


class Ratios(Values):
    """The check at assignment, and again among units with an answer and an outcome; null without anything to check."""

    assigned: Ratio | None
    settled: Ratio | None


class Figure(BaseModel):
    """A metric in one arm: its mean over `n` exposures with a 95 % interval that may be watched."""

    arm: str
    n: int
    mean: Number | None
    low: Number | None
    high: Number | None


class Beside(BaseModel):
    """A candidate less the control, with a 95 % interval that may be watched, over so many effective clusters.

    `p` is for this difference alone, `p_adjusted` by Holm for all of the report.
    """

    candidate: str
    value: Number | None
    low: Number | None
    high: Number | None
    clusters: int
    p: Number
    p_adjusted: Number
    verdict: Verdict


class Metric(BaseModel):
    """One metric. `worth` is the smallest difference worth having; `better` is null where neither direction is."""

    name: str
    meaning: str
    unit: Kind
    better: Better | None
    worth: Number
    arms: Sequence[Figure]
    differences: Sequence[Beside]


class Guardrail(Values):
    """One guardrail of one candidate. Evidence of 100 breaches it, and the arm is taken back."""

    name: str
    arm: str
    bound: Number
    observed: Number | None
    n: int
    evidence: Number
    breached: bool
    sentence: str


class Change(BaseModel):
    """An activation of the prompt: the version in force from then on, and the arms beside it."""

    id: int
    at: datetime
    version: str
    arms: Mapping[str, Number]
    who: str
    why: str


class Experiment(BaseModel):
    """The report on one phase: a stretch of time with the same arms, weights and unit.

    `sentence` says it in words, `verdicts` by candidate; `history` is newest first.
    """

    key: str
    state: State
    phase: str
    unit: UnitKind
    since: datetime | None
    judged_at: datetime | None
    control: str
    arms: Sequence[Arm]
    sample_ratio: Ratios
    metrics: Sequence[Metric]
    guardrails: Sequence[Guardrail]
    verdicts: Mapping[str, Verdict]
    sentence: str
    history: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that a report rests on, read from Postgres."""

    asked: phases.Asked
    phase: Phase
    guardrails: Sequence[GuardrailState]
    changes: Sequence[Activation]


async def read_experiment(connection: AsyncConnection, now: Prompts, key: str, phase: str | None = None) -> Reading:
    """Read the phase that is asked for, the running one where none is. Raises `NoExperiment`."""
    asked = await phases.find(connection, now, key, phase)
    changes = await history(connection, key, limit=HISTORY)
    guardrails = evaluate(asked.experiment, await counted(connection, key, asked.experiment))
    return Reading(asked, await phases.read(connection, asked), guardrails, changes)


async def experiment_of(reading: Reading) -> Experiment:
    """The report on what was read. It takes a while: give the connection back first."""
    made = await phases.report_on(reading.asked, reading.phase)
    return _answer(made, guardrails=reading.guardrails, changes=reading.changes)


def _answer(
    made: ExperimentReport, *, guardrails: Sequence[GuardrailState], changes: Sequence[Activation]
) -> Experiment:
    ratios = made.sample_ratio
    return Experiment(
        key=made.key,
        state=made.state,
        phase=made.phase,
        unit=made.unit,
        since=made.since,
        judged_at=made.judged_at,
        control=made.control,
        arms=[_arm(one) for one in made.arms],
        sample_ratio=Ratios(assigned=_ratio(ratios.assigned), settled=_ratio(ratios.settled)),
        metrics=[_metric(one) for one in made.metrics],
        guardrails=[Guardrail.model_validate(one) for one in guardrails],
        verdicts=made.verdicts,
        sentence=made.sentence,
        history=[_change(one) for one in changes],
    )


def _arm(one: ArmReport) -> Arm:
    counts = {name: getattr(one.counts, name) for name in Arm.model_fields if name != "weight"}
    return Arm.model_validate({**counts, "weight": one.weight})


def _ratio(found: SampleRatio | None) -> Ratio | None:
    return None if found is None else Ratio.model_validate(found)


def _metric(one: MetricReport) -> Metric:
    metric = one.metric
    return Metric(
        name=metric.name,
        meaning=metric.says,
        unit=metric.kind,
        better=metric.better,
        worth=one.worth,
        arms=[_figure(each) for each in one.arms],
        differences=[_beside(each) for each in one.differences],
    )


def _figure(one: ArmFigure) -> Figure:
    low, high = (None, None) if one.estimate is None else (one.estimate.low, one.estimate.high)
    return Figure(arm=one.arm, n=one.n, mean=one.mean, low=low, high=high)


def _beside(one: Difference) -> Beside:
    low, high = (None, None) if one.estimate is None else (one.estimate.low, one.estimate.high)
    return Beside(
        candidate=one.candidate,
        value=one.value,
        low=low,
        high=high,
        clusters=one.clusters,
        p=one.p,
        p_adjusted=one.p_adjusted,
        verdict=one.verdict,
    )


def _change(one: Activation) -> Change:
    return Change(id=one.id, at=one.at, version=one.version, arms=dict(one.arms), who=one.who, why=one.why)
