"""Forecasts of a ticker: a chart of price, band and what came, and the same numbers as a table below it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from nicegui import ui
from nicegui.events import EChartPointClickEventArguments
from starlette.requests import Request

from services.analytics.console.layout.addresses import address
from services.analytics.console.layout.frame import Console, keep_fresh, page_frame, visitor_of
from services.analytics.console.layout.parts import Link, heading, note, table
from services.analytics.console.pages.forecasts.chart import SIGNS, marked, meant_for, options, word_of_row
from services.analytics.console.pages.forecasts.queries import (
    MOST_POINTS,
    Row,
    Series,
    newest_of,
    points,
    series_of_newest_feed,
)

PATH = "/forecasts"
EVERY_S = 5.0
LISTED = 50
"""How many rows the table has at first; the newest are what people look for, and each row takes its time to draw."""
ALL = "all"
COLUMNS = ("as of", "price", "mean", "lower", "upper", "for", "realised", "in the band", "decision")
NOTHING = "No forecast yet. The page Now shows them as they are written."


def add(console: Console) -> None:
    """Register the page."""

    @ui.page(PATH)
    async def page(request: Request, ticker: str = "", horizon: str = "", model: str = "", rows: str = "") -> None:  # pyright: ignore[reportUnusedFunction]
        visitor = visitor_of(request)
        with page_frame(visitor, title="Forecasts", here=PATH):
            try:
                async with console.engine.connect() as connection:
                    every = await series_of_newest_feed(connection)
                    series = chosen(every, ticker=ticker, horizon=horizon, model=model)
                    found = () if series is None else await points(connection, series)
            except Exception as error:  # noqa: BLE001 - the page says it, whatever it is
                note(f"The forecasts cannot be read now: {type(error).__name__}", tone="bad")
                return
            if series is None:
                note(f"No forecast of {ticker[:32]} in the feed that wrote last." if every else NOTHING)
            if every:
                _choice(every, series)
            if series is None:
                return
            newer = ui.element("div").props('role="status"')
            _shown(series, found, listed=len(found) if rows == ALL else LISTED)
        keep_fresh(console, visitor, _look_for_newer(console, series, newer), every_s=EVERY_S)


def chosen(every: Sequence[Series], *, ticker: str, horizon: str, model: str) -> Series | None:
    """The series that is asked for; what is left open is any, and without a ticker it is the first."""
    for series in every:
        asked = ((ticker, series.ticker), (horizon, series.horizon), (model, series.model))
        if all(wanted in ("", found) for wanted, found in asked):
            return series
    return None


def page_of(series: Series, *, rows: str = "") -> str:
    """The address of a series."""
    return address(PATH, {"ticker": series.ticker, "horizon": series.horizon, "model": series.model, "rows": rows})


def decision_page(forecast_id: UUID, as_of: datetime) -> str:
    """The address of a decision; its moment names the partition it is in."""
    return address(f"{PATH}/{forecast_id}", {"as_of": as_of.isoformat()})


def _choice(every: Sequence[Series], series: Series | None) -> None:
    tickers = [each.ticker for each in every]
    names = {
        number: each.ticker if tickers.count(each.ticker) == 1 else f"{each.ticker}, {each.horizon}, {each.model}"
        for number, each in enumerate(every)
    }
    now = None if series is None else every.index(series)
    with ui.row().classes("items-end gap-x-4").props('role="search"'):
        select = ui.select(names, label="Ticker", value=now, with_input=True).classes("w-60")

        def go() -> None:
            if select.value is not None:
                ui.navigate.to(page_of(every[int(select.value)]))

        ui.button("Show", on_click=go).props("outline no-caps")


def _look_for_newer(console: Console, series: Series, newer: ui.element) -> Any:
    """What looks for a newer forecast, and says so once. The table stays as it is: somebody may be reading it."""

    async def look() -> None:
        if newer.default_slot.children:
            return
        async with console.engine.connect() as connection:
            newest = await newest_of(connection, series)
        if newest not in {None, series.id}:
            with newer, ui.row().classes("lexi-card items-baseline"):
                ui.label("There are newer forecasts.")
                ui.link("Show them", page_of(series))

    return look


def _shown(series: Series, rows: Sequence[Row], *, listed: int) -> None:
    ui.label(f"{series.ticker}, {series.horizon} ahead, by {series.model}, from the feed {series.feed}").classes(
        "lexi-muted lexi-text"
    )
    _chart(series, rows)
    heading("The same as a table, newest first")
    with ui.element("div").classes("lexi-numbers"):
        table(COLUMNS, [_cells(row, series.horizon) for row in rows[:listed]], label="Forecasts, newest first")
    if len(rows) > listed:
        ui.link(f"List all {len(rows)} that the chart holds", page_of(series, rows=ALL))
    elif len(rows) == MOST_POINTS:
        ui.label(f"Older ones than these {MOST_POINTS} are not shown here.").classes("lexi-muted")


def _chart(series: Series, rows: Sequence[Row]) -> None:
    by_mark: Mapping[str, list[Row]] = {**marked(rows)}

    def opened(pressed: EChartPointClickEventArguments) -> None:
        found = by_mark.get(pressed.series_name, [])
        if 0 <= pressed.data_index < len(found):
            row = found[pressed.data_index]
            ui.navigate.to(decision_page(row["id"], row["as_of"]))

    chart = ui.echart(options(rows, series.horizon), on_point_click=opened, renderer="svg").classes("lexi-chart")
    chart.props["role"] = "img"
    chart.props["aria-label"] = (
        f"Price, forecast band, realised price and decisions of {series.ticker}. The table below has the same numbers."
    )
    with ui.element("ul").classes("lexi-legend").props('aria-label="What the chart shows"'):
        for name, (sign, colour) in SIGNS.items():
            with ui.element("li"):
                ui.label(sign).classes(f"lexi-{colour}").props('aria-hidden="true"')
                ui.label(name)
    ui.label("A mark stands where a forecast was made, and opens its decision. Times are UTC.").classes("lexi-muted")


def _cells(row: Row, horizon: str) -> tuple[object, ...]:
    made = Link(f"{row['as_of']:%Y-%m-%d %H:%M}", decision_page(row["id"], row["as_of"]))
    numbers = (row["last_price"], row["mean"], row["lower"], row["upper"])
    meant = f"{meant_for(row, horizon):%Y-%m-%d %H:%M}"
    if row["realised_price"] is None:
        return (made, *numbers, meant, "not yet", None, word_of_row(row))
    return (made, *numbers, meant, row["realised_price"], row["inside"], word_of_row(row))
