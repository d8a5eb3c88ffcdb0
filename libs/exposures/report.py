"""What the exposures of a phase say about its arms: from sums to figures with intervals, and to verdicts.

Everything here may be looked at after every batch. Each difference has an always-valid confidence sequence, clustered
by market day and by ticker, and an always-valid p. Holm's procedure over all differences of the report, those without
data among them with p = 1, keeps the chance that any is ever called better or worse without reason at `words.ALPHA`.
Units are analysed as they were assigned.
"""

from collections.abc import Iterable, Mapping, Sequence

from libs.exposures import words
from libs.exposures.figures import (
    UNKNOWN,
    ArmFigure,
    ArmReport,
    Difference,
    ExperimentReport,
    MetricReport,
    SampleRatios,
    State,
    Verdict,
)
from libs.exposures.metrics import Metric, metrics_of
from libs.exposures.sums import ArmSums, MetricSums, PhaseSums
from libs.llm.experiments import Experiment
from libs.statistics.clustering import Clustered, clustered_pair_difference, clustered_pair_mean
from libs.statistics.holm import holm
from libs.statistics.intervals import Estimate
from libs.statistics.sample_ratio import sample_ratio
from libs.statistics.sequential import LEAST_CLUSTERS, always_valid_p, confidence_sequence


def candidates_of(experiment: Experiment) -> tuple[str, ...]:
    """The arms that are held against the control, in their order."""
    return tuple(version for version, weight in experiment.arms if version != experiment.control and weight > 0)


def report(
    key: str, experiment: Experiment, sums: PhaseSums, *, state: State = "running", weighted: bool = True
) -> ExperimentReport:
    """The report on the phase `experiment.phase`, from the sums of `candidates_of` and `metrics_of`.

    `weighted` is False where the weights of the arms are not known any more.
    """
    candidates = candidates_of(experiment)
    weights = dict(experiment.arms) if weighted else {}
    ratios = sample_ratios(sums.arms, weights)
    metrics = [
        figures(metric, worth, control=experiment.control, pairs=_pairs(metric, candidates, sums))
        for metric, worth in metrics_of(key, experiment.metrics).items()
    ]
    metrics = judged(metrics, withheld=ratios.alarm)
    arms = arm_reports([version for version, _ in experiment.arms], weights, sums.arms)
    overlap = sums.overlap and any(one.metric.settles for one in metrics)
    verdicts: dict[str, Verdict] = {candidate: words.overall(metrics, candidate) for candidate in candidates}
    return ExperimentReport(
        key=key,
        state=state,
        phase=experiment.phase,
        unit=experiment.unit,
        since=sums.since,
        judged_at=sums.judged_at,
        control=experiment.control,
        arms=arms,
        sample_ratio=ratios,
        metrics=tuple(metrics),
        verdicts=verdicts,
        sentence=words.sentence(experiment.control, arms, ratios, metrics=metrics, verdicts=verdicts, overlap=overlap),
    )


def _pairs(metric: Metric, candidates: Iterable[str], sums: PhaseSums) -> dict[str, MetricSums]:
    return {candidate: sums.pairs[candidate][metric.name] for candidate in candidates}


def arm_reports(
    arms: Sequence[str], weights: Mapping[str, float], counts: Mapping[str, ArmSums]
) -> tuple[ArmReport, ...]:
    """The arms in their order, then any that has exposures without being one of them."""
    names = [*arms, *sorted(counts.keys() - set(arms))]
    return tuple(ArmReport(arm, weights.get(arm), counts.get(arm, ArmSums(arm))) for arm in names)


def sample_ratios(counts: Mapping[str, ArmSums], weights: Mapping[str, float]) -> SampleRatios:
    """Both checks. Units are counted, not exposures, since they are what was drawn."""
    return SampleRatios(
        assigned=sample_ratio({arm: each.units for arm, each in counts.items()}, weights),
        settled=sample_ratio({arm: each.units_settled for arm, each in counts.items()}, weights),
    )


def figures(metric: Metric, worth: float, *, control: str, pairs: Mapping[str, MetricSums]) -> MetricReport:
    """A metric in all arms, its differences not judged yet."""
    arms = [arm_figure(metric, control, next(iter(pairs.values())), first=True)] if pairs else []
    arms += [arm_figure(metric, candidate, sums, first=False) for candidate, sums in pairs.items()]
    differences = tuple(difference(metric, candidate, sums) for candidate, sums in pairs.items())
    return MetricReport(metric, worth, tuple(arms), differences)


def arm_figure(metric: Metric, arm: str, sums: MetricSums, *, first: bool) -> ArmFigure:
    """A metric in the first arm of a pair, or in the second."""
    days = sums.days
    n, total = (days.n1, days.t1) if first else (days.n2, days.t2)
    found = clustered_pair_mean(days, sums.tickers, sums.cells, which=1 if first else 2, rate=metric.binary)
    return ArmFigure(arm, int(n), total / n if n else None, sequence(found))


def difference(metric: Metric, candidate: str, sums: MetricSums) -> Difference:
    """What a candidate makes of a metric; with too few clusters to be looked at it has no interval, and p = 1."""
    days = sums.days
    value = days.t2 / days.n2 - days.t1 / days.n1 if days.n1 and days.n2 else None
    found = clustered_pair_difference(days, sums.tickers, sums.cells, rate=metric.binary)
    estimate = sequence(found)
    return Difference(
        candidate=candidate,
        value=value,
        estimate=estimate,
        clusters=0 if found is None else found.clusters,
        p=1.0 if found is None or estimate is None else always_valid_p(found),
        p_adjusted=1.0,
        verdict=UNKNOWN,
    )


def sequence(found: Clustered | None) -> Estimate | None:
    """The confidence sequence; None with fewer clusters than it holds for."""
    return None if found is None or found.clusters < LEAST_CLUSTERS else confidence_sequence(found)


def judged(metrics: Sequence[MetricReport], *, withheld: bool) -> list[MetricReport]:
    """The metrics with adjusted p and verdicts; `withheld` where no comparison can be trusted."""
    asked = {
        f"{one.metric.name} {each.candidate}": each.p for one in metrics for each in one.differences
    }  # every question, whether it has data or not: a family that grew with the data would not hold its alpha
    adjusted = holm(asked)
    return [
        MetricReport(
            one.metric,
            one.worth,
            one.arms,
            tuple(
                words.judged(each, one, p_adjusted=adjusted[f"{one.metric.name} {each.candidate}"], withheld=withheld)
                for each in one.differences
            ),
        )
        for one in metrics
    ]
