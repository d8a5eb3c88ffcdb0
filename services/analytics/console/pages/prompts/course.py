"""How the metrics of an experiment went: a small chart for each, and the same as a table for who asks for it.

The charts hold numbers only. They are made once and then take new numbers, so that a table somebody reads stays open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nicegui import ui
from nicegui.events import GenericEventArguments
from sqlalchemy.exc import SQLAlchemyError

from libs.statistics.sequential import LEAST_CLUSTERS
from services.analytics.console.layout.frame import Console
from services.analytics.console.layout.parts import Part, heading, note, shown, table
from services.analytics.console.pages.prompts.course_chart import options
from services.analytics.console.pages.prompts.queries import Standing, course_of
from services.analytics.console.pages.prompts.words import interval, number
from services.analytics.console.reports import Made

HEADING: Final = "How the differences came about"
MEANING: Final = (
    "Each point is a candidate less the control, by all forecasts up to that market day, as far as their outcomes are "
    "known now. The intervals hold at every look: watch as often as you like, and stop when you like."
)
NO_INTERVAL: Final = f"no interval: fewer than {LEAST_CLUSTERS} market days count in both arms, or nothing varies"
COLUMNS: Final = ("market day", "difference", "95 % interval")
SIGNS: Final = (
    ("\N{BLACK CIRCLE}", "ink", "the difference so far"),
    ("\N{DARK SHADE}", "accent", "its 95 % interval"),
    ("\N{DARK SHADE}", "muted", "not worth having"),
)
BETTER: Final[Mapping[str | None, str]] = {
    "up": "More is better",
    "down": "Less is better",
    None: "Neither way is better",
}
NOT_YET: Final = "Not made yet: services.jobs makes it every minute while the experiment runs."
LATE: Final = " Newer ones should be there by now: services.jobs makes them every minute."
NOTHING: Final = "Nothing to draw yet: no market day has an answer in both arms."
AWAY = (SQLAlchemyError, OSError)


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is to show: the newest report. `problem` says why there is none, `ended` that no newer one is due."""

    made: Made | None
    problem: str = ""
    ended: bool = False


async def found_course(console: Console, standing: Standing) -> Shown | None:
    """What there is to show; None where no experiment ran, or where that is not known, which the report says."""
    if not standing.certain:
        return None
    try:
        made = await course_of(console, standing)
    except AWAY as error:
        return Shown(None, f"Postgres does not answer ({type(error).__name__}).")
    if not standing.phase:
        return None if made is None else Shown(made, ended=True)
    return Shown(made, "" if made else NOT_YET)


class Courses:
    """The part of the page. It is laid out anew only where other things are compared."""

    def __init__(self) -> None:
        self._box = ui.element("div").classes("lexi-part")
        self._about: ui.label | None = None
        self._laid_out: list[tuple[str, str]] = []
        self._each: list[_Course] = []

    def show(self, found: Shown | None) -> None:
        """Show the courses, a sentence where there are none yet, and nothing where no experiment ran."""
        courses = [] if found is None or found.made is None else _courses(found.made)
        if not courses or found is None or found.made is None:
            self._nothing(found)
            return
        names = [(course["candidate"], course["metric"]) for course in courses]
        if names != self._laid_out:
            self._lay_out(found.made.content["control"], courses)
            self._laid_out = names
        late = LATE if found.made.late and not found.ended else ""
        if self._about is not None:
            self._about.set_text(f"{MEANING} Made at {shown(found.made.made_at)}.{late}")
        for place, course in zip(self._each, courses, strict=True):
            place.show(course)

    def _nothing(self, found: Shown | None) -> None:
        self._box.clear()
        self._laid_out, self._each, self._about = [], [], None
        if found is not None:
            with self._box:
                heading(HEADING, level=3)
                note(found.problem or NOTHING)

    def _lay_out(self, control: str, courses: Sequence[Mapping[str, Any]]) -> None:
        self._box.clear()
        with self._box:
            heading(HEADING, level=3)
            self._about = ui.label().classes("lexi-muted lexi-text")
            with ui.element("ul").classes("lexi-legend").props('aria-label="What the charts show"'):
                for sign, colour, words in SIGNS:
                    with ui.element("li"):
                        ui.label(sign).classes(f"lexi-{colour}").props('aria-hidden="true"')
                        ui.label(words)
            with ui.element("div").classes("lexi-courses"):
                self._each = [_Course(course, control) for course in courses]


class _Course:
    """One metric of one candidate."""

    def __init__(self, course: Mapping[str, Any], control: str) -> None:
        self._name = f"{course['metric'].replace('_', ' ')} of {course['candidate']} less {control}"
        self._course = course
        with ui.element("section").classes("lexi-course").props(f'aria-label="{self._name}"'):
            ui.label(self._name).classes("lexi-state")
            self._now = ui.label().classes("lexi-muted lexi-text")
            self._chart = ui.echart(options(course), renderer="svg").classes("lexi-small-chart").props('role="img"')
            with (
                ui.element("details")
                .classes("lexi-details")
                .on("toggle", self._toggled, js_handler="(event) => emit(event.target.open)"),
            ):
                with ui.element("summary").props(f'aria-label="As a table: {self._name}"'):
                    ui.label("As a table").classes("lexi-inline")
                with ui.element("div").classes("lexi-numbers"):
                    self._table = Part(self._rows)
        self._open = False

    def show(self, course: Mapping[str, Any]) -> None:
        """Take what is known now."""
        self._course = course
        words = now_words(course)
        self._now.set_text(words)
        self._chart.props["options"] = options(course)
        self._chart.props["aria-label"] = f"{self._name}, by market day. {words} The table below has the same numbers."
        self._chart.update()
        self._fill()

    def _toggled(self, event: GenericEventArguments) -> None:
        self._open = bool(event.args)
        self._fill()

    def _fill(self) -> None:
        """The rows, once somebody asks for them: they are many."""
        if self._open:
            self._table.show(self._course)

    def _rows(self, course: Mapping[str, Any]) -> None:
        table(COLUMNS, rows(course), label=f"{self._name} by market day, newest first")


def _courses(made: Made) -> list[Mapping[str, Any]]:
    return [course for course in made.content["courses"] if course["points"]]


def now_words(course: Mapping[str, Any]) -> str:
    """Where it stands after the newest day, and which way is better."""
    unit, last = course["unit"], course["points"][-1]
    ends = interval(last, unit, signed=True)
    certain = f"({ends})" if ends else f"({NO_INTERVAL})"
    worth = number(course["worth"], unit, signed=True).lstrip("+")
    now = f"{number(last['value'], unit, signed=True)} {certain}"
    return f"{now}. {BETTER[course['better']]}, from {worth} on it is worth having."


def rows(course: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Every look, newest first."""
    unit = course["unit"]
    return [
        (point["day"], number(point["value"], unit, signed=True), interval(point, unit, signed=True) or "not yet")
        for point in reversed(course["points"])
    ]
