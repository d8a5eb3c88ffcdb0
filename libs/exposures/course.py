"""How the differences of an experiment came about: each metric after every so many market days."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, TypeAlias

import numpy as np

from libs.exposures.columns import Columns
from libs.exposures.metrics import metrics_of
from libs.exposures.phases import Asked
from libs.exposures.report import candidates_of, difference
from libs.exposures.sums import Grid, Phase
from libs.statistics.intervals import Estimate

POINTS: Final = 24
"""The most looks back that a course has; each costs about as much as a report."""

_FIRST_DAY: Final = date(2000, 1, 1)


@dataclass(frozen=True, slots=True)
class Look:
    """A difference from the exposures of all market days up to one. `estimate` has its interval, once there are days
    enough."""

    day: date
    value: float
    estimate: Estimate | None


Courses: TypeAlias = Mapping[str, Mapping[str, tuple[Look, ...]]]
"""By candidate, then by the metric's name; the last look is what the report says."""


def courses(asked: Asked, phase: Phase) -> Courses:
    """The differences as they would have been reported after each of at most `POINTS` market days, the last included.

    Pure, and takes a while for many exposures: keep it off an event loop.
    """
    rows = Columns.read(phase.packed)
    experiment = asked.experiment
    metrics = tuple(metrics_of(asked.key, experiment.metrics))
    found: dict[str, dict[str, list[Look]]] = {
        candidate: {metric.name: [] for metric in metrics} for candidate in candidates_of(experiment)
    }
    for day in _looked_at(rows):
        grid = Grid(rows.of(rows.day <= day))
        for candidate, by_metric in found.items():
            for metric in metrics:
                sums = grid.sums(metric, control=experiment.control, candidate=candidate)
                seen = difference(metric, candidate, sums)
                if seen.value is not None:
                    by_metric[metric.name].append(Look(_FIRST_DAY + timedelta(days=day), seen.value, seen.estimate))
    return {
        candidate: {name: tuple(looks) for name, looks in by_metric.items()} for candidate, by_metric in found.items()
    }


def _looked_at(rows: Columns) -> list[int]:
    days = np.unique(rows.day)
    if not len(days):
        return []
    chosen = np.unique(np.linspace(0, len(days) - 1, min(POINTS, len(days))).round().astype(int))
    return [int(day) for day in days[chosen]]
