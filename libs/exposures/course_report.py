"""How an experiment's metrics went, as it is kept for who looks at them: each difference after every so many days."""

import asyncio
from collections.abc import Sequence
from datetime import date

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.exposures import phases
from libs.exposures.course import Courses, Look, courses
from libs.exposures.metrics import Better, Kind, metrics_of
from libs.exposures.report import candidates_of
from libs.exposures.sums import Phase
from libs.json_numbers import Number
from libs.llm.prompts import Prompts


class Point(BaseModel):
    """A difference from all exposures up to a market day, with its 95 % interval once there are days enough."""

    day: date
    value: Number
    low: Number | None
    high: Number | None


class Course(BaseModel):
    """One metric of a candidate less that of the control, oldest day first. `worth` is as in the report."""

    candidate: str
    metric: str
    unit: Kind
    better: Better | None
    worth: Number
    points: Sequence[Point]


class CourseReport(BaseModel):
    """The courses of one phase: by candidate, and then in the metrics' order."""

    key: str
    phase: str
    control: str
    courses: Sequence[Course]


async def read_course(
    connection: AsyncConnection, now: Prompts, key: str, phase: str | None = None
) -> tuple[phases.Asked, Phase]:
    """What the courses of the phase that is asked for rest on, of the running one where none is.

    Raises `NoExperiment`.
    """
    asked = await phases.find(connection, now, key, phase)
    return asked, await phases.read(connection, asked)


async def course_of(asked: phases.Asked, phase: Phase) -> CourseReport:
    """The courses of what was read, reckoned in a thread. It takes a while: give the connection back first."""
    return _report(asked, await asyncio.to_thread(courses, asked, phase))


def _report(asked: phases.Asked, found: Courses) -> CourseReport:
    experiment = asked.experiment
    metrics = metrics_of(asked.key, experiment.metrics)
    return CourseReport(
        key=asked.key,
        phase=experiment.phase,
        control=experiment.control,
        courses=[
            Course(
                candidate=candidate,
                metric=metric.name,
                unit=metric.kind,
                better=metric.better,
                worth=worth,
                points=[_point(look) for look in found[candidate][metric.name]],
            )
            for candidate in candidates_of(experiment)
            for metric, worth in metrics.items()
        ],
    )


def _point(look: Look) -> Point:
    low, high = (None, None) if look.estimate is None else (look.estimate.low, look.estimate.high)
    return Point(day=look.day, value=look.value, low=low, high=high)
