"""Evaluations: the runs that are registered, how validity went, two runs side by side, and a run with its report."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from nicegui import app as live_pages
from nicegui import ui
from starlette.requests import Request

from services.analytics.console.layout.addresses import address, moment_of, uuid_of
from services.analytics.console.layout.frame import Console, page_frame, visitor_of
from services.analytics.console.layout.parts import Link, facts, heading, note, table
from services.analytics.console.pages.evaluations import words
from services.analytics.console.pages.evaluations.queries import PAGE, Point, Run, run, runs, trend
from services.analytics.console.pages.evaluations.report import evaluation_report

PATH = "/evaluations"
RUNS = ("when", "run", "result", "versions", "cases with twins", "model", "asked by", "report")
NONE = "No evaluation is registered yet: make eval-llm makes one, and its report tells what came of it."
MOST_ROWS = 40
SPLIT = {"lineStyle": {"color": "#7f889444"}}


def add(console: Console) -> None:
    """Register the pages and the route of the report."""
    live_pages.include_router(evaluation_report(console))

    @ui.page(PATH)
    async def page(request: Request, before: str = "", first: str = "", second: str = "") -> None:  # pyright: ignore[reportUnusedFunction]
        with page_frame(visitor_of(request), title="Evaluations", here=PATH), ui.element("div").classes("lexi-wide"):
            try:
                async with console.engine.connect() as connection:
                    found = await runs(connection, before=moment_of(before))
                    points = [] if before else await trend(connection)
                    ids = [uuid_of(each) for each in (first, second)]
                    pair = [None if each is None else await run(connection, each) for each in ids]
            except Exception as error:  # noqa: BLE001 - the page says it, whatever it is
                note(f"The evaluations cannot be read now: {type(error).__name__}", tone="bad")
                return
            _runs(found, before=before)
            if found:
                _choice(found[:PAGE], first=first, second=second)
            if first or second:
                _compared(pair)
            if points:
                _trend(points)

    @ui.page(f"{PATH}/{{run_id}}")
    async def one(request: Request, run_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        with page_frame(visitor_of(request), title="Evaluation", here=PATH), ui.element("div").classes("lexi-wide"):
            wanted = uuid_of(run_id)
            try:
                async with console.engine.connect() as connection:
                    found = None if wanted is None else await run(connection, wanted)
            except Exception as error:  # noqa: BLE001 - as above
                note(f"The evaluation cannot be read now: {type(error).__name__}", tone="bad")
                return
            ui.link("All evaluations", PATH)
            if found is None:
                note("There is no evaluation of this id.")
            else:
                _run(found)


def _runs(found: Sequence[Run], *, before: str) -> None:
    if not found:
        note("No older ones." if before else NONE)
        return
    table(RUNS, [_line(each) for each in found[:PAGE]], label="Evaluations, newest first")
    if len(found) > PAGE:
        ui.link("Older", address(PATH, {"before": found[PAGE - 1].created_at.isoformat()}))


def _line(each: Run) -> tuple[object, ...]:
    name = Link(each.name or "(no name)", f"{PATH}/{each.id}")
    judged = (words.verdict(each), words.versions(each), each.cases)
    return (each.created_at, name, *judged, each.model, each.asked_by, _report(each))


def _report(each: Run) -> Link | None:
    return Link("open", f"{PATH}/{each.id}/report") if each.has_report else None


def _choice(found: Sequence[Run], *, first: str, second: str) -> None:
    names = {str(each.id): f"{each.created_at:%m-%d %H:%M} {each.name}" for each in found}
    heading("Two side by side")
    with ui.row().classes("items-end gap-x-4"):
        one = ui.select(names, label="This run", value=first if first in names else None).classes("w-64")
        other = ui.select(names, label="Beside this one", value=second if second in names else None).classes("w-64")

        def go() -> None:
            ui.navigate.to(address(PATH, {"first": one.value, "second": other.value}))

        ui.button("Compare", on_click=go).props("outline no-caps")


def _compared(pair: Sequence[Run | None]) -> None:
    found = [each for each in pair if each is not None]
    if len(found) != len(pair):
        note("Choose two evaluations that are registered.")
        return
    lacking = [each.name for each in found if each.summary is None]
    if lacking:
        note(f"No figures yet: {', '.join(lacking)}.")
        return
    for warning in words.same_ground(found[0], found[1]):
        note(warning, tone="note")
    names = [name for name, _ in words.columns(found)]
    table(("figure", *names), words.side_by_side(found), label="Figures side by side, with 95 % intervals")


def _trend(points: Sequence[Point]) -> None:
    heading("Validity from run to run")
    series = words.by_version(points)
    if any(len(each) > 1 for each in series.values()):
        ui.echart(chart(series)).classes("lexi-trend").props('role="img" aria-label="Validity from run to run"')
    table(words.TREND, words.trend_rows(points)[:MOST_ROWS], label="Validity from run to run, newest first")


def chart(series: dict[str, list[Point]]) -> dict[str, Any]:
    """A line for each version; the table below it has the same numbers and the intervals."""
    return {
        "animation": False,
        "grid": {"left": 54, "right": 16, "top": 40, "bottom": 30},
        "legend": {"type": "scroll", "top": 6, "textStyle": {"color": "#7f8894"}},
        "tooltip": {"trigger": "item", "renderMode": "richText"},
        "xAxis": {"type": "time"},
        "yAxis": {
            "type": "value",
            "scale": True,
            "max": 100,
            "axisLabel": {"formatter": "{value} %"},
            "splitLine": SPLIT,
        },
        "series": [
            {"name": name, "type": "line", "data": [[_ms(each.at), round(100 * each.value, 3)] for each in points]}
            for name, points in series.items()
        ],
    }


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _run(found: Run) -> None:
    tone = {"passed": "good", "MISSED": "bad", "failed": "bad"}.get(words.verdict(found), "note")
    note(f"{found.name}: {words.verdict(found)}.", tone=tone)
    facts(
        [
            ("asked by", found.asked_by),
            ("begun", found.made_at),
            ("ended", found.finished_at),
            ("cases, with their twins", found.cases),
            ("questions", found.total),
            ("model", found.model),
            ("trouble", found.error),
            ("id", found.id),
        ]
    )
    if found.has_report:
        ui.link("Open the report", f"{PATH}/{found.id}/report")
    heading("What was asked of each version")
    rows = list(words.threshold_rows(found.prompts))
    if rows:
        table(words.THRESHOLDS, rows, label="Thresholds")
    else:
        note("No threshold was asked: such a run promotes nothing.")
    if found.summary is None:
        note("Its figures are there once it has ended.")
        return
    for words_of_caution in found.summary.get("notices", ()):
        note(str(words_of_caution), tone="note")
    heading("Figures, with 95 % intervals and how many answers they stand on")
    names = [name for name, _ in words.columns([found])]
    table(("figure", *names), words.side_by_side([found]), label="Figures")
