"""How the differences of an experiment came about: each metric after every so many market days."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, TypeAlias

import numpy as np

from libs.exposures.columns import Columns
from libs.exposures.metrics import Metric, metrics_of
from libs.exposures.phases import Asked
from libs.exposures.report import candidates_of, difference
from libs.exposures.sums import Grid, Phase
from libs.statistics.intervals import Estimate

POINTS: Final = 60
"""The most looks back that a course has."""

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
    """The differences by all exposures up to each of at most `POINTS` market days, the last included, as they came out.

    An outcome counts on the day of its forecast, however late it came. Pure, and takes a while for many exposures: keep
    it off an event loop.
    """
    experiment = asked.experiment
    metrics = tuple(metrics_of(asked.key, experiment.metrics))
    grid = Grid(Columns.read(phase.packed))
    return {
        candidate: {
            metric.name: tuple(_looks(grid, metric, control=experiment.control, candidate=candidate))
            for metric in metrics
        }
        for candidate in candidates_of(experiment)
    }


def _looks(grid: Grid, metric: Metric, *, control: str, candidate: str) -> Iterator[Look]:
    """The looks at one metric. Cells are added up once, so that a look costs what its cells do, not its exposures."""
    cells = grid.cells(metric, control=control, candidate=candidate)
    for count in _counts(len(grid.days)):
        seen = difference(metric, candidate, cells.of_days(count).sums())
        if seen.value is not None:
            yield Look(_FIRST_DAY + timedelta(days=int(grid.days[count - 1])), seen.value, seen.estimate)


def _counts(days: int) -> list[int]:
    """After how many days is looked: evenly spaced, the last among them."""
    return [int(count) for count in np.unique(np.linspace(1, days, min(POINTS, days)).round().astype(int))]
