"""The report on an experiment as one HTML file that needs nothing else: for a desk to read, to keep and to send on.

Everything that is text is escaped, and the page forbids itself scripts and anything from elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from math import log
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from libs.exposures.course import Courses
from libs.exposures.figures import ArmFigure, Difference, ExperimentReport, MetricReport
from libs.exposures.guardrails import NEEDED, GuardrailState
from libs.exposures.metrics import Kind
from libs.exposures.plots import course_plot
from libs.exposures.words import shown
from libs.llm.in_force import Activation, arms_as_text
from libs.pages import house_style
from libs.statistics.intervals import Estimate
from libs.statistics.sequential import LEAST_CLUSTERS

TEMPLATE: Final = Path(__file__).with_name("page.html")

_LEVELS: Final[Mapping[Kind, tuple[float, str]]] = {
    "rate": (100.0, "%"),
    "milliseconds": (1.0, "ms"),
    "tokens": (1.0, ""),
    "score": (1.0, ""),
    "return": (100.0, "%"),
}
_DIFFERENCES: Final[Mapping[Kind, tuple[float, str]]] = {
    "rate": (100.0, "percentage points"),
    "milliseconds": (1.0, "ms"),
    "tokens": (1.0, "tokens"),
    "score": (1.0, "points"),
    "return": (100.0, "percentage points"),
}
_TONES: Final = {"better": "good", "worse": "bad", "higher": "note", "lower": "note"}
_NOTHING: Final = "\N{EN DASH}"
_MINUS: Final = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Story:
    """All that the page tells. `history` is newest first; `made_at` is when it was asked for."""

    report: ExperimentReport
    guardrails: Sequence[GuardrailState]
    history: Sequence[Activation]
    courses: Courses
    made_at: datetime


def page(story: Story) -> str:
    """The HTML of a story."""
    report = story.report
    return _template().render(
        report=report,
        candidates=[_candidate(story, name, verdict) for name, verdict in report.verdicts.items()],
        arms=_arms(report),
        ratios=[
            ("at assignment", report.sample_ratio.assigned),
            ("at outcome, of those with an answer", report.sample_ratio.settled),
        ],
        guardrails=[(state, _meter(state.evidence)) for state in story.guardrails],
        needed=NEEDED,
        history=story.history,
        made_at=story.made_at,
        days=_days(story.courses),
        least=LEAST_CLUSTERS,
        style=house_style(),
    )


def _days(courses: Courses) -> tuple[date, date] | None:
    """The first and the last market day that is compared."""
    seen = [look.day for by_metric in courses.values() for looks in by_metric.values() for look in looks]
    return (min(seen), max(seen)) if seen else None


@cache
def _template() -> Template:
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"moment": _moment, "count": _count, "tone": _tone, "evidence": _evidence, "arms": arms_as_text}
    return made.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _candidate(story: Story, name: str, verdict: str) -> dict[str, Any]:
    """One candidate held against the control: a row of figures and a picture for each metric."""
    return {
        "name": name,
        "verdict": verdict,
        "metrics": [_metric(story, each, candidate=name) for each in story.report.metrics],
    }


def _metric(story: Story, found: MetricReport, *, candidate: str) -> dict[str, Any]:
    metric, made = found.metric, found.of(candidate)
    looks = story.courses.get(candidate, {}).get(metric.name, ())
    factor, unit = _DIFFERENCES[metric.kind]
    name = f"{metric.name} of {candidate} less {story.report.control}, by market day"
    plot = course_plot(looks, worth=found.worth, factor=factor, name=name) if looks else ""
    return {
        "name": metric.name.replace("_", " "),
        "says": metric.says,
        "better": {"up": "more is better", "down": "less is better", None: "neither way is better"}[metric.better],
        "unit": unit,
        "worth": f"{shown(found.worth * factor)} {unit}",
        "control": _level(found.arms[0], metric.kind) if found.arms else _NOTHING,
        "candidate": next((_level(each, metric.kind) for each in found.arms if each.arm == candidate), _NOTHING),
        "difference": _difference(made, metric.kind),
        "interval": _interval(made.estimate, metric.kind),
        "p": _chance(made.p_adjusted) if made.estimate is not None else _NOTHING,
        "verdict": made.verdict,
        "plot": Markup(plot),  # noqa: S704 - our own drawing: numbers, dates, and a label it has escaped
    }


def _level(found: ArmFigure, kind: Kind) -> str:
    factor, unit = _LEVELS[kind]
    return _NOTHING if found.mean is None else f"{_number(found.mean * factor)} {unit}".strip()


def _difference(found: Difference, kind: Kind) -> str:
    factor, _ = _DIFFERENCES[kind]
    return _NOTHING if found.value is None else _signed(found.value * factor)


def _interval(found: Estimate | None, kind: Kind) -> str:
    factor, _ = _DIFFERENCES[kind]
    return "" if found is None else f"{_signed(found.low * factor)} to {_signed(found.high * factor)}"


def _number(value: float) -> str:
    return shown(value).replace("-", _MINUS)


def _signed(value: float) -> str:
    return f"+{shown(value)}" if value > 0 else _number(value)


def _chance(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _arms(report: ExperimentReport) -> list[dict[str, Any]]:
    """The arms with the share of units they were meant to have and the one they have."""
    weights = sum(arm.weight or 0.0 for arm in report.arms)
    units = sum(arm.counts.units for arm in report.arms)
    return [
        {
            "arm": arm.arm,
            "counts": arm.counts,
            "meant": None if arm.weight is None or not weights else 100 * arm.weight / weights,
            "has": 100 * arm.counts.units / units if units else 0.0,
        }
        for arm in report.arms
    ]


def _meter(evidence: float) -> float:
    """How far evidence has come on the way to what is needed, in percent of the logarithms."""
    return 0.0 if evidence <= 1 else min(100.0, 100 * log(evidence) / log(NEEDED))


def _moment(value: datetime | None) -> str:
    return _NOTHING if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _count(value: int) -> str:
    return f"{value:,}"


def _tone(verdict: str) -> str:
    return _TONES.get(verdict, "open")


def _evidence(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}" if value < 1e6 else "over a million"
