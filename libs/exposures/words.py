"""Figures in words: what a difference means, what a candidate comes to, and the sentences people read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from libs.exposures.figures import (
    SAME,
    UNKNOWN,
    ArmReport,
    Difference,
    MetricReport,
    SampleRatios,
    Verdict,
)
from libs.exposures.metrics import Kind, Metric
from libs.statistics.intervals import Estimate
from libs.statistics.sample_ratio import SampleRatio
from libs.statistics.sequential import LEAST_CLUSTERS

ALPHA: Final = 0.05
OVERLAP: Final = (
    "Horizons longer than a bar overlap, so the intervals of what came of entries are narrower than they should be."
)

_UNITS: Final[Mapping[Kind, tuple[float, str]]] = {
    "rate": (100.0, "percentage points"),
    "milliseconds": (1.0, "ms"),
    "tokens": (1.0, "tokens"),
    "score": (1.0, "points"),
    "return": (100.0, "percentage points"),
}


def judged(found: Difference, of: MetricReport, *, p_adjusted: float, withheld: bool) -> Difference:
    """A difference with its adjusted p and its verdict; none where it is `withheld`."""
    told = UNKNOWN if withheld else verdict(of.metric, of.worth, found.estimate, p_adjusted=p_adjusted)
    return replace(found, p_adjusted=p_adjusted, verdict=told)


def verdict(metric: Metric, worth: float, estimate: Estimate | None, *, p_adjusted: float) -> Verdict:
    """What a difference means.

    No difference worth having: its whole interval is smaller than that, whatever its p. Else better or worse where
    chance is no explanation, or higher or lower where the metric has no better direction.
    """
    if estimate is None:
        return UNKNOWN
    if -worth < estimate.low and estimate.high < worth:
        return SAME
    if p_adjusted > ALPHA:
        return UNKNOWN
    up = estimate.value > 0
    if metric.better is None:
        return "higher" if up else "lower"
    return "better" if up == (metric.better == "up") else "worse"


def overall(metrics: Sequence[MetricReport], candidate: str) -> Verdict:
    """What a candidate comes to, by the metrics that have a better direction.

    Worse in one is worse, whatever the others say. No difference worth having takes all of them: to say so of each at
    its own level is to say it of all, with no more chance to be wrong (Berger 1982, Technometrics 24, 295-300).
    """
    told = {one.of(candidate).verdict for one in metrics if one.metric.better is not None}
    if "worse" in told:
        return "worse"
    if "better" in told:
        return "better"
    return SAME if told == {SAME} else UNKNOWN


def sentence(
    control: str,
    arms: Sequence[ArmReport],
    ratios: SampleRatios,
    *,
    metrics: Sequence[MetricReport],
    verdicts: Mapping[str, Verdict],
    overlap: bool = False,
) -> str:
    """The report in a few sentences. `overlap` says that outcomes of neighbouring days hang together."""
    if not any(arm.counts.exposures for arm in arms):
        return "Nothing has been assigned in this phase yet."
    if not verdicts:
        return f"There is no arm beside {control}, so there is nothing to compare."
    if ratios.alarm:
        return alarm(arms, ratios)
    said = [about(control, candidate, told, metrics=metrics) for candidate, told in verdicts.items()]
    return " ".join([*said, OVERLAP] if overlap else said)


def alarm(arms: Sequence[ArmReport], ratios: SampleRatios) -> str:
    """What a sample ratio that is off means."""
    if ratios.assigned is not None and ratios.assigned.alarm:
        shares = [(arm.arm, arm.counts.units, arm.weight) for arm in arms]
        what, found = "the units that were assigned", ratios.assigned
    else:
        shares = [(arm.arm, arm.counts.units_settled, arm.weight) for arm in arms]
        what, found = "the units with an answer and an outcome", ratios.settled
    return (
        f"The sample ratio is off among {what}: {_shares(shares)}{_by_chance(found)}. Something depends on the arm "
        "that must not, such as answers that one arm loses, so no comparison can be trusted until the reason is found."
    )


def _shares(shares: Sequence[tuple[str, int, float | None]]) -> str:
    units, weights = sum(n for _, n, _ in shares), sum(weight or 0.0 for _, _, weight in shares)
    return ", ".join(
        f"{arm} has {n:,} where {units * (weight or 0.0) / weights:,.0f} were due" for arm, n, weight in shares
    )


def _by_chance(found: SampleRatio | None) -> str:
    return "" if found is None else f" (p = {found.p_value:.1g})"


def about(control: str, candidate: str, told: Verdict, *, metrics: Sequence[MetricReport]) -> str:
    """What is said of one candidate."""
    by = [(one, one.of(candidate)) for one in metrics]
    clear = [in_words(one.metric, each) for one, each in by if each.verdict in {"better", "worse", "higher", "lower"}]
    detail = f": {', '.join(clear)}." if clear else "."
    if told in {"better", "worse"}:
        return f"{candidate} is {told} than {control}{detail}"
    if told == SAME:
        return f"There is no difference worth having between {candidate} and {control}{detail}"
    open_ones = [one.metric.name for one, each in by if each.verdict == UNKNOWN and one.metric.better is not None]
    most = max((each.clusters for _, each in by), default=0)
    if most < LEAST_CLUSTERS:
        few = f" yet: it is worth {most} independent market days (or tickers), {LEAST_CLUSTERS} are needed"
        return f"There is not enough data to tell {candidate} from {control}{few}{detail}"
    more = f" The intervals of {listed(open_ones)} leave open whether there is a difference worth having."
    return f"There is not enough data to tell {candidate} from {control}{detail}{more}"


def in_words(metric: Metric, found: Difference) -> str:
    """`validity 2.10 percentage points higher (0.90 to 3.30, better)`."""
    factor, unit = _UNITS[metric.kind]
    estimate = found.estimate
    if estimate is None:
        return f"{metric.name} unknown"
    direction = "higher" if estimate.value > 0 else "lower"
    ends = sorted(abs(end) if estimate.excludes_zero else end for end in (estimate.low, estimate.high))
    judged_so = f", {found.verdict}" if found.verdict in {"better", "worse"} else ""
    return (
        f"{metric.name} {shown(abs(estimate.value) * factor)} {unit} {direction} "
        f"({shown(ends[0] * factor)} to {shown(ends[1] * factor)}{judged_so})"
    )


def shown(value: float) -> str:
    """A number with three digits that tell, and no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
